"""Files with one row an example: `row`, `text`, `input_ids`, `labels`, `spans`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO

from templatekit.sinks import Exporter
from templatekit.types import RenderedText, TokenizedExample

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1024


def to_row(example: RenderedText | TokenizedExample) -> dict[str, Any]:
    """One example as plain values.

    `source` is there only where the run has several sets, `sample` only where the record gave several,
    `loss_weights` only where one is neither 0 nor 1, `truncated` only where the example was shortened.
    """
    rendered = _rendered(example)
    row: dict[str, Any] = {"row": rendered.row}
    if rendered.source:
        row["source"] = rendered.source
    if rendered.samples > 1:
        row["sample"] = rendered.sample
    row["text"] = rendered.text
    if isinstance(example, TokenizedExample):
        row["input_ids"] = list(example.input_ids)
        row["labels"] = list(example.labels)
        if any(weight not in (0, 1) for weight in example.loss_weights):
            row["loss_weights"] = list(example.loss_weights)
        if example.truncated:
            row["truncated"] = example.truncated
    row["spans"] = [{"start": s.start, "end": s.end, "origin": str(s.origin)} for s in rendered.spans]
    return row


def _rendered(example: RenderedText | TokenizedExample) -> RenderedText:
    return example.rendered if isinstance(example, TokenizedExample) else example


class JsonLines(Exporter):
    """One JSON object a line."""

    name = "jsonl"
    description = "JSON Lines, one example a line"
    suffixes = (".jsonl", ".ndjson", ".json")

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """Text stays readable: only what JSON must escape is escaped."""
        count = 0
        for example in examples:
            file.write((json.dumps(to_row(example), ensure_ascii=False) + "\n").encode())
            count += 1
        return count


class ParquetRows(Exporter):
    """A parquet file."""

    name = "parquet"
    description = "parquet, for pandas, polars, DuckDB and datasets"
    suffixes = (".parquet",)

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """In row groups, so that memory stays flat."""
        import pyarrow.parquet

        return _write_batches(examples, lambda schema: pyarrow.parquet.ParquetWriter(file, schema))


class ArrowRows(Exporter):
    """An Arrow IPC file, for pandas, polars and `datasets.load_dataset("arrow", data_files=…)`."""

    name = "arrow"
    description = "Arrow IPC file"
    suffixes = (".arrow", ".feather")

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """In record batches, so that memory stays flat."""
        import pyarrow as pa

        return _write_batches(examples, lambda schema: pa.ipc.new_file(file, schema))


def _write_batches(examples: Iterable[RenderedText | TokenizedExample], open_writer: Callable[[pa.Schema], Any]) -> int:
    """Writes the examples batch by batch with the writer that is opened for their schema; returns their number."""
    batches = _batches(examples)
    first = next(batches)
    count = 0
    with open_writer(first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _batches(examples: Iterable[RenderedText | TokenizedExample]) -> Iterator[pa.RecordBatch]:
    """Columnar batches of one schema: a file has one. There is `sample`, and with ids `loss_weights` and `truncated`.

    At least one, so that a file without examples has columns too.
    """
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    span = pa.struct({"start": pa.int64(), "end": pa.int64(), "origin": pa.string()})
    base: dict[str, pa.DataType] = {
        "row": pa.int64(),
        "sample": pa.int32(),
        "text": pa.large_string(),
        "spans": pa.list_(span),
    }
    tokens = {"input_ids": ids, "labels": ids, "loss_weights": pa.list_(pa.float32()), "truncated": pa.string()}
    source = iter(examples)
    chunk = list(islice(source, _BATCH))
    if chunk and _rendered(chunk[0]).source:
        base = {"row": base["row"], "source": pa.string(), **base}
    schema = pa.schema({**base, **tokens} if chunk and isinstance(chunk[0], TokenizedExample) else base)
    while True:
        rows = [to_row(example) for example in chunk]
        for row, example in zip(rows, chunk, strict=True):
            row["sample"] = _rendered(example).sample
            if isinstance(example, TokenizedExample):
                row["loss_weights"] = list(example.loss_weights)
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
        chunk = list(islice(source, _BATCH))
        if not chunk:
            return
