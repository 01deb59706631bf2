"""The adapter `dolly`, for Databricks' Dolly: instruction, context, response, category."""

from collections.abc import Iterable, Set

from templatekit import Adapter, Example, Message, Record, RecordError, hookimpl, text_of


class Dolly(Adapter):
    """Reads `instruction`, `context` (may be missing, null or empty) and `response`; `category` becomes metadata."""

    name = "dolly"
    description = "instruction, optional context, response, optional category"
    keys = ("instruction", "context", "response", "category")
    required = ("instruction", "response")

    def matches(self, keys: Set[str]) -> bool:
        """Return whether the keys are Dolly's. With `input` or `output` they are Alpaca's."""
        return super().matches(keys) and "input" not in keys and "output" not in keys

    def to_example(self, record: Record) -> Example:
        """Return the instruction, with its context, and the answer."""
        category = text_of(record, "category", required=False)
        context = text_of(record, "context", required=False)
        if record.get("input") and not context:
            raise RecordError(
                f"not Dolly's; found {record['input']!r:.60}; expected such text under 'context' "
                "(--columns context=input), or Alpaca's records (--adapter alpaca)",
                field="input",
                reason="not_dolly",
            )
        return Example(
            messages=(
                Message(
                    role="user",
                    content=text_of(record, "instruction"),
                    context=context,
                ),
                Message(role="assistant", content=text_of(record, "response")),
            ),
            metadata={"category": category} if category else {},
        )

    def to_record(self, example: Example) -> Record:
        """Return the record, with `category` if the example has one."""
        user, assistant = example.messages
        record = {"instruction": user.content, "context": user.context, "response": assistant.content}
        return record | dict(example.metadata)


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Dolly()]
