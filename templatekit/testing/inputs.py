"""Strategies for the inputs of checks: a record, several records, or a record and a changed copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hypothesis import strategies as st

from templatekit.hooks.contracts import Adapter
from templatekit.testing.checked_record import CheckedRecord, NoSampleError, SkipInput
from templatekit.testing.records import TextLocation, paths_of, with_value, with_values
from templatekit.testing.subject import Subject
from templatekit.testing.texts import JSON_VALUES, MARKERS, WHITESPACE, control_strings, markers_of
from templatekit.types import Example, Message, Record, TrainOn

TRAIN_ON: tuple[TrainOn, ...] = ("response", "content", "last", "all")


def checked_records(subject: Subject) -> st.SearchStrategy[CheckedRecord]:
    """A record of adversarial or plain texts, with one of the options `train_on`."""
    return st.builds(
        lambda record, train_on: CheckedRecord(subject, record, train_on=train_on),
        subject.records(subject.texts()) | subject.plain_records,
        st.sampled_from(TRAIN_ON),
    )


def checked_conversations(subject: Subject) -> st.SearchStrategy[CheckedRecord]:
    """A conversation of at least two turns."""
    return subject.records(subject.texts(), min_turns=2).map(lambda record: CheckedRecord(subject, record))


@dataclass(frozen=True, kw_only=True)
class RecordPair:
    """A record of plain texts, and a copy of it in which some texts are replaced."""

    original: CheckedRecord
    changed: CheckedRecord
    replaced: bool
    """Whether any text was replaced: a record need not have a suitable one."""

    @property
    def record(self) -> Record:
        """The changed record."""
        return self.changed.record


def _record_pair(subject: Subject, record: Record, replacements: list[tuple[TextLocation, str]]) -> RecordPair:
    changed = with_values(record, ((location.path, text) for location, text in replacements))
    return RecordPair(
        original=CheckedRecord(subject, record), changed=CheckedRecord(subject, changed), replaced=bool(replacements)
    )


@st.composite
def control_strings_in_a_text(draw: st.DrawFn, subject: Subject) -> RecordPair:
    """One text is replaced by a text with control strings."""
    record = draw(subject.plain_records)
    locations = subject.text_locations(record)
    if not locations:
        return _record_pair(subject, record, [])
    location, control = draw(st.sampled_from(locations)), subject.tokenizer.control_tokens
    fragments = [*control_strings(subject.tokenizer), " ", "\n", "a"]
    if location.role == "assistant":  # an answer may use added tokens that are not flagged special
        fragments = [text for text in fragments if text not in control or control[text].special]
    chosen = draw(st.lists(st.sampled_from(fragments), min_size=1, max_size=5))
    return _record_pair(subject, record, [(location, f"a{''.join(chosen)}b")])


@st.composite
def halves_in_all_texts(draw: st.DrawFn, subject: Subject) -> RecordPair:
    """Every text starts with the second half of a control string and ends with its first half."""
    record = draw(subject.plain_records)
    control = draw(st.sampled_from([text for text in control_strings(subject.tokenizer) if len(text) > 1]))
    middle = draw(st.integers(1, len(control) - 1))
    text = f"{control[middle:]}x{control[:middle]}"
    return _record_pair(subject, record, [(location, text) for location in subject.text_locations(record)])


@st.composite
def markers_in_a_text(draw: st.DrawFn, subject: Subject) -> RecordPair:
    """One text that is no answer is replaced by a text with the template's own markers."""
    record = draw(subject.plain_records)
    untrained = [location for location in subject.text_locations(record) if location.role != "assistant"]
    if not untrained:
        return _record_pair(subject, record, [])
    markers = st.sampled_from(markers_of(subject.template) or MARKERS)
    chosen = draw(st.lists(markers, min_size=1, max_size=3))
    edge = draw(st.sampled_from(["", *WHITESPACE]))
    return _record_pair(subject, record, [(draw(st.sampled_from(untrained)), f"x{edge}{''.join(chosen)}{edge}y")])


@dataclass(frozen=True, kw_only=True)
class RecordList:
    """Several records."""

    records: tuple[CheckedRecord, ...]

    @property
    def subject(self) -> Subject:
        """The subject of all records."""
        return self.records[0].subject

    @property
    def record(self) -> list[Record]:
        """All records, for the description of a failure."""
        return [checked.record for checked in self.records]

    @cached_property
    def with_samples(self) -> list[CheckedRecord]:
        """The records that give samples."""
        found = []
        for checked in self.records:
            try:
                _ = checked.samples
            except (NoSampleError, SkipInput):
                continue
            found.append(checked)
        return found


def record_lists(subject: Subject) -> st.SearchStrategy[RecordList]:
    """One to four records of adversarial texts."""
    records = st.lists(subject.records(subject.texts()), min_size=1, max_size=4)
    return records.map(lambda several: RecordList(records=tuple(CheckedRecord(subject, each) for each in several)))


@dataclass(frozen=True, kw_only=True)
class MalformedRecord:
    """A record that need not have the adapter's shape."""

    adapter: Adapter
    record: Any


def malformed_records(subject: Subject) -> st.SearchStrategy[MalformedRecord]:
    """Valid records with a wrong value somewhere, and arbitrary values under the adapter's keys."""
    adapter = subject.adapter
    arbitrary = st.dictionaries(st.sampled_from(adapter.keys) | st.text(max_size=5), JSON_VALUES, max_size=4)
    damaged = st.sampled_from(subject.shape.records).flatmap(
        lambda record: st.builds(
            with_value, st.just(record), st.sampled_from(list(paths_of(record))), JSON_VALUES | st.just(...)
        )
    )
    return (damaged | arbitrary).map(lambda record: MalformedRecord(adapter=adapter, record=record))


@dataclass(frozen=True, kw_only=True)
class OddRoles:
    """A conversation with unknown roles, or with roles in an unusual order."""

    subject: Subject
    example: Example

    @property
    def record(self) -> Record:
        """The messages, for the description of a failure."""
        return {"messages": [{"role": m.role, "content": m.content} for m in self.example.messages]}


def odd_roles(subject: Subject) -> st.SearchStrategy[OddRoles]:
    """Roles in any order, each message with a text of its own; the last message is an answer."""
    roles = st.lists(st.sampled_from(("user", "assistant", "system", "narrator", "tool", "")), max_size=3)

    def make(chosen: list[str]) -> OddRoles:
        messages = [Message(role=role, content=f"text {n}") for n, role in enumerate([*chosen, "assistant"])]
        return OddRoles(subject=subject, example=Example(messages=tuple(messages)))

    return roles.map(make)
