"""What checks are tried on: a record, or a record beside another one that differs in a known way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hypothesis import strategies as st

from templatekit.hooks.contracts import Adapter
from templatekit.testing.adversarial import JSON_VALUES, WHITESPACE, control_strings, plain_text
from templatekit.testing.records import Place, paths_of, with_text
from templatekit.testing.subject import Case, Silent, Subject, Unmade
from templatekit.types import Example, Message, Record, TrainOn

TRAIN_ON: tuple[TrainOn, ...] = ("response", "content", "last", "all")


def cases(subject: Subject) -> st.SearchStrategy[Case]:
    """A record of adversarial or plain texts, and which part of it is trained."""
    return st.builds(
        lambda record, train_on: Case(subject, record, train_on=train_on),
        subject.records(subject.texts()) | subject.records(plain_text()),
        st.sampled_from(TRAIN_ON),
    )


def dialogues(subject: Subject) -> st.SearchStrategy[Case]:
    """A conversation of at least two turns."""
    return subject.records(subject.texts(), min_turns=2).map(lambda record: Case(subject, record))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A record, and the same record with other text in one or more places."""

    neutral: Case
    changed: Case
    places: tuple[Place, ...]

    @property
    def record(self) -> Record:
        """The changed one."""
        return self.changed.record


def _paired(subject: Subject, records: st.SearchStrategy[Record], change: Any) -> st.SearchStrategy[Pair]:
    """Pairs of a record and what `change(record, places)` makes of it: (path, text) for each place that changes."""

    def pair(record: Record, choice: Any) -> Pair:
        places = subject.places(record)
        changed, taken = record, []
        for place, text in choice(places):
            changed = with_text(changed, place.path, text)
            taken.append(place)
        return Pair(neutral=Case(subject, record), changed=Case(subject, changed), places=tuple(taken))

    return st.builds(pair, records, change)


def replacements(subject: Subject) -> st.SearchStrategy[Pair]:
    """Plain texts, one of which is replaced by one that is full of control strings."""
    control = subject.tokenizer.control_tokens

    def choose(number: int, fragments: list[str]) -> Callable[[list[Place]], list[tuple[Place, str]]]:
        def chosen(places: list[Place]) -> list[tuple[Place, str]]:
            if not places:
                return []
            place = places[number % len(places)]
            # An answer may use the added tokens that are not flagged special: they are its own.
            kept = [
                text
                for text in fragments
                if place.role != "assistant" or not (text in control and not control[text].special)
            ]
            return [(place, f"a{''.join(kept)}b")]

        return chosen

    fragments = st.lists(st.sampled_from([*control_strings(subject.tokenizer), " ", "\n", "a"]), min_size=1, max_size=5)
    return _paired(subject, subject.records(plain_text()), st.builds(choose, st.integers(0, 11), fragments))


def halves_apart(subject: Subject) -> st.SearchStrategy[Pair]:
    """Every text begins with the second half of a control string and ends with its first."""
    control = [text for text in control_strings(subject.tokenizer) if len(text) > 1]

    def choose(text: str, share: float) -> Callable[[list[Place]], list[tuple[Place, str]]]:
        at = 1 + int(share * (len(text) - 2))
        return lambda places: [(place, f"{text[at:]}x{text[:at]}") for place in places]

    change = st.builds(choose, st.sampled_from(control), st.floats(0, 1))
    return _paired(subject, subject.records(plain_text()), change)


def markers_in_fields(subject: Subject) -> st.SearchStrategy[Pair]:
    """Plain texts, one of which, not an answer, is given the template's own markers."""
    from templatekit.testing.adversarial import MARKERS, markers_of

    markers = markers_of(subject.template) or list(MARKERS)

    def choose(number: int, chosen: list[str], edge: str) -> Callable[[list[Place]], list[tuple[Place, str]]]:
        text = f"x{edge}{''.join(chosen)}{edge}y"

        def placed(places: list[Place]) -> list[tuple[Place, str]]:
            untrained = [place for place in places if place.role != "assistant"]
            return [(untrained[number % len(untrained)], text)] if untrained else []

        return placed

    change = st.builds(
        choose,
        st.integers(0, 11),
        st.lists(st.sampled_from(markers), min_size=1, max_size=3),
        st.sampled_from(["", *WHITESPACE]),
    )
    return _paired(subject, subject.records(plain_text()), change)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Several records."""

    singles: tuple[Case, ...]

    @property
    def subject(self) -> Subject:
        """What is checked."""
        return self.singles[0].subject

    @property
    def record(self) -> list[Record]:
        """All of them."""
        return [case.record for case in self.singles]

    @cached_property
    def whole(self) -> list[Case]:
        """Those of which something comes."""
        kept = []
        for case in self.singles:
            try:
                _ = case.samples  # raises where there are none
            except (Unmade, Silent):
                continue
            kept.append(case)
        return kept


def batches(subject: Subject) -> st.SearchStrategy[Batch]:
    """A few records of adversarial texts."""
    records = st.lists(subject.records(subject.texts()), min_size=1, max_size=4)
    return records.map(lambda several: Batch(singles=tuple(Case(subject, record) for record in several)))


@dataclass(frozen=True, kw_only=True)
class Junk:
    """A record of an adapter's shape in which something is wrong, or anything at all."""

    adapter: Adapter
    record: Any


def junk(subject: Subject) -> st.SearchStrategy[Junk]:
    """Records with anything in one of their places, and anything under the adapter's keys."""
    adapter = subject.adapter
    anything = st.dictionaries(st.sampled_from(adapter.keys) | st.text(max_size=5), JSON_VALUES, max_size=4)
    broken = st.builds(damaged, st.sampled_from(subject.shape.records), st.integers(0, 99), JSON_VALUES | st.just(...))
    return (broken | anything).map(lambda record: Junk(adapter=adapter, record=record))


def damaged(record: Record, number: int, value: Any) -> Record:
    """The record with another value in one of its places, at any depth; without it for `...`."""
    paths = list(paths_of(record))
    return with_text(record, paths[number % len(paths)], value)


@dataclass(frozen=True, kw_only=True)
class OddRoles:
    """A conversation whose turns come in an order of their own, with roles that nobody knows."""

    subject: Subject
    example: Example

    @property
    def record(self) -> Record:
        """The messages."""
        return {"messages": [{"role": m.role, "content": m.content} for m in self.example.messages]}


def odd_roles(subject: Subject) -> st.SearchStrategy[OddRoles]:
    """Roles in any order, each message with a text of its own; the last is an answer."""
    roles = st.lists(st.sampled_from(("user", "assistant", "system", "narrator", "tool", "")), max_size=3)

    def made(chosen: list[str]) -> OddRoles:
        messages = [Message(role=role, content=f"text {n}") for n, role in enumerate([*chosen, "assistant"])]
        return OddRoles(subject=subject, example=Example(messages=tuple(messages)))

    return roles.map(made)


def once(subject: Subject) -> st.SearchStrategy[Subject]:
    """Nothing is generated."""
    return st.just(subject)
