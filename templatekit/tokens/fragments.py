"""Fragments: the parts of a text that are encoded separately, and the tokens that each one becomes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from templatekit.tokens.tokenizer import ControlToken
from templatekit.types import LossSpan

LONG_FRAGMENT = 1 << 20
"""Characters of a fragment that is encoded in parts: the backend takes some 100 bytes for each token of a text."""


class ControlMatch(NamedTuple):
    """A control token in a text; `start` and `end` are in characters."""

    start: int
    end: int
    token: ControlToken


class Fragment(NamedTuple):
    """Text that goes to the backend in one call, or a control token whose id is already known."""

    start: int
    """Offset in the text, in characters."""
    text: str
    matches: tuple[ControlMatch, ...] = ()
    """The trusted control tokens in the fragment."""
    prefix: bool = True
    """Whether the backend may put its dummy prefix before the fragment."""
    control: bool = True
    """Whether to encode with the backend that knows the control tokens, or with the one that knows none."""
    id: int | None = None
    """The id of a control token; None for text."""


class FragmentTokens(NamedTuple):
    """The tokens of a fragment."""

    start: int
    """Offset of the fragment in the text, in characters."""
    ids: Sequence[int]
    """Those of a part of a long fragment are in an array, which takes a tenth of the memory of a list."""
    offsets: Sequence[tuple[int, int]] | None = None
    """The characters of each token, counted from `start`; None where the whole fragment has one weight."""


def weight_at(start: int, spans: Sequence[LossSpan]) -> float:
    """The loss weight of a fragment, which is the weight of its first character."""
    index = bisect_right(spans, start, key=lambda span: span.start) - 1
    return spans[index].weight if index >= 0 else 0.0
