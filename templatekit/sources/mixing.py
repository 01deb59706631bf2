"""In which order rows are drawn from several sets: the draws of `datasets.interleave_datasets`, for any iterables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

Strategy: TypeAlias = Literal["concat", "once", "first_exhausted", "all_exhausted"]
"""`concat`: one set after the other. The others draw by weight: `once` until every row has come, a set that has no more
being left out; `first_exhausted` until one set has no more; `all_exhausted` until every set has been gone through, the
shorter ones beginning anew."""

_DRAWS = 1000
"""Random numbers made at once; as many as `datasets` makes, so that the order is the same."""


class DrawnItem(NamedTuple, Generic[T]):
    """An item, and the number of the set it is from."""

    set_index: int
    item: T


@dataclass(kw_only=True)
class Passes:
    """What became of a set: how often it was gone through, and whether rows of it were left."""

    complete: int = 0
    partial: int = 0
    """Items of the pass that was not ended."""
    unfinished: bool = False
    """Whether the set had more to give when the mixture ended."""


@dataclass(kw_only=True)
class Mix(Generic[T]):
    """Sets to draw from; each call of an `opener` begins its set anew."""

    openers: Sequence[Callable[[], Iterable[T]]]
    weights: Sequence[float]
    strategy: Strategy
    seed: int = 0
    passes: list[Passes] = field(default_factory=list)

    def __iter__(self) -> Iterator[DrawnItem[T]]:
        self.passes = [Passes() for _ in self.openers]
        streams = [_Stream(opener) for opener in self.openers]
        order = self._one_by_one(streams) if self.strategy == "concat" else self._by_weight(streams)
        for index in order:
            item = streams[index].take()
            self.passes[index].partial += 1
            if not streams[index].more:
                self.passes[index].complete += 1
                self.passes[index].partial = 0
            yield DrawnItem(index, item)
        for passes, stream in zip(self.passes, streams, strict=True):
            passes.unfinished = not passes.complete and stream.more

    def _one_by_one(self, streams: Sequence[_Stream[T]]) -> Iterator[int]:
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
                streams[index].begin()
            yield index
            ended[index] |= not streams[index].more

    def _draws(self) -> Iterator[int]:
        import numpy as np

        draw = np.random.default_rng(self.seed)
        total = sum(self.weights)
        shares = [weight / total for weight in self.weights]
        while True:
            yield from draw.choice(len(shares), size=_DRAWS, p=shares).tolist()


class _Stream(Generic[T]):
    """A set's items, one of them looked at ahead."""

    def __init__(self, opener: Callable[[], Iterable[T]]) -> None:
        self._opener = opener
        self.begin()

    def begin(self) -> None:
        self._items = iter(self._opener())
        self._next = list(_first(self._items))

    @property
    def more(self) -> bool:
        return bool(self._next)

    def take(self) -> T:
        item = self._next[0]
        self._next = list(_first(self._items))
        return item


def _first(items: Iterator[T]) -> Iterator[T]:
    for item in items:
        yield item
        return
