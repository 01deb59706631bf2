"""How texts of one outline become ids, worked out once for all of them.

A plan's texts have the same pieces, of which some are fixed and the others any text. The cuts, the control tokens that
count, the weights and the dummy prefixes are then at the same places. So what the encoder would do to such a text is
written down as a *recipe*: parts whose ids are known already, and *cores*, each a variable piece or several with what
is fixed between and around them, as far as to the nearest seam.

What is left to be done for each text is to put together its cores, and to look whether one holds control text: that
may count as well, where it stands in an assistant's own text. Text that is control together with what lies around a
core does not count, and is plain text on both sides.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from templatekit.tokens.fast_backend import reference
from templatekit.tokens.fragments import Piece, weight_at
from templatekit.tokens.tokenizer import ControlToken, Tokenizer
from templatekit.tokens.word_table import SEAM
from templatekit.types import Deferred, LossSpan, Outline

CORE = -1
"""Stands in a recipe's numbers for its next core."""

Item: TypeAlias = str | int
"""Fixed text, or the index of a variable piece."""


class Recipe(NamedTuple):
    """What a text is put together from, in order."""

    numbers: array[int]
    """Of the parts: a number of `Fixed`, or `CORE`."""
    weights: array[float]
    """Of the parts."""
    prefixes: tuple[bool, ...]
    """Whether the tokenizer may put its dummy prefix in front of a core, for each."""
    cores: Callable[[Sequence[str]], tuple[str, ...]]
    """The cores of a text, by its pieces."""


class Fixed:
    """Parts whose ids are known, by number."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._numbers: dict[tuple[str, bool] | int, int] = {}
        self._ids: list[Sequence[int]] = []
        self._flat: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None

    def text(self, text: str, *, prefix: bool) -> int:
        """The number of a text that holds no control token."""
        if (text, prefix) not in self._numbers:
            (ids,) = reference(self._tokenizer.backend(control=True, prefix=prefix))([text])
            self._add((text, prefix), ids)
        return self._numbers[text, prefix]

    def id(self, id: int) -> int:
        """The number of an id."""
        if id not in self._numbers:
            self._add(id, (id,))
        return self._numbers[id]

    def _add(self, key: tuple[str, bool] | int, ids: Sequence[int]) -> None:
        self._numbers[key] = len(self._ids)
        self._ids.append(ids)
        self._flat = None

    def flat(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """All ids end to end, and how many there are up to each part's end, with a 0 in front."""
        if self._flat is None:
            ends = np.array([*accumulate(map(len, self._ids), initial=0)], dtype=np.int64)
            ids = np.fromiter(chain.from_iterable(self._ids), dtype=np.int32, count=int(ends[-1]))
            self._flat = ids, ends
        return self._flat


