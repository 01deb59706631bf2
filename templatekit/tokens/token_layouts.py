"""Token layouts: how the texts of one trace are assembled from ids, computed once for all of them.

The texts of a trace consist of the same pieces: some are constants, equal in every text, and the others are variables.
So the cuts, the trusted control tokens, the loss weights and the dummy prefixes are at the same positions in all of
them. A *token layout* stores the result of the encoder's work on such a text: *constant ids*, and *slots*, whose ids
differ from text to text. A slot holds one or more variables, the constants between them, and the constants around them
up to the nearest word boundary.

For each text only the ids of its slots remain to be computed. A text in which a slot contains the text of a control
token does not use the layout, because that token may be trusted where it stands in an assistant's own text. Where a
slot and the constants around it together form a control token's text, that text is never trusted: it is ordinary text
with and without the layout.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from templatekit.tokens.fast_backend import reference_encode
from templatekit.tokens.fragments import Fragment, weight_at
from templatekit.tokens.tokenizer import ControlToken, Tokenizer
from templatekit.tokens.word_boundaries import WORD_BOUNDARY
from templatekit.types import LossSpan, TracedLayout, TracedText

SLOT = -1
"""The entry of a token layout that stands for its next slot."""

ConstantOrVariable: TypeAlias = str | int
"""Constant text, or the index of a variable piece."""


class TokenLayout(NamedTuple):
    """The entries that a text is assembled from, in order."""

    entries: array[int]
    """Each is an index into `ConstantIds`, or `SLOT`."""
    weights: array[float]
    """The loss weight of each entry."""
    slot_prefixes: tuple[bool, ...]
    """For each slot, whether the backend may put its dummy prefix before it."""
    fill_slots: Callable[[Sequence[str]], tuple[str, ...]]
    """Returns the text of each slot, given the pieces of a text."""


class ConstantIds:
    """The ids of constant texts and of control tokens, each stored once under an index."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._indices: dict[tuple[str, bool] | int, int] = {}
        self._ids: list[Sequence[int]] = []
        self._arrays: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None

    def index_of_text(self, text: str, *, prefix: bool) -> int:
        """The index of a text that contains no control token."""
        if (text, prefix) not in self._indices:
            (ids,) = reference_encode(self._tokenizer.backend(control=True, prefix=prefix))([text])
            self._add((text, prefix), ids)
        return self._indices[text, prefix]

    def index_of_id(self, id: int) -> int:
        """The index of a control token, by its id."""
        if id not in self._indices:
            self._add(id, (id,))
        return self._indices[id]

    def _add(self, key: tuple[str, bool] | int, ids: Sequence[int]) -> None:
        self._indices[key] = len(self._ids)
        self._ids.append(ids)
        self._arrays = None

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """All ids, concatenated, and the offsets at which the ids of each index start and end."""
        if self._arrays is None:
            offsets = np.array([*accumulate(map(len, self._ids), initial=0)], dtype=np.int64)
            ids = np.fromiter(chain.from_iterable(self._ids), dtype=np.int32, count=int(offsets[-1]))
            self._arrays = ids, offsets
        return self._arrays


