"""Alpaca and its relatives: instruction, optional input, output."""

from collections.abc import Iterable, Mapping, Set

from templatekit import Adapter, Example, Message, Record, RecordError, hookimpl, text_of


class Alpaca(Adapter):
    """`instruction`, `input` (missing, null and empty mean none), `output`.

    `response` is read where there is no `output` (GPTeacher), and `instances[0]` where the answer is nested
    (self-instruct).
    """

    name = "alpaca"
    description = "instruction, optional input, output (or response, or instances[0])"
    keys = ("instruction", "input", "output", "response", "instances", "system")
    required = ("instruction", "output")

    def matches(self, keys: Set[str]) -> bool:
        """Dolly's records have an instruction and a response too, but no input."""
        answered = "output" in keys or "instances" in keys or {"input", "response"} <= keys
        return "instruction" in keys and answered

    def to_example(self, record: Record) -> Example:
        """A user's instruction with its input as context, and the answer."""
        answer = _instance(record) if "instances" in record else record
        key = "output" if "output" in answer or "response" not in answer else "response"
        system = text_of(record, "system", required=False)
        return Example(
            messages=(
                *([Message(role="system", content=system)] if system else []),
                Message(
                    role="user",
                    content=text_of(record, "instruction"),
                    context=text_of(answer, "input", required=False),
                ),
                Message(role="assistant", content=text_of(answer, key)),
            )
        )

    def to_record(self, example: Example) -> Record:
        """The flat form, with `output`."""
        *before, user, assistant = example.messages
        record = {"instruction": user.content, "input": user.context, "output": assistant.content}
        return record | ({"system": before[0].content} if before else {})


def _instance(record: Record) -> Record:
    instances = record["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        raise RecordError("expected a list of objects with input and output", field="instances", reason="bad_instances")
    if len(instances) > 1:
        raise RecordError(
            f"expected one instance; found {len(instances)}; write each as a record of its own",
            field="instances",
            reason="several_instances",
        )
    return instances[0]


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Alpaca()]
