"""Rules about the template and the tokenizer, checked once for all rows."""

from __future__ import annotations

from collections.abc import Iterator

from templatekit.audit.context import AuditContext
from templatekit.audit.rule import Occurrence
from templatekit.tokens.tokenizer import ControlToken


def stop_token(context: AuditContext) -> Iterator[Occurrence]:
    """An end marker at which a server would not stop."""
    token = _special_token(context)
    if token is None or context.stop_tokens is None or token.id in context.stop_tokens.ids:
        return
    yield Occurrence(
        detail=f"answers end with {token.text} ({token.id}); {context.stop_tokens.source} stops at "
        f"{', '.join(_token_with_id(context, id) for id in context.stop_tokens.ids) or 'no token'}"
    )


def end_marker_not_special(context: AuditContext) -> Iterator[Occurrence]:
    """An end marker that is no special token of the tokenizer."""
    if context.tokenizer is None or not context.end_marker.strip() or _special_token(context) is not None:
        return
    ids = context.tokenizer.backend(control=True, prefix=False).encode(context.end_marker, add_special_tokens=False).ids
    tokens = " ".join(repr(context.tokenizer.decode([id])) for id in ids)
    yield Occurrence(detail=f"answers end with {context.end_marker!r}, in ordinary tokens: {tokens}")


def trailing_text(context: AuditContext) -> Iterator[Occurrence]:
    """Text that the template writes after the last end marker."""
    if context.trailing.strip():
        yield Occurrence(detail=f"after the end marker the template writes {context.trailing!r}")


def _special_token(context: AuditContext) -> ControlToken | None:
    """The last special token in the end marker: a server has to stop at it."""
    if context.tokenizer is None:
        return None
    special = [token for token in context.tokenizer.control_tokens.values() if token.special]
    inside = [token for token in special if token.text in context.end_marker]
    ends = {token.text: context.end_marker.rindex(token.text) + len(token.text) for token in inside}
    return max(inside, key=lambda token: (ends[token.text], len(token.text)), default=None)


def _token_with_id(context: AuditContext, id: int) -> str:
    assert context.tokenizer is not None
    return f"{context.tokenizer.decode([id])} ({id})"
