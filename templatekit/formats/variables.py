"""What a template receives for an example: plain for the self-check, traced for the rendering that is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from templatekit.errors import RecordError
from templatekit.formats.accepted_forms import Takes, Variables
from templatekit.formats.provenance import concat, literal, plain_text, traced
from templatekit.types import Example, Message, SpecialTokens, field_origin

CONTEXT_JOINT = "\n\n"
"""Stands between a message's content and its context in chat templates, which know no context."""


def special_variables(tokens: SpecialTokens) -> Variables:
    """The tokenizer's texts; they count as the template's own, since it chooses where they stand.

    What the tokenizer lacks is undefined, as in transformers.
    """
    texts = {"bos_token": tokens.bos, "eos_token": tokens.eos, "pad_token": tokens.pad, "unk_token": tokens.unk}
    return {name: literal(text) for name, text in texts.items() if text or not tokens.known}


def instruction_variables(
    messages: tuple[Message, ...], example: Example, *, name: str, bare: bool = False
) -> Variables:
    """One turn by field: `system`, `instruction`, `context`, `response` (absent in a prompt).

    A `bare` format, which writes nothing around them, holds an answer alone too.
    """
    system, rest = _leading_system(messages)
    roles = tuple(message.role for message in rest)
    if bare and roles in (("assistant",), ()):
        rest = (Message(role="user"), *rest)
    elif roles not in (("user", "assistant"), ("user",)):
        found = ", ".join(roles) or "nothing"
        other = (
            "'text' for texts without a prompt"
            if roles == ("assistant",)
            else "a chat template such as 'chatml' for conversations"
        )
        raise RecordError(
            f"template {name!r} holds one turn, a user's and an assistant's; found {found}; choose {other}",
            field="messages",
            reason="not_one_turn",
        )
    offset = len(messages) - len(rest)
    beyond = [
        f"messages[{index}].{field}"
        for index, message in enumerate(messages)
        for field in ("reasoning", "tool_calls", "name")
        if getattr(message, field)
    ]
    beyond += [field for field in ("tools", "documents") if getattr(example, field)]
    if beyond:
        raise RecordError(
            f"template {name!r} has no place for it; choose a chat template that has",
            field=beyond[0],
            reason="no_place_for_field",
        )
    variables: Variables = {"system": "", "response": ""}
    if system is not None:
        variables["system"] = traced(system.content, field_origin("content", 0))
    variables["instruction"] = traced(rest[0].content, field_origin("content", offset))
    variables["context"] = traced(rest[0].context, field_origin("context", offset))
    if len(rest) == 2:
        variables["response"] = traced(rest[1].content, field_origin("content", offset + 1))
    return variables


def chat_variables(messages: tuple[Message, ...], example: Example, takes: Takes) -> Variables:
    """`messages`, `tools` and `documents` as Hugging Face chat templates receive them, in forms that this one takes."""
    variables: Variables = {
        "messages": [_chat_message(index, message, takes) for index, message in enumerate(messages)]
    }
    for field in ("tools", "documents"):
        value = getattr(example, field)
        variables[field] = traced(list(value), field_origin(field)) if value else None
    return variables


def _chat_message(index: int, message: Message, takes: Takes) -> Variables:
    def of(field: str) -> Any:
        return traced(getattr(message, field), field_origin(field, index))

    values: Variables = {"role": of("role"), "content": _content(index, message, takes)}
    if message.name:
        values["name"] = of("name")
    if message.reasoning:
        # The standard name, and the one that gpt-oss templates read; transformers fills both as well.
        values["reasoning_content"] = values["thinking"] = of("reasoning")
    if message.tool_calls:
        calls = [_call(call, takes.calls.arguments) for call in message.tool_calls]
        values["tool_calls"] = traced(calls, field_origin("tool_calls", index))
    if message.tool_call_id:
        values["tool_call_id"] = of("tool_call_id")
    return values


def _content(index: int, message: Message, takes: Takes) -> Any:
    """The content as this template takes it: text, a list of text parts, or, beside tool calls alone, None."""
    origin = field_origin("content", index)
    if not message.content and not message.context and message.tool_calls:
        return traced(takes.calls.content, origin)
    form = takes.content(message.role)
    if message.parts and not message.context and form in ("either", "list") and _parts_hold(message):
        return traced(list(message.parts), origin)
    text = traced(message.content, origin)
    if message.context:
        context = traced(message.context, field_origin("context", index))
        text = concat([text, literal(CONTEXT_JOINT), context] if text else [context])
    return text if form in ("text", "either") else [{"type": literal("text"), "text": text}]


def _parts_hold(message: Message) -> bool:
    """Whether a message's parts still say what its content says."""
    return "\n".join(str(part.get("text")) for part in message.parts) == message.content


def _call(call: Mapping[str, Any], form: str) -> Mapping[str, Any]:
    """A tool call whose arguments are an object, or, where the template takes that alone, JSON text.

    Servers parse the text that clients send, and take none for no arguments. What is no JSON object stays text.
    """
    function = call.get("function")
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if form == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif form == "object" and isinstance(arguments, str):
        arguments = _parsed(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key twice: the object would lose one of its values")
    return dict(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no number of JSON, or too large for one")
    return number


def _leading_system(messages: tuple[Message, ...]) -> tuple[Message | None, tuple[Message, ...]]:
    if messages and messages[0].role == "system":
        return messages[0], messages[1:]
    return None, messages


def plain(value: Any) -> Any:
    """The same variables as plain JSON-like values."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
