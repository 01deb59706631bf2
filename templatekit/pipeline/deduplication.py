"""Leaves out records that repeat an earlier one: exactly, or nearly.

What is compared is the conversation that the adapter reads, without the columns it does not read and without ids, so
two rows are equal where the same would be trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from templatekit.config.options import parse_dedup
from templatekit.errors import ConfigError, LeftOut, RecordError
from templatekit.pipeline.first_rows import FirstRows, text_key
from templatekit.types import Example, Message, PreferenceExample, Record

if TYPE_CHECKING:
    import rensa

EXACT, NEAR = "duplicate", "near_duplicate"
"""The reasons under which such records are counted."""

_BATCH = 256
_PERMUTATIONS = 128
_SEED = 1
_SHINGLE = 3
"""Words in a row whose sets are compared."""


class Repeated(NamedTuple):
    """What a text repeats."""

    place: int
    similarity: float | None = None
    """The estimate; None where the texts are equal."""


class Texts(Protocol):
    """The texts seen so far."""

    def add(self, texts: list[str], places: list[int]) -> list[Repeated | None]:
        """What each text repeats, of those seen before it; others are kept, under their place."""


def texts_of(dedup: str) -> Texts:
    """An empty store for what `dedup` asks; raises `ConfigError` where it needs a package that is missing."""
    threshold = parse_dedup(dedup)
    return ExactTexts() if threshold == 1 else NearTexts(threshold)


def conversation_text(examples: Iterable[Example]) -> str:
    """All that is said in a record's examples, as one text."""
    return "\n".join(_line(message) for example in examples for message in _messages(example))


def _messages(example: Example) -> tuple[Message, ...]:
    if isinstance(example, PreferenceExample):
        return (*example.messages, *example.chosen, *example.rejected)
    return example.messages


def _line(message: Message) -> str:
    parts = [message.role, message.content, message.context, message.reasoning]
    if message.tool_calls:
        parts.append(json.dumps(message.tool_calls, sort_keys=True, ensure_ascii=False, default=str))
    return "\x1f".join(parts)


class ExactTexts:
    """Texts as 8-byte hashes: 16 bytes a text."""

    def __init__(self) -> None:
        self._first = FirstRows()

    def add(self, texts: list[str], places: list[int]) -> list[Repeated | None]:
        """As `Texts` says."""
        keys = [text_key(text) for text in texts]
        return [None if place is None else Repeated(place) for place in self._first.add(keys, places)]


class NearTexts:
    """Texts as MinHash signatures of their runs of three words, found by locality-sensitive hashing.

    About 1 KB a text that is kept. The similarity is the share of equal runs (Jaccard's index), estimated from 128
    hashes: its standard error is 0.035 at 0.8. rensa's hashes are seeded, so a run can be repeated.
    """

    def __init__(self, threshold: float) -> None:
        try:
            import rensa
        except ImportError:
            raise ConfigError(
                "dedup 'near' needs the package rensa; found none; pip install 'templatekit[dedup]', or use exact"
            ) from None
        self._hash = rensa.RMinHash
        self._threshold = threshold
        self._index = rensa.RMinHashLSH(threshold, _PERMUTATIONS, _bands(threshold))
        self._kept: dict[int, rensa.RMinHash] = {}

    def add(self, texts: list[str], places: list[int]) -> list[Repeated | None]:
        """As `Texts` says; of several texts the most similar is named, and of equally similar ones the first."""
        return [self._add(text, place) for text, place in zip(texts, places, strict=True)]

    def keep(self, texts: list[str], places: list[int]) -> None:
        """Keeps every text, those that repeat another too: what is like one of them need not be like the other."""
        for text, place in zip(texts, places, strict=True):
            self._keep(self._signature(text), place)

    def find(self, texts: list[str]) -> list[Repeated | None]:
        """What each text repeats of those that are kept; none is kept of these."""
        return [self._like(self._signature(text)) for text in texts]

    def _add(self, text: str, place: int) -> Repeated | None:
        signature = self._signature(text)
        repeated = self._like(signature)
        if repeated is None:
            self._keep(signature, place)
        return repeated

    def _signature(self, text: str) -> rensa.RMinHash:
        signature = self._hash(_PERMUTATIONS, _SEED)
        signature.update(_shingles(text))
        return signature

    def _keep(self, signature: rensa.RMinHash, place: int) -> None:
        self._index.insert(place, signature)
        self._kept[place] = signature

    def _like(self, signature: rensa.RMinHash) -> Repeated | None:
        others = ((signature.jaccard(self._kept[other]), -other) for other in self._index.query(signature))
        similarity, other = max(others, default=(0.0, 0))
        return Repeated(-other, similarity) if similarity >= self._threshold else None


def _shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[at : at + _SHINGLE]) for at in range(max(1, len(words) - _SHINGLE + 1))]


def _bands(threshold: float) -> int:
    """The fewest bands that find 99 of 100 pairs at the threshold: candidates are compared whole anyway."""
    for rows in (64, 32, 16, 8, 4, 2):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= 0.99:
            return bands
    return _PERMUTATIONS


class Item(NamedTuple):
    """A record on its way, with its place: a number of its own."""

    record: Record | RecordError
    place: int


def without_repeats(
    items: Iterable[Item],
    texts: Texts,
    read: Callable[[int, Record], Iterable[Example]],
    name: Callable[[int], str],
) -> Iterator[Item]:
    """The items, a `LeftOut` in the place of each that repeats another, which it names by `name(place)`.

    `read` gives the examples of the record at a place. What it raises a `RecordError` for is passed on: who renders it
    says what is wrong. An item that comes a second time under its own place is no repeat.
    """
    items = iter(items)
    while batch := list(islice(items, _BATCH)):
        found: dict[int, str] = {}
        for index, (record, place) in enumerate(batch):
            if isinstance(record, RecordError):
                continue
            try:
                found[index] = conversation_text(read(place, record))
            except RecordError:
                continue
        repeats = texts.add(list(found.values()), [batch[index].place for index in found])
        by_index = dict(zip(found, repeats, strict=True))
        for index, item in enumerate(batch):
            repeated = by_index.get(index)
            if repeated is None or repeated.place == item.place:
                yield item
                continue
            said, reason = f"the same as row {name(repeated.place)}", EXACT
            if repeated.similarity is not None:
                said, reason = f"nearly {said} (similarity {repeated.similarity:.2f})", NEAR
            yield item._replace(record=LeftOut(said, reason=reason))
