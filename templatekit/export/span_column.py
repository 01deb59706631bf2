"""The spans of many texts as one Arrow column; those of traced texts are computed all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.columns import list_array, offsets_from_lengths
from templatekit.types import Origin, RenderedText, TracedLayout

if TYPE_CHECKING:
    import pyarrow as pa


class _PieceSpans(NamedTuple):
    """The spans of a text, in terms of its pieces."""

    last: NDArray[np.int64]
    """The index of each span's last piece."""
    names: NDArray[np.int64]
    """The index of each span's origin in `_Names`."""


class _Names:
    """The names of origins, as files spell them, each stored once under an index."""

    def __init__(self) -> None:
        self.names: list[str] = []
        # By the identity of the origin, because there are few objects and comparing them is slow.
        self._indices: dict[int, tuple[int, Origin]] = {}

    def index(self, origin: Origin) -> int:
        if id(origin) not in self._indices:
            self._indices[id(origin)] = len(self.names), origin
            self.names.append(str(origin))
        return self._indices[id(origin)][0]


def span_column(texts: Sequence[RenderedText]) -> pa.ListArray:
    """The spans of each text: `start` and `end`, in characters, and `origin`."""
    import pyarrow as pa

    names = _Names()
    layouts: dict[TracedLayout, _PieceSpans] = {}
    lengths: list[int] = []  # of the pieces of all texts
    starts: list[int] = []  # the first piece of each text
    found: list[_PieceSpans] = []
    for rendered in texts:
        starts.append(len(lengths))
        traced = rendered.traced
        if traced is None:
            lengths += [span.end - span.start for span in rendered.spans]
            found.append(_piece_spans([span.origin for span in rendered.spans], names, merged=False))
            continue
        lengths += map(len, traced.pieces)
        if traced.layout not in layouts:
            layouts[traced.layout] = _piece_spans(traced.layout.origins, names, merged=True)
        found.append(layouts[traced.layout])
    none = np.zeros(0, dtype=np.int64)
    counts = np.fromiter((len(spans.last) for spans in found), dtype=np.int64, count=len(found))
    text_offsets = offsets_from_lengths(counts)
    piece_ends = offsets_from_lengths(np.array(lengths, dtype=np.int64))
    first_pieces = np.array(starts, dtype=np.int64)
    last_pieces = np.concatenate([none, *(spans.last for spans in found)]) + np.repeat(first_pieces, counts)
    ends = piece_ends[last_pieces + 1] - np.repeat(piece_ends[first_pieces], counts)
    starts_of_spans = np.concatenate([none, [0], ends])[: len(ends)]
    starts_of_spans[text_offsets[:-1][counts > 0]] = 0
    name_indices = np.concatenate([none, *(spans.names for spans in found)])
    struct = pa.StructArray.from_arrays(
        [
            pa.array(starts_of_spans, type=pa.int64()),
            pa.array(ends, type=pa.int64()),
            pa.array(names.names, type=pa.string()).take(pa.array(name_indices)),
        ],
        names=["start", "end", "origin"],
    )
    return list_array(text_offsets.astype(np.int32), struct)


def _piece_spans(origins: Sequence[Origin], names: _Names, *, merged: bool) -> _PieceSpans:
    """The spans of pieces with these origins: one for each piece, or with `merged` one for neighbours of one origin."""
    last = [
        index
        for index, origin in enumerate(origins)
        if not merged or index + 1 == len(origins) or origins[index + 1] != origin
    ]
    return _PieceSpans(
        np.array(last, dtype=np.int64), np.array([names.index(origins[index]) for index in last], dtype=np.int64)
    )
