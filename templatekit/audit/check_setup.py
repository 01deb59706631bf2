"""Rules about the template and the tokenizer: what holds for every row is said once."""

from __future__ import annotations

from collections.abc import Iterator

from templatekit.audit.values import Hit, Setup
from templatekit.tokens.tokenizer import ControlToken


def stop_token(setup: Setup) -> Iterator[Hit]:
    """A server would not stop at the end marker."""
    marker = _special_token(setup)
    if marker is None or setup.stops is None or marker.id in setup.stops.ids:
        return
    yield Hit(
        detail=f"answers end with {marker.text} ({marker.id}); {setup.stops.where} stops at "
        f"{', '.join(_named(setup, id) for id in setup.stops.ids) or 'no token'}"
    )


def end_marker_not_special(setup: Setup) -> Iterator[Hit]:
    """The end marker is no special token of the tokenizer."""
    if setup.tokenizer is None or not setup.end_marker.strip() or _special_token(setup) is not None:
        return
    ids = setup.tokenizer.backend(control=True, prefix=False).encode(setup.end_marker, add_special_tokens=False).ids
    tokens = " ".join(repr(setup.tokenizer.decode([id])) for id in ids)
    yield Hit(detail=f"answers end with {setup.end_marker!r}, in ordinary tokens: {tokens}")


def trailing_text(setup: Setup) -> Iterator[Hit]:
    """The template goes on behind the last end marker."""
    if setup.trailing.strip():
        yield Hit(detail=f"behind the end marker stands {setup.trailing!r}")


def _special_token(setup: Setup) -> ControlToken | None:
    """The last special token in the end marker: the one at which a server has to stop."""
    if setup.tokenizer is None:
        return None
    special = [token for token in setup.tokenizer.control_tokens.values() if token.special]
    inside = [token for token in special if token.text in setup.end_marker]
    ends = {token.text: setup.end_marker.rindex(token.text) + len(token.text) for token in inside}
    return max(inside, key=lambda token: (ends[token.text], len(token.text)), default=None)


def _named(setup: Setup, id: int) -> str:
    assert setup.tokenizer is not None
    return f"{setup.tokenizer.decode([id])} ({id})"
