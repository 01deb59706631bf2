"""Reads Parquet and Arrow files, a batch of rows at a time, as plain Python values."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from templatekit.errors import RecordError, SourceError, shorten
from templatekit.sources.files import FileSource, check_column_names, extension, is_folder, require_records, to_path
from templatekit.types import Record

if TYPE_CHECKING:
    import pyarrow as pa

EXTENSIONS = (".parquet", ".arrow", ".feather", ".ipc")
_BATCH_ROWS = 512
_PARQUET, _FILE, _STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"


class ArrowSource(FileSource):
    """Parquet files, and Arrow files of both kinds (also called Feather)."""

    name: ClassVar[str] = "arrow"
    description: ClassVar[str] = "A Parquet, Arrow or Feather file."

    def accepts(self, address: str) -> bool:
        """Whether the file extension is one of Parquet's or Arrow's."""
        path = to_path(address)
        return path.suffix.lower() in EXTENSIONS and not is_folder(path)

    def read_stream(self, stream: BinaryIO, address: str) -> Iterator[Record | RecordError]:
        """The rows. Text stays text; numbers, times and bytes become Python objects."""
        yield from require_records(_rows(stream, address), address)


def _rows(file: BinaryIO, address: str) -> Iterator[Record | RecordError]:
    import pyarrow as pa

    row = 0
    with ExitStack() as stack:
        try:
            schema, batches = _open(file, address, stack)
            check_column_names(schema.names, address)
            for batch in batches:
                for record in _to_python(batch):
                    yield record.at(address, row) if isinstance(record, RecordError) else record
                    row += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{address}: damaged or unsupported {extension(Path(address))[1:]} file, at row {row}; "
                f"found {shorten(str(error), 200)}; write it again"
            ) from error


def _open(file: BinaryIO, address: str, stack: ExitStack) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The file's schema, and its rows in batches. The first bytes decide the format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    magic = file.read(8)
    file.seek(0)
    if magic.startswith(_PARQUET):
        parquet = stack.enter_context(pq.ParquetFile(file, pre_buffer=False))
        return parquet.schema_arrow, parquet.iter_batches(batch_size=_BATCH_ROWS)
    if magic.startswith(_FILE):
        reader = stack.enter_context(pa.ipc.open_file(_mapped(file)))
        return reader.schema, _sliced(reader.get_batch(index) for index in range(reader.num_record_batches))
    if magic.startswith(_STREAM):
        stream = stack.enter_context(pa.ipc.open_stream(_mapped(file)))
        return stream.schema, _sliced(iter(stream))
    raise SourceError(
        f"{address}: neither Parquet nor Arrow; found a file that begins {magic!r}; if it is JSON, rename it to end in "
        ".json"
    )


def _mapped(file: BinaryIO) -> pa.Buffer | BinaryIO:
    """A local file as mapped memory: a batch may be as large as the file, and only what is read is loaded."""
    import pyarrow as pa

    if not isinstance(file, io.BufferedReader) or not isinstance(file.raw, io.FileIO):
        return file
    return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _sliced(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


def _to_python(batch: pa.RecordBatch) -> list[dict[str, Any] | RecordError]:
    try:
        batch.validate(full=True)  # an offset out of bounds would crash the process
        rows: list[dict[str, Any] | RecordError] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows > 1:
            return [row for index in range(batch.num_rows) for row in _to_python(batch.slice(index, 1))]
        reason = "bad_encoding" if "UTF8" in str(error) else "bad_value"
        return [RecordError(f"not a Python value; found {shorten(str(error), 120)}", reason=reason)]
    return rows
