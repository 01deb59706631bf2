"""Plans: how the examples of one shape are rendered, worked out once and then filled in.

The *shape* of an example is all of it that is no text: the roles in order, which fields are filled, which turns have a
weight, and whether that is 1. To make a plan one example is rendered as ever, but with symbolic texts (`symbols`,
`recording`). What comes of it is a tape, that is every question which the template, and the search for what is trained,
asked about the texts, and samples whose texts are literals and variables. A template is a function of what it sees. So
an example of the same shape with the same answers to the same questions has the same pieces, with its own texts in the
variables, and the same places of origins and targets among them.

The tapes of a shape's plans are compiled to one function: they agree up to a question with another answer, so that it
is a tree of questions. An example that leaves the tree, or has a shape that is not planned, is rendered as ever.

Nothing is taken on trust: a new plan must give what rendering gives, and of its later examples the first few and then
one in `EVERY` are rendered too. A difference is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import datetime
from itertools import accumulate
from sys import intern
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeAlias

from templatekit.errors import RecordError, TemplateError, shorten
from templatekit.formats.environment import clock
from templatekit.formats.tracing.finished import Outlined
from templatekit.formats.tracing.symbolic import Piece, pieces_of
from templatekit.formats.tracing.trace import Step, Tape, Unplannable
from templatekit.types import Example, Message, Origin, RenderedText, Sample, Span, SpecialTokens, TargetSpan

EVERY = 256
"""One in so many examples of a plan is rendered as well, and all of the first `FEW`."""
FEW = 3
PATIENCE = 8
"""Of so many examples of a shape without a plan one is recorded: that costs about as much as rendering them."""
TRIES = 3
"""So many failures to make a plan, and a shape is left alone."""
SLOW = 0.2
"""Seconds: what took longer to render is not recorded, which would take some ten times as long."""
MOST_SHAPES = 1024
"""Of one template; those that were met first go."""
MOST_PLANS = 16
"""Of one shape."""
MOST_MESSAGES = 32
"""Of an example with a plan: each of its turns is rendered alone for it."""
COMMON_WEIGHTS = (1.0, 0.0)
"""Weights of messages that are part of a shape: which turns are trained, and for most examples all there is to say."""

_NO_OTHERS = ("", "", "", "")


class Manner(NamedTuple):
    """What is asked of an example."""

    whole: bool = False
    """One text of all messages."""
    last_only: bool = False


ALL, LAST = Manner(), Manner(last_only=True)


class Part(NamedTuple):
    """One sample of an example."""

    messages: int
    text: Outlined
    targets: tuple[TargetSpan, ...]
    """In the text of the example that was recorded."""


class Recording(NamedTuple):
    """What came of an example that was rendered symbolically."""

    tape: Tape
    fields: dict[tuple[int, str], str]
    """The variables that are fields."""
    parts: tuple[Part, ...]
    weights: tuple[float, ...] | None
    """Of the messages; None where those of other examples differ."""


class Renderer(Protocol):
    """A template, as far as plans need it."""

    name: str

    def unplanned(self, example: Example, tokens: SpecialTokens, row: int, manner: Manner) -> tuple[Sample, ...]:
        """The samples, rendered as ever."""

    def recorded(self, example: Example, tokens: SpecialTokens, manner: Manner) -> Recording:
        """The same, symbolically; raises `Unplannable`."""


_Place: TypeAlias = tuple[int, int]
"""A piece, and an offset in it."""


class _Outline:
    """A sample's text in pieces, and the places in them."""

    def __init__(self, part: Part, number: int, samples: int, history: int, weights: tuple[float, ...] | None) -> None:
        self.messages = part.messages
        self.message_weights = weights and weights[: part.messages]
        self.sample, self.samples, self.history = number, samples, history
        pieces = pieces_of(part.text)
        self.words = [piece.name or repr(intern(piece.text)) for piece in pieces]
        """Each piece in Python's words."""
        self.fixed = tuple(not piece.name for piece in pieces)
        self.origins = tuple(piece.origin for piece in pieces)
        self.target_messages = frozenset(target.message for target in part.targets)
        self._spans = [*_spans(pieces)]
        starts = [0, *accumulate(len(piece.text) for piece in pieces)]
        self._targets = [
            (
                target.message,
                _place(target.start, starts, pieces),
                _place(target.marker_start, starts, pieces),
                _place(target.end, starts, pieces),
            )
            for target in part.targets
        ]

    def spans(self, texts: Sequence[str]) -> tuple[Span, ...]:
        """The origins, in the pieces of an example."""
        ends = [*accumulate(map(len, texts))]
        spans, start = [], 0
        for piece, origin in self._spans:
            spans.append(Span(start=start, end=ends[piece], origin=origin))
            start = ends[piece]
        return tuple(spans)

    def targets(self, texts: Sequence[str]) -> tuple[TargetSpan, ...]:
        """What is trained, in the pieces of an example."""
        starts = [0, *accumulate(map(len, texts))]
        return tuple(
            TargetSpan(
                message=message, start=starts[a] + start, marker_start=starts[b] + marker_start, end=starts[c] + end
            )
            for message, (a, start), (b, marker_start), (c, end) in self._targets
        )


