"""The tracing just-in-time compiler of a template: runs compiled traces, else interprets and sometimes records.

An example's *shape* is everything about it but its texts: the roles in order, which fields are not empty, and which
messages have the weight 0, 1 or another. Each shape has a trace tree. An example whose shape has no trace, or that
leaves the tree at a side exit, is interpreted, that is, rendered by Jinja. Now and then such an example is recorded as
well, and its trace joins the tree.

A template's text is a function of what the template looks at. So an example that passes the guards of a trace gets the
recorded pieces with its own texts in the variables, and spans and targets at the same positions. This is checked all
the same: a new trace, the first examples that use it, and then one in `CHECK_EVERY` are interpreted too, and a
difference is an error.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from time import perf_counter
from typing import Literal, Protocol, TypeAlias

from templatekit.errors import RecordError, TemplateError, shorten
from templatekit.formats.tracing.recorder import Recording
from templatekit.formats.tracing.trace import TraceAborted
from templatekit.formats.tracing.trace_tree import TraceTree
from templatekit.types import Example, RenderedText, Sample, SpecialTokens

CHECK_FIRST = 3
"""This many examples of a new trace are also interpreted, to check the result."""
CHECK_EVERY = 256
"""After the first ones, one example of a trace in this many is also interpreted."""
MAX_SECONDS = 0.2
"""An example that took longer to interpret is not recorded, which would take some ten times as long."""
MAX_SHAPES = 1024
"""Most trace trees of one template; the oldest are dropped."""
MAX_MESSAGES = 32
"""Most messages of an example that is recorded, since a recording renders each turn separately."""
SPECIALISED_WEIGHTS = (1.0, 0.0)
"""Message weights that a shape is specialised to, so that they are known for all of its examples; most data has no
others."""

_NO_OTHER_FIELDS = ("", "", "", "")


RenderMode: TypeAlias = Literal["all", "last", "whole"]
"""Which samples of an example are wanted: for all turns, for the last turn alone, or one of all messages."""


class Interpreter(Protocol):
    """A template, as the compiler uses it."""

    name: str

    def interpret(self, example: Example, tokens: SpecialTokens, row: int, mode: RenderMode) -> tuple[Sample, ...]:
        """The example's samples, rendered without a trace."""

    def record(self, example: Example, tokens: SpecialTokens, mode: RenderMode) -> Recording:
        """A recording of the same rendering; raises `TraceAborted`."""


class TracingCompiler:
    """The trace trees of one template."""

    enabled = True
    """Whether templates are traced at all."""

    def __init__(self, template: Interpreter) -> None:
        self._template = template
        self._trees: dict[Hashable, TraceTree] = {}
        self._token_keys: dict[SpecialTokens, object] = {}
        self._last_token_key: tuple[SpecialTokens | None, object] = (None, None)

    def samples(self, example: Example, tokens: SpecialTokens, row: int, mode: RenderMode) -> tuple[Sample, ...]:
        """The example's samples, by a compiled trace if there is one for it."""
        tree = self._tree(example, tokens, mode)
        run = tree.run(example.messages) if tree is not None else None
        if tree is not None and run is not None:
            trace, texts = run
            samples = trace.samples(example, texts, row)
            trace.uses += 1
            if trace.uses <= CHECK_FIRST or not trace.uses % CHECK_EVERY:
                self._check(samples, example, tokens, row, mode)
            return samples
        started = perf_counter()
        samples = self._template.interpret(example, tokens, row, mode)
        if tree is not None and perf_counter() - started < MAX_SECONDS and tree.should_record():
            self._record(tree, example, tokens, row, mode, samples)
        return samples

    def _tree(self, example: Example, tokens: SpecialTokens, mode: RenderMode) -> TraceTree | None:
        """The trace tree of the example's shape; None for an example that is always interpreted."""
        if not self.enabled or type(example) is not Example or example.tools or example.documents:
            return None
        messages = example.messages
        if len(messages) > MAX_MESSAGES:
            return None
        token_key = self._last_token_key
        if token_key[0] is not tokens:  # hashing the tokens takes longer than everything else here
            token_key = self._last_token_key = (tokens, self._token_keys.setdefault(tokens, object()))
        key: list[Hashable] = [token_key[1], mode]
        for message in messages:
            if message.parts or message.tool_calls:
                return None
            content, weight = message.content, message.weight
            if type(content) is not str or not (content.isascii() or _is_encodable(content)):
                return None
            not_empty = 16 * (content != "")
            others = message.context, message.reasoning, message.name, message.tool_call_id
            if others != _NO_OTHER_FIELDS:
                for bit, text in zip((8, 4, 2, 1), others, strict=True):
                    if type(text) is not str or not (text.isascii() or _is_encodable(text)):
                        return None
                    not_empty += bit * (text != "")
            key += message.role, not_empty, weight if weight in SPECIALISED_WEIGHTS else None
        shape = tuple(key)
        tree = self._trees.get(shape)
        if tree is None:
            tree = self._trees[shape] = TraceTree()
            if len(self._trees) > MAX_SHAPES:
                del self._trees[next(iter(self._trees))]
        return tree

    def _record(
        self,
        tree: TraceTree,
        example: Example,
        tokens: SpecialTokens,
        row: int,
        mode: RenderMode,
        expected: tuple[Sample, ...],
    ) -> None:
        """Record an example, add its trace to the tree, and check that it gives the interpreted samples."""
        try:
            trace = tree.add(self._template.record(example, tokens, mode))
        except (TraceAborted, RecordError, TemplateError):
            tree.aborts += 1
            return
        run = tree.run(example.messages)
        if run is None or run[0] is not trace:
            tree.disable()  # the guard on the clock has another outcome by now
            return
        _check_equal(trace.samples(example, run[1], row), expected, self._template)

    def _check(
        self, samples: tuple[Sample, ...], example: Example, tokens: SpecialTokens, row: int, mode: RenderMode
    ) -> None:
        try:
            expected = self._template.interpret(example, tokens, row, mode)
        except RecordError as error:
            raise _difference(self._template, f"interpreting raises {error}") from error
        _check_equal(samples, expected, self._template)


def _check_equal(found: tuple[Sample, ...], expected: tuple[Sample, ...], template: Interpreter) -> None:
    if found == expected:
        return
    if len(found) != len(expected):
        raise _difference(template, f"{len(found)} samples instead of {len(expected)}")
    one, other = next((a, b) for a, b in zip(found, expected, strict=True) if a != b)
    for field in fields(RenderedText):
        got, wanted = getattr(one.rendered, field.name), getattr(other.rendered, field.name)
        if got != wanted:
            raise _difference(template, f"{field.name} is {shorten(got)} instead of {shorten(wanted)}")
    raise _difference(template, "another example")


def _difference(template: Interpreter, difference: str) -> TemplateError:
    return TemplateError(
        f"template {template.name!r}: its compiled trace differs from interpreting: {difference}; "
        "please report this template"
    )


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
