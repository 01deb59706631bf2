"""What a template receives for an example: plain for the self-check, traced for the rendering that is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from templatekit.errors import RecordError
from templatekit.formats.provenance import concat, literal, plain_text, traced
from templatekit.types import Message, SpecialTokens, field_origin

CONTEXT_JOINT = "\n\n"
"""Stands between a message's content and its context in chat templates, which know no context."""

Variables = dict[str, Any]


def special_variables(tokens: SpecialTokens) -> Variables:
    """The tokenizer's texts; they count as the template's own, since it chooses where they stand.

    What the tokenizer lacks is undefined, as in transformers.
    """
    texts = {"bos_token": tokens.bos, "eos_token": tokens.eos, "pad_token": tokens.pad, "unk_token": tokens.unk}
    return {name: literal(text) for name, text in texts.items() if text or not tokens.known}


def instruction_variables(messages: tuple[Message, ...], *, tools: object, name: str, bare: bool = False) -> Variables:
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
    if beyond or tools:
        field = beyond[0] if beyond else "tools"
        raise RecordError(
            f"template {name!r} has no place for it; choose a chat template that has",
            field=field,
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


def chat_variables(messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...]) -> Variables:
    """`messages` and `tools`, as Hugging Face chat templates receive them."""
    return {
        "messages": [_chat_message(index, message) for index, message in enumerate(messages)],
        "tools": traced(list(tools), field_origin("tools")) if tools else None,
        "documents": None,
    }


def _chat_message(index: int, message: Message) -> Variables:
    def of(field: str) -> Any:
        return traced(getattr(message, field), field_origin(field, index))

    content = of("content")
    if message.context:
        content = concat([content, literal(CONTEXT_JOINT), of("context")] if content else [of("context")])
    values: Variables = {"role": of("role"), "content": content}
    if message.name:
        values["name"] = of("name")
    if message.reasoning:
        # The standard name, and the one that gpt-oss templates read; transformers fills both as well.
        values["reasoning_content"] = values["thinking"] = of("reasoning")
    if message.tool_calls:
        values["tool_calls"] = of("tool_calls")
    return values


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
