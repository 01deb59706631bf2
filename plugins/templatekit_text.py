"""Plain text, trained whole: continued pretraining."""

from collections.abc import Iterable

from templatekit import Adapter, Example, Message, Record, hookimpl, text_of


class Text(Adapter):
    """`text`, all of which the model learns to write. It goes with the template `text`."""

    name = "text"
    description = "text, trained whole"
    keys = ("text",)
    required = ("text",)

    def to_example(self, record: Record) -> Example:
        """The assistant's message, and nothing before it."""
        return Example(messages=(Message(role="assistant", content=text_of(record, "text")),))

    def to_record(self, example: Example) -> Record:
        """The text."""
        (message,) = example.messages
        return {"text": message.content}


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Text()]
