"""What comes out of the pipeline: samples after all stages, alone and many at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from templatekit.packing.columns import TokenizedColumns
from templatekit.types import Sample

BATCH = 256
"""Records that go to the encoder in one call."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleBatch:
    """Samples that came out together; what is there once a token lies in columns."""

    items: Sequence[Sample]
    """Where there are columns, the tokens stand there."""
    columns: TokenizedColumns | None = None
    """As long as `items`; None without a tokenizer, and for pairs."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        """Sample by sample, each with its tokens."""
        if self.columns is None:
            yield from self.items
            return
        for item, tokenized in zip(self.items, self.columns, strict=True):
            yield item.with_tokens(tokenized)

    @property
    def tokens(self) -> int:
        """Of all samples."""
        if self.columns is not None:
            return len(self.columns.input_ids)
        return sum(len(item.tokenized) for item in self.items if item.tokenized is not None)

    @property
    def trained_tokens(self) -> int:
        """Those that carry loss."""
        if self.columns is not None:
            return int(np.count_nonzero(self.columns.loss_weights))
        return sum(item.tokenized.trained_tokens for item in self.items if item.tokenized is not None)

    @classmethod
    def chosen(
        cls, items: Sequence[Sample], columns: TokenizedColumns, kept: Mapping[int, Sample | None]
    ) -> SampleBatch:
        """The samples that are kept, by their indices; one that was shortened stands in the place of its whole."""
        shorter = {index: item for index, item in kept.items() if item is not None}
        if shorter:
            places = {index: len(items) + number for number, index in enumerate(shorter)}
            others = TokenizedColumns.of([item.tokenized for item in shorter.values() if item.tokenized is not None])
            columns = TokenizedColumns.join([columns, others]).select([places.get(index, index) for index in kept])
        elif len(kept) < len(items):
            columns = columns.select(list(kept))
        return cls(items=[shorter.get(index, items[index]) for index in kept], columns=columns)