class _Filled:
    """The fields of a `RenderedText` that a plan works out when they are asked for."""

    __slots__ = ("messages", "outline", "texts")

    def __init__(self, outline: _Outline, texts: tuple[str, ...], messages: tuple[Message, ...]) -> None:
        self.outline, self.texts, self.messages = outline, texts, messages

    def work_out(self, field: str) -> Any:
        if field == "text":
            return "".join(self.texts)
        if field == "spans":
            return self.outline.spans(self.texts)
        if field == "target_spans":
            return self.outline.targets(self.texts)
        messages = self.messages[: self.outline.messages]
        if field == "message_weights":
            return tuple(message.weight for message in messages)
        if field == "roles":
            return tuple(message.role for message in messages)
        return getattr(self.outline, field)


class Plan:
    """The samples of the examples that give the same answers."""

    def __init__(self, recording: Recording) -> None:
        self.steps = recording.tape.steps
        self.uses = 0
        counts = [part.messages for part in recording.parts]
        self.outlines = [
            _Outline(part, number, len(counts), history, recording.weights)
            for number, (part, history) in enumerate(zip(recording.parts, [0, *counts], strict=False))
        ]

    def samples(self, example: Example, texts: tuple[tuple[str, ...], ...], row: int) -> tuple[Sample, ...]:
        """The example's, of the texts of each one's pieces."""
        samples = []
        for outline, pieces in zip(self.outlines, texts, strict=True):
            messages = example.messages
            whole = outline.messages == len(messages)
            rendered = RenderedText.deferred(_Filled(outline, pieces, messages), row)
            own = example if whole else replace(example, messages=messages[: outline.messages])
            samples.append(Sample(example=own, rendered=rendered))
        return tuple(samples)


Found: TypeAlias = tuple[Plan, tuple[tuple[str, ...], ...]]
"""A plan, and for each of its samples the texts of the pieces."""


