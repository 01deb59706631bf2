"""`SampleBatch`: samples that come out of the pipeline together, their tokens in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from templatekit.packing.columns import TokenizedColumns
from templatekit.types import Sample

BATCH_SIZE = 256
"""Samples that go to the encoder in one call."""
BATCH_BYTES = 1 << 22
"""Characters of large records' texts after which such a batch ends early: encoding takes a hundred bytes for each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleBatch:
    """Samples that came out together. Values that exist once a token are stored in columns."""

    items: Sequence[Sample]
    """The samples; where there are `columns`, those hold the tokens."""
    columns: TokenizedColumns | None = None
    """The tokens of `items`, in the same order; None without a tokenizer."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        """The samples one by one, each with its tokens."""
        if self.columns is None:
            yield from self.items
            return
        for item, tokenized in zip(self.items, self.columns, strict=True):
            yield item.with_tokens(tokenized)

    @property
    def tokens(self) -> int:
        """Number of tokens of all samples."""
        return 0 if self.columns is None else len(self.columns.input_ids)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return 0 if self.columns is None else int(np.count_nonzero(self.columns.loss_weights))

    @classmethod
    def select(
        cls, items: Sequence[Sample], columns: TokenizedColumns, selected: Mapping[int, Sample | None]
    ) -> SampleBatch:
        """The samples with the selected indices; a sample given in `selected` replaces the one at its index."""
        replaced = {index: item for index, item in selected.items() if item is not None}
        if replaced:
            sources = {index: len(items) + count for count, index in enumerate(replaced)}
            others = TokenizedColumns.of([item.tokenized for item in replaced.values() if item.tokenized is not None])
            columns = TokenizedColumns.join([columns, others]).select([sources.get(index, index) for index in selected])
        elif len(selected) < len(items):
            columns = columns.select(list(selected))
        return cls(items=[replaced.get(index, items[index]) for index in selected], columns=columns)