class Recipes:
    """Makes the recipes of one tokenizer, which encodes words apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.fixed = Fixed(tokenizer)
        self._tokens = tokenizer.control_tokens

    def of_pieces(self, pieces: Iterable[Piece], spans: Sequence[LossSpan]) -> Recipe:
        """The recipe for one text alone: each of its pieces that is no control token is a core."""
        numbers, weights = array("q"), array("d")
        texts, prefixes = [], []
        for piece in pieces:
            if piece.id is None:
                numbers.append(CORE)
                texts.append(piece.text)
                prefixes.append(piece.prefix)
            else:
                numbers.append(self.fixed.id(piece.id))
            weights.append(weight_at(piece.start, spans))
        found = tuple(texts)
        return Recipe(numbers, weights, tuple(prefixes), lambda _: found)

    def of_outline(self, filled: Deferred, pieces: Sequence[Piece], spans: Sequence[LossSpan]) -> Recipe | None:
        """The recipe for all texts of an outline, by one of them; None where they may go other ways."""
        layout = _Layout(filled)
        if not is_open(filled.outline) or not all(self._is_fixed(piece, layout) for piece in pieces):
            return None
        numbers, weights = array("q"), array("d")
        cores: list[list[Item]] = []
        prefixes: list[bool] = []
        for piece in pieces:
            if piece.id is not None:
                parts: list[tuple[list[Item], bool]] = []
                numbers.append(self.fixed.id(piece.id))
            else:
                items = layout.items(piece.start, piece.start + len(piece.text))
                if items is None:
                    return None
                parts = [*self._parts(items, piece.prefix)]
            for part, prefix in parts:
                if len(part) == 1 and isinstance(part[0], str):
                    numbers.append(self.fixed.text(part[0], prefix=prefix))
                else:
                    numbers.append(CORE)
                    cores.append(part)
                    prefixes.append(prefix)
            weights.extend([weight_at(piece.start, spans)] * (len(numbers) - len(weights)))

        def fill(texts: Sequence[str]) -> tuple[str, ...]:
            return tuple(["".join([texts[i] if isinstance(i, int) else i for i in core]) for core in cores])

        return Recipe(numbers, weights, tuple(prefixes), fill)

    def _is_fixed(self, piece: Piece, layout: _Layout) -> bool:
        """Whether it is text, or a control token that is there in all texts, with the whitespace that it takes."""
        if piece.id is None:
            return True
        token: ControlToken = self._tokens[piece.text]
        start, end = piece.start, piece.start + len(piece.text)
        if token.strips_left:
            start -= len(layout.text[:start]) - len(layout.text[:start].rstrip()) + 1
        if token.strips_right:
            end += len(layout.text[end:]) - len(layout.text[end:].lstrip()) + 1
        return layout.is_fixed(max(start, 0), min(end, len(layout.text)))

    def _parts(self, items: Sequence[Item], prefix: bool) -> Iterator[tuple[list[Item], bool]]:
        """The items of a piece, cut at the outermost seams of each fixed text, each part with its dummy prefix."""
        part: list[Item] = []
        for item in items:
            if isinstance(item, int):
                part.append(item)
                continue
            seams = [match.start() for match in SEAM.finditer(item)]
            first, last = (seams[0], seams[-1]) if seams else (0, 0)
            if not part:  # nothing variable comes before
                first = last
                if last:
                    yield [item[:last]], prefix
                    prefix = False
            elif last:
                yield [*part, item[:first]], prefix
                part, prefix = [], False
                if first < last:
                    yield [item[first:last]], prefix
            part.append(item[last:])
        yield part, prefix


def is_open(outline: Outline) -> bool:
    """Whether no text in a variable piece counts as the template's."""
    pieces = zip(outline.fixed, outline.origins, strict=True)
    return all(fixed or not origin.is_template for fixed, origin in pieces)


class _Layout:
    """Where the pieces of a text are."""

    def __init__(self, filled: Deferred) -> None:
        outline, self._texts = filled.outline, filled.texts
        self.text = "".join(self._texts)
        self._fixed = outline.fixed
        self._ends = [*accumulate(map(len, self._texts))]

    def _inside(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The pieces that hold some of these characters, and which of each."""
        for index, (last, text) in enumerate(zip(self._ends, self._texts, strict=True)):
            first = last - len(text)
            if first < end and start < last:
                yield index, max(start, first) - first, min(end, last) - first

    def is_fixed(self, start: int, end: int) -> bool:
        """Whether these characters are the same in all texts."""
        return all(self._fixed[index] for index, _, _ in self._inside(start, end))

    def items(self, start: int, end: int) -> list[Item] | None:
        """What these characters are; None where only some of a variable piece's are among them."""
        items: list[Item] = []
        for index, first, last in self._inside(start, end):
            text = self._texts[index]
            if not self._fixed[index]:
                if (first, last) != (0, len(text)):
                    return None
                items.append(index)
            elif items and isinstance(items[-1], str):
                items[-1] += text[first:last]
            else:
                items.append(text[first:last])
        return items
