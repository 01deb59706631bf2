"""`Shard`: the samples of up to 8,192 consecutive records on disk, checked when opened and read memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from templatekit.cache.atomic_files import STATE, Damaged, check_size, hash_file, place_of, read_state
from templatekit.cache.reader import TableColumns
from templatekit.cache.writer import EXAMPLES, TEXTS, TOKENS
from templatekit.pipeline.counts import Counts
from templatekit.types import Origin

if TYPE_CHECKING:
    import pyarrow as pa


class Shard(TableColumns):
    """A shard on disk. Opening it reads its state; each file is checked before it is first read."""

    tokens = cached_property(lambda self: self._table(TOKENS))
    texts = cached_property(lambda self: self._table(TEXTS))
    examples = cached_property(lambda self: self._table(EXAMPLES))

    def __init__(self, folder: Path) -> None:
        """Raises `Damaged` where the state or a file's size is not as written, or the shard belongs elsewhere."""
        self.folder = folder
        values = read_state(folder / STATE)
        try:
            found = {name: values[name] for name in ("entry", "shard")}
            files: Mapping[str, Any] = values["files"]
            self.first_row: int = values["first_row"]
            """Count of records before the shard."""
            self.records: int = values["records"]
            """Number of records that were read for the shard."""
            self.is_last: bool = values["is_last"]
            """Whether the data end with the shard."""
            self.counts = Counts.from_dict(values["counts"])
            """The counts of its records alone."""
            self.adapter: str | None = values["adapter"]
            """The name of the adapter that read its records; None if it could be inferred from no record."""
            self._length: int = values["samples"]
            self.origins = [Origin(kind=k, message=m, field=f, generation=g) for k, m, f, g in values["origins"]]
            self.roles = values["roles"]
            sizes = {name: files[name]["bytes"] for name in (TOKENS, TEXTS, EXAMPLES)}
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{folder / STATE}: lacks what it should hold ({type(error).__name__}: {error})") from None
        if found != place_of(folder):  # its hashes are right wherever it lies: only the place tells another shard
            raise Damaged(f"{folder / STATE}: is of shard {found['shard']} of entry {found['entry']}, not of this one")
        for name, size in sizes.items():
            check_size(folder / name, size)
        self._files = files

    def __len__(self) -> int:
        return self._length

    def check_start(self, first_row: int) -> None:
        """Raise `Damaged` unless the shard starts after this count of records: those before it end elsewhere."""
        if self.first_row != first_row:
            raise Damaged(f"{self.folder / STATE}: starts with record {self.first_row:,}, not with {first_row:,}")

    def check(self, *, texts: bool = True) -> None:
        """Check the hash and structure of the tokens, with `texts` of the other files too; raises `Damaged`."""
        self.tokens.validate()
        if texts:
            self.texts.validate()
            self.examples.validate()

    def _table(self, name: str) -> pa.RecordBatch:
        import pyarrow as pa

        path = self.folder / name
        try:
            found = hash_file(path)
        except OSError as error:
            raise Damaged(f"{path}: cannot be read: {error.strerror or error}") from None
        if found != self._files[name]["xxh3_128"]:
            raise Damaged(f"{path}: has another hash than {STATE} says; a new run makes it again")
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            return reader.get_batch(0)
