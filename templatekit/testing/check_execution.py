"""Properties 1 to 7: valid records are rendered, equal records equally, alone or with others, and in linear time."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

from templatekit.errors import RecordError
from templatekit.testing.check import check
from templatekit.testing.checked_record import CheckedRecord, CheckedSample, Violation, equal, holds
from templatekit.testing.exemptions import no_adapter
from templatekit.testing.inputs import (
    MalformedRecord,
    RecordList,
    checked_records,
    malformed_records,
    record_lists,
)
from templatekit.testing.records import Scope, short_example, with_values
from templatekit.testing.subject import Subject
from templatekit.types import IGNORE_INDEX, Example, PreferenceExample, Record, Sample


@check(1, given=checked_records)
def valid_records_are_rendered(checked: CheckedRecord) -> None:
    """Every valid record is rendered: none that the format says it accepts is refused."""
    holds(checked.samples, "nothing came of a valid record")


@check(1, given=malformed_records, unless=[no_adapter])
def bad_records_are_refused_by_name(malformed: MalformedRecord) -> None:
    """A record that does not have the adapter's shape is read, or refused with a RecordError that names the field."""
    record = copy.deepcopy(malformed.record)
    examples: list[Example] = []
    try:
        examples = [malformed.adapter.to_example(record), *malformed.adapter.to_examples(record)]
    except RecordError as error:
        holds(error.field, f"the refusal names no field: {error}", hint="raise RecordError(…, field=…)")
        holds(error.reason.isidentifier(), f"the reason is no short code: {error.reason!r}")
        length = len(str(error))
        holds(length < 2_000, f"the refusal is {length} characters long", hint="shorten the quoted values")
    except Exception as error:  # a plugin's code may raise anything
        raise Violation(
            "the adapter raised an exception of Python's own",
            expected="an Example, or a RecordError with the field",
            found=f"{type(error).__name__}: {error}",
            hint="text_of(record, key) reads a text and refuses anything else by name",
        ) from error
    equal(repr(record), repr(malformed.record), "the adapter changed the record that it received")
    for example in examples:
        holds(isinstance(example, Example), "the adapter returned an object that is no Example", found=example)
        answers = example.chosen + example.rejected if isinstance(example, PreferenceExample) else ()
        for message in example.messages + answers:
            for name in ("role", "content", "context", "reasoning", "name"):
                value = getattr(message, name)
                holds(type(value) is str, f"the adapter put something else than text into {name}", found=repr(value))


@check(2, given=checked_records)
def equal_records_give_equal_ids(checked: CheckedRecord) -> None:
    """A record gives the same text, ids and weights whatever record came before it, in any thread and at any time."""
    before = checked.subject.shape.records[0]
    first = [_result(sample.sample) for sample in checked.samples if CheckedRecord(checked.subject, before).samples]
    other = checked.subject.new_pipeline(train_on=checked.train_on)

    def render_again() -> list[Any]:
        """Render it again after another record; called in another thread, with the clock set to 1999."""
        both = list(other.run([before, checked.record]))
        return [_result(sample) for sample in both if sample.rendered.row == 1]

    with patch("templatekit.formats.template.datetime", _Clock1999), ThreadPoolExecutor(1) as thread:
        second = thread.submit(render_again).result()
    texts, first_texts = ([text for text, _, _ in results] for results in (second, first))
    equal(texts, first_texts, "rendered again, the record gives another text")
    equal(second, first, "encoded again, the record gives other ids or weights")


