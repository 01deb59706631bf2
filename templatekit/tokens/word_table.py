"""A cache of the ids of words: each word is encoded once, however often it occurs.

A text is split at its word boundaries, and the ids of its *words* are concatenated. (A word here is the text between
two boundaries, with the blank before it.) This is exact only for tokenizers that encode words separately, which
`templatekit.tokens.word_boundaries` decides. English text has a new word every dozen words, so the backend has a tenth
of the work. Text for the fast backend (`templatekit.tokens.fast_backend`) is not split, because kitoken encodes all of
it in less time than Python takes to look up its words.

A batch takes two steps. `add_text` appends the *index* of each word of a text to an array; `encode` then encodes all
words that are new, and returns the ids of the whole batch with a few array operations.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import tokenizers
from numpy.typing import NDArray

from templatekit.packing.columns import offsets_from_lengths, range_indices
from templatekit.tokens.fast_backend import EncodeTexts, is_proven_text, load_fast_backend, reference_encode
from templatekit.tokens.word_boundaries import BLANK, WORD_BOUNDARY, may_be_beside_word_boundary

MAX_WORD_LENGTH = 48
"""Characters of the longest word that is cached: longer ones are rarely repeated."""
MAX_WORDS = 1 << 18
"""Words that are cached, about 250 bytes each; with more the table is emptied."""
MAX_TEXT_LENGTH = 256
"""Characters of the longest text whose word indices are cached as a whole: a system prompt, a short answer."""
MAX_TEXTS = 1 << 16
"""Texts that are cached as a whole, at most a kilobyte each."""

Scalar = TypeVar("Scalar", np.int32, np.int64, np.bool_)


class WordIds(NamedTuple):
    """The ids of the words of a batch, concatenated."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """Shape (words + 1,): word i has the ids `offsets[i]` to `offsets[i + 1]`."""
    is_forbidden: NDArray[np.bool_]
    """Shape (words,): whether a word has an id that no text should become."""


class _NotAWordBoundary(Exception):
    """Raised for a word with a blank beside it that is no word boundary."""


class _WordIndices(dict[str, int]):
    """The index of each word by its text; a missing word is added by `find`."""

    def __init__(self, find: Callable[[str], int]) -> None:
        self._find = find

    def __missing__(self, text: str) -> int:
        index = self._find(text)
        if len(text) <= MAX_WORD_LENGTH:
            self[text] = index
        return index


class WordTable:
    """The words that occurred so far, and their ids."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        prefixed: tokenizers.Tokenizer,
        forbidden_ids: Iterable[int] = (),
        fingerprint: str | None = None,
    ) -> None:
        """`prefixed` puts a dummy prefix before a text and `backend` does not; for most tokenizers they are the same.

        `forbidden_ids` are marked in `WordIds.is_forbidden`. With the tokenizer's `fingerprint` the tables of the fast
        backend are cached on disk.
        """
        self._backends = {False: backend, True: prefixed}
        self._has_dummy_prefix = prefixed is not backend
        self._fast_backend: EncodeTexts | None = None
        self._fingerprint = fingerprint
        self._break_even_texts = 1_000 + backend.get_vocab_size() // 10
        """Words that the reference encodes while the fast backend loads: 0.1 s for a vocabulary of 50,000."""
        self._encoded_texts = 0
        self._forbidden_ids = np.array(sorted(forbidden_ids), dtype=np.int32)
        self._clear()

    def _clear(self) -> None:
        # Words by their text: at the start of a text, and after a blank (which the key leaves out).
        self._at_start = {prefix: _WordIndices(self._added_at_start(prefix)) for prefix in (False, True)}
        self._after_blank = _WordIndices(lambda word: self._add_word(BLANK + word, False))
        # The same words by the texts that `str.split` gives. These tables check that the blanks beside a word are
        # boundaries.
        self._first = {prefix: _WordIndices(self._checked_first(prefix)) for prefix in (False, True)}
        self._inner = _WordIndices(self._checked_inner)
        self._last = _WordIndices(self._checked_last)
        self._texts: dict[bool, dict[str, array[int]]] = {False: {}, True: {}}
        self._new_words: list[tuple[int, str, bool]] = []
        self._new_fast_texts: list[tuple[int, str]] = []
        self._count = 0
        self._lengths: NDArray[np.int64] = np.zeros(1 << 10, dtype=np.int64)
        self._starts: NDArray[np.int64] = np.zeros(1 << 10, dtype=np.int64)
        self._is_forbidden: NDArray[np.bool_] = np.zeros(1 << 10, dtype=np.bool_)
        self._ids: NDArray[np.int32] = np.zeros(1 << 12, dtype=np.int32)
        self._used = 0

    def new_batch(self) -> array[int]:
        """An empty array for the word indices of a batch. Indices are valid until the next call."""
        if self._count > MAX_WORDS or self._used > 16 * MAX_WORDS or sum(map(len, self._texts.values())) > MAX_TEXTS:
            self._clear()
        return array("q")

    def add_text(self, indices: array[int], text: str, *, prefix: bool = True) -> None:
        """Append the indices of a text's words; with `prefix` the backend may put its dummy prefix before the text."""
        texts = self._texts[prefix]
        known = texts.get(text)
        if known is not None:
            indices += known
            return
        start = len(indices)
        if self._fast_backend is not None and is_proven_text(text):
            indices.append(self._count)  # splitting it would take longer
            self._new_fast_texts.append((self._count, text))
            self._count += 1
        else:
            self._add_words(indices, text, prefix)
        if len(text) <= MAX_TEXT_LENGTH:
            texts[text] = indices[start:]

    def _add_words(self, indices: array[int], text: str, prefix: bool) -> None:
        words = text.split(BLANK)
        if len(words) == 1:
            indices.append(self._at_start[prefix][text])
            return
        start = len(indices)
        try:
            indices.append(self._first[prefix][words[0]])
            indices.extend(map(self._inner.__getitem__, words[1:-1]))
            indices.append(self._last[words[-1]])
        except _NotAWordBoundary:  # some blank is none; the pattern finds those that are
            del indices[start:]
            first, *others = WORD_BOUNDARY.split(text)
            indices.append(self._at_start[prefix][first])
            indices.extend(self._after_blank[word[1:]] for word in others)

    def encode(self, indices: array[int]) -> WordIds:
        """The ids of all words of a batch, by their indices."""
        try:
            self._encode_new()
        except BaseException:
            self._clear()  # the table has indices without ids
            raise
        words = np.frombuffer(indices, dtype=np.int64) if indices else np.zeros(0, dtype=np.int64)
        lengths = self._lengths[words]
        ids = self._ids[range_indices(self._starts[words], lengths)]
        return WordIds(ids, offsets_from_lengths(lengths), self._is_forbidden[words])

    def _encode_new(self) -> None:
        """Encode the words that were added since the last batch, in one call to each backend."""
        fast_texts, self._new_fast_texts = self._new_fast_texts, []
        new_words, self._new_words = self._new_words, []
        for prefix, backend in self._backends.items():
            texts = [(index, text) for index, text, wanted in new_words if wanted == prefix]
            if self._fast_backend_for(len(texts)) is not None:
                fast_texts += [entry for entry in texts if is_proven_text(entry[1])]
                texts = [entry for entry in texts if not is_proven_text(entry[1])]
            self._store(texts, reference_encode(backend))
        if self._fast_backend is not None:
            self._store(fast_texts, self._fast_backend)

    def _fast_backend_for(self, count: int) -> EncodeTexts | None:
        """The fast backend, which is loaded once enough words were encoded; it has no dummy prefix."""
        before, self._encoded_texts = self._encoded_texts, self._encoded_texts + count
        if before < self._break_even_texts <= self._encoded_texts and not self._has_dummy_prefix:
            self._fast_backend = load_fast_backend(self._backends[False], fingerprint=self._fingerprint)
        return self._fast_backend

    def _store(self, texts: Sequence[tuple[int, str]], encode: EncodeTexts) -> None:
        """Encode texts, and store their ids under their indices."""
        if not texts:
            return
        ids = encode([text for _, text in texts])
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        ends = np.cumsum(lengths)
        self._lengths = _grown(self._lengths, self._count)
        self._starts = _grown(self._starts, self._count)
        self._is_forbidden = _grown(self._is_forbidden, self._count)
        self._ids = _grown(self._ids, self._used + len(flat))
        indices = np.fromiter((index for index, _ in texts), dtype=np.int64, count=len(texts))
        self._ids[self._used : self._used + len(flat)] = flat
        self._lengths[indices] = lengths
        self._starts[indices] = self._used + ends - lengths
        self._used += len(flat)
        if len(self._forbidden_ids):
            count = offsets_from_lengths(np.isin(flat, self._forbidden_ids))
            self._is_forbidden[indices] = count[ends] > count[ends - lengths]

    def _add_word(self, text: str, prefix: bool) -> int:
        self._new_words.append((self._count, text, prefix))
        self._count += 1
        return self._count - 1

    def _added_at_start(self, prefix: bool) -> Callable[[str], int]:
        return lambda text: self._add_word(text, prefix and self._has_dummy_prefix)

    def _checked_first(self, prefix: bool) -> Callable[[str], int]:
        """Finds the index of a word at the start of a text, before a blank."""

        def find(word: str) -> int:
            # Before a blank at the very start of a text the word is empty: no ids, unless it gets a dummy prefix.
            if not may_be_beside_word_boundary(word[-1:]) and (word or (prefix and self._has_dummy_prefix)):
                raise _NotAWordBoundary
            return self._at_start[prefix][word]

        return find

    def _checked_inner(self, word: str) -> int:
        if not (may_be_beside_word_boundary(word[:1]) and may_be_beside_word_boundary(word[-1:])):
            raise _NotAWordBoundary
        return self._after_blank[word]

    def _checked_last(self, word: str) -> int:
        if not may_be_beside_word_boundary(word[:1]):
            raise _NotAWordBoundary
        return self._after_blank[word]


def _grown(column: NDArray[Scalar], size: int) -> NDArray[Scalar]:
    """The column, or a longer copy of it, with room for at least `size` values."""
    if size <= len(column):
        return column
    longer = np.zeros(max(size, 2 * len(column)), dtype=column.dtype)
    longer[: len(column)] = column
    return longer
