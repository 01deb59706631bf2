"""Files with one row an example: `row`, `text`, `input_ids`, `labels`, `spans`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO

from templatekit.sinks import Exporter
from templatekit.types import RenderedText, TokenizedExample

if TYPE_CHECKING:
    import pyarrow as pa

    from templatekit.columns import TokenizedColumns

_BATCH = 1024
"""Rows of a record batch or of a row group."""
_FEW_VALUES = ["source", "sample", "spans.list.element.origin", "loss_weights.list.element", "truncated"]
"""Columns of a parquet file that hold the same few values."""


def to_row(example: RenderedText | TokenizedExample) -> dict[str, Any]:
    """One example as plain values.

    `source` is there only where the run has several sets, `sample` only where the record gave several,
    `loss_weights` only where one is neither 0 nor 1, `truncated` only where the example was shortened.
    """
    rendered = example.rendered if isinstance(example, TokenizedExample) else example
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


class JsonLines(Exporter):
    """One JSON object a line."""

    name = "jsonl"
    description = "JSON Lines, one example a line"
    suffixes = (".jsonl", ".ndjson", ".json")

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """Text stays readable: only what JSON must escape is escaped."""
        count = 0
        for example in examples:
            file.write(_line(example))
            count += 1
        return count

    def convert(self, columns: TokenizedColumns) -> tuple[int, bytes]:
        """The number of lines, and the lines."""
        return len(columns), b"".join(map(_line, columns))

    def write_converted(self, parts: Iterable[tuple[int, bytes]], file: BinaryIO) -> int:
        """Lines as they come."""
        count = 0
        for lines, text in parts:
            file.write(text)
            count += lines
        return count


def _line(example: RenderedText | TokenizedExample) -> bytes:
    return (json.dumps(to_row(example), ensure_ascii=False) + "\n").encode()


class ParquetRows(Exporter):
    """A parquet file."""

    name = "parquet"
    description = "parquet, for pandas, polars, DuckDB and datasets"
    suffixes = (".parquet",)

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """In row groups, so that memory stays flat."""
        return self._write(_batches(examples), file)

    def convert(self, columns: TokenizedColumns) -> pa.RecordBatch:
        """The rows in columns."""
        return _record_batch(columns)

    def write_converted(self, parts: Iterable[pa.RecordBatch], file: BinaryIO) -> int:
        """In the same row groups."""
        return self._write(_evened(parts), file)

    def _write(self, batches: Iterator[pa.RecordBatch], file: BinaryIO) -> int:
        import pyarrow.parquet

        # zstd takes as long as the default, snappy with a dictionary for each column, and a quarter less room.
        def open_writer(schema: pa.Schema) -> Any:
            return pyarrow.parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=_FEW_VALUES)

        return _write_batches(batches, open_writer)


class ArrowRows(Exporter):
    """An Arrow IPC file, for pandas, polars and `datasets.load_dataset("arrow", data_files=…)`."""

    name = "arrow"
    description = "Arrow IPC file"
    suffixes = (".arrow", ".feather")

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """In record batches, so that memory stays flat."""
        return self._write(_batches(examples), file)

    def convert(self, columns: TokenizedColumns) -> pa.RecordBatch:
        """The rows in columns."""
        return _record_batch(columns)

    def write_converted(self, parts: Iterable[pa.RecordBatch], file: BinaryIO) -> int:
        """In the same record batches."""
        return self._write(_evened(parts), file)

    def _write(self, batches: Iterator[pa.RecordBatch], file: BinaryIO) -> int:
        import pyarrow as pa

        return _write_batches(batches, lambda schema: pa.ipc.new_file(file, schema))


def _write_batches(batches: Iterator[pa.RecordBatch], open_writer: Callable[[pa.Schema], Any]) -> int:
    """Writes the batches with the writer that is opened for their schema; returns the number of their rows."""
    first = next(batches)
    count = 0
    with open_writer(first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _batches(examples: Iterable[RenderedText | TokenizedExample]) -> Iterator[pa.RecordBatch]:
    """Batches of one schema: a file has one. There is `sample`, and with ids `loss_weights` and `truncated`.

    At least one, so that a file without examples has columns too.
    """
    import pyarrow as pa

    from templatekit.columns import TokenizedColumns

    source = iter(examples)
    first = list(islice(source, _BATCH))
    for chunk in chain([first], iter(lambda: list(islice(source, _BATCH)), [])):
        tokenized = [example for example in chunk if isinstance(example, TokenizedExample)]
        if tokenized:
            yield _record_batch(TokenizedColumns.of(tokenized))
        else:
            yield pa.record_batch(_text_arrays([example for example in chunk if isinstance(example, RenderedText)]))


def _evened(parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches as `_batches` has them."""
    import pyarrow as pa

    from templatekit.columns import TokenizedColumns

    waiting: list[pa.RecordBatch] = []
    empty = True
    for part in parts:
        waiting.append(part)
        if sum(batch.num_rows for batch in waiting) >= _BATCH:
            rows = pa.concat_batches(waiting)
            end = rows.num_rows // _BATCH * _BATCH
            for start in range(0, end, _BATCH):
                yield rows.slice(start, _BATCH)
            waiting = [rows.slice(end)] if end < rows.num_rows else []
            empty = False
    if waiting:
        yield pa.concat_batches(waiting)
    elif empty:
        yield _record_batch(TokenizedColumns.join([]))


def _record_batch(columns: TokenizedColumns) -> pa.RecordBatch:
    import pyarrow as pa

    from templatekit.columns import token_arrays

    truncated = pa.array(list(columns.truncated), type=pa.string())
    return pa.record_batch({**_text_arrays(columns.rendered), **token_arrays(columns), "truncated": truncated})


def _text_arrays(texts: Sequence[RenderedText]) -> dict[str, pa.Array]:
    """What there is of an example without ids: `row`, `source` where there are several, `sample`, `text`, `spans`."""
    import pyarrow as pa

    from templatekit.export.spans import span_lists

    return {
        "row": pa.array([rendered.row for rendered in texts], type=pa.int64()),
        **({"source": pa.array([rendered.source for rendered in texts])} if texts and texts[0].source else {}),
        "sample": pa.array(map(_sample, texts), type=pa.int32()),
        "text": pa.array(map(_text, texts), type=pa.large_string()),
        "spans": span_lists(texts),
    }


def _sample(rendered: RenderedText) -> int:
    filled = rendered.filled
    return rendered.sample if filled is None else filled.outline.sample


def _text(rendered: RenderedText) -> str:
    filled = rendered.filled
    return rendered.text if filled is None else "".join(filled.texts)  # which nobody else may need
