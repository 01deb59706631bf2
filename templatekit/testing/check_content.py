"""Properties 8 to 12: all that the record says stands in the text, unchanged and once, and in the ids."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

from templatekit.testing import oracle
from templatekit.testing.check import Violation, check, does_not_write, equal, holds, no_adapter
from templatekit.testing.records import STRANGE, at, texts_read
from templatekit.testing.subject import Case, CheckedSample, Subject
from templatekit.testing.trials import cases, once


def lossy_tokenizer(subject: Subject) -> str | None:
    """For checks that decode."""
    return oracle.lossy(subject.tokenizer)


@check(8, given=cases, unless=[lossy_tokenizer])
def ids_decode_to_the_text(case: Case) -> str | None:
    """The ids, and those of the prompt, decode to their texts, but for what the tokenizer declares to change."""
    tokenizer = case.subject.tokenizer
    if not all(oracle.is_lossless(tokenizer, sample.rendered.text) for sample in case.samples):
        return "the tokenizer has no piece for some bytes"
    for sample in case.samples:
        rendered = sample.rendered
        expected = oracle.decoded(tokenizer, rendered, len(rendered.text), sample.cuts)
        equal(tokenizer.decode(sample.tokenized.input_ids), expected, "the ids decode to another text", sample)
        if sample.prompted:
            expected = oracle.decoded(tokenizer, sample.prompt, len(sample.prompt.text), ())
            equal(tokenizer.decode(sample.prompt_ids), expected, "the prompt's ids decode to another text", sample)
    return None


@check(9, given=cases)
def texts_stand_unchanged(case: Case) -> None:
    """Each text of the record stands in the rendered text as it is, where its origin says."""
    for sample in case.samples:
        for index, message in enumerate(sample.example.messages):
            for field in ("content", "context"):
                _compare(sample, f"messages[{index}].{field}", getattr(message, field), _printed(sample, index, field))
        _everything_has_an_origin(sample)
    if case.subject.checked_adapter:
        _adapter_keeps_texts(case)


def _compare(sample: CheckedSample, where: str, value: str, printed: list[str]) -> None:
    """Sees that what is printed of a text is the text, or as much of it as the template declares to print."""
    declared, whole = sample.subject.capabilities, "".join(printed)
    trims = whole.strip() == value.strip()
    if declared.splits_content:
        right = all(run in value for run in printed)
    elif declared.strips_content:
        right = trims and whole in value
    else:
        right = whole == value or (not whole and bool(value.strip()))  # what is not printed at all is another check's
    hint = _TRIMS if trims and not declared.strips_content else ""
    holds(right, f"the template changes {where}", sample, expected=value, found=whole, hint=hint)


_TRIMS = (
    "whitespace at its edges is taken off; a format that means to says so in its leading comment: "
    "capabilities: {strips_content: true}"
)


def _printed(sample: CheckedSample, message: int, field: str) -> list[str]:
    """The runs of a field's characters."""
    spans = [s for s in sample.rendered.spans if (s.origin.message, s.origin.field) == (message, field)]
    return [sample.rendered.text[start:end] for start, end in oracle.joined([(s.start, s.end) for s in spans])]


def _everything_has_an_origin(sample: CheckedSample) -> None:
    at = 0
    for span in sample.rendered.spans:
        equal(span.start, at, "the origins have a gap", sample)
        at = span.end
    equal(at, len(sample.rendered.text), "the origins end before the text does", sample)


def _adapter_keeps_texts(case: Case) -> None:
    """Each text that the adapter takes as it is stands whole in what it read."""
    adapter = case.subject.adapter
    read = texts_read(adapter, case.record)
    for place in case.subject.places(case.record):
        text = at(case.record, place.path)
        wanted = text.strip() if adapter.strips_content else text
        if not any(wanted in each for each in read):
            raise Violation(
                f"the adapter changed the text at {_spelt(place.path)}",
                expected=text,
                found=read,
                hint="an adapter that takes whitespace off says so: strips_content = True",
            )


def _spelt(path: tuple[object, ...]) -> str:
    return "".join(f"[{key!r}]" for key in path)


def splits(subject: Subject) -> str | None:
    """For the check that counts."""
    return "the template declares splits_content: true" if subject.capabilities.splits_content else None


@check(10, given=cases, unless=[splits])
def texts_are_printed_once(case: Case) -> None:
    """Each text that is not empty is printed once, in one piece."""
    for sample in case.samples:
        for index, message in enumerate(sample.example.messages):
            for field in ("content", "context"):
                count = len(_printed(sample, index, field))
                if getattr(message, field).strip():
                    equal(count, 1, f"how often messages[{index}].{field} is printed", sample)
                else:
                    holds(count <= 1, f"messages[{index}].{field} is printed {count} times", sample)


@check(11, given=cases)
def prints_no_none(case: Case) -> None:
    """No None, nan or undefined is printed that neither the data nor the template's own words hold."""
    for sample in case.samples:
        own = [sample.rendered.text[s.start : s.end] for s in sample.rendered.spans if s.origin.kind != "field"]
        found = set(re.findall(r"None|\bnan\b|undefined|Undefined", "\n".join(own)))
        strange = [word for word in sorted(found) if word not in case.subject.template.original]
        holds(not strange, f"the template prints {', '.join(strange)}", sample, hint="print it only where there is one")


@check(12, given=cases, unless=[no_adapter, does_not_write])
def records_come_back(case: Case) -> None:
    """What to_record writes is read as the same example again, and written as the same record."""
    adapter = case.subject.adapter
    # What was left out of the record is no part of it.
    example = replace(adapter.to_example(copy.deepcopy(case.record)), left_out={})
    written = adapter.to_record(example)
    again = replace(adapter.to_example(copy.deepcopy(written)), left_out={})
    equal(again, example, "read, written and read again, the example is another one")
    equal(adapter.to_record(again), written, "written a second time, the record is another one")


@check(12, given=once, unless=[no_adapter])
def declared_keys_are_read(subject: Subject) -> None:
    """A text under a key that the adapter names among its keys comes out: in a message, a tool or the metadata."""
    for key in subject.shape.more:
        record = {**subject.shape.records[0], key: STRANGE}
        holds(
            STRANGE in texts_read(subject.adapter, record),
            f"the adapter names the key {key!r} and does not read it: its text is lost, and nobody is told",
            expected=f"{STRANGE!r} in the example that comes of {record}",
            hint="take it from `keys`, so that it is reported; or keep it as metadata; or, if it is read in records of "
            "another kind, give such a record in `example_records`",
        )


@check(12, given=once, unless=[no_adapter])
def unknown_keys_are_reported(subject: Subject) -> None:
    """A key that the adapter does not read is reported with its row, never lost in silence."""
    pipeline = subject.new_pipeline()
    first = subject.shape.records[0]
    list(pipeline.run([first, {**first, "a key of nobody": "x"}]))
    equal(pipeline.counts.unread_keys, {"a key of nobody": 1}, "what is reported of a key that nobody reads")