class _Clock1999(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _Clock1999:
        return cls(1999, 12, 31, 23, 59, 59, tzinfo=tz)


def _result(sample: Sample) -> tuple[Any, ...]:
    tokenized = sample.tokenized
    assert tokenized is not None
    return sample.rendered.text, tokenized.input_ids, tokenized.loss_weights


@check(3, given=checked_records, unless=[no_adapter])
def records_stay_as_they_are(checked: CheckedRecord) -> None:
    """Reading and writing change neither the record nor the example."""
    record = copy.deepcopy(checked.record)
    adapter = checked.subject.adapter
    example = adapter.to_example(record)
    equal(repr(record), repr(checked.record), "to_example changed the record that it received")
    before = copy.deepcopy(example)
    try:
        adapter.to_record(example)
    except Exception:  # another check reports what to_record cannot write
        return
    equal(example, before, "to_record changed the example that it received")


@check(4, given=checked_records)
def ids_labels_and_weights_agree(checked: CheckedRecord) -> None:
    """Ids, labels and weights have the same length, and every id is in the vocabulary."""
    for sample in checked.samples:
        labels_agree(sample)


def labels_agree(sample: CheckedSample) -> None:
    """Check one sample."""
    tokenized = sample.tokenized
    count = len(tokenized.input_ids)
    equal((len(tokenized.labels), len(tokenized.loss_weights)), (count, count), "labels or weights are missing")
    size = sample.subject.tokenizer.vocabulary_size
    outside = [id for id in tokenized.input_ids if not 0 <= id < size]
    holds(not outside, f"ids outside of the vocabulary of {size}", sample, found=outside)
    pairs = enumerate(zip(tokenized.labels, tokenized.input_ids, strict=True))
    wrong = [index for index, (label, id) in pairs if label not in (IGNORE_INDEX, id)]
    holds(not wrong, "labels that are neither the id nor ignored", sample, found=wrong)
    trained = sum(label != IGNORE_INDEX for label in tokenized.labels)
    equal(trained, tokenized.trained_tokens, "labels and weights disagree", sample)


@check(5, 6, given=record_lists)
def a_batch_is_its_single_records(records: RecordList) -> str | None:
    """Records give the same samples together, in a list or a stream, as each of them alone."""
    if not records.with_samples:
        return "no record came through"
    alone = [[_result(sample.sample) for sample in checked.samples] for checked in records.with_samples]
    given = [checked.record for checked in records.with_samples]
    for source, expected in ((given, alone), (iter(given), alone), (given[::-1], alone[::-1])):
        together: list[list[Any]] = [[] for _ in given]
        for sample in records.subject.new_pipeline().run(source):
            together[sample.rendered.row].append(_result(sample))
        equal(together, expected, "a record gives other samples together with others than alone")
    return None


SHORT, LONG = 500, 5_000
MAX_FACTOR = 15
"""The maximum cost of ten times the text, relative to the cost of the text."""
TOLERANCE = 0.05
"""Seconds of processor time that do not count: caches that are filled first, and the noise of a busy machine."""


@check(7, given=st.just)
def the_cost_grows_with_the_text(subject: Subject) -> None:
    """Ten times the text, or ten times the turns, costs at most fifteen times as much time and text."""

    def cost(record: Record) -> tuple[float, int]:
        best, length = float("inf"), 0
        for _ in range(3):
            start = time.process_time()
            length = sum(len(sample.rendered.text) for sample in CheckedRecord(subject, record).samples)
            best = min(best, time.process_time() - start)
        return best, length

    plain = subject.shape.records[0]
    paths = [location.path for location in subject.text_locations(plain)]
    for unit in ("a", "\n é"):
        short, long = (
            with_values(plain, ((path, unit * (count // len(unit))) for path in paths)) for count in (SHORT, LONG)
        )
        _compare(cost(short), cost(long), f"{LONG // SHORT} times the text (of {unit!r})")
    # If earlier turns are rendered otherwise than last ones, each turn needs a sample of its own.
    if subject.scope.max_turns > 1 and subject.capabilities.prefix_stable:
        few, many = (subject.adapter.to_record(short_example(Scope(max_turns=count))) for count in (4, 40))
        _compare(cost(few), cost(many), "ten times the turns")


def _compare(short: tuple[float, int], long: tuple[float, int], what: str) -> None:
    holds(
        long[0] <= MAX_FACTOR * short[0] + TOLERANCE,
        f"{what} takes {long[0] / max(short[0], 1e-9):.0f} times as long",
        expected=f"at most {MAX_FACTOR * short[0] + TOLERANCE:.2f} s of processor time",
        found=f"{long[0]:.2f} s",
    )
    holds(
        long[1] <= MAX_FACTOR * short[1],
        f"{what} gives {long[1] / max(short[1], 1):.0f} times the text",
        expected=f"at most {MAX_FACTOR * short[1]} characters",
        found=f"{long[1]} characters",
    )
