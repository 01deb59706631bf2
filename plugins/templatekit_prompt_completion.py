"""Pairs of prompt and completion, as OpenAI's first fine-tuning files had them."""

from collections.abc import Iterable

from templatekit import Adapter, Example, Message, Record, hookimpl, text_of


class PromptCompletion(Adapter):
    """`prompt` and `completion`, both text."""

    name = "prompt-completion"
    description = "prompt, completion"
    keys = ("prompt", "completion")
    required = ("prompt", "completion")

    def to_example(self, record: Record) -> Example:
        """A user's prompt and the answer."""
        return Example(
            messages=(
                Message(role="user", content=text_of(record, "prompt")),
                Message(role="assistant", content=text_of(record, "completion")),
            )
        )

    def to_record(self, example: Example) -> Record:
        """Both texts."""
        user, assistant = example.messages
        return {"prompt": user.content, "completion": assistant.content}


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [PromptCompletion()]
