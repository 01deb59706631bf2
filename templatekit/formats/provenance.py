"""Provenance tracking: text that knows the origin of each of its characters.

`TrackedText` is a `str` that carries runs of (length, origin). A template that is rendered over tracked values returns
tracked text: slicing, splitting, stripping, joining, replacing and concatenation keep the runs. Some text is computed:
a number, JSON of a structure, a change of case that changes the length. It gets the origin of the one field that it was
made from, or `COMPUTED` if it was made from several. Text has the origin `TEMPLATE` only if the template wrote it, so
it is safe to let template text alone become control tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, wraps
from itertools import accumulate
from types import ModuleType
from typing import Any, SupportsIndex, TypeAlias

from jinja2 import Undefined

from templatekit.types import COMPUTED, TEMPLATE, Origin, Span

Runs: TypeAlias = tuple[tuple[int, Origin], ...]

_NUMBER = Origin(kind="computed", field="number")
"""The origin of a number that a text was made from. A text made from a number and one field is the field's, as in
`content | indent(4)`. A text made from a number and template text is not the template's: the number may be data."""

_CONVERSION = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<how>[-#0 +]*\d*(?:\.\d*)?[hlL]?)(?P<type>[^*])", re.DOTALL)
"""A conversion of `%` formatting, except those whose width or precision is an argument."""


class TrackedText(str):
    """A string with the origin of every character.

    The methods that return text and can keep the runs are overridden. The others return a plain `str`, to which the
    environment then gives the origin of the values that it was made from.
    """

    __slots__ = ("_ends", "_runs")
    _runs: Runs
    _ends: list[int]
    """The end of each run; set by the first slice that needs it."""

    def __new__(cls, text: str = "", runs: Runs | None = None) -> TrackedText:
        self = super().__new__(cls, text)
        self._runs = ((len(self), COMPUTED),) if runs is None and text else runs or ()
        return self

    def __str__(self) -> str:
        # The code that Jinja generates calls `str(x)`, which must keep the runs.
        return self

    def _plain(self) -> str:
        """The same characters without runs."""
        return str.__getitem__(self, slice(None))

    def _cut(self, start: int, stop: int) -> TrackedText:
        """The characters [start, stop), 0 <= start <= stop <= len."""
        text = str.__getitem__(self, slice(start, stop))
        runs = self._runs
        if len(runs) == 1:
            return TrackedText(text, ((len(text), runs[0][1]),) if text else ())
        if not text:
            return TrackedText()
        try:
            ends = self._ends
        except AttributeError:
            ends = self._ends = list(accumulate(length for length, _ in runs))
        first, last = bisect_right(ends, start), bisect_left(ends, stop)
        if first == last:
            return TrackedText(text, ((len(text), runs[first][1]),))
        head = (ends[first] - start, runs[first][1])
        tail = (stop - ends[last - 1], runs[last][1])
        return TrackedText(text, (head, *runs[first + 1 : last], tail))

    def _with_own_runs(self, text: str) -> str:
        """`text` with this string's runs; without runs if the lengths differ."""
        return TrackedText(text, self._runs) if len(text) == len(self) else text

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            index = range(len(self))[key]
            return self._cut(index, index + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self._cut(start, max(start, stop))
        return concat([self._cut(index, index + 1) for index in range(start, stop, step)])

    def __iter__(self) -> Iterator[str]:
        for index in range(len(self)):
            yield self._cut(index, index + 1)

    def __add__(self, other: str) -> str:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        text = str.__mul__(self, times)
        return TrackedText(text, self._runs * (len(text) // len(self))) if text else TrackedText()

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        text = str.__mod__(self, values)
        parts = self._formatted_parts(values)
        # If a width is an argument, the parts do not add up to the text, and all of it gets the origin of the operands.
        return concat(parts) if parts and "".join(parts) == text else inherit_origin(text, (self, values))

    def _formatted_parts(self, values: Any) -> list[str]:
        """The parts of `self % values`: the literals of this string, and each formatted value."""
        remaining = iter(values if isinstance(values, tuple) else (values,))
        parts: list[str] = []
        position = 0
        for match in _CONVERSION.finditer(self):
            parts.append(self._cut(position, match.start()))
            position = match.end()
            if match["type"] == "%":
                parts.append(self._cut(position - 1, position))
                continue
            value = values[match["key"]] if match["key"] is not None else next(remaining, None)
            if isinstance(value, TrackedText) and match["type"] == "s" and not match["how"]:
                parts.append(value)
            else:
                parts.append(inherit_origin(f"%{match['how']}{match['type']}" % (value,), (value,)))
        return [*parts, self._cut(position, len(self))]

    def join(self, parts: Iterable[str]) -> str:
        joined: list[str] = []
        for part in parts:
            joined += (self, part) if joined else (part,)
        return concat(joined)

    def strip(self, chars: str | None = None) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self._cut(start, max(start, len(str.rstrip(self, chars))))

    def lstrip(self, chars: str | None = None) -> str:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> str:
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str) -> str:
        return self._cut(len(prefix), len(self)) if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> str:
        return self._cut(0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), None if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), None if sep is None else len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._located(str.splitlines(self, keepends=keepends), None)

    def partition(self, sep: str) -> tuple[str, str, str]:
        before, found, after = self._located(str.partition(self, sep), 0)
        return before, found, after

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        before, found, after = self._located(str.rpartition(self, sep), 0)
        return before, found, after

    def _located(self, texts: Iterable[str], gap: int | None) -> list[str]:
        """Parts of this string, given as plain texts in order, with `gap` characters between two of them.

        None stands for whitespace or line ends of any length, with which the text after them does not start: its next
        occurrence is the part itself.
        """
        parts: list[str] = []
        position = 0
        for text in texts:
            start = position if gap is not None else self.find(text, position)
            position = start + len(text)
            parts.append(self._cut(start, position))
            position += gap or 0
        return parts

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        limit = count.__index__()
        parts: list[str] = []
        position = 0
        if not old:
            # `new` goes before every character, and after the last.
            insertions = len(self) + 1 if limit < 0 else min(limit, len(self) + 1)
            for position in range(insertions):
                parts += (new, self._cut(position, position + 1))
            return concat([*parts, self._cut(insertions, len(self))]) if insertions else self
        while limit != 0 and (found := self.find(old, position)) >= 0:
            parts += (self._cut(position, found), new)
            position = found + len(old)
            limit -= 1
        return concat([*parts, self._cut(position, len(self))]) if parts else self

    def lower(self) -> str:
        return self._with_own_runs(str.lower(self))

    def upper(self) -> str:
        return self._with_own_runs(str.upper(self))

    def title(self) -> str:
        return self._with_own_runs(str.title(self))

    def capitalize(self) -> str:
        return self._with_own_runs(str.capitalize(self))

    def swapcase(self) -> str:
        return self._with_own_runs(str.swapcase(self))


class TrackedDict(dict[Any, Any]):
    """A mapping from the data, with the field it came from: the origin of text made from the whole mapping."""

    __slots__ = ("_origin",)
    _origin: Origin


class TrackedList(list[Any]):
    """A list from the data, with the field it came from."""

    __slots__ = ("_origin",)
    _origin: Origin


def literal(text: str) -> TrackedText:
    """Text that the template wrote."""
    return TrackedText(text, ((len(text), TEMPLATE),) if text else ())


def plain_text(text: str) -> str:
    """The same characters as a `str` without runs."""
    if isinstance(text, TrackedText):
        return text._plain()
    return text if type(text) is str else str.__getitem__(text, slice(None))


def track(value: Any, origin: Origin) -> Any:
    """A copy of JSON-like data in which every text, key, list and mapping has this origin."""
    if isinstance(value, str):
        return TrackedText(value, ((len(value), origin),) if value else ())
    if isinstance(value, Mapping):
        mapping = TrackedDict((track(key, origin), track(item, origin)) for key, item in value.items())
        mapping._origin = origin
        return mapping
    if isinstance(value, (list, tuple)):
        items = TrackedList(track(item, origin) for item in value)
        items._origin = origin
        return items
    return value


def concat(texts: Iterable[str]) -> TrackedText:
    """The texts, concatenated; an untracked text gets the origin `COMPUTED`."""
    texts = list(texts)
    runs: list[tuple[int, Origin]] = []
    for text in texts:
        new = text._runs if isinstance(text, TrackedText) else ((len(text), COMPUTED),) if text else ()
        for run in new:
            if runs and (runs[-1][1] is run[1] or runs[-1][1] == run[1]):
                runs[-1] = (runs[-1][0] + run[0], run[1])
            else:
                runs.append(run)
    return TrackedText("".join(texts), tuple(runs))


def inherit_origin(text: str, sources: Iterable[Any]) -> TrackedText:
    """The text with the origin of the values it was made from, in place of the origin `COMPUTED`.

    If the values come from one field, that is the origin. If all are template text, it is `TEMPLATE`. If they come from
    several fields or from none, it stays `COMPUTED`.
    """
    runs: Runs = text._runs if isinstance(text, TrackedText) else ((len(text), COMPUTED),) if text else ()
    if all(origin != COMPUTED for _, origin in runs):
        return text if isinstance(text, TrackedText) else TrackedText(text, runs)
    origin = common_origin(sources)
    return TrackedText(text, tuple((length, origin if known == COMPUTED else known) for length, known in runs))


def common_origin(sources: Iterable[Any]) -> Origin:
    """The origin of text computed from these values."""
    origins = {origin for source in sources for origin in _origins(source)}
    data = {origin for origin in origins if not origin.is_template and origin != _NUMBER}
    if len(data) == 1:
        return data.pop()
    # Text made from template text and a number is not the template's, since the number may be data.
    return TEMPLATE if origins and not data and _NUMBER not in origins else COMPUTED


def _origins(value: Any) -> Iterator[Origin]:
    if isinstance(value, TrackedText):
        yield from (origin for _, origin in value._runs)
    elif isinstance(value, (TrackedDict, TrackedList)):
        yield value._origin
    elif isinstance(value, str):
        if value:
            yield COMPUTED
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _origins(key)
            yield from _origins(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _origins(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield _NUMBER
    elif not isinstance(value, (bool, Undefined, ModuleType)) and value is not None:
        # Other values (a view of a mapping, bytes, a generator) may hold data.
        yield COMPUTED


@lru_cache(maxsize=4096)
def in_generation(origin: Origin) -> Origin:
    """The same origin, inside a `{% generation %}` block."""
    return replace(origin, generation=True)


def mark_generation(text: str) -> TrackedText:
    """The same text, marked as inside a `{% generation %}` block."""
    runs = text._runs if isinstance(text, TrackedText) else ((len(text), COMPUTED),) if text else ()
    return TrackedText(text, tuple((length, in_generation(origin)) for length, origin in runs))


def spans_of(text: TrackedText) -> tuple[Span, ...]:
    """The runs as spans: ordered, without gaps, adjacent runs of one origin merged."""
    spans: list[Span] = []
    position = 0
    for length, origin in concat([text])._runs:
        spans.append(Span(start=position, end=position + length, origin=origin))
        position += length
    return tuple(spans)


def with_provenance(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a Jinja filter so that the text it returns gets the origin of its arguments."""
    # Jinja passes its context, environment or evaluation context first to functions with this attribute.
    skipped = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return inherit_origin(result, [*args[skipped:], *kwargs.values()]) if isinstance(result, str) else result

    return wrapper