class TokenLayouts:
    """Makes token layouts for one tokenizer, which must encode words separately."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.constant_ids = ConstantIds(tokenizer)
        self._control_tokens = tokenizer.control_tokens

    def of_fragments(self, fragments: Iterable[Fragment], spans: Sequence[LossSpan]) -> TokenLayout:
        """The layout of a single text: every fragment is a slot, unless it is a control token."""
        entries, weights = array("q"), array("d")
        texts, prefixes = [], []
        for fragment in fragments:
            if fragment.id is None:
                entries.append(SLOT)
                texts.append(fragment.text)
                prefixes.append(fragment.prefix)
            else:
                entries.append(self.constant_ids.index_of_id(fragment.id))
            weights.append(weight_at(fragment.start, spans))
        slot_texts = tuple(texts)
        return TokenLayout(entries, weights, tuple(prefixes), lambda _: slot_texts)

    def of_traced(
        self, traced: TracedText, fragments: Sequence[Fragment], spans: Sequence[LossSpan]
    ) -> TokenLayout | None:
        """The layout of all texts of a trace, made from one of them; None where their fragments may differ."""
        pieces = _Pieces(traced)
        if not variables_are_data(traced.layout):
            return None
        if not all(self._is_in_every_text(fragment, pieces) for fragment in fragments):
            return None
        entries, weights = array("q"), array("d")
        slots: list[list[ConstantOrVariable]] = []
        prefixes: list[bool] = []
        for fragment in fragments:
            if fragment.id is not None:
                entries.append(self.constant_ids.index_of_id(fragment.id))
            else:
                contents = pieces.between(fragment.start, fragment.start + len(fragment.text))
                if contents is None:
                    return None
                for part, prefix in _split_around_variables(contents, fragment.prefix):
                    if len(part) == 1 and isinstance(part[0], str):
                        entries.append(self.constant_ids.index_of_text(part[0], prefix=prefix))
                    else:
                        entries.append(SLOT)
                        slots.append(part)
                        prefixes.append(prefix)
            weights.extend([weight_at(fragment.start, spans)] * (len(entries) - len(weights)))

        def fill_slots(texts: Sequence[str]) -> tuple[str, ...]:
            return tuple(["".join([texts[i] if isinstance(i, int) else i for i in slot]) for slot in slots])

        return TokenLayout(entries, weights, tuple(prefixes), fill_slots)

    def _is_in_every_text(self, fragment: Fragment, pieces: _Pieces) -> bool:
        """Whether it is text, or a control token that is constant together with the whitespace that it strips."""
        if fragment.id is None:
            return True
        token: ControlToken = self._control_tokens[fragment.text]
        start, end = fragment.start, fragment.start + len(fragment.text)
        if token.strips_left:
            start -= len(pieces.text[:start]) - len(pieces.text[:start].rstrip()) + 1
        if token.strips_right:
            end += len(pieces.text[end:]) - len(pieces.text[end:].lstrip()) + 1
        return pieces.are_constant(max(start, 0), min(end, len(pieces.text)))


def _split_around_variables(
    contents: Sequence[ConstantOrVariable], prefix: bool
) -> Iterator[tuple[list[ConstantOrVariable], bool]]:
    """Split the contents of a fragment at the first and last word boundary of each constant.

    Yields parts, each with whether it may have a dummy prefix. A part is one constant, or the content of one slot.
    """
    part: list[ConstantOrVariable] = []
    for content in contents:
        if isinstance(content, int):
            part.append(content)
            continue
        boundaries = [match.start() for match in WORD_BOUNDARY.finditer(content)]
        first, last = (boundaries[0], boundaries[-1]) if boundaries else (0, 0)
        if not part:  # no variable comes before this constant
            first = last
            if last:
                yield [content[:last]], prefix
                prefix = False
        elif last:
            yield [*part, content[:first]], prefix
            part, prefix = [], False
            if first < last:
                yield [content[first:last]], prefix
        part.append(content[last:])
    yield part, prefix


def variables_are_data(layout: TracedLayout) -> bool:
    """Whether no variable piece has the template as its origin: then none can contain trusted control tokens."""
    pieces = zip(layout.is_constant, layout.origins, strict=True)
    return all(constant or not origin.is_template for constant, origin in pieces)


class _Pieces:
    """The pieces of a traced text, by their characters."""

    def __init__(self, traced: TracedText) -> None:
        self._texts = traced.pieces
        self._is_constant = traced.layout.is_constant
        self.text = "".join(self._texts)
        self._ends = [*accumulate(map(len, self._texts))]

    def are_constant(self, start: int, end: int) -> bool:
        """Whether these characters are the same in all texts of the trace."""
        return all(self._is_constant[index] for index, _, _ in self._overlapping(start, end))

    def between(self, start: int, end: int) -> list[ConstantOrVariable] | None:
        """The constants and variables of these characters; None where they hold only a part of a variable."""
        contents: list[ConstantOrVariable] = []
        for index, first, last in self._overlapping(start, end):
            text = self._texts[index]
            if not self._is_constant[index]:
                if (first, last) != (0, len(text)):
                    return None
                contents.append(index)
            elif contents and isinstance(contents[-1], str):
                contents[-1] += text[first:last]
            else:
                contents.append(text[first:last])
        return contents

    def _overlapping(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Each piece with some of these characters: its index, and the start and end of those characters within it."""
        for index, (last, text) in enumerate(zip(self._ends, self._texts, strict=True)):
            first = last - len(text)
            if first < end and start < last:
                yield index, max(start, first) - first, min(end, last) - first
