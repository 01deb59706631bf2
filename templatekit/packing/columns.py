"""Tokenized examples as columns: ids and weights are in arrays, and single examples are made on demand.

Arrow uses the arrays without copying them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from templatekit.types import IGNORE_INDEX, LossSpan, RenderedText, TokenizedExample, Truncation

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedColumns:
    """Tokenized examples, with their tokens concatenated."""

    rendered: Sequence[RenderedText]
    loss_spans: Sequence[Sequence[LossSpan]]
    """The loss spans of each example, which may be computed on demand."""
    truncated: Sequence[Truncation | None]
    offsets: NDArray[np.int64]
    """Shape (examples + 1,): example i has the tokens `offsets[i]` to `offsets[i + 1]`."""
    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    loss_weights: NDArray[np.float64]
    """Shape (tokens,); 0 for the first token of each example, which nothing predicts."""

    @classmethod
    def of(cls, examples: Sequence[TokenizedExample]) -> TokenizedColumns:
        """The columns of these examples."""
        lengths = np.fromiter(map(len, examples), dtype=np.int64, count=len(examples))
        total = int(lengths.sum())
        return cls(
            rendered=[example.rendered for example in examples],
            loss_spans=[example.loss_spans for example in examples],
            truncated=[example.truncated for example in examples],
            offsets=offsets_from_lengths(lengths),
            input_ids=np.fromiter((id for e in examples for id in e.input_ids), dtype=np.int32, count=total),
            loss_weights=np.fromiter((w for e in examples for w in e.loss_weights), dtype=np.float64, count=total),
        )

    def __len__(self) -> int:
        return len(self.rendered)

    def __getitem__(self, index: int) -> TokenizedExample:
        """Example `index`, from 0 on."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return TokenizedExample(
            input_ids=tuple(self.input_ids[start:end].tolist()),
            loss_weights=tuple(self.loss_weights[start:end].tolist()),
            rendered=self.rendered[index],
            loss_spans=tuple(self.loss_spans[index]),
            truncated=self.truncated[index],
        )

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Shape (examples,): the number of tokens of each example."""
        return np.diff(self.offsets)

    @property
    def trained_tokens(self) -> NDArray[np.int64]:
        """Shape (examples,): the number of tokens of each example that have a loss weight."""
        return np.diff(offsets_from_lengths(self.loss_weights != 0)[self.offsets])

    @property
    def labels(self) -> NDArray[np.int32]:
        """Shape (tokens,): `input_ids` where trained, else `IGNORE_INDEX`. Not shifted: trainers shift."""
        return labels_of(self.input_ids, self.loss_weights)

    @property
    def is_weighted(self) -> bool:
        """Whether any weight is neither 0 nor 1, so that labels do not express all of them."""
        return bool(np.any((self.loss_weights != 0) & (self.loss_weights != 1)))

    def slice(self, index: int) -> TokenizedColumns:
        """The columns of one example, which are views of these."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return TokenizedColumns(
            rendered=[self.rendered[index]],
            loss_spans=[self.loss_spans[index]],
            truncated=[self.truncated[index]],
            offsets=np.array([0, end - start]),
            input_ids=self.input_ids[start:end],
            loss_weights=self.loss_weights[start:end],
        )

    def select(self, indices: Sequence[int]) -> TokenizedColumns:
        """The examples with these indices, in this order."""
        lengths = self.lengths[list(indices)]
        tokens: NDArray[np.int64] | slice
        if len(indices) == 1:  # one example may have millions of tokens, whose indices take more memory than they do
            tokens = slice(self.offsets[indices[0]], self.offsets[indices[0] + 1])
        else:
            tokens = range_indices(self.offsets[:-1][list(indices)], lengths)
        return TokenizedColumns(
            rendered=[self.rendered[index] for index in indices],
            loss_spans=[self.loss_spans[index] for index in indices],
            truncated=[self.truncated[index] for index in indices],
            offsets=offsets_from_lengths(lengths),
            input_ids=self.input_ids[tokens],
            loss_weights=self.loss_weights[tokens],
        )

    @staticmethod
    def join(several: Sequence[TokenizedColumns]) -> TokenizedColumns:
        """Concatenate columns; without any, the result has no examples."""
        return TokenizedColumns(
            rendered=[text for columns in several for text in columns.rendered],
            loss_spans=[spans for columns in several for spans in columns.loss_spans],
            truncated=[policy for columns in several for policy in columns.truncated],
            offsets=offsets_from_lengths(np.concatenate([np.zeros(0, np.int64), *(one.lengths for one in several)])),
            input_ids=np.concatenate([np.zeros(0, np.int32), *(columns.input_ids for columns in several)]),
            loss_weights=np.concatenate([np.zeros(0, np.float64), *(columns.loss_weights for columns in several)]),
        )


def labels_of(input_ids: NDArray[np.int32], loss_weights: NDArray[np.float64]) -> NDArray[np.int32]:
    """The ids as labels: each where its weight is not 0, else `IGNORE_INDEX`."""
    return np.where(loss_weights != 0, input_ids, np.int32(IGNORE_INDEX))


def offsets_from_lengths(lengths: NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Shape (ranges + 1,): the starts of concatenated ranges of these lengths, then the end of the last range."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def range_indices(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of several ranges, concatenated: range i has the indices `starts[i]` to `starts[i] + lengths[i]`."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def token_arrays(columns: TokenizedColumns) -> dict[str, pa.ListArray]:
    """`input_ids`, `labels` (int32) and `loss_weights` (float32) as Arrow lists, one list for each example."""
    offsets = columns.offsets.astype(np.int32)
    return {
        "input_ids": list_array(offsets, columns.input_ids),
        "labels": list_array(offsets, columns.labels),
        "loss_weights": list_array(offsets, columns.loss_weights.astype(np.float32)),
    }


def list_array(offsets: NDArray[np.int32], values: NDArray[Any] | pa.Array) -> pa.ListArray:
    """An array of lists over concatenated values: list i has the values `offsets[i]` to `offsets[i + 1]`."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets), values if isinstance(values, pa.Array) else pa.array(values))
