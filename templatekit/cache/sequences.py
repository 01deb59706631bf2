"""`ColumnarSamples`: all samples of a data set as one sequence, made on demand from columns on disk or in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from templatekit.cache.reader import TableColumns
from templatekit.packing.columns import range_indices
from templatekit.pipeline.batches import SampleBatch
from templatekit.types import Example, Sample, TokenizedExample


class BatchColumns:
    """The samples of a batch in memory, with the attributes of `TableColumns` that `ColumnarSamples` uses."""

    def __init__(self, batch: SampleBatch) -> None:
        columns = batch.columns
        assert columns is not None
        self._items, self._columns = batch.items, columns
        self.tokenized = columns.__getitem__
        self.offsets = columns.offsets

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """As `TableColumns` says."""
        return np.fromiter((text.row for text in self._columns.rendered), np.int64, len(self._columns))

    def concatenated(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """As `TableColumns` says."""
        tokens = range_indices(self.offsets[indices], self._columns.lengths[indices])
        return self._columns.input_ids[tokens], self._columns.loss_weights[tokens]

    def example(self, index: int) -> Example:
        """As `TableColumns` says."""
        return self._items[index].example


SampleColumns: TypeAlias = TableColumns | BatchColumns
"""Samples in columns: tables, on disk or in memory, or a batch in memory."""


class ColumnarSamples(Sequence[Sample]):
    """The samples of several `SampleColumns`: all of them, or those with the indices `selected`, in that order."""

    def __init__(self, columns: Sequence[SampleColumns], selected: NDArray[np.int64] | None = None) -> None:
        self._columns = columns
        self._ends = np.cumsum([0, *(len(one.offsets) - 1 for one in columns)])
        self._selected = np.arange(self._ends[-1]) if selected is None else selected

    def __len__(self) -> int:
        return len(self._selected)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> ColumnarSamples: ...
    def __getitem__(self, index: int | slice) -> Sample | ColumnarSamples:
        if isinstance(index, slice):
            return ColumnarSamples(self._columns, self._selected[index])
        columns, index = self._find(index)
        tokenized = columns.tokenized(index)
        return Sample(example=columns.example(index), rendered=tokenized.rendered, tokenized=tokenized)

    def take(self, indices: NDArray[np.int64]) -> ColumnarSamples:
        """The samples with these indices, in this order."""
        return ColumnarSamples(self._columns, self._selected[indices])

    @property
    def tokenized(self) -> ColumnarExamples:
        """The samples without their conversations."""
        return ColumnarExamples(self)

    def example(self, index: int) -> TokenizedExample:
        """Sample `index` without its conversation."""
        columns, index = self._find(index)
        return columns.tokenized(index)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Shape (samples,): the row of each sample's record."""
        return _concatenate([one.rows for one in self._columns])[self._selected]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Shape (samples,): number of tokens of each sample."""
        return _concatenate([np.diff(one.offsets) for one in self._columns])[self._selected]

    def token_arrays(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """The concatenated ids and weights of all samples, in several arrays: at most one shard's at a time."""
        sources = np.searchsorted(self._ends, self._selected, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(sources)) + 1).tolist(), len(sources)]
        for start, end in pairwise(edges):
            if start < end:
                source = sources[start]
                yield self._columns[source].concatenated(self._selected[start:end] - self._ends[source])

    def _find(self, index: int) -> tuple[SampleColumns, int]:
        """The columns that hold a sample, and its index there."""
        position = int(self._selected[index])
        source = int(np.searchsorted(self._ends, position, side="right")) - 1
        return self._columns[source], position - int(self._ends[source])


class ColumnarExamples(Sequence[TokenizedExample]):
    """The samples as training takes them: tokenized examples."""

    def __init__(self, samples: ColumnarSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> ColumnarExamples: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | ColumnarExamples:
        return ColumnarExamples(self.samples[index]) if isinstance(index, slice) else self.samples.example(index)


def _concatenate(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
