"""Many tokenized examples as columns: what is there once a token lies in arrays, and examples are made on demand.

Arrow takes the arrays as they are.
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
    """Tokenized examples, their tokens end to end."""

    rendered: Sequence[RenderedText]
    loss_spans: Sequence[Sequence[LossSpan]]
    """Of each example; those that nobody has asked for may be worked out on demand."""
    truncated: Sequence[Truncation | None]
    offsets: NDArray[np.int64]
    """Shape (examples + 1,): example i has the tokens `offsets[i]` to `offsets[i + 1]`."""
    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    loss_weights: NDArray[np.float64]
    """Shape (tokens,); 0 for the first token of each example, which nothing predicts."""

    @classmethod
    def of(cls, examples: Sequence[TokenizedExample]) -> TokenizedColumns:
        """The columns of examples that are there."""
        lengths = np.fromiter(map(len, examples), dtype=np.int64, count=len(examples))
        total = int(lengths.sum())
        return cls(
            rendered=[example.rendered for example in examples],
            loss_spans=[example.loss_spans for example in examples],
            truncated=[example.truncated for example in examples],
            offsets=ends_of(lengths),
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
        """Shape (examples,): tokens of each example."""
        return np.diff(self.offsets)

    @property
    def trained_tokens(self) -> NDArray[np.int64]:
        """Shape (examples,): how many tokens of each example carry loss."""
        counts = np.concatenate([[0], np.cumsum(self.loss_weights != 0)])
        return np.diff(counts[self.offsets])

    @property
    def labels(self) -> NDArray[np.int32]:
        """Shape (tokens,): `input_ids` where trained, else `IGNORE_INDEX`. Not shifted: trainers shift."""
        return labels_of(self.input_ids, self.loss_weights)

    @property
    def is_weighted(self) -> bool:
        """Whether any weight is neither 0 nor 1, so that labels do not say all."""
        return bool(np.any((self.loss_weights != 0) & (self.loss_weights != 1)))

    def select(self, keep: Sequence[int]) -> TokenizedColumns:
        """The examples with these indices, in this order."""
        lengths = self.lengths[list(keep)]
        tokens = places_of(self.offsets[:-1][list(keep)], lengths)
        return TokenizedColumns(
            rendered=[self.rendered[index] for index in keep],
            loss_spans=[self.loss_spans[index] for index in keep],
            truncated=[self.truncated[index] for index in keep],
            offsets=ends_of(lengths),
            input_ids=self.input_ids[tokens],
            loss_weights=self.loss_weights[tokens],
        )

    @staticmethod
    def join(several: Sequence[TokenizedColumns]) -> TokenizedColumns:
        """One after another; of nothing, columns without examples."""
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *(columns.lengths for columns in several)])
        return TokenizedColumns(
            rendered=[one for columns in several for one in columns.rendered],
            loss_spans=[one for columns in several for one in columns.loss_spans],
            truncated=[one for columns in several for one in columns.truncated],
            offsets=np.cumsum(lengths),
            input_ids=np.concatenate([np.zeros(0, np.int32), *(columns.input_ids for columns in several)]),
            loss_weights=np.concatenate([np.zeros(0, np.float64), *(columns.loss_weights for columns in several)]),
        )


def labels_of(input_ids: NDArray[np.int32], loss_weights: NDArray[np.float64]) -> NDArray[np.int32]:
    """Ids where a weight is not 0, else `IGNORE_INDEX`."""
    return np.where(loss_weights != 0, input_ids, np.int32(IGNORE_INDEX))


def ends_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shape (runs + 1,): where runs of these lengths begin, laid end to end, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def places_of(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of runs that begin at `starts`, end to end: run i has `lengths[i]` of them."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def token_arrays(columns: TokenizedColumns) -> dict[str, pa.ListArray]:
    """`input_ids`, `labels` (int32) and `loss_weights` (float32) as Arrow lists, one an example."""
    offsets = columns.offsets.astype(np.int32)
    return {
        "input_ids": list_array(offsets, columns.input_ids),
        "labels": list_array(offsets, columns.labels),
        "loss_weights": list_array(offsets, columns.loss_weights.astype(np.float32)),
    }


def list_array(offsets: NDArray[np.int32], values: NDArray[Any] | pa.Array) -> pa.ListArray:
    """Lists from values end to end: list i holds the values `offsets[i]` to `offsets[i + 1]`."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets), values if isinstance(values, pa.Array) else pa.array(values))