class _Shape:
    """The plans of one shape."""

    def __init__(self) -> None:
        self.plans: tuple[Plan, ...] = ()
        self._find: Callable[[tuple[Message, ...]], Found | None] | None = None
        self._missed = self._failed = 0

    def find(self, messages: tuple[Message, ...]) -> Found | None:
        """The plan for these messages, and the texts of its pieces."""
        return self._find(messages) if self._find is not None else None

    def wanted(self) -> bool:
        """Whether an example without a plan is to get one: a shape, or a way through it, that is met again."""
        self._missed += 1
        return self._missed % PATIENCE == 0 and self._failed < TRIES and len(self.plans) < MOST_PLANS

    def add(self, recording: Recording) -> Plan:
        """Takes a recording in; raises `Unplannable` where it does not go on from a question as others did."""
        plan = Plan(recording)
        plans = (*self.plans, plan)
        code = _code(recording.fields, plans)
        names: dict[str, Any] = {"plans": plans, "now": lambda: clock(datetime.now()), "__builtins__": {"len": len}}
        exec(compile(code, "<plan>", "exec"), names)
        self.plans = plans
        self._find = names["find"]
        return plan

    def give_up(self) -> None:
        """Goes without plans from now on."""
        self.plans = ()
        self._find = None
        self._failed = TRIES

    def fail(self) -> None:
        """Notes that no plan could be made."""
        self._failed += 1


class Plans:
    """The plans of one template."""

    on = True
    """For all templates; see `without_plans`."""

    def __init__(self, template: Renderer) -> None:
        self._template = template
        self._shapes: dict[Hashable, _Shape] = {}
        self._marks: dict[SpecialTokens, object] = {}
        self._mark: tuple[SpecialTokens | None, object] = (None, None)
        self.planned = self.others = 0
        """How many examples had a plan, and how many had none."""

    def samples(self, example: Example, tokens: SpecialTokens, row: int, manner: Manner) -> tuple[Sample, ...]:
        """The example's samples, by a plan where there is one."""
        shape = self._shape(example, tokens, manner)
        found = shape.find(example.messages) if shape is not None else None
        if shape is not None and found is not None:
            plan, texts = found
            samples = plan.samples(example, texts, row)
            plan.uses += 1
            self.planned += 1
            if plan.uses <= FEW or not plan.uses % EVERY:
                self._compare(samples, example, tokens, row, manner)
            return samples
        started = perf_counter()
        samples = self._template.unplanned(example, tokens, row, manner)
        self.others += 1
        if shape is not None and perf_counter() - started < SLOW and shape.wanted():
            self._plan(shape, example, tokens, row, manner, samples)
        return samples

    def _shape(self, example: Example, tokens: SpecialTokens, manner: Manner) -> _Shape | None:
        if not self.on or type(example) is not Example or example.tools or example.documents:
            return None
        messages = example.messages
        if len(messages) > MOST_MESSAGES:
            return None
        mark = self._mark
        if mark[0] is not tokens:  # hashing them takes longer than all the rest
            mark = self._mark = (tokens, self._marks.setdefault(tokens, object()))
        key: list[Hashable] = [mark[1], manner]
        for message in messages:
            if message.parts or message.tool_calls:
                return None
            content, weight = message.content, message.weight
            if type(content) is not str or not (content.isascii() or _is_encodable(content)):
                return None
            filled = 16 * (content != "")
            others = message.context, message.reasoning, message.name, message.tool_call_id
            if others != _NO_OTHERS:
                for bit, text in zip((8, 4, 2, 1), others, strict=True):
                    if type(text) is not str or not (text.isascii() or _is_encodable(text)):
                        return None
                    filled += bit * (text != "")
            key += message.role, filled, weight if weight in COMMON_WEIGHTS else None
        known = tuple(key)
        shape = self._shapes.get(known)
        if shape is None:
            shape = self._shapes[known] = _Shape()
            if len(self._shapes) > MOST_SHAPES:
                del self._shapes[next(iter(self._shapes))]
        return shape

    def _plan(
        self,
        shape: _Shape,
        example: Example,
        tokens: SpecialTokens,
        row: int,
        manner: Manner,
        expected: tuple[Sample, ...],
    ) -> None:
        try:
            recording = self._template.recorded(example, tokens, manner)
            plan = shape.add(recording)
        except (Unplannable, RecordError, TemplateError):
            shape.fail()
            return
        found = shape.find(example.messages)
        if found is None or found[0] is not plan:
            shape.give_up()  # it depends on the moment
            return
        _check_same(plan.samples(example, found[1], row), expected, self._template)

    def _compare(
        self, samples: tuple[Sample, ...], example: Example, tokens: SpecialTokens, row: int, manner: Manner
    ) -> None:
        try:
            expected = self._template.unplanned(example, tokens, row, manner)
        except RecordError as error:
            raise _differs(self._template, f"rendering it raises {error}") from error
        _check_same(samples, expected, self._template)


