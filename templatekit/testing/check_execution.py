"""Properties 1 to 7: valid records are rendered, the same every time, alone or among others, and in linear time."""

from __future__ import annotations

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from typing import Any
from unittest.mock import patch

from templatekit.errors import RecordError
from templatekit.testing.check import Violation, check, equal, holds, no_adapter
from templatekit.testing.records import with_text
from templatekit.testing.subject import Case, CheckedSample, Subject
from templatekit.testing.trials import Batch, Junk, batches, cases, junk, once
from templatekit.types import IGNORE_INDEX, Example, Message, PreferenceExample, Record, Sample


@check(1, given=cases)
def valid_records_are_rendered(case: Case) -> None:
    """Every valid record is rendered; none that the format says it takes is refused."""
    holds(case.samples, "nothing came of a valid record")


@check(1, given=junk, unless=[no_adapter])
def bad_records_are_refused_by_name(trial: Junk) -> None:
    """A record that is not of the adapter's shape is read, or refused by a RecordError that names the field."""
    record = copy.deepcopy(trial.record)
    examples: list[Example] = []
    try:
        examples = [trial.adapter.to_example(record), *trial.adapter.to_examples(record)]
    except RecordError as error:
        holds(error.field, f"the refusal names no field: {error}", hint="raise RecordError(…, field=…)")
        holds(error.reason.isidentifier(), f"the reason is no short code: {error.reason!r}")
        holds(len(str(error)) < 2_000, f"the refusal is {len(str(error))} characters long", hint="cut what is quoted")
    except Exception as error:  # a plugin's code may raise anything
        raise Violation(
            "the adapter raised an exception of Python's own",
            expected="an Example, or a RecordError with the field",
            found=f"{type(error).__name__}: {error}",
            hint="text_of(record, key) reads a text and refuses anything else by name",
        ) from error
    equal(repr(record), repr(trial.record), "the adapter changed the record that it was handed")
    for example in examples:
        holds(isinstance(example, Example), "the adapter returned something else than an Example", found=example)
        answers = example.chosen + example.rejected if isinstance(example, PreferenceExample) else ()
        for message in example.messages + answers:
            for name in ("role", "content", "context", "reasoning", "name"):
                value = getattr(message, name)
                holds(type(value) is str, f"the adapter put something else than text into {name}", found=repr(value))


@check(2, given=cases)
def equal_records_give_equal_ids(case: Case) -> None:
    """One record gives the same text, ids and weights whatever came before it, in any thread and at any time."""
    before = case.subject.shape.records[0]
    first = [_result(sample.prepared) for sample in case.samples if case.subject.case(before).samples]
    other = case.subject.new_pipeline(train_on=case.train_on)

    def again() -> list[Any]:
        # A record before it, in another thread, years ago.
        both = list(other.run([before, case.record]))
        return [_result(prepared) for prepared in both if prepared.rendered.row == 1]

    with patch("templatekit.formats.template.datetime", _Then), ThreadPoolExecutor(1) as thread:
        second = thread.submit(again).result()
    equal([text for text, _, _ in second], [text for text, _, _ in first], "rendered again, the text is another one")
    equal(second, first, "encoded again, ids or weights are other ones")


