"""Passwords and tokens of addresses are never shown."""

from __future__ import annotations

import pickle

import fsspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from templatekit.audit import audit
from templatekit.config.addresses import Address, masked, shown
from templatekit.config.data_options import DataOptions
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, SourceError
from templatekit.hooks.loading import create_registry
from templatekit.sources import open_source

SECRETS = [
    ("https://me:{}@host/x.jsonl", "https://me:***@host/x.jsonl"),
    ("https://{}@host/x.jsonl", "https://***@host/x.jsonl"),
    ("ftp://me:{}@host:21/x.csv", "ftp://me:***@host:21/x.csv"),
    ("https://h/x?X-Amz-Signature={}&part=1", "https://h/x?X-Amz-Signature=***&part=1"),
    ("https://h/x?a=1&sig={}", "https://h/x?a=1&sig=***"),
    ("https://h/x?token={}&a=1", "https://h/x?token=***&a=1"),
    ("https://h/x?access_token={}", "https://h/x?access_token=***"),
    ("https://h/x?X-Amz-Security-Token={}", "https://h/x?X-Amz-Security-Token=***"),
    ("https://h/x?X-Goog-Credential={}", "https://h/x?X-Goog-Credential=***"),
    ("https://h/x?API_KEY={}#top", "https://h/x?API_KEY=***#top"),
    ("s3://key:{}@bucket/x", "s3://key:***@bucket/x"),
    ("zip://x.jsonl::https://me:{}@host/x.zip", "zip://x.jsonl::https://me:***@host/x.zip"),
    ("zip::https://h/x.zip?token={}", "zip::https://h/x.zip?token=***"),
    ("http://me:{}@[::1]:80/x", "http://me:***@[::1]:80/x"),
    ("http://[::1]/x?sig={}", "http://[::1]/x?sig=***"),
]


@pytest.mark.parametrize(("address", "as_shown"), SECRETS)
@given(secret=st.text("abcXYZ0189%/+_-", min_size=4, max_size=20).filter(lambda text: "/" not in text))
def test_secrets_are_hidden(address: str, as_shown: str, secret: str) -> None:
    whole = address.format(secret)
    assert shown(whole) == str(Address(whole)) == f"{Address(whole)}" == as_shown
    assert Address(whole).whole == whole
    assert pickle.loads(pickle.dumps(Address(whole))).whole == whole
    assert masked(f"no host at {whole}!", Address(whole)) == f"no host at {as_shown}!"
    assert Address(as_shown).lacks_secret()
    assert not Address(whole).lacks_secret()


@pytest.mark.parametrize(
    "address",
    [
        *("starter", "-", "", "data/*.jsonl", "data/***", "a:b@c", "x?token=3", "s3://bucket/***/x.jsonl"),
        *("https://host/a:b@c/x.json", "abfs://container@account/x", "https://h/x?page=3&design=2", "sftp://me@host/x"),
    ],
)
def test_nothing_else_is_hidden(address: str) -> None:
    assert shown(address) == address
    assert not Address(address).lacks_secret()


def test_three_stars_elsewhere_are_no_secret() -> None:
    assert not Address("https://me:hunter22@host/***/x.jsonl").lacks_secret()
    assert Address("https://me:***@host/***/x.jsonl?sig=c0ffee").lacks_secret()


def test_each_secret_of_a_chain_is_masked() -> None:
    address = Address("zip://x.jsonl::https://me:hunter%2322@host/x.zip?sig=c0ffee")
    assert masked("user me, password hunter#22 or hunter%2322, signature c0ffee", address) == (
        "user me, password *** or ***, signature ***"
    )


def test_options_show_no_secret() -> None:
    whole = "https://me:hunter22@host/x.jsonl?sig=c0ffee"
    for options in (
        DataOptions(dataset=whole),
        DataOptions(dataset=Address(whole)),
        DataOptions.parse({"mix": [f"{whole},weight=2"]}),
        FinetuneOptions(eval_dataset=whole),
    ):
        texts = [
            repr(options),
            options.model_dump_json(),
            yaml.safe_dump(options.model_dump(mode="json")),
            str(pickle.loads(pickle.dumps(options))),
            str(options.model_copy(update={"limit": 1})),
        ]
        assert all("***" in text for text in texts)
        assert not any("hunter22" in text or "c0ffee" in text for text in texts)
        address = options.mix[0].dataset if options.mix else getattr(options, "eval_dataset", None) or options.dataset
        assert isinstance(address, Address)
        assert address.whole == whole


def test_errors_of_options_show_no_secret() -> None:
    for mixed in ("weight=1,weight=2", "weight"):
        with pytest.raises(ConfigError, match=r"mix\.0: found 'https://me:\*\*\*@host/x,weight"):
            DataOptions.parse({"mix": [f"https://me:hunter22@host/x,{mixed}"]})


def test_a_report_shows_no_secret_of_the_sets_that_it_compares_with() -> None:
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe("/rows.jsonl?token=c0ffee11", b'{"instruction": "a", "input": "", "output": "b"}\n')
        memory.pipe("/none.jsonl?token=c0ffee11", b'{"nothing": 1}\n')
        report = audit(DataOptions(limit=3), against=["memory://rows.jsonl?token=c0ffee11"])
        assert [other.dataset for other in report.against] == ["memory://rows.jsonl?token=***"]
        assert report.against[0].rows == 1
        assert "c0ffee11" not in repr(report)
        with pytest.raises(ConfigError, match=r"--against 'memory://none\.jsonl\?token=\*\*\*'") as caught:
            audit(DataOptions(limit=3), against=["memory://none.jsonl?token=c0ffee11"])
        assert "c0ffee11" not in str(caught.value)
    finally:
        memory.store.clear()


def test_an_address_that_was_shown_cannot_be_read() -> None:
    with pytest.raises(SourceError, match=r"https://me:\*\*\*@host/x: \*\*\* stands where a password"):
        open_source("https://me:***@host/x", create_registry(select=[]))


@pytest.mark.parametrize("address", ["", " ", "\t"])
def test_an_empty_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset: found .*; expected a file, a folder"):
        DataOptions.parse({"dataset": address})
    with pytest.raises(ConfigError, match=r"eval_dataset: found .*; expected a file, a folder"):
        FinetuneOptions.parse({"eval_dataset": address})
    with pytest.raises(ConfigError, match=r"mix\.0\.dataset: found .*; expected a file, a folder"):
        DataOptions.parse({"mix": [f"{address},weight=2"]})


def test_an_empty_address_of_any_other_option_is_refused(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder is read only where it is named."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "x.jsonl").write_text('{"a": 1}\n')
    monkeypatch.chdir(folder)
    with pytest.raises(SourceError, match="the address of the data is empty"):
        open_source("", create_registry(select=[]))
    assert list(open_source(".", create_registry(select=[]))) == [{"a": 1}]
