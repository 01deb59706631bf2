"""Exporters that write one row for each example: `row`, `text`, `input_ids`, `labels`, `spans`."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from templatekit.export.packs import pack_record_batch, pack_rows
from templatekit.hooks.exporters import Exporter, write_json_lines
from templatekit.sources.chunked import CHUNK_BYTES, chunked
from templatekit.types import RenderedText, TokenizedExample

if TYPE_CHECKING:
    import pyarrow as pa

    from templatekit.packing import Packs
    from templatekit.packing.columns import TokenizedColumns

_BATCH_ROWS = 1024
"""Rows of a record batch or of a row group, which ends early where its texts are more than `CHUNK_BYTES` together."""
_MANY_TOKENS = 1 << 16
"""Tokens of an example that is written from its arrays, a part at a time: as a number each takes 32 bytes and more."""
_DICTIONARY_COLUMNS = ["source", "sample", "spans.list.element.origin", "loss_weights.list.element", "truncated"]
"""Columns of a parquet file that have few different values, and are stored with a dictionary of them."""


def to_row(example: RenderedText | TokenizedExample) -> dict[str, Any]:
    """One example as plain values.

    Some keys are there only if they say something: `source` if the run has several, `sample` if the record gave several
    samples, `loss_weights` if one is neither 0 nor 1, `truncated` if the example was shortened.
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


def _write_long_row(columns: TokenizedColumns, file: BinaryIO) -> None:
    """Write the same line for a single example as `write_json_lines` for its `to_row`, with little memory."""
    weights = columns.loss_weights if columns.is_weighted else columns.loss_weights[:0]
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": columns.input_ids,
        "labels": columns.labels,
        "loss_weights": weights,
    }
    example = TokenizedExample(
        input_ids=(), loss_weights=(), rendered=columns.rendered[0], truncated=columns.truncated[0]
    )
    row: dict[str, Any] = {}
    for name, value in to_row(example).items():
        row[name] = value
        if name == "labels" and len(weights):
            row["loss_weights"] = []
    for number, (name, value) in enumerate(row.items()):
        file.write(f"{', ' if number else '{'}{json.dumps(name)}: ".encode())
        if name not in arrays:
            file.write(json.dumps(value, ensure_ascii=False).encode())
            continue
        array = arrays[name]
        for start in range(0, len(array), _MANY_TOKENS):
            part = json.dumps(array[start : start + _MANY_TOKENS].tolist())
            file.write(f"{', ' if start else '['}{part[1:-1]}".encode())
        file.write(b"]")
    file.write(b"}\n")


class JsonLines(Exporter):
    """One JSON object a line."""

    name = "jsonl"
    description = "JSON Lines, one example a line"
    suffixes = (".jsonl", ".ndjson", ".json")
    takes_packs = True

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """Write a line for each example."""
        return write_json_lines(map(to_row, examples), file)

    def convert(self, columns: TokenizedColumns) -> tuple[int, bytes]:
        """The count of lines, and the lines."""
        lines = BytesIO()
        for index, length in enumerate(columns.lengths.tolist()):
            if length > _MANY_TOKENS:
                _write_long_row(columns.slice(index), lines)
            else:
                self.write([columns[index]], lines)
        return len(columns), lines.getvalue()

    def write_converted(self, chunks: Iterable[tuple[int, bytes]], file: BinaryIO) -> int:
        """Write the lines unchanged."""
        count = 0
        for lines, text in chunks:
            file.write(text)
            count += lines
        return count

    def write_packs(self, packs: Iterable[Packs], file: BinaryIO) -> int:
        """Write a line for each pack; `loss_weights` and `samples` are left out where they say nothing."""
        return write_json_lines(chain.from_iterable(map(pack_rows, packs)), file)


class ArrowExporter(Exporter):
    """Writes Arrow record batches of at most `_BATCH_ROWS` rows; subclasses open the file, each of another kind."""

    takes_packs = True

    @abstractmethod
    def open_writer(self, file: BinaryIO, schema: pa.Schema) -> AbstractContextManager[Any]:
        """A writer with a method `write_batch` for record batches of this schema, which completes the file on exit."""

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """Write batches, so that memory use does not grow with the data."""
        return self._write(_batches(examples), file)

    def convert(self, columns: TokenizedColumns) -> pa.RecordBatch:
        """The rows as a record batch."""
        return _record_batch(columns)

    def write_converted(self, chunks: Iterable[pa.RecordBatch], file: BinaryIO) -> int:
        """Write the same batches as `write`, however the rows are divided into chunks."""
        return self._write(_rebatched(chunks), file)

    def write_packs(self, packs: Iterable[Packs], file: BinaryIO) -> int:
        """Write a batch for each window of packs."""
        return self._write(map(pack_record_batch, packs), file)

    def _write(self, batches: Iterator[pa.RecordBatch], file: BinaryIO) -> int:
        first = next(batches)
        count = 0
        with self.open_writer(file, first.schema) as writer:
            for batch in chain([first], batches):
                writer.write_batch(batch)
                count += batch.num_rows
        return count