class _Then(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _Then:
        return cls(1999, 12, 31, 23, 59, 59, tzinfo=tz)


def _result(prepared: Sample) -> tuple[Any, ...]:
    tokenized = prepared.tokenized
    assert tokenized is not None
    return prepared.rendered.text, tokenized.input_ids, tokenized.loss_weights


@check(3, given=cases, unless=[no_adapter])
def records_stay_as_they_are(case: Case) -> None:
    """Reading and writing change neither the record nor the example."""
    record = copy.deepcopy(case.record)
    adapter = case.subject.adapter
    example = adapter.to_example(record)
    equal(_spelt(record), _spelt(case.record), "to_example changed the record that it was handed")
    before = copy.deepcopy(example)
    try:
        adapter.to_record(example)
    except Exception:  # what to_record cannot write is another check's
        return
    equal(example, before, "to_record changed the example that it was handed")


def _spelt(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, default=repr)


@check(4, given=cases)
def ids_labels_and_weights_agree(case: Case) -> None:
    """Ids, labels and weights are equally many, and every id is in the vocabulary."""
    for sample in case.samples:
        labels_agree(sample)


def labels_agree(sample: CheckedSample) -> None:
    """The same of one sample."""
    tokenized = sample.tokenized
    count = len(tokenized.input_ids)
    equal((len(tokenized.labels), len(tokenized.loss_weights)), (count, count), "labels or weights are missing")
    size = sample.subject.tokenizer.vocabulary_size
    outside = [id for id in tokenized.input_ids if not 0 <= id < size]
    holds(not outside, f"ids outside of the vocabulary of {size}", sample, found=outside)
    wrong = [
        at
        for at, (label, id) in enumerate(zip(tokenized.labels, tokenized.input_ids, strict=True))
        if label not in (IGNORE_INDEX, id)
    ]
    holds(not wrong, "labels that are neither the id nor ignored", sample, found=wrong)
    trained = sum(1 for weight in tokenized.loss_weights if weight)
    equal(sum(label != IGNORE_INDEX for label in tokenized.labels), trained, "labels and weights disagree", sample)


@check(5, 6, given=batches)
def a_batch_is_its_single_records(batch: Batch) -> str | None:
    """Records give together, as a list or as a stream, what each gives alone."""
    if not batch.whole:
        return "no record came through"
    alone = [[_result(sample.prepared) for sample in case.samples] for case in batch.whole]
    records = [case.record for case in batch.whole]
    for given, expected in ((records, alone), (iter(records), alone), (records[::-1], alone[::-1])):
        together: list[list[Any]] = [[] for _ in records]
        for prepared in batch.subject.new_pipeline().run(given):
            together[prepared.rendered.row].append(_result(prepared))
        equal(together, expected, "a record among others gives something else than alone")
    return None


SHORT, LONG = 500, 5_000
ALLOWED = 15
"""How much more ten times the text may cost."""
SLACK = 0.05
"""Seconds of processor time that are nobody's fault."""


@check(7, given=once)
def the_cost_grows_with_the_text(subject: Subject) -> None:
    """Ten times the text, or ten times the turns, costs at most fifteen times as much, in time and in text."""

    def cost(record: Record) -> tuple[float, int]:
        best, length = float("inf"), 0
        for _ in range(3):
            start = time.process_time()
            length = sum(len(sample.rendered.text) for sample in subject.case(record).samples)
            best = min(best, time.process_time() - start)
        return best, length

    plain = subject.shape.records[0]
    paths = [place.path for place in subject.places(plain)]
    for unit in ("a", "\n é"):
        short, long = (_filled(plain, paths, unit * (count // len(unit))) for count in (SHORT, LONG))
        _compare(cost(short), cost(long), f"{LONG // SHORT} times the text (of {unit!r})")
    # Where earlier turns are rendered otherwise than when they were last, each needs a sample of its own.
    if subject.scope.turns > 1 and subject.capabilities.prefix_stable:
        few, many = (subject.adapter.to_record(_long(count)) for count in (4, 40))
        _compare(cost(few), cost(many), "ten times the turns")


def _filled(record: Record, paths: list[Any], text: str) -> Record:
    for path in paths:
        record = with_text(record, path, text)
    return record


def _long(turns: int) -> Example:
    turn = (Message(role="user", content="Name one."), Message(role="assistant", content="This one."))
    return Example(messages=turn * turns)


def _compare(short: tuple[float, int], long: tuple[float, int], what: str) -> None:
    # A little for what is made when it is first used, and for the noise of a busy machine.
    holds(
        long[0] <= ALLOWED * short[0] + SLACK,
        f"{what} takes {long[0] / max(short[0], 1e-9):.0f} times as long",
        expected=f"at most {ALLOWED * short[0] + SLACK:.2f} s of processor time",
        found=f"{long[0]:.2f} s",
    )
    holds(
        long[1] <= ALLOWED * short[1],
        f"{what} gives {long[1] / max(short[1], 1):.0f} times the text",
        expected=f"at most {ALLOWED * short[1]} characters",
        found=f"{long[1]} characters",
    )
