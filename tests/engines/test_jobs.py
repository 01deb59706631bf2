"""A run in chunks, of any size and by any engine, gives the same as a run over all records at once."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.pieces import KINDS, in_pieces, line, lost, swapped, twice

from templatekit import DataOptions, Registry
from templatekit.cli.output import CountedPacks, write_atomically
from templatekit.config.render_options import RenderOptions
from templatekit.engines.jobs import ChunkResult, Engine, WorkerSetup, output_chunks
from templatekit.errors import RecordError, TemplatekitError
from templatekit.export.rows import JsonLines
from templatekit.packing import pack_stream
from templatekit.pipeline.chunks import Chunk
from templatekit.pipeline.mixture import create_pipeline
from templatekit.pipeline.outputs import ExporterConverter, LengthCounts, chunks_for_exporter, is_packed, takes_columns
from templatekit.sources.chunked import chunked
from templatekit.sources.limits import told_size

SINKS = ("jsonl", "parquet", "arrow", "openai", "sharegpt", "datasets", "axolotl")


class RunResult(NamedTuple):
    """Everything that a user sees of a run."""

    files: dict[str, bytes]
    counts: dict[str, Any]
    lengths: LengthCounts
    error: str


def run(engine: Engine | str, options: DataOptions, sink: str, registry: Registry, folder: Path) -> RunResult:
    """A run by an engine, `here` (this process, in chunks), or `at once` (this process, without chunks)."""
    pipeline, exporter, lengths = create_pipeline(options, registry), registry.exporters[sink], LengthCounts()
    if engine == "at once":
        parts = chunks_for_exporter(lengths.observe(pipeline.batches()), exporter, pipeline)
    else:
        workshop = None if isinstance(engine, str) else engine
        parts = output_chunks(pipeline, ExporterConverter(sink), engine=workshop, observer=lengths)
    output = folder / "output"
    error = ""
    packs = CountedPacks(pack_stream((part.content for part in parts), 500), 500) if is_packed(pipeline) else None
    try:
        write_atomically(exporter, packs or parts, output, columns=takes_columns(exporter, pipeline))
    except TemplatekitError as raised:
        error = f"{type(raised).__name__}: {raised}"
    # The name of an Arrow file of `datasets` and its fingerprint are drawn anew each time.
    paths = [output] if output.is_file() else sorted(output.glob("*.arrow")) + sorted(output.glob("*.jsonl"))
    files = {path.name: path.read_bytes() for path in paths if path.exists()}
    for path in [*output.glob("*"), output] if output.is_dir() else paths:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    # Counts before an error are not compared: they depend on how far a batch reads ahead of the error.
    return RunResult(files, {} if error else pipeline.counts.as_dict(), LengthCounts() if error else lengths, error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def compare(folder: Path, builtin: Registry, tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The results of rows of these kinds: here in chunks, by an engine in chunks, and at once."""
    tokenizer = str(tokenizer_of.folder("bytes"))

    def compared(
        kinds: list[str], sink: str, size: int, engine: Engine = in_pieces, *, packs: bool = False, **options: Any
    ) -> list[RunResult]:
        monkeypatch.setattr("templatekit.pipeline.pipeline.CHUNK_SIZE", size)
        monkeypatch.setattr("templatekit.pipeline.mixture._CHUNK_SIZE", size)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(line(kind, number) + "\n" for number, kind in enumerate(kinds)), encoding="utf-8")
        if options.pop("mixed", False):
            (folder / "others.jsonl").write_text("".join(line("plain", n) + "\n" for n in range(5)), encoding="utf-8")
            others = {"dataset": str(folder / "others.jsonl"), "repeat": 2, "name": "others"}
            options["mix"] = [{"dataset": str(rows), "template": "qwen3"}, others]
        else:
            options["dataset"] = str(rows)
        if options.pop("tokenized", True):
            options |= {"tokenizer": tokenizer, "max_length": 400}
            options |= {"pack_tokens": 500} if packs and builtin.exporters[sink].takes_packs else {}
        parsed = RenderOptions.parse({"template": "qwen3", **options})
        return [run(one, parsed, sink, builtin, folder) for one in ("here", engine, "at once")]

    return compared


@given(
    kinds=st.lists(st.sampled_from([*["plain"] * 6, *KINDS]), min_size=1, max_size=12),
    sink=st.sampled_from(SINKS),
    size=st.integers(1, 5),
    tokenized=st.sampled_from([True, True, False]),
    mixed=st.booleans(),
    packs=st.booleans(),
    on_error=st.sampled_from(["skip", "stop"]),
)
@example(["two turns", "half"], "datasets", 1, True, True, False, "skip")
@example(["two turns", "half", "long"], "datasets", 1, True, False, True, "skip")
@example(["plain"] * 4 + ["wrong", "no record"], "jsonl", 3, True, False, False, "stop")
@example(["half", "wrong"], "openai", 1, True, False, False, "stop")
def test_pieces_come_to_the_same(
    compare: Any, kinds: list[str], sink: str, size: int, tokenized: bool, mixed: bool, packs: bool, on_error: str
) -> None:
    options = {"tokenized": tokenized, "mixed": mixed, "packs": packs, "on_error": on_error}
    here, pieces, whole = compare(kinds, sink, size, **options)
    assert here == pieces
    if " samples left; " not in here.error:  # which of several reasons is the first depends on the pieces
        assert here == whole


def counted_on(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    last = None
    for done in in_pieces(setup, chunks):
        assert done.counts is not None
        if last is not None:
            done.counts.merge(last)
        last = done.counts
        yield done


def unplaced(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    return in_pieces(setup, (replace(chunk, first_row=0) for chunk in chunks))


@pytest.mark.parametrize("engine", [swapped, lost, twice, counted_on, unplaced])
def test_an_engine_that_errs_is_caught(compare: Any, engine: Engine) -> None:
    here, pieces, whole = compare(["plain"] * 6, "jsonl", 2, engine)
    assert here == whole != pieces


def test_what_was_read_before_an_error_comes_with_it() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("ended")

    assert list(chunked(range(4), 2, told_size)) == [([0, 1], None), ([2, 3], None)]
    whole, (rest, error) = chunked(items(), 3, told_size)
    assert (whole, rest, str(error)) == (([0, 1, 2], None), [3, 4], "ended")


def test_a_row_of_which_nothing_is_left_is_taken_back_once(builtin: Registry) -> None:
    """If both samples of a row are refused, `rows_out` falls by one, not by two."""
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    pipeline = create_pipeline(DataOptions.parse({"template": "qwen3", "on_error": "skip"}), builtin)

    class Picky(JsonLines):
        def admit(self, sample: Any) -> Any:
            if sample.rendered.row == 0:
                raise RecordError("no place")
            return super().admit(sample)

    rows = [{"messages": turn * 2}] * 2
    parts = list(chunks_for_exporter(pipeline.batches(rows), Picky(), pipeline))
    assert sum(part.samples for part in parts) == pipeline.counts.samples == 2
    assert pipeline.counts.rows_out == 1
