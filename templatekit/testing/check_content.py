"""Properties 8 to 12: the record's texts are in the rendered text, unchanged and once, and in the ids."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import strategies as st

from templatekit.testing import oracle
from templatekit.testing.check import check
from templatekit.testing.checked_record import CheckedRecord, CheckedSample, Violation, equal, holds
from templatekit.testing.exemptions import does_not_write, lossy_tokenizer, no_adapter, splits_content
from templatekit.testing.inputs import checked_records
from templatekit.testing.records import PROBE_TEXT, texts_read, value_at
from templatekit.testing.subject import Subject


@check(8, given=checked_records, unless=[lossy_tokenizer])
def ids_decode_to_the_text(checked: CheckedRecord) -> str | None:
    """The ids, and those of the prompt, decode to their texts, except for changes that the tokenizer declares."""
    tokenizer = checked.subject.tokenizer
    if not all(oracle.is_lossless(tokenizer, sample.rendered.text) for sample in checked.samples):
        return "the tokenizer has no token for some bytes"
    for sample in checked.samples:
        compare_decoding(sample)
        if sample.prompted:
            expected = oracle.expected_decoding(tokenizer, sample.prompt, len(sample.prompt.text), ())
            equal(tokenizer.decode(sample.prompt_ids), expected, "the prompt's ids decode to another text", sample)
    return None


def compare_decoding(sample: CheckedSample) -> None:
    """Compare the text to which the ids of a sample decode with the expected one."""
    tokenizer, rendered = sample.subject.tokenizer, sample.rendered
    expected = oracle.expected_decoding(tokenizer, rendered, len(rendered.text), sample.cuts)
    equal(tokenizer.decode(sample.tokenized.input_ids), expected, "the ids decode to another text", sample)


@check(9, given=checked_records)
def texts_stand_unchanged(checked: CheckedRecord) -> None:
    """Each text of the record is in the rendered text unchanged, where its origin says."""
    for sample in checked.samples:
        for where, text, printed in _texts(sample):
            _compare(sample, where, text, printed)
        end = 0
        for span in sample.rendered.spans:
            equal(span.start, end, "the origins have a gap", sample)
            end = span.end
        equal(end, len(sample.rendered.text), "the origins end before the text does", sample)
    if checked.subject.checked_adapter:
        _adapter_keeps_texts(checked)


def _compare(sample: CheckedSample, where: str, value: str, printed: list[str]) -> None:
    """Compare a text with its printed runs, allowing for the changes that the template declares."""
    declared, whole = sample.subject.capabilities, "".join(printed)
    trims = whole.strip() == value.strip()
    if declared.splits_content:
        right = all(run in value for run in printed)
    elif declared.strips_content:
        right = trims and whole in value
    else:
        # Another check reports texts that are not printed.
        right = whole == value or (not whole and bool(value.strip()))
    hint = _TRIMS if trims and not declared.strips_content else ""
    holds(right, f"the template changes {where}", sample, expected=value, found=whole, hint=hint)


_TRIMS = (
    "whitespace at its edges is taken off; a format that means to says so in its leading comment: "
    "capabilities: {strips_content: true}"
)


def _texts(sample: CheckedSample) -> Iterator[tuple[str, str, list[str]]]:
    """The name of each text, such as `messages[0].content`, the text, and its printed runs."""
    rendered = sample.rendered
    for index, message in enumerate(sample.example.messages):
        for field in ("content", "context"):
            spans = [s for s in rendered.spans if (s.origin.message, s.origin.field) == (index, field)]
            runs = oracle.merged([(span.start, span.end) for span in spans])
            printed = [rendered.text[start:end] for start, end in runs]
            yield f"messages[{index}].{field}", getattr(message, field), printed


def _adapter_keeps_texts(checked: CheckedRecord) -> None:
    """Every text that the adapter reads unchanged is in the example as a whole."""
    adapter = checked.subject.adapter
    read = texts_read(adapter, checked.record)
    for location in checked.subject.text_locations(checked.record):
        text = value_at(checked.record, location.path)
        expected = text.strip() if adapter.strips_content else text
        if not any(expected in each for each in read):
            raise Violation(
                f"the adapter changed the text at {''.join(f'[{key!r}]' for key in location.path)}",
                expected=text,
                found=read,
                hint="an adapter that takes whitespace off says so: strips_content = True",
            )


@check(10, given=checked_records, unless=[splits_content])
def texts_are_printed_once(checked: CheckedRecord) -> None:
    """Each text that is not empty is printed once, in one piece."""
    for sample in checked.samples:
        for where, text, printed in _texts(sample):
            if text.strip():
                equal(len(printed), 1, f"how often {where} is printed", sample)
            else:
                holds(len(printed) <= 1, f"{where} is printed {len(printed)} times", sample)


@check(11, given=checked_records)
def prints_no_none(checked: CheckedRecord) -> None:
    """No None, nan or undefined is printed that neither the data nor the template's own words hold."""
    for sample in checked.samples:
        own = [sample.rendered.text[s.start : s.end] for s in sample.rendered.spans if s.origin.kind != "field"]
        found = set(re.findall(r"None|\bnan\b|undefined|Undefined", "\n".join(own)))
        unexplained = [word for word in sorted(found) if word not in checked.subject.template.original]
        what, hint = f"the template prints {', '.join(unexplained)}", "print it only where there is one"
        holds(not unexplained, what, sample, hint=hint)


@check(12, given=checked_records, unless=[no_adapter, does_not_write])
def records_come_back(checked: CheckedRecord) -> None:
    """A record that to_record writes is read as the same example, and written again as the same record."""
    adapter = checked.subject.adapter
    # Parts of the record that the adapter leaves out do not count.
    example = replace(adapter.to_example(copy.deepcopy(checked.record)), left_out={})
    written = adapter.to_record(example)
    again = replace(adapter.to_example(copy.deepcopy(written)), left_out={})
    equal(again, example, "read, written and read again, the example is another one")
    equal(adapter.to_record(again), written, "written a second time, the record is another one")


@check(12, given=st.just, unless=[no_adapter])
def declared_keys_are_read(subject: Subject) -> None:
    """A text under any key that the adapter names in `keys` is read: into a message, a tool or the metadata."""
    for key in subject.shape.additional_keys:
        record = {**subject.shape.records[0], key: PROBE_TEXT}
        holds(
            PROBE_TEXT in texts_read(subject.adapter, record),
            f"the adapter names the key {key!r} but does not read it: its text is lost without a message",
            expected=f"{PROBE_TEXT!r} in the example read from {record}",
            hint="remove it from `keys`, so that it is reported; or store it as metadata; or, if it is read in another "
            "kind of record, add such a record to `example_records`",
        )


@check(12, given=st.just, unless=[no_adapter])
def unknown_keys_are_reported(subject: Subject) -> None:
    """A key that the adapter does not read is reported with its row, never lost in silence."""
    pipeline = subject.new_pipeline()
    first = subject.shape.records[0]
    list(pipeline.run([first, {**first, "a key of nobody": "x"}]))
    equal(pipeline.counts.unread_keys, {"a key of nobody": 1}, "the report about a key that the adapter does not read")
