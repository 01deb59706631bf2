"""The one place that knows what is too long."""

from __future__ import annotations

from templatekit.errors import RecordError
from templatekit.types import TokenizedExample


def check_length(example: TokenizedExample, max_length: int | None) -> None:
    """Raises `RecordError` (reason `too_long`) for more than `max_length` tokens. Nothing is ever cut in silence."""
    if max_length is not None and len(example) > max_length:
        raise RecordError(f"too long; found {len(example)} tokens; expected at most {max_length}", reason="too_long")
