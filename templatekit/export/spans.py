"""The origins of many texts as one Arrow column; of texts of a plan they are worked out all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.columns import list_array
from templatekit.types import Origin, Outline, RenderedText

if TYPE_CHECKING:
    import pyarrow as pa


class _Runs(NamedTuple):
    """The spans of a text, as runs of its pieces."""

    last: NDArray[np.int64]
    """Of each span its last piece."""
    names: NDArray[np.int64]
    """Of each span the number of its origin's name."""


class _Names:
    """Origins as files spell them, by number."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[
            int, tuple[int, Origin]
        ] = {}  # by object, of which there are few: to compare takes its time

    def number(self, origin: Origin) -> int:
        if id(origin) not in self._numbers:
            self._numbers[id(origin)] = len(self.names), origin
            self.names.append(str(origin))
        return self._numbers[id(origin)][0]


def span_lists(texts: Sequence[RenderedText]) -> pa.ListArray:
    """Of each text its spans: `start` and `end`, in characters, and `origin`."""
    import pyarrow as pa

    names = _Names()
    outlines: dict[Outline, _Runs] = {}
    lengths: list[int] = []
    starts: list[int] = []
    found: list[_Runs] = []
    for rendered in texts:
        starts.append(len(lengths))
        filled = rendered.filled
        if filled is None:
            lengths += [span.end - span.start for span in rendered.spans]
            found.append(_runs([span.origin for span in rendered.spans], names, joined=False))
            continue
        lengths += map(len, filled.texts)
        if filled.outline not in outlines:
            outlines[filled.outline] = _runs(filled.outline.origins, names, joined=True)
        found.append(outlines[filled.outline])
    none = np.zeros(0, dtype=np.int64)
    counts = np.fromiter((len(runs.last) for runs in found), dtype=np.int64, count=len(found))
    ends_of_texts = np.cumsum(counts)
    piece_ends = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))])
    first_pieces = np.array(starts, dtype=np.int64)
    last_pieces = np.concatenate([none, *(runs.last for runs in found)]) + np.repeat(first_pieces, counts)
    ends = piece_ends[last_pieces + 1] - np.repeat(piece_ends[first_pieces], counts)
    begins = np.concatenate([none, [0], ends])[: len(ends)]
    begins[(ends_of_texts - counts)[counts > 0]] = 0
    numbers = np.concatenate([none, *(runs.names for runs in found)])
    struct = pa.StructArray.from_arrays(
        [
            pa.array(begins, type=pa.int64()),
            pa.array(ends, type=pa.int64()),
            pa.array(names.names, type=pa.string()).take(pa.array(numbers)),
        ],
        names=["start", "end", "origin"],
    )
    return list_array(np.concatenate([[0], ends_of_texts]).astype(np.int32), struct)


def _runs(origins: Sequence[Origin], names: _Names, *, joined: bool) -> _Runs:
    """Pieces of these origins as spans; neighbours of one origin are one, if they are to be `joined`."""
    last = [
        place
        for place, origin in enumerate(origins)
        if not joined or place + 1 == len(origins) or origins[place + 1] != origin
    ]
    return _Runs(
        np.array(last, dtype=np.int64), np.array([names.number(origins[place]) for place in last], dtype=np.int64)
    )