@contextmanager
def without_plans() -> Iterator[None]:
    """Renders every example as if it were the first."""
    before, Plans.on = Plans.on, False
    try:
        yield
    finally:
        Plans.on = before


def _check_same(found: tuple[Sample, ...], expected: tuple[Sample, ...], template: Renderer) -> None:
    if found == expected:
        return
    if len(found) != len(expected):
        raise _differs(template, f"{len(found)} samples instead of {len(expected)}")
    one, other = next((a, b) for a, b in zip(found, expected, strict=True) if a != b)
    for field in fields(RenderedText):
        got, wanted = getattr(one.rendered, field.name), getattr(other.rendered, field.name)
        if got != wanted:
            raise _differs(template, f"{field.name} is {shorten(got)} instead of {shorten(wanted)}")
    raise _differs(template, "another example")


def _differs(template: Renderer, how: str) -> TemplateError:
    return TemplateError(
        f"template {template.name!r}: its plan does not give what rendering gives: {how}; please report this template"
    )


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _spans(pieces: Sequence[Piece]) -> Iterator[tuple[int, Origin]]:
    """The last piece of each run of one origin."""
    for number, piece in enumerate(pieces):
        if number + 1 == len(pieces) or pieces[number + 1].origin != piece.origin:
            yield number, piece.origin


def _place(offset: int, starts: Sequence[int], pieces: Sequence[Piece]) -> _Place:
    """A piece, and an offset in it: within a variable there is no place."""
    for number, piece in enumerate(pieces):
        if starts[number] <= offset < starts[number + 1]:
            if piece.name and offset != starts[number]:
                raise Unplannable("a target that begins or ends within a text")
            return number, offset - starts[number]
    return len(pieces), 0


def _code(fields: dict[tuple[int, str], str], plans: Sequence[Plan]) -> str:
    """A function of messages: the plan for them with the texts of its pieces, or None."""
    lines = ["def find(messages):"]
    lines += [f" {name} = messages[{index}].{field}" for (index, field), name in fields.items()]
    if any(step.code.startswith("at(") for plan in plans for step in plan.steps):
        lines.append(" at = now()")
    lines += _branch([*enumerate(plans)], 0, " ")
    return "\n".join(lines)


def _branch(plans: Sequence[tuple[int, Plan]], place: int, indent: str) -> Iterator[str]:
    """The lines from a step on which these plans have in common, and those behind where they part.

    A plan is reached only through all of its own steps: that is what makes it right, in whatever order plans are tried.
    """
    while True:
        ways: dict[Step | None, list[tuple[int, Plan]]] = {}
        for number, plan in plans:
            ways.setdefault(plan.steps[place] if place < len(plan.steps) else None, []).append((number, plan))
        if len(ways) > 1:
            break
        (step,) = ways
        if step is None:
            number, plan = plans[0]
            parts = "".join(f"({''.join(f'{word}, ' for word in outline.words)}), " for outline in plan.outlines)
            yield f"{indent}return plans[{number}], ({parts})"
            return
        if step.name:
            yield f"{indent}{step.name} = {step.code}"
        else:
            yield f"{indent}if {'not ' if step.outcome else ''}({step.code}): return None"
        place += 1
    for step, alike in ways.items():
        if step is None or step.name:
            raise Unplannable("a rendering that depends on more than was asked")
        yield f"{indent}if {'' if step.outcome else 'not '}({step.code}):"
        yield from _branch(alike, place + 1, indent + " ")
