"""The adapter `sharegpt`, for turns with from and value, and the exporters `sharegpt` and `llama-factory`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from templatekit import (
    WEIGHT_KEYS,
    Adapter,
    Example,
    FolderExporter,
    Message,
    Record,
    RecordError,
    RecordExporter,
    hookimpl,
    strict_json,
    text_of,
    tools_of,
    weight_of,
)

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""The role for each value of a turn's `from`."""

TURN_KEYS = frozenset(("from", "value", *WEIGHT_KEYS))


class ShareGPT(Adapter):
    """Reads `conversations`, turns with `from` and `value`, and optional `system` and `tools`.

    A `function_call` turn holds JSON with `name` and `arguments`, or a list of such objects: it becomes tool calls of
    the assistant. An `observation` or `tool` turn becomes a tool's answer. `tools` may be JSON text. A turn may have a
    weight (`weight`, `loss_weight` or `train`).
    """

    name = "sharegpt"
    description = "conversations: from, value; optional system, tools, function_call and observation turns"
    keys = ("conversations", "system", "tools", "id")
    inner_keys: ClassVar[Mapping[str, frozenset[str]]] = {"conversations": TURN_KEYS}
    required = ("conversations",)

    def to_example(self, record: Record) -> Example:
        """Return every turn in order."""
        turns = record.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise RecordError(
                f"found {turns!r:.60}; expected a list of at least one turn",
                field="conversations",
                reason="bad_conversations",
            )
        system = text_of(record, "system", required=False)
        messages = [_message(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
        if system:
            messages.insert(0, Message(role="system", content=system))
        return Example(
            messages=tuple(messages),
            tools=tools_of(record),
            metadata={"id": record["id"]} if "id" in record else {},
        )

    def to_record(self, example: Example) -> Record:
        """Return turns with `human`, `gpt`, `system`, `function_call` and `observation`."""
        names = {"user": "human", "assistant": "gpt", "tool": "observation"}
        turns: list[dict[str, Any]] = []
        for message in example.messages:
            if message.tool_calls:
                calls = [call["function"] for call in message.tool_calls]
                value = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
                turns.append({"from": "function_call", "value": value})
            else:
                turns.append({"from": names.get(message.role, message.role), "value": message.content})
            if message.weight != 1:
                turns[-1]["weight"] = message.weight
        record: dict[str, Any] = {**example.metadata, "conversations": turns}
        if example.tools:
            record["tools"] = json.dumps(list(example.tools), ensure_ascii=False)
        return record


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RecordError(
            f"found {turn!r:.60}; expected an object with from and value", field=where, reason="bad_conversations"
        )
    try:
        speaker, value, weight = text_of(turn, "from"), text_of(turn, "value"), weight_of(turn)
    except RecordError as error:
        error.field = f"{where}.{error.field}"
        raise
    if speaker not in ROLES:
        raise RecordError(
            f"unknown speaker; found {speaker!r:.60}; expected one of {', '.join(ROLES)}",
            field=f"{where}.from",
            reason="bad_role",
        )
    if speaker != "function_call":
        return Message(role=ROLES[speaker], content=value, weight=weight)
    return Message(role=ROLES[speaker], tool_calls=_calls(value, f"{where}.value"), weight=weight)


def _calls(text: str, where: str) -> tuple[Mapping[str, Any], ...]:
    try:
        value, reason = strict_json(text), ""
    except ValueError as error:
        value, reason = None, f"; not JSON: {error}"
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise RecordError(
            f"found {text!r:.60}; expected JSON with name and arguments{reason}",
            field=where,
            reason="bad_function_call",
        )
    return tuple({"type": "function", "function": call} for call in calls)


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [ShareGPT()]


class LlamaFactory(FolderExporter):
    """Writes LLaMA-Factory's ShareGPT format: rows, and the `dataset_info.json` that names their columns."""

    name = "llama-factory"
    description = "a folder for LLaMA-Factory: ShareGPT rows, and dataset_info.json"
    whole_records: ClassVar[bool] = True

    def __init__(self) -> None:
        self._rows = RecordExporter(ShareGPT(), name=self.name)

    def admit(self, sample: Any) -> dict[str, Any]:
        """Return the row; refuse weights, roles out of turn and anything that ShareGPT's format cannot hold."""
        record = dict(self._rows.admit(sample))
        turns = list(record["conversations"])
        system = turns.pop(0)["value"] if turns[0]["from"] == "system" else ""
        for index, turn in enumerate(turns):
            if "weight" in turn:
                raise self._rows.refusal(f"a weight of {turn['weight']:g}")
            if turn["from"] not in (("human", "observation"), ("gpt", "function_call"))[index % 2]:
                raise self._rows.refusal(f"{turn['from']!r} as turn {index}: questions and answers take turns there")
        if len(turns) % 2:
            raise self._rows.refusal("a question without an answer at the end")
        return {"conversations": turns, "system": system, "tools": record.get("tools", "")}

    def write_folder(self, items: Iterable[dict[str, Any]], folder: Path) -> int:
        """Write one line for each conversation."""
        with (folder / "train.jsonl").open("wb") as file:
            count = self._rows.write(items, file)
        columns = {"messages": "conversations", "system": "system", "tools": "tools"}
        info = {"train": {"file_name": "train.jsonl", "formatting": "sharegpt", "columns": columns}}
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        return count


@hookimpl
def templatekit_exporters() -> Iterable[FolderExporter | RecordExporter]:
    """One exporter for ShareGPT's files, one for LLaMA-Factory's folders."""
    return [RecordExporter(ShareGPT()), LlamaFactory()]
