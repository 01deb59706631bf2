"""Reads what is to be made: a part's records in chunks of their own, over those that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import TypeVar

from templatekit.errors import RecordError
from templatekit.pipeline.chunks import Chunk
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Record

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Reads the records of parts that are to be made, in chunks that each lie in one of them."""

    size: int
    """Records of a part."""
    first: int
    """The first of these parts; the source is read over those before it."""
    there: frozenset[int] = frozenset()
    """Later ones that are not to be made."""
    alone: bool = False
    """Whether the first is the last, too."""

    def __call__(self, pipeline: Pipeline) -> Iterator[Chunk]:
        """Of the options' data set."""
        return self.of(pipeline, pipeline.open())

    def of(
        self, pipeline: Pipeline, records: Iterator[Record | RecordError], *, given: bool = False
    ) -> Iterator[Chunk]:
        """Of these records, from the first of all on."""
        for number in range(self.first + 1) if self.alone else count():
            some = _Counted(islice(records, self.size))
            for chunk in pipeline.chunks_of(some, first_row=number * self.size, given=given):
                if number == self.first or (number > self.first and number not in self.there):
                    yield chunk
                elif chunk.error is not None:  # which ends the reading
                    yield replace(chunk, records=[])
            if some.count < self.size:
                return


@dataclass
class _Counted(Iterator[T]):
    """An iterator that counts."""

    items: Iterator[T]
    count: int = field(default=0)

    def __next__(self) -> T:
        item = next(self.items)
        self.count += 1
        return item
