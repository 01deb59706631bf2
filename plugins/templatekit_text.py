"""The adapter `text`: plain text, all of which is trained (continued pretraining)."""

from collections.abc import Iterable

from templatekit import Adapter, Example, Message, Record, hookimpl, text_of


class Text(Adapter):
    """Reads `text`, all of which is trained. Use it with the template `text`."""

    name = "text"
    description = "text, trained whole"
    keys = ("text",)
    required = ("text",)

    def to_example(self, record: Record) -> Example:
        """Return the text as one message of the assistant."""
        return Example(messages=(Message(role="assistant", content=text_of(record, "text")),))

    def to_record(self, example: Example) -> Record:
        """Return the text."""
        (message,) = example.messages
        return {"text": message.content}


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Text()]
