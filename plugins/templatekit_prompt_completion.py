"""The adapter `prompt-completion`: pairs of texts (OpenAI's first fine-tuning files) or of messages (TRL's files)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from templatekit_messages import Messages
from templatekit_sharegpt import ShareGPT

from templatekit import Adapter, Example, Message, Record, RecordError, RecordExporter, hookimpl, text_of, tools_of

MESSAGE_KEYS = Messages.inner_keys["messages"] | ShareGPT.inner_keys["conversations"]
"""The keys that are read inside a message, in OpenAI's or ShareGPT's format."""


class PromptCompletion(Adapter):
    """Reads `prompt` and `completion`, each text, a message or messages, and optional `tools`.

    Only the completion is trained: answers in the prompt have weight 0.
    """

    name = "prompt-completion"
    description = "prompt, completion: text or messages; optional tools"
    keys: ClassVar[tuple[str, ...]] = ("prompt", "completion", "tools")
    inner_keys: ClassVar[Mapping[str, frozenset[str]]] = {"prompt": MESSAGE_KEYS, "completion": MESSAGE_KEYS}
    required: ClassVar[tuple[str, ...]] = ("prompt", "completion")

    def to_example(self, record: Record) -> Example:
        """Return the messages of the prompt and of the completion."""
        prompt = conversation(record, "prompt", role="user")
        completion = conversation(record, "completion", role="assistant")
        if completion[-1].role != "assistant":
            raise RecordError(
                f"ends with a message of {completion[-1].role!r:.60}; expected the assistant's last",
                field="completion",
                reason="no_response",
            )
        return Example(messages=untrained(prompt) + completion, tools=tools_of(record))

    def to_record(self, example: Example) -> Record:
        """Return each of the two as text if it is one plain message, else as messages."""
        messages = example.messages
        users = [index for index, message in enumerate(messages) if message.role == "user"]
        trained = [index for index, message in enumerate(messages) if message.role == "assistant" and message.weight]
        split = trained[0] if trained else users[-1] + 1
        return {
            "prompt": written(messages[:split], role="user"),
            "completion": written(messages[split:], role="assistant"),
            **({"tools": list(example.tools)} if example.tools else {}),
        }


def conversation(record: Record, key: str, *, role: str) -> tuple[Message, ...]:
    """Return the messages under `key`: a text becomes one message of `role`; messages may be OpenAI's or ShareGPT's.

    Raises `RecordError` with `key` in its field.
    """
    value = record.get(key)
    if value is None or isinstance(value, str):
        value = {"role": role, "content": text_of(record, key)}
    turns = [value] if isinstance(value, Mapping) else value
    sharegpt = isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]
    adapter, name = (ShareGPT(), "conversations") if sharegpt else (Messages(), "messages")
    try:
        return adapter.to_example({name: turns}).messages
    except RecordError as error:
        if error.field and error.field.startswith(name):
            error.field = key + error.field.removeprefix(name)
        raise


def untrained(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return the messages of a prompt, with weight 0 for the assistant's: a server does not generate them."""
    return tuple(replace(message, weight=0.0) if message.role == "assistant" else message for message in messages)


def written(messages: Iterable[Message], *, role: str) -> Any:
    """Return messages as a text if they are one plain message of `role`, else as objects; weights are left out."""
    plain = tuple(replace(message, weight=1.0) for message in messages)
    if len(plain) == 1 and plain[0] == Message(role=role, content=plain[0].content):
        return plain[0].content
    return Messages().to_record(Example(messages=plain))["messages"]


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [PromptCompletion()]


@hookimpl
def templatekit_exporters() -> Iterable[RecordExporter]:
    """One exporter, for files that TRL reads."""
    return [RecordExporter(PromptCompletion())]
