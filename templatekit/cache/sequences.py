"""All samples of a set as one sequence: tokens stay in columns, on the disk or in memory, until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.columns import TokenizedColumns, places_of
from templatekit.pipeline.batches import SampleBatch
from templatekit.types import Example, Sample, TokenizedExample


class Columns(Protocol):
    """Some samples: a part on disk, or a batch in memory."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Shape (samples + 1,): where each one's tokens begin."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Shape (samples,): the record that each came from."""

    def tokens_of(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The ids and weights of those at these places, end to end."""

    def tokenized(self, index: int) -> TokenizedExample:
        """One of them without its conversation."""

    def example(self, index: int) -> Example:
        """Its conversation."""


class InMemory:
    """The samples of a batch."""

    def __init__(self, batch: SampleBatch, columns: TokenizedColumns) -> None:
        self._items, self._columns = batch.items, columns
        self.tokenized = columns.__getitem__
        self.offsets = columns.offsets

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """As `Columns` says, and so do the others."""
        return np.fromiter((text.row for text in self._columns.rendered), np.int64, len(self._columns))

    def tokens_of(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Of these samples."""
        tokens = places_of(self.offsets[places], self._columns.lengths[places])
        return self._columns.input_ids[tokens], self._columns.loss_weights[tokens]

    def example(self, index: int) -> Example:
        """Of this sample."""
        return self._items[index].example


class StoredSamples(Sequence[Sample]):
    """Samples in the order of `chosen`, or all of them as they lie."""

    def __init__(self, parts: Sequence[Columns], chosen: NDArray[np.int64] | None = None) -> None:
        self._parts = parts
        self._ends = np.cumsum([0, *(len(part.offsets) - 1 for part in parts)])
        self._chosen = np.arange(self._ends[-1]) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> StoredSamples: ...
    def __getitem__(self, index: int | slice) -> Sample | StoredSamples:
        if isinstance(index, slice):
            return StoredSamples(self._parts, self._chosen[index])
        part, place = self._find(index)
        tokenized = part.tokenized(place)
        return Sample(example=part.example(place), rendered=tokenized.rendered, tokenized=tokenized)

    def take(self, indices: NDArray[np.int64]) -> StoredSamples:
        """Those with these indices, in this order."""
        return StoredSamples(self._parts, self._chosen[indices])

    @property
    def tokenized(self) -> StoredExamples:
        """The same without their conversations."""
        return StoredExamples(self)

    def example(self, index: int) -> TokenizedExample:
        """One of them without its conversation."""
        part, place = self._find(index)
        return part.tokenized(place)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Shape (samples,): the record that each came from."""
        return _joined([part.rows for part in self._parts])[self._chosen]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Shape (samples,): tokens of each."""
        return _joined([np.diff(part.offsets) for part in self._parts])[self._chosen]

    def runs(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """The ids and weights of all, end to end, a part's worth at a time."""
        parts = np.searchsorted(self._ends, self._chosen, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
        for start, end in pairwise(edges):
            if start < end:
                part = self._parts[parts[start]]
                yield part.tokens_of(self._chosen[start:end] - self._ends[parts[start]])

    def _find(self, index: int) -> tuple[Columns, int]:
        at = int(self._chosen[index])
        number = int(np.searchsorted(self._ends, at, side="right")) - 1
        return self._parts[number], at - int(self._ends[number])


class StoredExamples(Sequence[TokenizedExample]):
    """Samples as training takes them."""

    def __init__(self, samples: StoredSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> StoredExamples: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | StoredExamples:
        return StoredExamples(self.samples[index]) if isinstance(index, slice) else self.samples.example(index)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
