from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from templatekit import sources
from templatekit.errors import PluginError, RecordError, SourceError
from templatekit.hooks.contracts import Source
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.hooks.specs import hookimpl
from templatekit.sources import find_source, open_source
from templatekit.sources.starter import FILES
from templatekit.types import Record

Write = Callable[[str, "str | bytes"], str]


def test_the_import_is_cheap() -> None:
    heavy = ["pyarrow", "datasets", "torch", "numpy", "pandas", "huggingface_hub", "transformers"]
    code = f"import sys, templatekit.sources; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_installed_plugin_offers_them() -> None:
    assert list(create_registry(select=[]).sources) == [
        *("starter", "stdin", "remote", "saved", "folder", "glob", "arrow", "csv", "json", "hub")
    ]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("starter", "starter"),
        ("starter-dolly", "starter"),
        ("missing.json", "json"),
        ("some/missing.jsonl.gz", "json"),
        ("missing.PARQUET", "arrow"),
        ("missing.feather", "arrow"),
        ("tatsu-lab/alpaca", "hub"),
        ("tatsu-lab/alpaca:train", "hub"),
        ("here", "folder"),
        ("./here", "folder"),
        ("here.parquet", "folder"),
        ("saved", "saved"),
        ("saved:train", "saved"),
        ("file", "json"),
        ("file.csv", "csv"),
        ("missing.csv.gz", "csv"),
        ("missing.jsonl.zst", "json"),
        ("s3://bucket/rows.parquet", "remote"),
        ("here/*.json", "glob"),
        ("odd[1].json", "json"),
        ("-", "stdin"),
        ("./-", "json"),
        ("./starter", "json"),
    ],
)
def test_who_reads_what(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "here.parquet", "saved"):
        (tmp_path / folder).mkdir()
    for file in ("saved/state.json", "file", "file.csv", "starter", "odd[1].json", "-"):
        (tmp_path / file).write_text("{}")
    assert find_source(address, registry).name == name


@pytest.mark.parametrize(
    "address", ["nothing", "here/nothing", "", ":", ":train", "a/b/c", "x\0y", "x" * 5000, "~", "~no/x"]
)
def test_an_unknown_address(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    (tmp_path / "here").mkdir()
    with pytest.raises(SourceError):
        list(open_source(address, registry))


def test_an_unknown_address_lists_its_neighbours(registry: Registry, write: Write, tmp_path: Path) -> None:
    write("alpaca", "")
    with pytest.raises(SourceError) as caught:
        open_source(str(tmp_path / "alpacca"), registry)
    assert str(caught.value) == (
        f"{tmp_path}/alpacca: no data there; expected a file, a folder, a quoted pattern, a URL, a hub name "
        f"(organisation/name), 'starter' or '-'; did you mean '{tmp_path}/alpaca'?"
    )


@pytest.mark.parametrize("name", FILES)
def test_the_starter_sets(registry: Registry, name: str) -> None:
    rows = list(open_source(name, registry))
    assert len(rows) > 20
    keys = {"instruction", "input", "output"} if name == "starter" else {"instruction", "context", "response"}
    for row in rows:
        assert isinstance(row, dict), row
        assert keys <= row.keys()
        assert all(isinstance(row[key], str) for key in keys)


def test_an_incomplete_installation(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "starter", "gone.json")
    with pytest.raises(SourceError, match="the installed package lacks"):
        list(open_source("starter", registry))


def test_columns_and_rows(registry: Registry, write: Write) -> None:
    address = write("x.jsonl", '{"q": 1}\n\n{"q": 2\n{"p": 3}\n{"q": 4}\n')
    items = list(open_source(address, registry, columns={"instruction": "q"}))
    assert items[0] == {"instruction": 1}
    assert items[3] == {"instruction": 4}
    broken, lacking = items[1], items[2]
    assert isinstance(broken, RecordError)
    assert isinstance(lacking, RecordError)
    assert str(broken).startswith(f"{address}:1: line 3: ")
    assert str(lacking) == f"{address}:2:q: no column 'q'; known: p"


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9, None])
def test_a_limit_counts_items_and_reads_no_further(registry: Registry, write: Write, limit: int | None) -> None:
    address = write("x.json", '[{"a": 1}, 2, {"a": 3}]')
    assert len(list(open_source(address, registry, limit=limit))) == min(3, 3 if limit is None else limit)
    if limit is not None and limit < 4:
        broken = write("y.json", '[{"a": 1}, 2, {"a": 3}, oops')
        assert len(list(open_source(broken, registry, limit=limit))) == limit


class Odd(Source):
    name = "odd"

    def __init__(self, items: Any, accepts: bool | Exception = True) -> None:
        self.items = items
        self.answer = accepts
        self.closed = False

    def accepts(self, address: str) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def read(self, address: str) -> Iterator[Record | RecordError]:
        try:
            for item in self.items:
                if isinstance(item, Exception) and not isinstance(item, RecordError):
                    raise item
                yield item
        finally:
            self.closed = True


def with_source(source: Source) -> Registry:
    class Plugin:
        @hookimpl
        def templatekit_sources(self) -> list[Source]:
            return [source]

    return create_registry(entry_points=False, plugins=[Plugin(), sources])


def test_a_plugins_source_comes_first() -> None:
    source = Odd([{"a": 1}, RecordError("no", reason="mine"), {"a": 2}])
    items = open_source("starter", with_source(source), columns={"b": "a"}, limit=2)
    first, second = items
    assert first == {"b": 1}
    assert str(second) == "starter:1: no"
    assert source.closed or not list(items)


@pytest.mark.parametrize("item", [None, "text", ["list"], 1, KeyError("x"), ZeroDivisionError("y")])
def test_a_plugin_that_breaks_its_contract_is_named(item: object) -> None:
    items = open_source("x", with_source(Odd([{"a": 1}, item])))
    assert next(items) == {"a": 1}
    with pytest.raises(PluginError, match=r"plugin 'Plugin' .*: source 'odd' raised in read\('x'\)"):
        next(items)


def test_a_plugins_own_error_passes() -> None:
    with pytest.raises(SourceError, match=r"^mine$"):
        list(open_source("x", with_source(Odd([SourceError("mine")]))))


def test_a_plugin_that_raises_when_asked_is_named() -> None:
    with pytest.raises(PluginError, match=r"source 'odd' raised in accepts\('x'\): ValueError: oh"):
        open_source("x", with_source(Odd([], ValueError("oh"))))
    assert list(open_source("starter", with_source(Odd([], False)), limit=1))


def test_records_are_plain_and_new(registry: Registry, write: Write) -> None:
    address = write("x.json", json.dumps([{"a": {"b": [1]}}] * 2))
    first, second = open_source(address, registry)
    assert type(first) is dict
    assert isinstance(second, dict)
    first["a"]["b"].append(2)
    assert second == {"a": {"b": [1]}}
