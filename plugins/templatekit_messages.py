"""The adapter `messages` and the exporter `openai`, for conversations as in OpenAI's chat API: role and content."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from templatekit import (
    WEIGHT_KEYS,
    Adapter,
    Example,
    Message,
    Record,
    RecordError,
    RecordExporter,
    as_function,
    hookimpl,
    objects_of,
    text_of,
    tools_of,
    weight_of,
)

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The keys under which a message may hold the assistant's thinking."""

TEXT_PARTS = {"text": ("text", "value"), "input_text": ("text",), "output_text": ("text",), "refusal": ("refusal",)}
"""The types of content parts that are text, with the keys that may hold the text."""

MESSAGE_KEYS = frozenset(
    (
        *("role", "content", "refusal", "tool_calls", "function_call", "tool_call_id", "name"),
        *REASONING_KEYS,
        *WEIGHT_KEYS,
    )
)


class Messages(Adapter):
    """Reads `messages`, objects with `role` and `content`, and optional `tools` and `documents`, as lists or JSON text.

    The content is text or a list of text parts. A message may also have reasoning (`reasoning_content`, `reasoning` or
    `thinking`), `tool_calls`, `tool_call_id`, `name` and a weight (`weight`, `loss_weight` or `train`). The older
    `function_call` is read as a tool call, and the role `function` as `tool`.
    """

    name = "messages"
    description = "messages: role, content; optional tools, documents, tool_calls, reasoning_content, name, weight"
    keys = ("messages", "tools", "documents")
    inner_keys: ClassVar[Mapping[str, frozenset[str]]] = {"messages": MESSAGE_KEYS}
    required = ("messages",)

    def to_example(self, record: Record) -> Example:
        """Return every message in order."""
        messages = record.get("messages")
        if not isinstance(messages, list) or not messages:
            raise RecordError(
                f"found {messages!r:.60}; expected a list of at least one message",
                field="messages",
                reason="bad_messages",
            )
        return Example(
            messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
            tools=tools_of(record),
            documents=objects_of(record, "documents"),
        )

    def to_record(self, example: Example) -> Record:
        """Return the record, with the content as text or parts, and the optional keys that are not empty."""
        messages = []
        for message in example.messages:
            content = [dict(part) for part in message.parts] or message.content
            written: dict[str, Any] = {"role": message.role, "content": content}
            optional = {
                "reasoning_content": message.reasoning,
                "tool_calls": list(message.tool_calls),
                "tool_call_id": message.tool_call_id,
                "name": message.name,
            }
            written |= {key: value for key, value in optional.items() if value}
            if message.weight != 1:
                written["weight"] = message.weight
            messages.append(written)
        others = {"tools": list(example.tools), "documents": list(example.documents)}
        return {"messages": messages} | {key: value for key, value in others.items() if value}


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise RecordError(
            f"found {value!r:.60}; expected an object with role and content", field=where, reason="bad_messages"
        )
    try:
        calls = tuple(as_function(call) for call in objects_of(value, "tool_calls"))
        if value.get("function_call") is not None:
            calls = (*calls, _function_call(value["function_call"]))
        role = text_of(value, "role")
        parts, reasoning = _parts(value), _reasoning(value, where)
        return Message(
            role="tool" if role == "function" else role,
            content="\n".join(part["text"] for part in parts)
            if parts
            else _text(value, required=not (calls or reasoning)),
            parts=parts,
            reasoning=reasoning,
            tool_calls=calls,
            tool_call_id=text_of(value, "tool_call_id", required=False),
            name=text_of(value, "name", required=False),
            weight=weight_of(value),
        )
    except RecordError as error:
        error.field = error.field if error.field and error.field.startswith(where) else f"{where}.{error.field}"
        raise


def _function_call(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise RecordError(
            f"found {value!r:.60}; expected an object with name and arguments",
            field="function_call",
            reason="bad_function_call",
        )
    return as_function(value)


def _text(value: Mapping[str, Any], *, required: bool) -> str:
    """The content if it is text, or the text of a refusal instead."""
    refusal = text_of(value, "refusal", required=False)
    if value.get("content") == []:
        return refusal
    content = text_of(value, "content", required=required and not refusal)
    if content and refusal:
        raise RecordError("found content and a refusal; expected one", field="refusal", reason="bad_refusal")
    return content or refusal


def _parts(value: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The parts of the content as `{"type": "text", "text": …}`; empty if the content is text."""
    content = value.get("content")
    parts = enumerate(content if isinstance(content, list) else ())
    return tuple(_part(part, f"content[{index}]") for index, part in parts)


def _part(part: object, field: str) -> Mapping[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise RecordError(f"found {part!r:.60}; expected a text part", field=field, reason="unsupported_part")
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise RecordError(
            f"found a part of type {kind!r:.60}; expected text: models that take anything else are not trained here",
            field=field,
            reason="unsupported_part",
        )
    key = next((key for key in TEXT_PARTS[kind] if key in part), TEXT_PARTS[kind][0])
    try:
        text = text_of(part, key)
    except RecordError as error:
        error.field = f"{field}.{error.field}"
        raise
    # In columnar files every part has the keys of all parts, and templates would take a null `image` for an image.
    others = {name: item for name, item in part.items() if item is not None and name not in ("type", key)}
    return {"type": "text", "text": text, **others}


def _reasoning(value: Mapping[str, Any], where: str) -> str:
    found = {key: text for key in REASONING_KEYS if (text := text_of(value, key, required=False))}
    if len(set(found.values())) > 1:
        raise RecordError(
            f"found different texts under {', '.join(found)}; expected one", field=where, reason="bad_reasoning"
        )
    return next(iter(found.values()), "")


class OpenAI(RecordExporter):
    """Writes OpenAI's fine-tuning files: `messages` and `tools`, with weights 0 and 1, and arguments as JSON text."""

    def laid_out(self, record: Mapping[str, Any], example: Example) -> Mapping[str, Any]:
        """Return the record; refuse an example with something that OpenAI's files have no key for."""
        for index, (message, written) in enumerate(zip(example.messages, record["messages"], strict=True)):
            where = f"messages[{index}]"
            if message.role not in ("system", "developer", "user", "assistant", "tool"):
                raise self.refusal(f"{where}.role={message.role!r}")
            if message.reasoning:
                raise self.refusal(f"{where}.reasoning")
            if message.role != "assistant":
                written.pop("weight", None)
            elif message.weight not in (0, 1):
                raise self.refusal(f"{where}.weight={message.weight:g}; expected 0 or 1")
            elif message.weight == 0:
                written["weight"] = 0
            for call in written.get("tool_calls", ()):
                if not call.get("id"):
                    raise self.refusal(f"{where}: a tool call without an id")
            if calls := written.get("tool_calls"):
                written["tool_calls"] = [_with_json_arguments(call) for call in calls]
        if example.documents:
            raise self.refusal("documents")
        if example.messages[-1].role != "assistant":
            raise self.refusal(f"a conversation that ends with {example.messages[-1].role!r}")
        return record


def _with_json_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": function}


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Messages()]


@hookimpl
def templatekit_exporters() -> Iterable[RecordExporter]:
    """One exporter."""
    return [OpenAI(Messages(), name="openai", description="OpenAI's fine-tuning JSON Lines: messages, tools")]
