"""Interleaves several data sets, in the same order as `datasets.interleave_datasets`, for any iterables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

Strategy: TypeAlias = Literal["concat", "once", "first_exhausted", "all_exhausted"]
"""How data sets are mixed. `concat`: one after the other. The other strategies draw by weight.

`once`: each row once; a set that is exhausted is skipped. `first_exhausted`: until one set is exhausted.
`all_exhausted`: until every set has been read to its end; a shorter one starts again.
"""

_DRAWS = 1000
"""Count of random numbers drawn in one call; the same as in `datasets`, so that the order is the same."""


class DrawnItem(NamedTuple, Generic[T]):
    """An item, and the index of its data set."""

    set_index: int
    item: T


@dataclass(kw_only=True)
class Passes:
    """How often a data set was read, and whether rows of it remain."""

    complete: int = 0
    """Count of passes that read every item."""
    partial: int = 0
    """Count of items that were read in the last, incomplete pass."""
    unfinished: bool = False
    """Whether the set was never read to its end."""


@dataclass(kw_only=True)
class Mix(Generic[T]):
    """Data sets to draw from; each call of an `opener` starts its set again."""

    openers: Sequence[Callable[[], Iterable[T]]]
    weights: Sequence[float]
    strategy: Strategy
    seed: int = 0
    passes: list[Passes] = field(default_factory=list)

    def __iter__(self) -> Iterator[DrawnItem[T]]:
        self.passes = [Passes() for _ in self.openers]
        streams = [_Stream(opener) for opener in self.openers]
        order = self._in_sequence(streams) if self.strategy == "concat" else self._by_weight(streams)
        for index in order:
            item = streams[index].take()
            self.passes[index].partial += 1
            if not streams[index].more:
                self.passes[index].complete += 1
                self.passes[index].partial = 0
            yield DrawnItem(index, item)
        for passes, stream in zip(self.passes, streams, strict=True):
            passes.unfinished = not passes.complete and stream.more

    def _in_sequence(self, streams: Sequence[_Stream[T]]) -> Iterator[int]:
        for index, stream in enumerate(streams):
            while stream.more:
                yield index

    def _by_weight(self, streams: Sequence[_Stream[T]]) -> Iterator[int]:
        ended = [not stream.more for stream in streams]
        enough = any if self.strategy == "first_exhausted" else all
        for index in self._draws():
            if enough(ended):
                return
            if ended[index] and self.strategy == "once":
                continue
            if not streams[index].more:
                if not self.passes[index].complete:
                    continue  # an empty set
                streams[index].restart()
            yield index
            ended[index] |= not streams[index].more

    def _draws(self) -> Iterator[int]:
        import numpy as np

        rng = np.random.default_rng(self.seed)
        total = sum(self.weights)
        shares = [weight / total for weight in self.weights]
        while True:
            yield from rng.choice(len(shares), size=_DRAWS, p=shares).tolist()


class _Stream(Generic[T]):
    """The items of a data set, with a look-ahead of one."""

    def __init__(self, opener: Callable[[], Iterable[T]]) -> None:
        self._opener = opener
        self.restart()

    def restart(self) -> None:
        self._items = iter(self._opener())
        self._next = list(islice(self._items, 1))

    @property
    def more(self) -> bool:
        return bool(self._next)

    def take(self) -> T:
        item = self._next[0]
        self._next = list(islice(self._items, 1))
        return item
