"""What a text is cut into on its way to the encoder."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from templatekit.tokens.tokenizer import ControlToken
from templatekit.types import LossSpan


class Match(NamedTuple):
    """A control token that counts, in characters of the text."""

    start: int
    end: int
    token: ControlToken


class Piece(NamedTuple):
    """Text for one call to the encoder, or a control token's id that is already known."""

    start: int
    text: str
    matches: tuple[Match, ...] = ()
    """The control tokens that count in it."""
    prefix: bool = True
    """Let the tokenizer put its dummy prefix in front."""
    control: bool = True
    """Encode with the control tokens, which are known to be the template's."""
    id: int | None = None


class Tokens(NamedTuple):
    """What the encoder made of a piece."""

    start: int
    """Where the piece begins, in characters of the text."""
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] | None = None
    """The characters of each token, counted from `start`; None where the piece has one weight throughout."""


def weight_at(start: int, spans: Sequence[LossSpan]) -> float:
    """The weight of a piece, which is that of its first character."""
    index = bisect_right(spans, start, key=lambda span: span.start) - 1
    return spans[index].weight if index >= 0 else 0.0
