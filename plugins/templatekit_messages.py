"""Conversations as OpenAI's chat API has them: messages with role and content."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from templatekit import Adapter, Example, Message, Record, RecordError, hookimpl, text_of

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Under which a message may hold the assistant's thinking."""

WEIGHT_KEYS = ("weight", "loss_weight", "train")
"""Under which a message may say how much of its loss counts: a number, or true and false."""


class Messages(Adapter):
    """`messages`: objects with `role` and `content`, the latter text or a list of text parts; optional `tools`.

    A message may carry reasoning (`reasoning_content`, `reasoning` or `thinking`), `tool_calls`, `name` and a weight
    (`weight`, `loss_weight` or `train`).
    """

    name = "messages"
    description = "messages: role, content; optional tools, tool_calls, reasoning_content, name, weight"
    keys = ("messages", "tools")
    required = ("messages",)

    def to_example(self, record: Record) -> Example:
        """Every message in order."""
        messages = record.get("messages")
        if not isinstance(messages, list) or not messages:
            raise RecordError(
                f"found {messages!r:.60}; expected a list of at least one message",
                field="messages",
                reason="bad_messages",
            )
        tools = record.get("tools") or []
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise RecordError(f"found {tools!r:.60}; expected a list of objects", field="tools", reason="bad_tools")
        return Example(
            messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
            tools=tuple(tools),
        )

    def to_record(self, example: Example) -> Record:
        """With content as text, and the optional keys where they say something."""
        messages = []
        for message in example.messages:
            written: dict[str, Any] = {"role": message.role, "content": message.content}
            optional = {
                "reasoning_content": message.reasoning,
                "tool_calls": list(message.tool_calls),
                "name": message.name,
            }
            written |= {key: value for key, value in optional.items() if value}
            if message.weight != 1:
                written["weight"] = message.weight
            messages.append(written)
        return {"messages": messages} | ({"tools": list(example.tools)} if example.tools else {})


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise RecordError(
            f"found {value!r:.60}; expected an object with role and content", field=where, reason="bad_messages"
        )
    calls = value.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise RecordError(
            f"found {calls!r:.60}; expected a list of objects", field=f"{where}.tool_calls", reason="bad_tool_calls"
        )
    try:
        return Message(
            role=text_of(value, "role"),
            content=_content(value, where, required=not calls),
            reasoning=_reasoning(value, where),
            tool_calls=tuple(calls),
            name=text_of(value, "name", required=False),
            weight=_weight(value, where),
        )
    except RecordError as error:
        error.field = error.field if error.field and error.field.startswith(where) else f"{where}.{error.field}"
        raise


def _content(value: Mapping[str, Any], where: str, *, required: bool) -> str:
    parts = value.get("content")
    if not isinstance(parts, list):
        return text_of(value, "content", required=required)
    texts = []
    for index, part in enumerate(parts):
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            raise RecordError(
                f"found {part!r:.60}; expected text parts only",
                field=f"{where}.content[{index}]",
                reason="not_text_content",
            )
        try:
            texts.append(text_of(part, "text" if "text" in part else "value"))
        except RecordError as error:
            error.field = f"{where}.content[{index}].{error.field}"
            raise
    return "".join(texts)


def _reasoning(value: Mapping[str, Any], where: str) -> str:
    found = {key: text for key in REASONING_KEYS if (text := text_of(value, key, required=False))}
    if len(set(found.values())) > 1:
        raise RecordError(
            f"found different texts under {', '.join(found)}; expected one", field=where, reason="bad_reasoning"
        )
    return next(iter(found.values()), "")


def _weight(value: Mapping[str, Any], where: str) -> float:
    for key in WEIGHT_KEYS:
        weight = value.get(key)
        if weight is None:
            continue
        if not isinstance(weight, (int, float)) or not 0 <= weight <= sys.float_info.max:
            raise RecordError(
                f"found {weight!r:.60}; expected a number of at least 0, or true or false",
                field=f"{where}.{key}",
                reason="bad_weight",
            )
        return float(weight)
    return 1.0


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Messages()]
