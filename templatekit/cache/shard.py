"""A part of the examples on disk, checked when it is opened and read memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from templatekit.cache.atomic_files import STATE, Damaged, check_size, hash_file, read_state
from templatekit.cache.example_json import origin_from_json
from templatekit.cache.reader import InTables
from templatekit.cache.writer import EXAMPLES, TEXTS, TOKENS
from templatekit.pipeline.counts import Counts
from templatekit.types import Origin

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known of a part beside its examples."""

    records: int
    """Read from the source for it."""
    samples: int
    counts: Counts
    """Of its records alone."""
    adapter: str | None
    """None where no record came that one could be told by."""
    origins: list[Origin]
    """Those that spans refer to."""
    roles: list[str]


class Part(InTables):
    """A part on disk. Opening it reads what is known of it; each file is checked before it is first read."""

    def __init__(self, folder: Path) -> None:
        """Raises `Damaged`."""
        self.folder = folder
        values = read_state(folder / STATE)
        try:
            files: Mapping[str, Any] = values["files"]
            self.state = State(
                records=values["records"],
                samples=values["samples"],
                counts=Counts.from_dict(values["counts"]),
                adapter=values["adapter"],
                origins=[origin_from_json(origin) for origin in values["origins"]],
                roles=values["roles"],
            )
            sizes = {name: files[name]["bytes"] for name in (TOKENS, TEXTS, EXAMPLES)}
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{folder / STATE}: lacks what it should hold ({type(error).__name__}: {error})") from None
        for name, size in sizes.items():
            check_size(folder / name, size)
        super().__init__(_Files(folder, files, self.state), self.state.samples)

    def check(self, *, texts: bool = True) -> None:
        """Checks the tokens, and with `texts` the other files too; raises `Damaged`."""
        self.tables.tokens.validate()
        if texts:
            self.tables.texts.validate()
            self.tables.examples.validate()


class _Files:
    """A part's tables, as `StoredTables` says."""

    def __init__(self, folder: Path, files: Mapping[str, Any], state: State) -> None:
        self._folder, self._files = folder, files
        self.origins: Sequence[Origin] = state.origins
        self.roles: Sequence[str] = state.roles

    @cached_property
    def tokens(self) -> pa.RecordBatch:
        return self._table(TOKENS)

    @cached_property
    def texts(self) -> pa.RecordBatch:
        return self._table(TEXTS)

    @cached_property
    def examples(self) -> pa.RecordBatch:
        return self._table(EXAMPLES)

    def _table(self, name: str) -> pa.RecordBatch:
        import pyarrow as pa

        path = self._folder / name
        try:
            found = hash_file(path)
        except OSError as error:
            raise Damaged(f"{path}: cannot be read: {error.strerror or error}") from None
        if found != self._files[name]["xxh3_128"]:
            raise Damaged(f"{path}: has another hash than {STATE} says; a new run makes it again")
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            return reader.get_batch(0)
