"""Assembles the ids and loss weights of a batch of texts from cached ids: by token layouts and by the word table."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np

from templatekit.packing.columns import TokenizedColumns, offsets_from_lengths, range_indices
from templatekit.tokens.fragments import LONG_FRAGMENT, Fragment
from templatekit.tokens.supervision import LazyLossSpans
from templatekit.tokens.token_layouts import SLOT, TokenLayout, TokenLayouts
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.tokens.word_table import WordTable
from templatekit.types import LossSpan, RenderedText, TracedText

MAX_LAYOUTS = 4096
"""Token layouts that are cached; with more, the cache is emptied."""

EncoderInput: TypeAlias = tuple[RenderedText, Sequence[LossSpan]]


class FilledLayout(NamedTuple):
    """A token layout with the texts of its slots in one text."""

    layout: TokenLayout
    slot_texts: tuple[str, ...]


class AssembledBatch(NamedTuple):
    """A batch, as far as it could be assembled."""

    columns: TokenizedColumns
    remaining: list[int]
    """Indices of the texts that could not be assembled, whose columns are empty or wrong.

    Their data contains the text of a control token, or was encoded to the id of one.
    """
    first_of_layout: list[int]
    """Indices of the texts that are the first to use their layout."""


class Assembler:
    """Assembles texts for one tokenizer, which must encode words separately."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        split: Callable[[RenderedText, Sequence[LossSpan]], list[Fragment] | None],
        control_text: re.Pattern[str] | None,
    ) -> None:
        """`split` returns the fragments of a text, or None where the data contains `control_text`.

        `control_text` is the pattern of the control tokens' texts.
        """
        self.words = WordTable(
            tokenizer.backend(control=True, prefix=False),
            prefixed=tokenizer.backend(control=True, prefix=True),
            forbidden_ids=tokenizer.control_ids,
            fingerprint=tokenizer.fingerprint,
        )
        self.layouts: dict[Hashable, TokenLayout | None] = {}
        """The layout of each trace (see `_layout_key`); None where its texts cannot share one."""
        self._unused: set[Hashable] = set()
        self._tokenizer, self._split, self._control_text = tokenizer, split, control_text
        self._token_layouts = TokenLayouts(tokenizer)

    def encode(self, batch: Sequence[EncoderInput]) -> AssembledBatch:
        """The ids and loss weights of a batch."""
        if len(self.layouts) > MAX_LAYOUTS:
            self.layouts, self._unused, self._token_layouts = {}, set(), TokenLayouts(self._tokenizer)
        filled_layouts, first_of_layout = self._filled_layouts(batch)
        entries, weights, words = array("q"), array("d"), self.words.new_batch()
        # Text i has the entries entry_offsets[i] to entry_offsets[i + 1]; slot j, counted over all texts, has the words
        # word_offsets[j] to word_offsets[j + 1].
        entry_offsets, word_offsets = [0], [0]
        remaining, slot_owners = [], []
        for index, filled in enumerate(filled_layouts):
            if filled is None or max(map(len, filled.slot_texts), default=0) > LONG_FRAGMENT:
                remaining.append(index)
            else:
                entries += filled.layout.entries
                weights += filled.layout.weights
                for text, prefix in zip(filled.slot_texts, filled.layout.slot_prefixes, strict=True):
                    self.words.add_text(words, text, prefix=prefix)
                    word_offsets.append(len(words))
                    slot_owners.append(index)
            entry_offsets.append(len(entries))
        word_ids = self.words.encode(words)
        constant_ids, constant_offsets = self._token_layouts.constant_ids.arrays()
        slot_offsets = word_ids.offsets[np.array(word_offsets, dtype=np.int64)]
        # The ids of slots follow those of constants in one array, and slot j has the index `constants + j`.
        starts = np.concatenate([constant_offsets[:-1], slot_offsets[:-1] + len(constant_ids)])
        lengths = np.concatenate([np.diff(constant_offsets), np.diff(slot_offsets)])
        indices = np.array(entries, dtype=np.int64)
        (slot_positions,) = np.nonzero(indices == SLOT)
        indices[slot_positions] = len(constant_offsets) - 1 + np.arange(len(slot_positions))
        entry_lengths = lengths[indices]
        input_ids = np.concatenate([constant_ids, word_ids.ids])[range_indices(starts[indices], entry_lengths)]
        offsets = offsets_from_lengths(entry_lengths)[np.array(entry_offsets, dtype=np.int64)]
        loss_weights = np.repeat(np.array(weights, dtype=np.float64), entry_lengths)
        # Nothing predicts the first token, so it has no weight.
        loss_weights[offsets[:-1][offsets[:-1] < offsets[1:]]] = 0.0
        columns = TokenizedColumns(
            rendered=[rendered for rendered, _ in batch],
            loss_spans=[spans for _, spans in batch],
            truncated=[None] * len(batch),
            offsets=offsets,
            input_ids=input_ids,
            loss_weights=loss_weights,
        )
        if word_ids.is_forbidden.any():
            # A normalizer or the model itself made a control id of text that is no control token.
            slots = np.searchsorted(word_offsets, np.flatnonzero(word_ids.is_forbidden), side="right") - 1
            remaining = sorted({*remaining, *(slot_owners[slot] for slot in slots.tolist())})
        return AssembledBatch(columns, remaining, first_of_layout)

    def _filled_layouts(self, batch: Sequence[EncoderInput]) -> tuple[list[FilledLayout | None], list[int]]:
        """The filled layout of each text, None where it has none; and the texts that are the first to use a layout."""
        filled_layouts: list[FilledLayout | None] = []
        first_of_layout: list[int] = []
        for index, (rendered, spans) in enumerate(batch):
            traced = rendered.traced
            key = None if traced is None else _layout_key(traced, rendered, spans)
            layout = self.layouts.get(key)
            if traced is None or layout is None:
                filled_layouts.append(None)
                continue
            filled_layouts.append(FilledLayout(layout, layout.fill_slots(traced.pieces)))
            if self._unused and key in self._unused:
                self._unused.remove(key)
                first_of_layout.append(index)
        # All texts are searched at once; each text is searched alone only if that finds something.
        all_texts = chain.from_iterable(filled.slot_texts for filled in filled_layouts if filled is not None)
        if self._contains_control_text(all_texts):
            filled_layouts = [
                None if filled is None or self._contains_control_text(filled.slot_texts) else filled
                for filled in filled_layouts
            ]
        return [
            self._own_layout(*given) if filled is None else filled
            for filled, given in zip(filled_layouts, batch, strict=True)
        ], first_of_layout

    def _own_layout(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> FilledLayout | None:
        """The layout of one text alone; also caches the layout of its trace, if there is none yet."""
        fragments = self._split(rendered, spans)
        if fragments is None:
            return None
        if rendered.traced is not None:
            self._cache_layout(rendered, rendered.traced, fragments, spans)
        layout = self._token_layouts.of_fragments(fragments, spans)
        return FilledLayout(layout, layout.fill_slots(()))

    def _cache_layout(
        self, rendered: RenderedText, traced: TracedText, fragments: Sequence[Fragment], spans: Sequence[LossSpan]
    ) -> None:
        """Cache the layout of a trace, made from one of its texts, unless a variable of it contains control text."""
        key = _layout_key(traced, rendered, spans)
        variables = (
            text for text, constant in zip(traced.pieces, traced.layout.is_constant, strict=True) if not constant
        )
        if key is not None and key not in self.layouts and not self._contains_control_text(variables):
            self.layouts[key] = self._token_layouts.of_traced(traced, fragments, spans)
            self._unused.add(key)

    def _contains_control_text(self, texts: Iterable[str]) -> bool:
        return self._control_text is not None and self._control_text.search("\0".join(texts)) is not None


def _layout_key(traced: TracedText, rendered: RenderedText, spans: Sequence[LossSpan]) -> Hashable:
    """A key that texts with one token layout have in common; None if the loss spans were not computed from options."""
    if not isinstance(spans, LazyLossSpans):
        return None
    weights = traced.layout.message_weights
    return traced.layout, spans.train_on, rendered.message_weights if weights is None else weights
