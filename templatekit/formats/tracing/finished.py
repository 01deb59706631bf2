"""Finished symbolic texts, as those see them who look for what is trained: offsets in them are places.

Every variable of such a text is known not to be empty. An offset between pieces, or within a literal, is then the same
place in every text of the same pieces, and of two such offsets the same one comes first. So what is found by looking at
pieces alone holds for all of them. What is found by comparing characters is asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from templatekit.formats.tracing.symbolic import Piece, Symbolic, holds_data, holds_text, pieces_of
from templatekit.formats.tracing.trace import Unplannable


class Outlined(Symbolic):
    """A rendered text: it may be measured, and cut where that is no cut of a variable."""

    __slots__ = ()

    def _plain(self) -> str:
        return self

    def __len__(self) -> int:
        return str.__len__(self)

    def __getitem__(self, key: Any) -> str:
        if not isinstance(key, slice):
            raise Unplannable("a character of a finished text")
        start, stop, step = key.indices(len(self))
        assert step == 1
        pieces, position = [], 0
        for piece in self._pieces:
            first, last = max(start - position, 0), min(stop - position, len(piece.text))
            if first < last:
                if piece.name and (first, last) != (0, len(piece.text)):
                    raise Unplannable("a cut within a text")
                pieces.append(replace(piece, text=piece.text[first:last]))
            position += len(piece.text)
        cut = Outlined(pieces)
        return cut if holds_data(cut) else str.__getitem__(cut, slice(None))

    def isascii(self) -> bool:
        """Of this example: whether others can be encoded is asked of each."""
        return str.isascii(self)

    def encode(self, *arguments: Any) -> bytes:
        return str.encode(self, *arguments)

    def startswith(self, prefix: Any, *places: Any) -> bool:
        """Whether it begins so whatever the variables hold, or does not, by the questions asked."""
        assert not places
        return _begins([*self._pieces], [*pieces_of(prefix)])


def settled(text: Symbolic) -> Outlined:
    """A finished text without those variables that are empty."""
    return Outlined([piece for piece in pieces_of(text) if not piece.name or holds_text(piece)])


def _begins(text: list[Piece], prefix: list[Piece]) -> bool:
    """Compares piece by piece; asks where a variable stands against something else."""
    text, prefix = text[::-1], prefix[::-1]
    while prefix:
        if not text:
            return False  # no piece is empty
        own, other = text.pop(), prefix.pop()
        if not own.name and not other.name:
            length = min(len(own.text), len(other.text))
            if own.text[:length] != other.text[:length]:
                return False
            for pieces, piece in ((text, own), (prefix, other)):
                if len(piece.text) > length:
                    pieces.append(replace(piece, text=piece.text[length:]))
        elif own.name != other.name:
            _differ(own, text, other, prefix)
            return False
    return True


def _differ(own: Piece, text: Sequence[Piece], other: Piece, prefix: Sequence[Piece]) -> None:
    """Asks whether two texts of which at least one begins with a variable differ where both have characters.

    If they do not, how far they agree depends on the variables, and there is no plan.
    """
    own_next, other_next = _literal_ahead(text), _literal_ahead(prefix)
    if own.name and other.name:
        one, two = f"({own.name} + {own_next!r})", f"({other.name} + {other_next!r})"
        code = f"{one}.startswith({two}) or {two}.startswith({one})"
        ours, theirs = own.text + own_next, other.text + other_next
        alike = ours.startswith(theirs) or theirs.startswith(ours)
    else:
        literal, variable, ahead = (other, own, own_next) if own.name else (own, other, other_next)
        length = len(literal.text)
        code = f"{literal.text!r}.startswith(({variable.name}[:{length}] + {ahead!r})[:{length}])"
        alike = literal.text.startswith((variable.text[:length] + ahead)[:length])
    tape = own.tape or other.tape
    assert tape is not None
    if tape.ask(code, alike):
        raise Unplannable("texts that agree by chance")


def _literal_ahead(pieces: Sequence[Piece]) -> str:
    """What stands next in pieces from behind, if that is a literal."""
    return pieces[-1].text if pieces and not pieces[-1].name else ""
