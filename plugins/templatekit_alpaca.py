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
        _refuse_others(record, ("input", "output", "response") if nested else ("response",) if key == "output" else ())
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
        """The flat form, with `output`."""
        *before, user, assistant = example.messages
        record = {"instruction": user.content, "input": user.context, "output": assistant.content}
        return record | ({"system": before[0].content} if before else {})


def _refuse_others(record: Record, keys: Iterable[str]) -> None:
    """A second answer would be lost in silence."""
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
