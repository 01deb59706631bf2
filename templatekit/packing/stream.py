"""Packs a stream of examples, one window of them at a time, so that memory use does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.bin_packing import pack
from templatekit.packing.columns import TokenizedColumns, labels_of, list_array, offsets_from_lengths, range_indices

if TYPE_CHECKING:
    import pyarrow as pa

WINDOW_TOKENS = 2**20
"""Tokens of a window, about 20 MB."""
MIN_WINDOW_PACKS = 16
"""A window has at least this many packs' worth of tokens, because one or two packs of each window are not full."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """Tokenized examples as packing needs them: concatenated ids and weights, and the sample of each sequence."""

    offsets: NDArray[np.int64]
    """Shape (sequences + 1,): sequence i has the tokens `offsets[i]` to `offsets[i + 1]`."""
    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    loss_weights: NDArray[np.float64]
    """Shape (tokens,); 0 for the first token of each sequence, so that no prediction crosses two sequences."""
    rows: NDArray[np.int64]
    """Shape (sequences,): the row of each sequence's record."""
    samples: NDArray[np.int32]
    """Shape (sequences,): the index of each sequence among the samples of its record."""
    sources: Sequence[str]
    """Shape (sequences,): the name of the record's source; "" where there is only one source."""

    @classmethod
    def of(cls, columns: TokenizedColumns) -> Sequences:
        """The sequences of tokenized examples."""
        count = len(columns)
        return cls(
            offsets=columns.offsets,
            input_ids=columns.input_ids,
            loss_weights=columns.loss_weights,
            rows=np.fromiter((text.row for text in columns.rendered), dtype=np.int64, count=count),
            samples=np.fromiter((text.sample for text in columns.rendered), dtype=np.int32, count=count),
            sources=[text.source for text in columns.rendered],
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Shape (sequences,): the number of tokens of each sequence."""
        return np.diff(self.offsets)

    def select(self, indices: NDArray[np.int64]) -> Sequences:
        """The sequences with these indices, in this order."""
        lengths = self.lengths[indices]
        tokens = range_indices(self.offsets[indices], lengths)
        return Sequences(
            offsets=offsets_from_lengths(lengths),
            input_ids=self.input_ids[tokens],
            loss_weights=self.loss_weights[tokens],
            rows=self.rows[indices],
            samples=self.samples[indices],
            sources=[self.sources[index] for index in indices.tolist()],
        )

    @staticmethod
    def join(several: Sequence[Sequences]) -> Sequences:
        """Concatenate sequences."""
        return Sequences(
            offsets=offsets_from_lengths(np.concatenate([np.zeros(0, np.int64), *(one.lengths for one in several)])),
            input_ids=np.concatenate([np.zeros(0, np.int32), *(one.input_ids for one in several)]),
            loss_weights=np.concatenate([np.zeros(0, np.float64), *(one.loss_weights for one in several)]),
            rows=np.concatenate([np.zeros(0, np.int64), *(one.rows for one in several)]),
            samples=np.concatenate([np.zeros(0, np.int32), *(one.samples for one in several)]),
            sources=[source for one in several for source in one.sources],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packs:
    """Packs of whole sequences, without padding: a pack is the concatenation of its sequences."""

    sequences: Sequences
    """All sequences, in the order of the packs."""
    sequence_offsets: NDArray[np.int64]
    """Shape (packs + 1,): pack p has the sequences `sequence_offsets[p]` to `sequence_offsets[p + 1]`."""

    def __len__(self) -> int:
        return len(self.sequence_offsets) - 1

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Shape (packs + 1,): pack p has the tokens `offsets[p]` to `offsets[p + 1]`."""
        return self.sequences.offsets[self.sequence_offsets]

    @property
    def labels(self) -> NDArray[np.int32]:
        """Shape (tokens,): the labels of the sequences; the first token of a sequence is never trained."""
        return labels_of(self.sequences.input_ids, self.sequences.loss_weights)

    @property
    def position_ids(self) -> NDArray[np.int32]:
        """Shape (tokens,): positions, which start at 0 in each sequence."""
        return range_indices(np.zeros(len(self.sequences), np.int64), self.sequences.lengths).astype(np.int32)


def pack_arrays(packs: Packs) -> dict[str, pa.Array]:
    """Arrow lists, one list for each pack.

    They are `input_ids`, `labels`, `position_ids`, `seq_lengths` (int32) and `loss_weights` (float32). The names are
    those of transformers' models and of TRL's collator. There is no `attention_mask`: with one, even if it is all ones,
    transformers lets attention cross examples, whatever the positions are.
    """
    offsets = packs.offsets.astype(np.int32)
    return {
        "input_ids": list_array(offsets, packs.sequences.input_ids),
        "labels": list_array(offsets, packs.labels),
        "position_ids": list_array(offsets, packs.position_ids),
        "loss_weights": list_array(offsets, packs.sequences.loss_weights.astype(np.float32)),
        "seq_lengths": list_array(packs.sequence_offsets.astype(np.int32), packs.sequences.lengths.astype(np.int32)),
    }


def pack_stream(chunks: Iterable[Sequences], pack_tokens: int, *, window: int | None = None) -> Iterator[Packs]:
    """Yield packs of at most `pack_tokens` tokens. Every sequence is in exactly one of them, complete.

    A window of `window` tokens is packed at a time, by default `WINDOW_TOKENS` or `MIN_WINDOW_PACKS` packs' worth,
    whichever is more. As in training, sequences go longest first into the first pack with room. Packs are in the order
    of their first sequences, and the sequences of a pack in their own order. The result depends only on the sequences
    and their order, not on how they are divided into chunks. There is at least one `Packs`, which may be empty.

    Raises `ValueError` for a sequence that is longer than a pack.
    """
    waiting: list[Sequences] = []
    room = full = max(WINDOW_TOKENS, MIN_WINDOW_PACKS * pack_tokens) if window is None else window
    empty = True
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            end = int(np.searchsorted(chunk.offsets, chunk.offsets[start] + room))
            end = min(end, len(chunk))  # the sequence that fills the window is its last
            waiting.append(chunk if end - start == len(chunk) else chunk.select(np.arange(start, end)))
            room -= int(waiting[-1].offsets[-1])
            start = end
            if room <= 0:
                yield _packs(Sequences.join(waiting), pack_tokens)
                waiting, room, empty = [], full, False
    if waiting or empty:
        yield _packs(Sequences.join(waiting), pack_tokens)


def _packs(sequences: Sequences, pack_tokens: int) -> Packs:
    lengths = sequences.lengths
    if len(lengths) and (longest := int(lengths.max())) > pack_tokens:
        raise ValueError(f"a sequence of {longest} tokens; expected at most pack_tokens={pack_tokens}")
    found = sorted(pack(lengths.tolist(), pack_tokens))
    order = np.fromiter((index for items in found for index in items), dtype=np.int64)
    sizes = np.fromiter(map(len, found), dtype=np.int64)
    return Packs(sequences=sequences.select(order), sequence_offsets=offsets_from_lengths(sizes))
