"""Reads Parquet and Arrow files, a batch of rows at a time, as plain Python values."""

from __future__ import annotations

import io
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple

from templatekit.errors import RecordError, SourceError, shorten
from templatekit.sources.arrow_messages import blocks_of, message_at
from templatekit.sources.compression import Rewindable, stop_rewinding
from templatekit.sources.files import FileSource, check_column_names, extension, is_folder, require_records, to_path
from templatekit.sources.limits import Limits, in_megabytes, size_of, sized, too_large
from templatekit.sources.parquet_pages import ColumnChunk, pages_of, row_groups_of
from templatekit.types import Record

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

EXTENSIONS = (".parquet", ".arrow", ".feather", ".ipc")
_BATCH_ROWS = 512
_BATCH_BYTES = 1 << 25
"""Of how many bytes Python objects are made at a time, unless one row has more."""
_PAGE_RECORDS = 16
"""How many records of the largest size a page may have, which Arrow decodes as a whole."""
_BATCH_RECORDS = 8
"""How many records of the largest size a batch may have. Arrow takes four times the memory while it decodes one."""
_UNPACKED_RECORDS = 40
"""How many records of the largest size a compressed batch of Arrow may have, which is decompressed as a whole."""
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
        yield from require_records(_rows(stream, address, self.limits), address)


def _rows(file: BinaryIO, address: str, limits: Limits) -> Iterator[Record | RecordError]:
    import pyarrow as pa

    row = 0
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_seekable(file, address, limits))
            schema, batches = _open(file, address, stack, limits)
            check_column_names(schema.names, address)
            for batch in batches:
                for records in _to_python(batch, limits):
                    for record in records:
                        yield record.at(address, row) if isinstance(record, RecordError) else record
                        row += 1
                del batch  # before the next one is decompressed
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{address}: damaged or unsupported {extension(Path(address))[1:]} file, at row {row}; "
                f"found {shorten(str(error), 200)}; write it again"
            ) from error


@contextmanager
def _seekable(file: BinaryIO, address: str, limits: Limits) -> Iterator[BinaryIO]:
    """The file itself; a stream is copied to a temporary file, since these formats are read from their ends."""
    if not isinstance(getattr(file, "raw", None), Rewindable):
        yield file
        return
    stop_rewinding(file)
    with tempfile.TemporaryFile() as copy:
        size = 0
        while chunk := file.read(1 << 20):
            size += len(chunk)
            if size > limits.unpacked:
                raise SourceError(
                    f"{address}: found more than {in_megabytes(limits.unpacked)} in a stream; expected less, since it "
                    "is copied before it is read; decompress or download it, or write JSON Lines (to allow more: "
                    "--max-record-size)"
                )
            copy.write(chunk)
        copy.seek(0)
        yield copy


def _open(file: BinaryIO, address: str, stack: ExitStack, limits: Limits) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The file's schema, and its rows in batches. The first bytes decide the format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    magic = file.read(8)
    file.seek(0)
    if magic.startswith(_PARQUET):
        parquet = stack.enter_context(pq.ParquetFile(file, pre_buffer=False))
        return parquet.schema_arrow, _parquet_batches(parquet, file, address, limits)
    if magic.startswith(_FILE):
        mapped = _mapped(file)
        reader = stack.enter_context(pa.ipc.open_file(mapped or file))
        return reader.schema, _sliced(_file_batches(reader, file, address, limits), mapped)
    if magic.startswith(_STREAM):
        mapped = _mapped(file)
        stream = stack.enter_context(pa.ipc.open_stream(mapped or file))
        return stream.schema, _sliced(_stream_batches(stream, file, address, limits), mapped)
    raise SourceError(
        f"{address}: neither Parquet nor Arrow; found a file that begins {magic!r}; if it is JSON, rename it to end in "
        ".json"
    )


def _parquet_batches(parquet: pq.ParquetFile, file: BinaryIO, address: str, limits: Limits) -> Iterator[pa.RecordBatch]:
    """The rows of each row group, in batches that fit into memory."""
    names = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
    largest = _PAGE_RECORDS * limits.record
    for index, chunks in enumerate(row_groups_of(file)):
        columns = dict(zip(names, chunks, strict=True))
        values = {name: _largest_page(name, columns[name], index, file, address, largest) for name in names}
        rows = _BATCH_ROWS
        if sum(values.values()) * rows > largest:
            values |= _longest_texts(parquet, file, columns, index, largest)
            rows = _BATCH_RECORDS * limits.record // max(1, sum(values.values()))
        yield from parquet.iter_batches(batch_size=max(1, min(_BATCH_ROWS, rows)), row_groups=[index])


