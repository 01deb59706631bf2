"""Texts put together from the ids of their parts, a batch at a time: by recipes, and by the pieces of a text alone."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.columns import TokenizedColumns
from templatekit.tokens.fragments import Piece
from templatekit.tokens.layouts import CORE, Fixed, Recipe, Recipes
from templatekit.tokens.supervision import Losses
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.tokens.word_table import Parts, Words
from templatekit.types import Deferred, LossSpan, RenderedText

MOST = 4096
"""Recipes that are kept; with more they are made anew."""

Text: TypeAlias = tuple[RenderedText, Sequence[LossSpan]]


class Row(NamedTuple):
    """How one text is put together."""

    recipe: Recipe
    cores: tuple[str, ...]


class Encoded(NamedTuple):
    """A batch, as far as it could be put together."""

    columns: TokenizedColumns
    others: list[int]
    """The texts that could not be, which are empty or wrong: text of the data looks like control."""
    first: list[int]
    """Texts by recipes that no text was put together by before."""


class Assembler:
    """Puts texts together for one tokenizer, which encodes words apart."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        pieces: Callable[[RenderedText, Sequence[LossSpan]], list[Piece] | None],
        control: re.Pattern[str] | None,
    ) -> None:
        """`pieces` parts a text at its cuts and control tokens, or gives None where text of the data looks like
        `control`, the pattern of control tokens.
        """
        self.words = Words(
            tokenizer.backend(control=True, prefix=False),
            prefixed=tokenizer.backend(control=True, prefix=True),
            unwanted=tokenizer.control_ids,
            fingerprint=tokenizer.fingerprint,
        )
        self.known: dict[Hashable, Recipe | None] = {}
        """By what texts of one recipe have in common; None where there can be none."""
        self._fresh: set[Hashable] = set()
        self._tokenizer, self._pieces, self._control = tokenizer, pieces, control
        self._recipes = Recipes(tokenizer)

    def encode(self, batch: Sequence[Text]) -> Encoded:
        """The ids and weights of a batch."""
        if len(self.known) > MOST:
            self.known, self._fresh, self._recipes = {}, set(), Recipes(self._tokenizer)
        rows, first = self._rows(batch)
        numbers, weights, core_numbers = array("q"), array("d"), self.words.begin()
        ends, core_ends = [0], [0]
        others, core_rows = [], []
        for index, row in enumerate(rows):
            if row is None:
                others.append(index)
            else:
                numbers += row.recipe.numbers
                weights += row.recipe.weights
                for text, prefix in zip(row.cores, row.recipe.prefixes, strict=True):
                    self.words.add(core_numbers, text, prefix=prefix)
                    core_ends.append(len(core_numbers))
                    core_rows.append(index)
            ends.append(len(numbers))
        parts = self.words.encode(core_numbers)
        found = assemble(self._recipes.fixed, numbers, weights, ends, parts, core_ends)
        # Nothing predicts the first token, so it has no weight.
        found.loss_weights[found.offsets[:-1][found.offsets[:-1] < found.offsets[1:]]] = 0.0
        columns = TokenizedColumns(
            rendered=[rendered for rendered, _ in batch],
            loss_spans=[spans for _, spans in batch],
            truncated=[None] * len(batch),
            offsets=found.offsets,
            input_ids=found.input_ids,
            loss_weights=found.loss_weights,
        )
        if parts.strange.any():
            # A normalizer or the model itself made a control id of text that is not one.
            strange = np.searchsorted(core_ends, np.flatnonzero(parts.strange), side="right") - 1
            others = sorted({*others, *(core_rows[core] for core in strange.tolist())})
        return Encoded(columns, others, first)

    def _rows(self, batch: Sequence[Text]) -> tuple[list[Row | None], list[int]]:
        """How each text is put together, None where it cannot be, and those that are the first by their recipes."""
        rows: list[Row | None] = []
        first: list[int] = []
        for index, (rendered, spans) in enumerate(batch):
            filled = rendered.filled
            key = None if filled is None else _key(filled, rendered, spans)
            recipe = self.known.get(key)
            if filled is None or recipe is None:
                rows.append(None)
                continue
            rows.append(Row(recipe, recipe.cores(filled.texts)))
            if self._fresh and key in self._fresh:
                self._fresh.remove(key)
                first.append(index)
        if self._holds_control(chain.from_iterable(row.cores for row in rows if row is not None)):
            rows = [None if row is None or self._holds_control(row.cores) else row for row in rows]
        return [self._alone(*text) if row is None else row for row, text in zip(rows, batch, strict=True)], first

    def _alone(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> Row | None:
        """How a text is put together by itself; makes the recipe of its outline, if there is none yet."""
        pieces = self._pieces(rendered, spans)
        if pieces is None:
            return None
        if rendered.filled is not None:
            self._learn(rendered, rendered.filled, pieces, spans)
        recipe = self._recipes.of_pieces(pieces, spans)
        return Row(recipe, recipe.cores(()))

    def _learn(
        self, rendered: RenderedText, filled: Deferred, pieces: Sequence[Piece], spans: Sequence[LossSpan]
    ) -> None:
        """Makes the recipe of an outline by one of its texts, unless text of the data looks like control in it."""
        key = _key(filled, rendered, spans)
        variable = (text for text, fixed in zip(filled.texts, filled.outline.fixed, strict=True) if not fixed)
        if key is not None and key not in self.known and not self._holds_control(variable):
            self.known[key] = self._recipes.of_outline(filled, pieces, spans)
            self._fresh.add(key)

    def _holds_control(self, texts: Iterable[str]) -> bool:
        return self._control is not None and self._control.search("\0".join(texts)) is not None


def _key(filled: Deferred, rendered: RenderedText, spans: Sequence[LossSpan]) -> Hashable:
    """Equal for texts that have one recipe; None where that is not known."""
    if not isinstance(spans, Losses):
        return None
    weights = filled.outline.message_weights
    return filled.outline, spans.train_on, rendered.message_weights if weights is None else weights


class Assembled(NamedTuple):
    """Ids and weights of many texts, end to end."""

    input_ids: NDArray[np.int32]
    loss_weights: NDArray[np.float64]
    offsets: NDArray[np.int64]
    """Shape (texts + 1,): where each text's tokens begin."""


def assemble(
    fixed: Fixed,
    numbers: array[int],
    weights: array[float],
    ends: Sequence[int],
    cores: Parts,
    core_ends: Sequence[int],
) -> Assembled:
    """Puts texts together: text i has the parts `ends[i]` to `ends[i + 1]`, each a number of `fixed` or `CORE`.

    Core j, in order, has the cores' parts `core_ends[j]` to `core_ends[j + 1]`.
    """
    fixed_ids, fixed_ends = fixed.flat()
    own_ends = cores.ends[np.array(core_ends, dtype=np.int64)]
    starts = np.concatenate([fixed_ends[:-1], own_ends[:-1] + len(fixed_ids)])
    lengths = np.concatenate([np.diff(fixed_ends), np.diff(own_ends)])
    parts = np.array(numbers, dtype=np.int64)
    (open_places,) = np.nonzero(parts == CORE)
    parts[open_places] = len(fixed_ends) - 1 + np.arange(len(open_places))
    part_lengths = lengths[parts]
    part_ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(part_lengths)])
    places = np.repeat(starts[parts] - part_ends[:-1], part_lengths)
    places += np.arange(part_ends[-1])
    return Assembled(
        input_ids=np.concatenate([fixed_ids, cores.ids])[places],
        loss_weights=np.repeat(np.array(weights, dtype=np.float64), part_lengths),
        offsets=part_ends[np.array(ends, dtype=np.int64)],
    )
