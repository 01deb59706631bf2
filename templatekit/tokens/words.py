"""Ids of texts from the ids of their words: each word is encoded once, however often it comes.

For tokenizers that encode words apart (`templatekit.tokens.apart`) a text is cut at seams, the blanks between two
characters that are no whitespace, and the ids of the parts are laid end to end. English text brings a new part every
dozen words, so that the tokenizer has a tenth of the work. A text without a seam is one part.

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

from templatekit.tokens.apart import BLANK, METASPACE
from templatekit.tokens.quick import WORTH, Encode, is_alike, quicker, reference

LONGEST = 48
"""Characters of the longest part that is kept: longer ones hardly come again."""
MOST = 1 << 18
"""Parts that are kept, of some 250 bytes each; with more the table begins anew."""

_NO_EDGE = f"\u180e{METASPACE}"
_SEAM = re.compile(rf"(?<=[^\s{_NO_EDGE}])(?= [^\s{_NO_EDGE}])")
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
        self, backend: tokenizers.Tokenizer, *, prefixed: tokenizers.Tokenizer, unwanted: Iterable[int] = ()
    ) -> None:
        """`prefixed` puts a dummy prefix in front of a text, `backend` none; for most tokenizers they are the same.

        A part whose text gives an `unwanted` id is strange.
        """
        self._backends = {False: backend, True: prefixed}
        self._prefixes = prefixed is not backend
        self._quicker: Encode | None = None
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
        self._by_id: dict[int, int] = {}
        self._new: list[tuple[str | int, bool]] = []
        self._count = 0
        self._lengths: NDArray[np.int64] = np.zeros(1 << 10, dtype=np.int64)
        self._starts: NDArray[np.int64] = np.zeros(1 << 10, dtype=np.int64)
        self._strange: NDArray[np.bool_] = np.zeros(1 << 10, dtype=np.bool_)
        self._ids: NDArray[np.int32] = np.zeros(1 << 12, dtype=np.int32)
        self._used = 0

    def begin(self) -> array[int]:
        """A list for the numbers of a batch's parts. Numbers hold until the next one is begun."""
        if self._count > MOST or self._used > 16 * MOST:
            self._forget()
        return array("q")

    def add(self, numbers: array[int], text: str, *, prefix: bool = True) -> None:
        """Appends the numbers of a text's parts; with `prefix` the tokenizer may put its dummy prefix in front."""
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
            first, *others = _SEAM.split(text)
            numbers.append(self._front[prefix][first])
            numbers.extend(self._behind[part[1:]] for part in others)

    def add_id(self, numbers: array[int], id: int) -> None:
        """Appends a part that is this id, which is not strange."""
        if id not in self._by_id:
            self._by_id[id] = self._enter(id, False)
        numbers.append(self._by_id[id])

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
        entered = list(enumerate(self._new, self._count - len(self._new)))
        for prefix, backend in self._backends.items():
            texts = [(at, entry) for at, (entry, wanted) in entered if isinstance(entry, str) and wanted == prefix]
            quick = self._quick_one(len(texts))
            if quick is not None:
                alike = [(at, text) for at, text in texts if is_alike(text)]
                self._keep([at for at, _ in alike], quick([text for _, text in alike]), told=False)
                texts = [(at, text) for at, text in texts if not is_alike(text)]
            if texts:
                ids = reference(backend)([text for _, text in texts])
                self._keep([at for at, _ in texts], ids, told=False)
        known = [(at, entry) for at, (entry, _) in entered if isinstance(entry, int)]
        self._keep([at for at, _ in known], [[id] for _, id in known], told=True)
        self._new = []

    def _quick_one(self, parts: int) -> Encode | None:
        """The quicker encoder, once so many parts were asked for that loading it pays; it puts no prefix in front."""
        if self._asked < WORTH <= self._asked + parts and not self._prefixes:
            self._quicker = quicker(self._backends[False])
        self._asked += parts
        return self._quicker

    def _keep(self, numbers: Sequence[int], ids: Sequence[Sequence[int]], *, told: bool) -> None:
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        ends = np.cumsum(lengths)
        self._lengths = _with_room(self._lengths, self._count)
        self._starts = _with_room(self._starts, self._count)
        self._strange = _with_room(self._strange, self._count)
        self._ids = _with_room(self._ids, self._used + len(flat))
        at = np.array(numbers, dtype=np.int64)
        self._ids[self._used : self._used + len(flat)] = flat
        self._lengths[at] = lengths
        self._starts[at] = self._used + ends - lengths
        self._used += len(flat)
        if not told and len(self._unwanted):
            found = np.concatenate([[0], np.cumsum(np.isin(flat, self._unwanted))])
            self._strange[at] = found[ends] > found[ends - lengths]

    def _enter(self, entry: str | int, prefix: bool) -> int:
        self._new.append((entry, prefix))
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
