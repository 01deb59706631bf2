"""The adapter `kto`: one answer a row, labelled as good or bad (KTO, Kahneman-Tversky optimization)."""

from collections.abc import Iterable
from dataclasses import replace

from templatekit_prompt_completion import PromptCompletion, untrained

from templatekit import Adapter, Example, Record, RecordError, hookimpl


class KTO(PromptCompletion):
    """Reads `prompt` and `completion`, each text, a message or messages, and `label`: true, false, 1 or 0.

    The label becomes metadata. A bad answer has weight 0, so that supervised training skips it.
    """

    name = "kto"
    description = "prompt, completion: text or messages; label: true for a good answer; optional tools"
    keys = (*PromptCompletion.keys, "label")
    required = (*PromptCompletion.required, "label")
    example_records = (
        {"prompt": "Name a color.", "completion": "Red.", "label": True},
        {"prompt": "Name a color.", "completion": "No.", "label": False},
    )

    def to_example(self, record: Record) -> Example:
        """Return the conversation, with the label in its metadata."""
        label = _label(record)
        example = super().to_example(record)
        messages = example.messages if label else untrained(example.messages)
        return replace(example, messages=messages, metadata={"label": label})

    def to_record(self, example: Example) -> Record:
        """Return the record, with the label as true or false."""
        return {**super().to_record(example), "label": example.metadata["label"]}


def _label(record: Record) -> bool:
    label = record.get("label")
    if label is None:
        found = "null" if "label" in record else f"keys {', '.join(sorted(map(str, record)))}"
        raise RecordError(
            f"missing; found {found}; expected true or false (of a good or a bad answer), 1 or 0",
            field="label",
            reason="missing_label",
        )
    if not isinstance(label, int) or label not in (0, 1):
        raise RecordError(
            f"found {label!r:.60}; expected true or false (of a good or a bad answer), 1 or 0",
            field="label",
            reason="bad_label",
        )
    return bool(label)


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [KTO()]
