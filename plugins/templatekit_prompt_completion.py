"""Pairs of prompt and completion, each a text, as OpenAI's first fine-tuning files had them, or messages, as TRL's."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from templatekit_messages import Messages
from templatekit_sharegpt import ShareGPT

from templatekit import Adapter, Example, Message, Record, RecordError, RecordExporter, hookimpl, text_of, tools_of

READ = Messages.inner_keys["messages"] | ShareGPT.inner_keys["conversations"]
"""The keys that are read inside a message of either spelling."""


class PromptCompletion(Adapter):
    """`prompt` and `completion`, each text, a message or messages; optional `tools`.

    The completion is what is trained: answers within the prompt have weight 0.
    """

    name = "prompt-completion"
    description = "prompt, completion: text or messages; optional tools"
    keys: ClassVar[tuple[str, ...]] = ("prompt", "completion", "tools")
    inner_keys: ClassVar[Mapping[str, frozenset[str]]] = {"prompt": READ, "completion": READ}
    required: ClassVar[tuple[str, ...]] = ("prompt", "completion")

    def to_example(self, record: Record) -> Example:
        """The prompt's messages and the answer's."""
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
        """Texts where both are one plain message, else messages."""
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
    """The messages under `key`: a text, which is one message of `role`, or one or several messages of either spelling.

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
    """The messages of a prompt: a server feeds them, so none is trained."""
    return tuple(replace(message, weight=0.0) if message.role == "assistant" else message for message in messages)


def written(messages: Iterable[Message], *, role: str) -> Any:
    """The messages without their weights: as a text where they are one plain message of `role`, else as objects."""
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
    """Its files, as TRL reads them."""
    return [RecordExporter(PromptCompletion())]
