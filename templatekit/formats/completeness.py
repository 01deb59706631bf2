"""Nothing of an example is lost in silence: what says something in a field that a template never prints is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from templatekit.errors import RecordError, TemplateError
from templatekit.formats.accepted_forms import check_role
from templatekit.types import Example, Span

_OPTIONAL = {"reasoning": {"reasoning_content", "thinking"}, "name": {"name"}}
"""Fields that a template may leave out of some turns, with the names under which it may know them."""


def check_complete(
    example: Example, spans: Sequence[Span], *, name: str, mentions: Collection[str], render: Callable[[Example], str]
) -> None:
    """Raises `RecordError` for the first field that has no place in a text of these origins.

    `name` is the template's, `mentions` are the names in it. `render` gives the text of another example: where some
    text is computed (from several fields, or from a clock) any field may stand there, so that it is changed to see.
    """
    printed = {(span.origin.message, span.origin.field) for span in spans}
    for number, message in enumerate(example.messages):
        check_role(message.role, number, mentions, printed=(number, "role") in printed, name=name)
    computed = any(span.origin.kind == "computed" for span in spans)
    for index, field in _unprinted(example, printed, mentions):
        if computed and _shows(example, index, field, render):
            continue
        if index is None:
            raise no_place(name, field)
        raise no_place(name, f"messages[{index}].{field}", f" of the {example.messages[index].role} message")


def no_place(name: str, field: str, whose: str = "") -> RecordError:
    """The error for a field that the template of this name does not print."""
    return RecordError(
        f"template {name!r} has no place for this text{whose}; choose a template that has, or leave it out",
        field=field,
        reason="no_place_for_field",
    )


def _unprinted(
    example: Example, printed: Collection[tuple[int | None, str | None]], mentions: Collection[str]
) -> Iterator[tuple[int | None, str]]:
    """The fields that say something and are no origin of any text."""
    for field in ("tools", "documents"):
        if getattr(example, field) and (None, field) not in printed:
            yield None, field
    for index, message in enumerate(example.messages):
        for field in ("content", "context", "tool_calls"):
            value = getattr(message, field)
            if (index, field) not in printed and (value.strip() if isinstance(value, str) else value):
                yield index, field
        for field, names in _OPTIONAL.items():
            # A template may leave these out of some turns (Qwen 3 drops old reasoning), but must know them.
            if (index, field) not in printed and getattr(message, field) and names.isdisjoint(mentions):
                yield index, field


def _shows(example: Example, index: int | None, field: str, render: Callable[[Example], str]) -> bool:
    """Whether the text is another one with other characters in a field, or without what is no text."""
    changes: dict[str, Any] = {field: ()}
    if index is not None:
        message = example.messages[index]
        value = getattr(message, field)
        if isinstance(value, str):
            changes = {field: ("y" if value[0] == "x" else "x") * len(value)}
        if field == "content":
            changes["parts"] = ()
        messages = (*example.messages[:index], replace(message, **changes), *example.messages[index + 1 :])
        changes = {"messages": messages}
    try:
        return render(replace(example, **changes)) != render(example)
    except (RecordError, TemplateError):
        return True  # so it is looked at