def _largest_page(name: str, column: ColumnChunk, index: int, file: BinaryIO, address: str, largest: int) -> int:
    """The size of the largest page of a column, which may be a single value; 0 where all of the column is small."""
    small, found = column.total_uncompressed_size <= largest, 0
    for page in () if small and not column.dictionary_page_offset else pages_of(file, column):
        if page.size > largest:
            raise SourceError(
                f"{address}: column {name!r} in row group {index} has a page of "
                f"{in_megabytes(page.size)}; expected at most {in_megabytes(largest)}; write the file again with "
                "smaller pages, or allow larger records: --max-record-size"
            )
        found = max(found, page.size)
        if small and page.is_dictionary:
            break
    return found


def _longest_texts(
    parquet: pq.ParquetFile, file: BinaryIO, columns: Mapping[str, ColumnChunk], index: int, largest: int
) -> dict[str, int]:
    """The size of the longest text in the dictionary of each column whose other values are small all together."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = [
        name
        for name, column in columns.items()
        if column.dictionary_page_offset and column.total_uncompressed_size <= largest and "." not in name
    ]
    reader = pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=names, pre_buffer=False)
    first = next(reader.iter_batches(batch_size=1, row_groups=[index], columns=names), None)
    found = {}
    for name, column in zip(first.schema.names, first.columns, strict=True) if first else ():
        if hasattr(column, "dictionary"):
            found[name] = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
    return found


def _mapped(file: BinaryIO) -> mmap.mmap | None:
    """A local file as mapped memory: a batch may be as large as the file, and only what is read is loaded."""
    if not isinstance(file, io.BufferedReader) or not isinstance(file.raw, io.FileIO):
        return None
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Batch(NamedTuple):
    """A record batch, and the bytes of all its rows."""

    rows: pa.RecordBatch
    size: int


def _file_batches(reader: pa.RecordBatchFileReader, file: BinaryIO, address: str, limits: Limits) -> Iterator[_Batch]:
    blocks = blocks_of(file)
    dictionaries = 0
    for block in blocks.dictionaries:
        message = message_at(file, block.offset)
        dictionaries += message.unpacked if message else 0
    for index, block in enumerate(blocks.batches):
        message = message_at(file, block.offset)
        if message is None:
            raise ValueError(f"the header of batch {index} is damaged")
        _check_unpacked(dictionaries + message.unpacked, index, address, limits)
        yield _Batch(reader.get_batch(index), message.size)


def _stream_batches(
    stream: pa.RecordBatchStreamReader, file: BinaryIO, address: str, limits: Limits
) -> Iterator[_Batch]:
    index = offset = dictionaries = size = 0
    while True:
        position = file.tell()
        while (message := message_at(file, offset)) is not None:
            offset = message.end
            _check_unpacked(dictionaries + message.unpacked, index, address, limits)
            if message.is_batch:
                size = message.size
                break
            dictionaries += message.unpacked
        file.seek(position)
        try:
            yield _Batch(stream.read_next_batch(), size)
        except StopIteration:
            return
        index += 1


def _check_unpacked(size: int, index: int, address: str, limits: Limits) -> None:
    largest = _UNPACKED_RECORDS * limits.record
    if size > largest:
        raise SourceError(
            f"{address}: record batch {index} is compressed, and has {in_megabytes(size)}; expected at most "
            f"{in_megabytes(largest)}; write the file again with fewer rows in a batch, or allow larger records: "
            "--max-record-size"
        )


def _sliced(batches: Iterator[_Batch], mapped: mmap.mmap | None) -> Iterator[pa.RecordBatch]:
    """The rows a few at a time; those read are unloaded, so that memory does not grow with the file."""
    for batch, size in batches:
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, size)))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)
            if mapped is not None and hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)
        del batch  # before the next one is decompressed


def _to_python(batch: pa.RecordBatch, limits: Limits) -> Iterator[Sequence[Record | RecordError]]:
    """The rows, a part of the batch at a time, with an error in place of each that is too large or not a value."""
    from templatekit.sources.arrow_sizes import python_size

    try:
        batch.validate(full=True)  # an offset out of bounds would crash the process
        size = sum(map(python_size, batch.columns))
        if batch.num_rows <= 1 and size > limits.record:
            yield [too_large(size, limits)]
            return
        rows = batch.to_pylist() if batch.num_rows <= 1 or size <= min(_BATCH_BYTES, limits.record) else None
    except (ValueError, OverflowError) as error:
        if batch.num_rows <= 1:
            yield [_not_a_value(error)]
            return
        rows = None
    if rows is not None:
        # Where rows have few bytes on average, any number of them has no more than as many that need not tell.
        may_be_large = size > len(rows) * limits.large
        yield [sized(row, size_of(row), limits) for row in rows] if may_be_large else rows
        return
    middle = batch.num_rows // 2
    yield from _to_python(batch.slice(0, middle), limits)
    yield from _to_python(batch.slice(middle), limits)


def _not_a_value(error: Exception) -> RecordError:
    reason = "bad_encoding" if "UTF8" in str(error) else "bad_value"
    return RecordError(f"not a Python value; found {shorten(str(error), 120)}", reason=reason)
