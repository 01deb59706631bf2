"""Cached files are equal to the last byte, whether this process makes them, or workers, or both in turn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.pieces import KINDS, in_pieces, line, lost, read_first, read_there, swapped, twice

from templatekit import DataOptions, Registry
from templatekit.cache import preparation as run
from templatekit.cache import tables
from templatekit.cache.example_json import NotJsonSafe, example_to_json
from templatekit.cache.preparation import prepare_output
from templatekit.engines.jobs import Engine
from templatekit.errors import TemplatekitError
from templatekit.export.rows import to_row
from templatekit.pipeline.outputs import ExporterConverter, LengthCounts, keep_batches
from templatekit.pipeline.pipeline import Pipeline

SIZE = 5
"""Records of a shard in these tests."""
ENGINES = {"here": None, "in pieces": in_pieces, "read first": read_first, "read there": read_there}


class RunResult(NamedTuple):
    """Everything that a run gives."""

    samples: list[Any]
    counts: dict[str, Any]
    adapter: str | None
    lengths: LengthCounts
    error: str


class Place:
    """A file of rows, and folders for the caches of their samples."""

    def __init__(self, folder: Path, registry: Registry, tokenizer: Path) -> None:
        self.rows, self.cache, self._registry, self._tokenizer = folder / "rows.jsonl", folder, registry, tokenizer
        self.said: list[str] = []

    def run(self, engine: Engine | None, cache: str, *, sink: bool = False, **options: Any) -> RunResult:
        values = {"dataset": self.rows, "tokenizer": self._tokenizer, "template": "qwen3", "cache": bool(cache)}
        values |= {"cache_dir": self.cache / cache, **options}
        pipeline = Pipeline(
            DataOptions.parse({k: str(v) if isinstance(v, Path) else v for k, v in values.items()}), self._registry
        )
        lengths, samples, error = LengthCounts(), list[Any](), ""
        self.said = []
        make = ExporterConverter("openai") if sink else keep_batches
        try:
            for part in prepare_output(pipeline, make, engine=engine, lengths=lengths, say=self.said.append):
                samples += part.content if sink else (to_row(item.result) for item in part.content)
        except TemplatekitError as raised:
            error = f"{type(raised).__name__}: {raised}"
        adapter = pipeline.adapter.name if pipeline.adapter else None
        if error:  # the count of samples before the error depends on the chunks
            return RunResult([], {}, None, LengthCounts(), error)
        return RunResult(samples, pipeline.counts.as_dict(), adapter, lengths, error)

    def files(self, cache: str) -> dict[str, bytes]:
        """Every byte of every shard."""
        paths = (self.cache / cache).glob("prepared-*/*/[0-9]*/*")
        return {str(path.relative_to(self.cache / cache)): path.read_bytes() for path in paths}

    def lose(self, cache: str, numbers: set[int]) -> None:
        for folder in (self.cache / cache).glob("prepared-*/*/[0-9]*"):
            if int(folder.name) in numbers:
                shutil.rmtree(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def place(folder: Path, builtin: Registry, tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A place with rows of these kinds, an empty cache, and chunks of this many records."""
    monkeypatch.setattr(run, "SHARD_RECORDS", SIZE)

    def place(kinds: list[str], chunk: int = 3) -> Place:
        monkeypatch.setattr("templatekit.pipeline.pipeline.CHUNK_SIZE", chunk)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        found = Place(folder, builtin, tokenizer_of.folder("bytes"))
        found.rows.write_text("".join(line(kind, n) + "\n" for n, kind in enumerate(kinds)), encoding="utf-8")
        return found

    return place


OPTIONS = st.fixed_dictionaries(
    {"on_error": st.just("skip")},
    optional={
        "max_length": st.sampled_from([60, 400]),
        "limit": st.integers(1, 16),
        "train_on": st.sampled_from(["last", "response=0.5,user=0.1"]),
        "filter": st.just(("len(messages) < 4",)),
        "dedup": st.just("exact"),
        "shuffle": st.just(3),
    },
)
LISTS = st.lists(st.sampled_from([*["plain"] * 4, *KINDS]), min_size=1, max_size=17)


