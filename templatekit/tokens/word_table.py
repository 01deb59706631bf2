"""Ids of texts from the ids of their words: each word is encoded once, however often it comes.

For tokenizers that encode words apart (`templatekit.tokens.word_boundaries`) a text is cut at seams, the blanks between two
characters that are no whitespace, and the ids of the parts are laid end to end. English text brings a new part every
dozen words, so that the tokenizer has a tenth of the work. A text without a seam is one part, and so is a text for the
quicker encoder (`templatekit.tokens.fast_backend`), which takes less time for all of it than Python for its words.

The parts of a batch are numbers first; `encode` turns all of them into ids at once.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import tokenizers
from numpy.typing import NDArray

from templatekit.tokens.fast_backend import Encode, is_alike, quicker, reference, worth
from templatekit.tokens.word_boundaries import BLANK, METASPACE

LONGEST = 48
"""Characters of the longest part that is kept: longer ones hardly come again."""
MOST = 1 << 18
"""Parts that are kept, of some 250 bytes each; with more the table begins anew."""
LONGEST_TEXT = 256
"""Characters of the longest text that is kept with the numbers of its parts: a system prompt, a short answer."""
MOST_TEXTS = 1 << 16
"""Texts that are kept, of at most a kilobyte each."""

_NO_EDGE = f"\u180e{METASPACE}"
SEAM = re.compile(rf"(?<=[^\s{_NO_EDGE}])(?= [^\s{_NO_EDGE}])")
"""Python's whitespace is Unicode's and four control characters more; beside one of those no seam is looked for."""

Number = TypeVar("Number", np.int32, np.int64, np.bool_)


class Parts(NamedTuple):
    """The ids of the parts of a batch, end to end."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    """Shape (parts + 1,): how many ids there are up to each part's end, with a 0 in front."""
    strange: NDArray[np.bool_]
    """Shape (parts,): whether its text gives an id that no text should give."""


class _NoSeam(Exception):
    """A blank beside this word is no seam."""


class _Numbers(dict[str, int]):
    """The numbers of parts by their text, made when they are asked for."""

    def __init__(self, make: Callable[[str], int]) -> None:
        self._make = make

    def __missing__(self, text: str) -> int:
        number = self._make(text)
        if len(text) <= LONGEST:
            self[text] = number
        return number


