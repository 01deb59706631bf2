"""Packs out of a stream of examples, as columns: a window of them is packed at a time, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.columns import TokenizedColumns, ends_of, labels_of, list_array, places_of
from templatekit.packing.plain import pack

if TYPE_CHECKING:
    import pyarrow as pa

WINDOW = 2**20
"""Tokens that are packed together, some 20 MB of them."""
FEWEST = 16
"""Packs' worth of tokens that are so in any case: of a window's packs one or two are not full."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """Ids and weights end to end, and which examples they are: all that packing needs of them."""

    offsets: NDArray[np.int64]
    """Shape (sequences + 1,): sequence i has the tokens `offsets[i]` to `offsets[i + 1]`."""
    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    loss_weights: NDArray[np.float64]
    """Shape (tokens,); 0 for the first token of each sequence, so that nothing is predicted across two."""
    rows: NDArray[np.int64]
    """Shape (sequences,): the record that each came from."""
    samples: NDArray[np.int32]
    """Shape (sequences,): which of the record's samples it is."""
    sources: Sequence[str]
    """Shape (sequences,): the set of the record; "" where there is one."""

    @classmethod
    def of(cls, columns: TokenizedColumns) -> Sequences:
        """What packing needs of tokenized examples."""
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
        """Shape (sequences,): tokens of each."""
        return np.diff(self.offsets)

    def take(self, keep: NDArray[np.int64]) -> Sequences:
        """Those with these indices, in this order."""
        lengths = self.lengths[keep]
        tokens = places_of(self.offsets[keep], lengths)
        return Sequences(
            offsets=ends_of(lengths),
            input_ids=self.input_ids[tokens],
            loss_weights=self.loss_weights[tokens],
            rows=self.rows[keep],
            samples=self.samples[keep],
            sources=[self.sources[index] for index in keep.tolist()],
        )

    def slice(self, start: int, end: int) -> Sequences:
        """Those from `start` on, up to `end` or the last."""
        end = min(end, len(self))
        first, last = self.offsets[start], self.offsets[end]
        return Sequences(
            offsets=self.offsets[start : end + 1] - first,
            input_ids=self.input_ids[first:last],
            loss_weights=self.loss_weights[first:last],
            rows=self.rows[start:end],
            samples=self.samples[start:end],
            sources=self.sources[start:end],
        )

    @staticmethod
    def join(several: Sequence[Sequences]) -> Sequences:
        """One after the other."""
        return Sequences(
            offsets=ends_of(np.concatenate([np.zeros(0, np.int64), *(one.lengths for one in several)])),
            input_ids=np.concatenate([np.zeros(0, np.int32), *(one.input_ids for one in several)]),
            loss_weights=np.concatenate([np.zeros(0, np.float64), *(one.loss_weights for one in several)]),
            rows=np.concatenate([np.zeros(0, np.int64), *(one.rows for one in several)]),
            samples=np.concatenate([np.zeros(0, np.int32), *(one.samples for one in several)]),
            sources=[source for one in several for source in one.sources],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packs:
    """Packs of whole sequences, without padding: what stands in a pack is the concatenation of its sequences."""

    sequences: Sequences
    """In the order of the packs."""
    edges: NDArray[np.int64]
    """Shape (packs + 1,): pack p holds the sequences `edges[p]` to `edges[p + 1]`."""

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Shape (packs + 1,): pack p has the tokens `offsets[p]` to `offsets[p + 1]`."""
        return self.sequences.offsets[self.edges]

    @property
    def labels(self) -> NDArray[np.int32]:
        """Shape (tokens,): as those of examples; never trained where a sequence begins."""
        return labels_of(self.sequences.input_ids, self.sequences.loss_weights)

    @property
    def position_ids(self) -> NDArray[np.int32]:
        """Shape (tokens,): from 0 on in each sequence."""
        return places_of(np.zeros(len(self.sequences), np.int64), self.sequences.lengths).astype(np.int32)


def pack_arrays(packs: Packs) -> dict[str, pa.Array]:
    """Arrow lists, one a pack: `input_ids`, `labels`, `position_ids`, `seq_lengths` (int32), `loss_weights` (float32).

    The names are those of transformers' models, and of TRL's collator. There is no `attention_mask`: beside one of ones
    transformers lets attention cross examples, whatever the positions are.
    """
    offsets = packs.offsets.astype(np.int32)
    return {
        "input_ids": list_array(offsets, packs.sequences.input_ids),
        "labels": list_array(offsets, packs.labels),
        "position_ids": list_array(offsets, packs.position_ids),
        "loss_weights": list_array(offsets, packs.sequences.loss_weights.astype(np.float32)),
        "seq_lengths": list_array(packs.edges.astype(np.int32), packs.sequences.lengths.astype(np.int32)),
    }


def packed(parts: Iterable[Sequences], pack_tokens: int, *, window: int | None = None) -> Iterator[Packs]:
    """All sequences, each in one pack of at most `pack_tokens` tokens.

    So many are packed at a time as hold `window` tokens, by default `WINDOW` or `FEWEST` packs' worth: longest first,
    into the first pack with room, as in training. Packs come in the order of their first sequences, and sequences in
    theirs within each. Only the sequences and their order decide, not the parts they come in. At least one `Packs`
    comes, which may hold none.
    Raises `ValueError` for a sequence that is longer than a pack.
    """
    waiting: list[Sequences] = []
    room = full = max(WINDOW, FEWEST * pack_tokens) if window is None else window
    empty = True
    for part in parts:
        while len(part):
            count = int(np.searchsorted(part.offsets, room))  # the sequence that fills the window is its last
            waiting.append(part.slice(0, count))
            room -= int(waiting[-1].offsets[-1])
            if room > 0:
                break
            yield _packs(Sequences.join(waiting), pack_tokens)
            waiting, room, empty = [], full, False
            part = part.slice(count, len(part))
    if waiting or empty:
        yield _packs(Sequences.join(waiting), pack_tokens)


def _packs(sequences: Sequences, pack_tokens: int) -> Packs:
    lengths = sequences.lengths
    if len(lengths) and (longest := int(lengths.max())) > pack_tokens:
        raise ValueError(f"a sequence of {longest} tokens; expected at most pack_tokens={pack_tokens}")
    found = sorted(pack(lengths.tolist(), pack_tokens))
    order = np.fromiter((index for items in found for index in items), dtype=np.int64)
    sizes = np.fromiter(map(len, found), dtype=np.int64)
    return Packs(sequences=sequences.take(order), edges=ends_of(sizes))