@given(
    kinds=LISTS,
    options=OPTIONS,
    chunk=st.integers(1, 7),
    first=st.sampled_from(list(ENGINES)),
    then=st.sampled_from(list(ENGINES)),
    gone=st.sets(st.integers(0, 4)),
    sink=st.booleans(),
)
@example(["plain"] * 10, {"on_error": "skip"}, 5, "read first", "here", {1}, False)
@example(["no record"] * 5 + ["plain"] * 6, {"on_error": "skip"}, 2, "read first", "read there", {0, 2}, True)
@example(["plain"] * 12 + ["system", "tool"], {"on_error": "skip"}, 2, "in pieces", "here", {1}, False)
@example(
    ["long"] * 12, {"on_error": "skip", "max_length": 60, "truncation": "response"}, 2, "in pieces", "here", {1}, False
)
def test_every_engine_makes_the_same(
    place: Any, kinds: list[str], options: dict[str, Any], chunk: int, first: str, then: str, gone: set[int], sink: bool
) -> None:
    at = place(kinds, chunk)
    expected = at.run(None, "one", sink=sink, **options)
    assert at.run(ENGINES[first], "other", sink=sink, **options) == expected
    assert at.files("other") == at.files("one")
    assert at.files("one") or "SourceError" in expected.error
    at.lose("other", gone)
    assert at.run(ENGINES[then], "other", sink=sink, **options) == expected
    assert at.files("other") == at.files("one")
    uncached = at.run(None, "", sink=sink, **options)
    if not expected.error:  # the chunks decide which of several reasons comes first
        assert uncached == expected


@given(
    good=st.lists(st.integers(0, 17), max_size=3).map(sorted),
    bad=st.integers(0, 17),
    chunk=st.integers(1, 7),
    how=st.sampled_from([{}, {"max_length": 120, "truncation": "error"}]),
    engine=st.sampled_from(list(ENGINES)),
)
def test_an_error_comes_after_the_shards_that_were_cached(
    place: Any, good: list[int], bad: int, chunk: int, how: dict[str, Any], engine: str
) -> None:
    kinds = ["plain"] * 18
    kinds[bad] = "long" if how else "wrong"
    for number in good:
        if number < bad:
            kinds[number] = "two turns"
    at = place(kinds, chunk)
    one = at.run(None, "one", **how)
    assert f":{bad}" in one.error
    assert at.run(ENGINES[engine], "other", **how) == one
    assert at.files("other") == at.files("one")
    assert {name.split("/")[2] for name in at.files("one")} == {f"{number:08}" for number in range(bad // SIZE)}


@pytest.mark.parametrize("engine", [swapped, lost, twice])
def test_an_engine_that_errs_is_caught(place: Any, engine: Engine) -> None:
    at = place(["plain"] * 12, 2)
    assert at.run(None, "one") != at.run(engine, "other")
    assert at.files("one") != at.files("other")


def test_origins_numbered_by_their_chunk_are_caught(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of concatenation: spans would refer to the origins of another chunk."""
    at = place(["plain", "plain", "system", "tool", "plain"], 2)
    expected = at.run(None, "one")
    monkeypatch.setattr(tables, "_reindexed", lambda texts, origins, roles: texts)
    at.run(in_pieces, "other")
    assert at.files("other") != at.files("one")
    assert at.run(None, "other") != expected


def test_cached_shards_start_no_worker(place: Any) -> None:
    """Where all shards are on disk, no engine is called."""

    def none(*given: Any) -> Any:
        raise AssertionError("a worker was set up")

    at = place(["plain"] * 12)
    expected = at.run(None, "one")
    assert at.run(none, "one") == expected
    at.lose("one", {1})
    with pytest.raises(AssertionError, match="set up"):
        at.run(none, "one")


@pytest.mark.parametrize("damaged", [0, 2, 3])
def test_a_damaged_shard_after_missing_ones_is_made_anew(place: Any, damaged: int) -> None:
    """Workers make the shards that are missing when they start; this process makes one that is found damaged later."""
    at = place(["plain", "system", "two turns"] * 6)
    expected = at.run(None, "one")
    before = at.files("one")
    at.lose("one", {1})
    (path,) = at.cache.glob(f"one/prepared-*/*/*{damaged}/texts.arrow")
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    assert at.run(read_first, "one") == expected
    assert at.files("one") == before
    assert sum("is damaged and made anew" in said for said in at.said) == 1


def test_samples_that_cannot_be_cached_are_reported_once(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = place(["plain"] * 12, 2)
    expected = at.run(None, "")

    def refusing(example: Any) -> bytes:
        if example.messages[0].content in ("q6", "q9"):
            raise NotJsonSafe(f"a date in {example.messages[0].content}")
        return example_to_json(example)

    monkeypatch.setattr(tables, "example_to_json", refusing)
    for engine in ENGINES.values():
        assert at.run(engine, "other") == expected
        assert [said for said in at.said if "not cached" in said] == [
            "cache: records from 5 on are not cached: one holds a date in q6"
        ]
        assert {name.split("/")[2] for name in at.files("other")} == {"00000000", "00000002"}