class ParquetRows(ArrowExporter):
    """A parquet file, in which each batch is a row group."""

    name = "parquet"
    description = "parquet, for pandas, polars, DuckDB and datasets"
    suffixes = (".parquet",)

    def open_writer(self, file: BinaryIO, schema: pa.Schema) -> AbstractContextManager[Any]:
        """The writer of pyarrow."""
        import pyarrow.parquet

        # zstd is as fast as the default, snappy with a dictionary for each column, and the file is a quarter smaller.
        writer: AbstractContextManager[Any] = pyarrow.parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=_DICTIONARY_COLUMNS
        )
        return writer


class ArrowRows(ArrowExporter):
    """An Arrow IPC file, for pandas, polars and `datasets.load_dataset("arrow", data_files=…)`."""

    name = "arrow"
    description = "Arrow IPC file"
    suffixes = (".arrow", ".feather")

    def open_writer(self, file: BinaryIO, schema: pa.Schema) -> AbstractContextManager[Any]:
        """The writer of pyarrow."""
        import pyarrow as pa

        writer: AbstractContextManager[Any] = pa.ipc.new_file(file, schema)
        return writer


def _batches(examples: Iterable[RenderedText | TokenizedExample]) -> Iterator[pa.RecordBatch]:
    """The examples in batches that all have the same columns, optional or not, because a file has one schema.

    There is at least one batch, so that a file without examples has columns too.
    """
    import pyarrow as pa

    from templatekit.packing.columns import TokenizedColumns

    empty = True
    for chunk, error in chunked(examples, _BATCH_ROWS, _length):
        if error is not None:
            raise error
        empty = False
        tokenized = [example for example in chunk if isinstance(example, TokenizedExample)]
        if tokenized:
            yield _record_batch(TokenizedColumns.of(tokenized))
        else:
            yield pa.record_batch(_text_arrays([example for example in chunk if isinstance(example, RenderedText)]))
    if empty:
        yield pa.record_batch(_text_arrays([]))


def _length(example: RenderedText | TokenizedExample) -> int:
    return (example.rendered if isinstance(example, TokenizedExample) else example).length


def _rebatched(chunks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of the size that `_batches` gives."""
    import pyarrow as pa

    from templatekit.packing.columns import TokenizedColumns

    waiting: list[pa.RecordBatch] = []
    empty = True
    for chunk in chunks:
        waiting.append(chunk)
        size = sum(batch.column("text").nbytes for batch in waiting)
        if size > CHUNK_BYTES or sum(batch.num_rows for batch in waiting) >= _BATCH_ROWS:
            rows, start = pa.concat_batches(waiting), 0
            waiting = []
            for end in _ends(rows.column("text")):
                # At other rows than multiples of 8, a slice is written with other bits behind its last row.
                yield rows.slice(start, end - start) if start % 8 == end % 8 == 0 else rows.take(np.arange(start, end))
                start, empty = end, False
            waiting = [rows.slice(start)] if start < rows.num_rows else []
    if waiting:
        yield pa.concat_batches(waiting)
    elif empty:
        yield _record_batch(TokenizedColumns.join([]))


def _ends(texts: pa.Array) -> list[int]:
    """Where batches of rows with these texts end; the rows after that are no whole batch yet."""
    ends = list(range(_BATCH_ROWS, len(texts) + 1, _BATCH_ROWS))
    if texts.nbytes <= CHUNK_BYTES:
        return ends
    import pyarrow.compute as pc

    lengths = np.cumsum(pc.utf8_length(texts).to_numpy())
    ends, start, before = [], 0, 0
    while True:
        end = min(start + _BATCH_ROWS, int(np.searchsorted(lengths, before + CHUNK_BYTES, side="right")) + 1)
        if end > len(texts):
            return ends
        ends.append(end)
        start, before = end, int(lengths[end - 1])


def _record_batch(columns: TokenizedColumns) -> pa.RecordBatch:
    import pyarrow as pa

    from templatekit.packing.columns import token_arrays

    truncated = pa.array(list(columns.truncated), type=pa.string())
    return pa.record_batch({**_text_arrays(columns.rendered), **token_arrays(columns), "truncated": truncated})


def _text_arrays(texts: Sequence[RenderedText]) -> dict[str, pa.Array]:
    """The columns that need no ids: `row`, `source` if there are several, `sample`, `text`, `spans`."""
    import pyarrow as pa

    from templatekit.export.span_column import span_column

    return {
        "row": pa.array([rendered.row for rendered in texts], type=pa.int64()),
        **({"source": pa.array([rendered.source for rendered in texts])} if texts and texts[0].source else {}),
        "sample": pa.array([rendered.sample for rendered in texts], type=pa.int32()),
        "text": pa.array(map(_text, texts), type=pa.large_string()),
        "spans": span_column(texts),
    }


def _text(rendered: RenderedText) -> str:
    traced = rendered.traced
    # `rendered.text` would be computed and stored, though nothing else may need it.
    return rendered.text if traced is None else "".join(traced.pieces)
