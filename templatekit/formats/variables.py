"""Builds the variables that a template receives for an example, as tracked text that carries the field it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from templatekit.errors import RecordError
from templatekit.formats.accepted_forms import AcceptedForms, Variables
from templatekit.formats.provenance import concat, literal, plain_text, track
from templatekit.hooks.record_fields import strict_json
from templatekit.types import Example, Message, SpecialTokens, field_origin

CONTEXT_SEPARATOR = "\n\n"
"""Separates a message's content from its context in chat templates, which have no variable for a context."""


def special_variables(tokens: SpecialTokens) -> Variables:
    """The tokenizer's special tokens, as literals: it is the template that decides where to write them.

    A token that the tokenizer lacks is undefined, as in transformers.
    """
    texts = {f"{name}_token": getattr(tokens, name) for name in ("bos", "eos", "pad", "unk", "sep")}
    return {name: literal(text) for name, text in texts.items() if text or not tokens.known}


def instruction_variables(
    messages: tuple[Message, ...], example: Example, *, name: str, allows_no_prompt: bool = False
) -> Variables:
    """One turn by field: `system`, `instruction`, `context` and `response`, which is empty for a prompt.

    `allows_no_prompt` accepts an answer without a user's message, for a template that writes nothing before the answer.
    """
    system = messages[0] if messages and messages[0].role == "system" else None
    rest = messages if system is None else messages[1:]
    roles = tuple(message.role for message in rest)
    if allows_no_prompt and roles in (("assistant",), ()):
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
    unsupported = [
        f"messages[{index}].{field}"
        for index, message in enumerate(messages)
        for field in ("reasoning", "tool_calls", "name")
        if getattr(message, field)
    ]
    unsupported += [field for field in ("tools", "documents") if getattr(example, field)]
    if unsupported:
        raise RecordError(
            f"template {name!r} has no place for it; choose a chat template that has",
            field=unsupported[0],
            reason="no_place_for_field",
        )
    variables: Variables = {"system": "", "response": ""}
    if system is not None:
        variables["system"] = track(system.content, field_origin("content", 0))
    variables["instruction"] = track(rest[0].content, field_origin("content", offset))
    variables["context"] = track(rest[0].context, field_origin("context", offset))
    if len(rest) == 2:
        variables["response"] = track(rest[1].content, field_origin("content", offset + 1))
    return variables


def chat_variables(messages: tuple[Message, ...], example: Example, accepted_forms: AcceptedForms) -> Variables:
    """`messages`, `tools` and `documents` as Hugging Face passes them, in the forms that the template accepts."""
    variables: Variables = {
        "messages": [_chat_message(index, message, accepted_forms) for index, message in enumerate(messages)]
    }
    for field in ("tools", "documents"):
        value = getattr(example, field)
        variables[field] = track(list(value), field_origin(field)) if value else None
    if not example.tools:
        variables["tools"] = accepted_forms.no_tools
    return variables


def _chat_message(index: int, message: Message, accepted_forms: AcceptedForms) -> Variables:
    def tracked(field: str) -> Any:
        return track(getattr(message, field), field_origin(field, index))

    values: Variables = {"role": tracked("role"), "content": _content(index, message, accepted_forms)}
    if message.name:
        values["name"] = tracked("name")
    if message.reasoning:
        # The standard name, and the one that gpt-oss templates read; transformers fills both too.
        values["reasoning_content"] = values["thinking"] = tracked("reasoning")
    if message.tool_calls:
        calls = [_call(call, accepted_forms.calls.arguments) for call in message.tool_calls]
        values["tool_calls"] = track(calls, field_origin("tool_calls", index))
    if message.tool_call_id:
        values["tool_call_id"] = tracked("tool_call_id")
    return values


def _content(index: int, message: Message, accepted_forms: AcceptedForms) -> Any:
    """The content in an accepted form: a text or a list of text parts; for tool calls without content, maybe None."""
    origin = field_origin("content", index)
    if not message.content and not message.context and message.tool_calls:
        return track(accepted_forms.calls.content, origin)
    form = accepted_forms.content(message.role)
    as_parts = form in ("either", "list") or (form == "unknown" and _parts_say_more(message))
    if message.parts and not message.context and as_parts and _parts_match_content(message):
        return track(list(message.parts), origin)
    text = track(message.content, origin)
    if message.context:
        context = track(message.context, field_origin("context", index))
        text = concat([text, literal(CONTEXT_SEPARATOR), context] if text else [context])
    return text if form in ("text", "either", "unknown") else [{"type": literal("text"), "text": text}]


def _parts_say_more(message: Message) -> bool:
    """Whether a message's parts have other keys than those of a text, such as the languages of a translation."""
    return any(set(part) - {"type", "text"} for part in message.parts)


def _parts_match_content(message: Message) -> bool:
    """Whether a message's parts still hold the same text as its content."""
    return "\n".join(str(part.get("text")) for part in message.parts) == message.content


def _call(call: Mapping[str, Any], form: str) -> Mapping[str, Any]:
    """A tool call whose arguments are an object, or JSON text if the template accepts only that.

    Servers parse arguments that clients send as text, and read missing arguments as none. Text that is not a JSON
    object stays as it is; it comes from callers of `Template` only, since the pipeline refuses such rows before.
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
        arguments = _parse_object(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _parse_object(text: str) -> Any:
    try:
        value = strict_json(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def untracked(value: Any) -> Any:
    """The same variables as plain JSON-like values, without origins."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {untracked(key): untracked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [untracked(item) for item in value]
    return value
