"""The adapter `alpaca`, for Alpaca and similar data sets: instruction, optional input, output."""

from collections.abc import Iterable, Mapping, Set

from templatekit import Adapter, Example, Message, Record, RecordError, hookimpl, text_of


class Alpaca(Adapter):
    """Reads `instruction`, `input` (may be missing, null or empty) and `output`.

    Without `output`, the answer is `response` (GPTeacher). In nested records (self-instruct) it is in `instances[0]`.
    """

    name = "alpaca"
    description = "instruction, optional input, output (or response, or instances[0])"
    keys = ("instruction", "input", "output", "response", "instances", "system")
    required = ("instruction", "output")

    def matches(self, keys: Set[str]) -> bool:
        """Return whether the keys are Alpaca's. `instruction` and `response` without `input` are Dolly's."""
        answered = "output" in keys or "instances" in keys or {"input", "response"} <= keys
        return "instruction" in keys and answered

    def to_example(self, record: Record) -> Example:
        """Return the instruction, with the input as its context, and the answer."""
        nested = record.get("instances") is not None
        answer = _instance(record) if nested else record
        context = text_of(answer, "input", required=False)
        if record.get("context") and not context:
            raise RecordError(
                f"not Alpaca's; found {record['context']!r:.60}; expected such text under 'input' "
                "(--columns input=context), or Dolly's records (--adapter dolly)",
                field="context",
                reason="not_alpaca",
            )
        key = "response" if answer.get("output") is None and "response" in answer else "output"
        _refuse_second_answer(
            record, ("input", "output", "response") if nested else ("response",) if key == "output" else ()
        )
        system = text_of(record, "system", required=False)
        return Example(
            messages=(
                *([Message(role="system", content=system)] if system else []),
                Message(
                    role="user",
                    content=text_of(record, "instruction"),
                    context=context,
                ),
                Message(role="assistant", content=text_of(answer, key)),
            )
        )

    def to_record(self, example: Example) -> Record:
        """Return the flat form, with `output`."""
        *before, user, assistant = example.messages
        record = {"instruction": user.content, "input": user.context, "output": assistant.content}
        return record | ({"system": before[0].content} if before else {})


def _refuse_second_answer(record: Record, keys: Iterable[str]) -> None:
    """Raise `RecordError` if there is text under one of the keys: it would be lost silently."""
    for key in keys:
        if record.get(key):
            raise RecordError(
                f"found {record[key]!r:.60} beside the answer that is read; expected one answer; to leave it out: "
                f"--columns unread={key}",
                field=key,
                reason="two_answers",
            )


def _instance(record: Record) -> Record:
    instances = record["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        raise RecordError(
            f"found {instances!r:.60}; expected a list of objects with input and output",
            field="instances",
            reason="bad_instances",
        )
    if len(instances) > 1:
        raise RecordError(
            f"found {len(instances)}; expected one; write each as a record of its own",
            field="instances",
            reason="several_instances",
        )
    return instances[0]


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Alpaca()]