class Words:
    """The parts that were met, and their ids."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        prefixed: tokenizers.Tokenizer,
        unwanted: Iterable[int] = (),
        fingerprint: str | None = None,
    ) -> None:
        """`prefixed` puts a dummy prefix in front of a text, `backend` none; for most tokenizers they are the same.

        A part whose text gives an `unwanted` id is strange. A `fingerprint` of the tokenizer has what was made for it
        found again.
        """
        self._backends = {False: backend, True: prefixed}
        self._prefixes = prefixed is not backend
        self._quicker: Encode | None = None
        self._fingerprint = fingerprint
        self._worth = worth(backend)
        self._asked = 0
        self._unwanted = np.array(sorted(unwanted), dtype=np.int32)
        self._forget()

    def _forget(self) -> None:
        # Under several keys each: at a text's beginning, behind a blank, and there within a text or at its end.
        self._front = {prefix: _Numbers(self._entering(prefix)) for prefix in (False, True)}
        self._behind = _Numbers(lambda word: self._enter(BLANK + word, False))
        self._first = {prefix: _Numbers(self._opening(prefix)) for prefix in (False, True)}
        self._inner = _Numbers(self._inside)
        self._last = _Numbers(self._ending)
        self._texts: dict[bool, dict[str, array[int]]] = {False: {}, True: {}}
        self._new: list[tuple[int, str, bool]] = []
        self._alike: list[tuple[int, str]] = []
        self._count = 0
        self._lengths: NDArray[np.int64] = np.zeros(1 << 10, dtype=np.int64)
        self._starts: NDArray[np.int64] = np.zeros(1 << 10, dtype=np.int64)
        self._strange: NDArray[np.bool_] = np.zeros(1 << 10, dtype=np.bool_)
        self._ids: NDArray[np.int32] = np.zeros(1 << 12, dtype=np.int32)
        self._used = 0

    def begin(self) -> array[int]:
        """A list for the numbers of a batch's parts. Numbers hold until the next one is begun."""
        if self._count > MOST or self._used > 16 * MOST or sum(map(len, self._texts.values())) > MOST_TEXTS:
            self._forget()
        return array("q")

    def add(self, numbers: array[int], text: str, *, prefix: bool = True) -> None:
        """Appends the numbers of a text's parts; with `prefix` the tokenizer may put its dummy prefix in front."""
        texts = self._texts[prefix]
        known = texts.get(text)
        if known is not None:
            numbers += known
            return
        mark = len(numbers)
        if self._quicker is not None and is_alike(text):
            numbers.append(self._count)  # to part it would take longer
            self._alike.append((self._count, text))
            self._count += 1
        else:
            self._add_words(numbers, text, prefix)
        if len(text) <= LONGEST_TEXT:
            texts[text] = numbers[mark:]

    def _add_words(self, numbers: array[int], text: str, prefix: bool) -> None:
        words = text.split(BLANK)
        if len(words) == 1:
            numbers.append(self._front[prefix][text])
            return
        mark = len(numbers)
        try:
            numbers.append(self._first[prefix][words[0]])
            numbers.extend(map(self._inner.__getitem__, words[1:-1]))
            numbers.append(self._last[words[-1]])
        except _NoSeam:
            del numbers[mark:]
            first, *others = SEAM.split(text)
            numbers.append(self._front[prefix][first])
            numbers.extend(self._behind[part[1:]] for part in others)

    def encode(self, numbers: array[int]) -> Parts:
        """The ids of all parts of a batch."""
        try:
            self._encode_new()
        except BaseException:
            self._forget()  # numbers without ids are left
            raise
        parts = np.frombuffer(numbers, dtype=np.int64) if numbers else np.zeros(0, dtype=np.int64)
        lengths = self._lengths[parts]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self._starts[parts] - ends[:-1], lengths) + np.arange(ends[-1])
        return Parts(self._ids[places], ends, self._strange[parts])

    def _encode_new(self) -> None:
        """Encodes the parts that were entered since the last batch, in one call for each variant of the tokenizer."""
        alike, self._alike = self._alike, []
        new, self._new = self._new, []
        for prefix, backend in self._backends.items():
            texts = [(at, text) for at, text, wanted in new if wanted == prefix]
            if self._quick_one(len(texts)) is not None:
                alike += [entry for entry in texts if is_alike(entry[1])]
                texts = [entry for entry in texts if not is_alike(entry[1])]
            self._keep(texts, reference(backend))
        if self._quicker is not None:
            self._keep(alike, self._quicker)

    def _quick_one(self, parts: int) -> Encode | None:
        """The quicker encoder, once so many parts were asked for that loading it pays; it puts no prefix in front."""
        if self._asked < self._worth <= self._asked + parts and not self._prefixes:
            self._quicker = quicker(self._backends[False], fingerprint=self._fingerprint)
        self._asked += parts
        return self._quicker

    def _keep(self, texts: Sequence[tuple[int, str]], encode: Encode) -> None:
        if not texts:
            return
        ids = encode([text for _, text in texts])
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        ends = np.cumsum(lengths)
        self._lengths = _with_room(self._lengths, self._count)
        self._starts = _with_room(self._starts, self._count)
        self._strange = _with_room(self._strange, self._count)
        self._ids = _with_room(self._ids, self._used + len(flat))
        at = np.fromiter((number for number, _ in texts), dtype=np.int64, count=len(texts))
        self._ids[self._used : self._used + len(flat)] = flat
        self._lengths[at] = lengths
        self._starts[at] = self._used + ends - lengths
        self._used += len(flat)
        if len(self._unwanted):
            found = np.concatenate([[0], np.cumsum(np.isin(flat, self._unwanted))])
            self._strange[at] = found[ends] > found[ends - lengths]

    def _enter(self, text: str, prefix: bool) -> int:
        self._new.append((self._count, text, prefix))
        self._count += 1
        return self._count - 1

    def _entering(self, prefix: bool) -> Callable[[str], int]:
        return lambda text: self._enter(text, prefix and self._prefixes)

    def _opening(self, prefix: bool) -> Callable[[str], int]:
        """For words at the beginning of a text, with a blank behind."""

        def number(word: str) -> int:
            # Behind a dummy prefix, too, a blank at the very start has no character before it.
            if not _is_edge(word[-1:]) and (word or (prefix and self._prefixes)):
                raise _NoSeam
            return self._front[prefix][word]

        return number

    def _inside(self, word: str) -> int:
        if not (_is_edge(word[:1]) and _is_edge(word[-1:])):
            raise _NoSeam
        return self._behind[word]

    def _ending(self, word: str) -> int:
        if not _is_edge(word[:1]):
            raise _NoSeam
        return self._behind[word]


def _is_edge(character: str) -> bool:
    """Whether a blank beside this character may be a seam; `""`, which stands for another blank, is none."""
    return bool(character) and not character.isspace() and character not in _NO_EDGE


def _with_room(column: NDArray[Number], size: int) -> NDArray[Number]:
    """The column, or a longer copy of it, for at least `size` values."""
    if size <= len(column):
        return column
    longer = np.zeros(max(size, 2 * len(column)), dtype=column.dtype)
    longer[: len(column)] = column
    return longer
