"""Refuses an example if the template prints nothing of a field that holds data, so that no field is lost silently."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from templatekit.errors import RecordError, TemplateError
from templatekit.formats.accepted_forms import check_role
from templatekit.types import Example, Span

_FIELD = re.compile(r"messages\[(?P<index>\d+)\]\.(?P<name>\w+)")
_OPTIONAL = {"reasoning": {"reasoning_content", "thinking"}, "name": {"name"}}
"""The fields that a template may leave out of some turns, with the names by which templates read them."""


def check_thoughts(example: Example, spans: Sequence[Span], trained: Collection[int], *, name: str) -> None:
    """Raise `RecordError` for the first trained turn whose reasoning is missing from the text that trains it."""
    printed = {span.origin.message for span in spans if span.origin.field == "reasoning"}
    for index in sorted(trained):
        if example.messages[index].reasoning and index not in printed:
            raise no_place_error(name, f"messages[{index}].reasoning", " of the assistant message")


def check_complete(
    example: Example, spans: Sequence[Span], *, name: str, mentions: Collection[str], render: Callable[[Example], str]
) -> None:
    """Raise `RecordError` for the first field of an example that is missing from a text with these spans.

    `name` is the template's; `mentions` are the attributes and texts in its source. `render` returns the text of
    another example. It is needed if the text has computed spans, made from several fields or from the clock: any field
    may be printed there, so the check changes the field and compares the texts.
    """
    printed = {(span.origin.message, span.origin.field) for span in spans}
    for turn, message in enumerate(example.messages):
        check_role(message.role, turn, mentions, printed=(turn, "role") in printed, name=name)
        if len(message.tool_calls) > 1 and (turn, "tool_calls") in printed:
            _check_calls(example, turn, name=name, render=render)
    has_computed = any(span.origin.kind == "computed" for span in spans)
    for index, field in _unprinted_fields(example, printed, mentions):
        if has_computed and _changes_text(example, index, field, render):
            continue
        if index is None:
            raise no_place_error(name, field)
        raise no_place_error(name, f"messages[{index}].{field}", f" of the {example.messages[index].role} message")


def without_field(example: Example, field: str) -> tuple[Example, str] | None:
    """The example without a field that a `no_place_for_field` error names, and what was left out, in words.

    None for a field without which there would be another conversation, such as an answer.
    """
    changes: dict[str, Any] = {field: ()}
    if field in ("tools", "documents"):
        return replace(example, **changes), field
    found = _FIELD.fullmatch(field)
    if found is None:
        return None
    index, name = int(found["index"]), found["name"]
    message = example.messages[index]
    before, after = example.messages[:index], example.messages[index + 1 :]
    changes = {name: ""}
    if name in _OPTIONAL:
        return replace(example, messages=(*before, replace(message, **changes), *after)), f"{message.role} {name}"
    if name == "content" and message.role in ("system", "developer") and (before or after):
        return replace(example, messages=before + after), f"{message.role} message"
    return None


def no_place_error(name: str, field: str, whose: str = "") -> RecordError:
    """The error for a field that the template of this name does not print."""
    return RecordError(
        f"template {name!r} has no place for this text{whose}; choose a template that has, or leave it out",
        field=field,
        reason="no_place_for_field",
    )


def _unprinted_fields(
    example: Example, printed: Collection[tuple[int | None, str | None]], mentions: Collection[str]
) -> Iterator[tuple[int | None, str]]:
    """The fields that hold data but are the origin of no span, with the index of their message, if any."""
    for field in ("tools", "documents"):
        if getattr(example, field) and (None, field) not in printed:
            yield None, field
    for index, message in enumerate(example.messages):
        for field in ("content", "context", "tool_calls"):
            value = getattr(message, field)
            if (index, field) not in printed and (value.strip() if isinstance(value, str) else value):
                yield index, field
        for field, names in _OPTIONAL.items():
            if field == "reasoning" and message.role == "assistant" and message.weight:
                continue  # the text in which the turn is trained has to show it: see `check_thoughts`
            # A template may leave these out of some turns, as Qwen 3 drops old reasoning, but must mention them.
            if (index, field) not in printed and getattr(message, field) and names.isdisjoint(mentions):
                yield index, field


def _check_calls(example: Example, turn: int, *, name: str, render: Callable[[Example], str]) -> None:
    """Raise `RecordError` for the first of several tool calls that the template leaves out, found by its name."""
    calls = []
    for number, call in enumerate(example.messages[turn].tool_calls):
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return
        calls.append({**call, "function": {**function, "name": f"call_{number}_of_{turn}"}})
    renamed = replace(example.messages[turn], tool_calls=tuple(calls))
    messages = (*example.messages[:turn], renamed, *example.messages[turn + 1 :])
    try:
        text = render(replace(example, messages=messages))
    except (RecordError, TemplateError):
        return  # the template knows only these names
    for number, call in enumerate(calls):
        if call["function"]["name"] not in text and not _prints_call(example, turn, number, text=render):
            raise no_place_error(name, f"messages[{turn}].tool_calls[{number}]", " of the assistant message")


def _prints_call(example: Example, turn: int, number: int, *, text: Callable[[Example], str]) -> bool:
    """Whether the text changes without this tool call: a template may print its id and its arguments alone."""
    message = example.messages[turn]
    others = (*message.tool_calls[:number], *message.tool_calls[number + 1 :])
    messages = (*example.messages[:turn], replace(message, tool_calls=others), *example.messages[turn + 1 :])
    try:
        return text(replace(example, messages=messages)) != text(example)
    except (RecordError, TemplateError):
        return True  # the template refuses the change, so it reads the call


def _changes_text(example: Example, index: int | None, field: str, render: Callable[[Example], str]) -> bool:
    """Whether the text changes if this field gets other characters, or is emptied if it holds no text."""
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
        return True  # the template refuses the change, so it reads the field
