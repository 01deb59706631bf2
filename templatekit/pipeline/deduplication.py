"""Excludes records that repeat an earlier one, exactly or nearly.

The conversations that the adapter reads are compared. Ids of rows and columns that it does not read do not count, so
two rows are equal if the same text would be trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from templatekit.config.data_options import parse_dedup
from templatekit.errors import ConfigError, ExcludedRecord, RecordError
from templatekit.pipeline.first_rows import FirstRows, text_key
from templatekit.sources.chunked import chunked
from templatekit.sources.limits import told_size
from templatekit.types import Example, Message, PreferenceExample, Record

if TYPE_CHECKING:
    import rensa

EXACT, NEAR = "duplicate", "near_duplicate"
"""Reason codes of excluded records."""

_BATCH_SIZE = 256
_PERMUTATIONS = 128
_SEED = 1
_SHINGLE_WORDS = 3
"""Words of a shingle; texts are compared by their sets of shingles."""


class DuplicateOf(NamedTuple):
    """The earlier text that a text repeats."""

    id: int
    similarity: float | None = None
    """The estimated similarity; None where the texts are equal."""


def conversation_text(examples: Iterable[Example]) -> str:
    """All messages of a record's examples as one text."""
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


class ExactTextIndex:
    """Finds equal texts by 8-byte hashes; takes 16 bytes a text."""

    def __init__(self) -> None:
        self._first = FirstRows()

    def add(self, texts: list[str], ids: list[int]) -> list[DuplicateOf | None]:
        """The earlier text that each text repeats; a text that repeats none is stored under its id."""
        keys = [text_key(text) for text in texts]
        return [None if first is None else DuplicateOf(first) for first in self._first.add(keys, ids)]


class NearTextIndex:
    """Finds similar texts: MinHash signatures of their shingles, looked up by locality-sensitive hashing.

    It takes about 1 KB for each stored text. The similarity is the share of equal shingles (the Jaccard index),
    estimated from 128 hashes; its standard error is 0.035 at 0.8. The hashes are seeded, so results are reproducible.
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
        self._signatures: dict[int, rensa.RMinHash] = {}

    def add(self, texts: list[str], ids: list[int]) -> list[DuplicateOf | None]:
        """As `ExactTextIndex.add`; of several earlier texts the most similar, of equally similar ones the first."""
        return [self._add(text, id) for text, id in zip(texts, ids, strict=True)]

    def store(self, texts: list[str], ids: list[int]) -> None:
        """Store every text, repeats included, since a later text may be similar to only one of two similar texts."""
        for text, id in zip(texts, ids, strict=True):
            self._store(self._signature(text), id)

    def find(self, texts: list[str]) -> list[DuplicateOf | None]:
        """The stored text that each text repeats; stores none of them."""
        return [self._most_similar(self._signature(text)) for text in texts]

    def _add(self, text: str, id: int) -> DuplicateOf | None:
        signature = self._signature(text)
        duplicate = self._most_similar(signature)
        if duplicate is None:
            self._store(signature, id)
        return duplicate

    def _signature(self, text: str) -> rensa.RMinHash:
        signature = self._hash(_PERMUTATIONS, _SEED)
        signature.update(_shingles(text))
        return signature

    def _store(self, signature: rensa.RMinHash, id: int) -> None:
        self._index.insert(id, signature)
        self._signatures[id] = signature

    def _most_similar(self, signature: rensa.RMinHash) -> DuplicateOf | None:
        others = ((signature.jaccard(self._signatures[other]), -other) for other in self._index.query(signature))
        similarity, other = max(others, default=(0.0, 0))
        return DuplicateOf(-other, similarity) if similarity >= self._threshold else None


def _shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[at : at + _SHINGLE_WORDS]) for at in range(max(1, len(words) - _SHINGLE_WORDS + 1))]


def _bands(threshold: float) -> int:
    """The fewest bands that find 99 % of the pairs at the threshold; candidates are then compared by all hashes."""
    for rows in (64, 32, 16, 8, 4, 2):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= 0.99:
            return bands
    return _PERMUTATIONS


TextIndex: TypeAlias = ExactTextIndex | NearTextIndex
"""Finds texts among those seen before."""


def create_text_index(dedup: str) -> TextIndex:
    """An empty index for the option `dedup`; raises `ConfigError` where it needs a package that is not installed."""
    threshold = parse_dedup(dedup)
    return ExactTextIndex() if threshold == 1 else NearTextIndex(threshold)


class IdentifiedRecord(NamedTuple):
    """A record with an id that no other record has, such as its row."""

    record: Record | RecordError
    id: int


def mark_duplicates(
    records: Iterable[IdentifiedRecord],
    index: TextIndex,
    read: Callable[[int, Record], Iterable[Example]],
    name: Callable[[int], str],
) -> Iterator[IdentifiedRecord]:
    """The records, with an `ExcludedRecord` in place of each repeat, which names the earlier record by `name(id)`.

    `read` gives the examples of a record by its id. A record for which `read` raises a `RecordError` is passed on: the
    pipeline reports the error. A record that comes a second time under its own id is no duplicate.
    """
    for batch, error in chunked(records, _BATCH_SIZE, lambda one: told_size(one.record)):
        texts: dict[int, str] = {}
        for position, (record, id) in enumerate(batch):
            if not isinstance(record, RecordError):
                with suppress(RecordError):
                    texts[position] = conversation_text(read(id, record))
        duplicates = index.add(list(texts.values()), [batch[position].id for position in texts])
        by_position = dict(zip(texts, duplicates, strict=True))
        for position, item in enumerate(batch):
            duplicate = by_position.get(position)
            if duplicate is None or duplicate.id == item.id:
                yield item
                continue
            message, reason = f"the same as row {name(duplicate.id)}", EXACT
            if duplicate.similarity is not None:
                message, reason = f"nearly {message} (similarity {duplicate.similarity:.2f})", NEAR
            yield item._replace(record=ExcludedRecord(message, reason=reason))
        if error is not None:
            raise error
