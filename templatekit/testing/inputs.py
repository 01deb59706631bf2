"""Strategies for the inputs of checks: a record, several records, or a record and a changed copy of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hypothesis import strategies as st

from templatekit.hooks.contracts import Adapter
from templatekit.testing.checked_record import CheckedRecord, NoSampleError, SkipInput
from templatekit.testing.records import TextLocation, paths_of, with_value, with_values
from templatekit.testing.subject import Subject
from templatekit.testing.texts import JSON_VALUES, MARKERS, WHITESPACE, control_strings, markers_of, plain_text
from templatekit.types import Example, Message, Record, TrainOn

TRAIN_ON: tuple[TrainOn, ...] = ("response", "content", "last", "all")


def checked_records(subject: Subject) -> st.SearchStrategy[CheckedRecord]:
    """A record of adversarial or plain texts, with one of the options `train_on`."""
    return st.builds(
        lambda record, train_on: CheckedRecord(subject, record, train_on=train_on),
        subject.records(subject.texts()) | subject.records(plain_text()),
        st.sampled_from(TRAIN_ON),
    )


def checked_conversations(subject: Subject) -> st.SearchStrategy[CheckedRecord]:
    """A conversation of at least two turns."""
    return subject.records(subject.texts(), min_turns=2).map(lambda record: CheckedRecord(subject, record))


@dataclass(frozen=True, kw_only=True)
class RecordPair:
    """A record of plain texts, and a copy of it in which some texts are others."""

    original: CheckedRecord
    changed: CheckedRecord
    replaced: bool
    """Whether any text was replaced: a record need not have a suitable one."""

    @property
    def record(self) -> Record:
        """The changed record."""
        return self.changed.record


Replacements = list[tuple[TextLocation, str]]
ChooseReplacements = Callable[[list[TextLocation]], Replacements]
"""Chooses which of a record's texts to replace, and by which texts."""


def _record_pairs(
    subject: Subject, replacements: st.SearchStrategy[ChooseReplacements]
) -> st.SearchStrategy[RecordPair]:
    def make_pair(record: Record, choose: ChooseReplacements) -> RecordPair:
        chosen = choose(subject.text_locations(record))
        changed = with_values(record, ((location.path, text) for location, text in chosen))
        return RecordPair(
            original=CheckedRecord(subject, record), changed=CheckedRecord(subject, changed), replaced=bool(chosen)
        )

    return st.builds(make_pair, subject.records(plain_text()), replacements)


def control_strings_in_a_text(subject: Subject) -> st.SearchStrategy[RecordPair]:
    """One text is replaced by a text with control strings."""
    control = subject.tokenizer.control_tokens

    def replace_one(number: int, fragments: list[str]) -> ChooseReplacements:
        def choose(locations: list[TextLocation]) -> Replacements:
            if not locations:
                return []
            location = locations[number % len(locations)]
            if location.role == "assistant":  # an answer may use added tokens that are not flagged special
                allowed = [text for text in fragments if text not in control or control[text].special]
            else:
                allowed = fragments
            return [(location, f"a{''.join(allowed)}b")]

        return choose

    fragments = st.lists(st.sampled_from([*control_strings(subject.tokenizer), " ", "\n", "a"]), min_size=1, max_size=5)
    return _record_pairs(subject, st.builds(replace_one, st.integers(0, 11), fragments))


def halves_in_all_texts(subject: Subject) -> st.SearchStrategy[RecordPair]:
    """Every text starts with the second half of a control string and ends with its first half."""
    control = [text for text in control_strings(subject.tokenizer) if len(text) > 1]

    def replace_all(text: str, share: float) -> ChooseReplacements:
        middle = 1 + int(share * (len(text) - 2))
        return lambda locations: [(location, f"{text[middle:]}x{text[:middle]}") for location in locations]

    return _record_pairs(subject, st.builds(replace_all, st.sampled_from(control), st.floats(0, 1)))


def markers_in_a_text(subject: Subject) -> st.SearchStrategy[RecordPair]:
    """One text that is no answer is replaced by a text with the template's own markers."""
    markers = markers_of(subject.template) or list(MARKERS)

    def replace_one(number: int, chosen: list[str], edge: str) -> ChooseReplacements:
        text = f"x{edge}{''.join(chosen)}{edge}y"

        def choose(locations: list[TextLocation]) -> Replacements:
            untrained = [location for location in locations if location.role != "assistant"]
            return [(untrained[number % len(untrained)], text)] if untrained else []

        return choose

    replacements = st.builds(
        replace_one,
        st.integers(0, 11),
        st.lists(st.sampled_from(markers), min_size=1, max_size=3),
        st.sampled_from(["", *WHITESPACE]),
    )
    return _record_pairs(subject, replacements)


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
