"""Text that knows where each of its characters came from.

`Traced` is a `str` that carries runs of (length, origin). A template that is rendered over traced values gives traced
text: slicing, splitting, stripping, joining, replacing and concatenation keep the runs. What no run can explain (a
number, JSON of a structure, a changed case that changes lengths) is laid to the one field it was made from, or to
`COMPUTED` where it was made from several. Nothing is ever laid to the template unless the template wrote it: that is
what makes it safe to let template text alone become control tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, wraps
from itertools import accumulate
from types import ModuleType
from typing import Any, SupportsIndex, TypeAlias, cast

from jinja2 import Undefined

from templatekit.types import COMPUTED, TEMPLATE, Origin, Span

Runs: TypeAlias = tuple[tuple[int, Origin], ...]

_NUMBER = Origin(kind="computed", field="number")
"""Stands for a number among the things a text was made from: with one field beside it the text is that field's
(`content | indent(4)`), with template text alone it is not the template's, since the number may be data."""

_CONVERSION = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<how>[-#0 +]*\d*(?:\.\d*)?[hlL]?)(?P<type>[^*])", re.DOTALL)
"""A conversion of `%` formatting, but for widths and precisions that are arguments."""


class Traced(str):
    """A string with the origin of every character.

    Methods that return text are overridden where they can keep the runs. All others return a plain `str`, which the
    environment then lays to the fields that went in.
    """

    __slots__ = ("_ends", "_runs")
    _runs: Runs
    _ends: list[int]
    """Where each run ends; set by the first cut that needs it."""

    def __new__(cls, text: str = "", runs: Runs | None = None) -> Traced:
        self = super().__new__(cls, text)
        self._runs = ((len(self), COMPUTED),) if runs is None and text else runs or ()
        return self

    def __str__(self) -> str:
        # `str(x)` in generated template code must keep the runs.
        return self

    def _plain(self) -> str:
        """The same characters without runs."""
        return str.__getitem__(self, slice(None))

    def _cut(self, start: int, stop: int) -> Traced:
        """The characters [start, stop), 0 <= start <= stop <= len."""
        text = str.__getitem__(self, slice(start, stop))
        runs = self._runs
        if len(runs) == 1:
            return Traced(text, ((len(text), runs[0][1]),) if text else ())
        if not text:
            return Traced()
        try:
            ends = self._ends
        except AttributeError:
            ends = self._ends = list(accumulate(length for length, _ in runs))
        first, last = bisect_right(ends, start), bisect_left(ends, stop)
        if first == last:
            return Traced(text, ((len(text), runs[first][1]),))
        head = (ends[first] - start, runs[first][1])
        tail = (stop - ends[last - 1], runs[last][1])
        return Traced(text, (head, *runs[first + 1 : last], tail))

    def _same_length(self, text: str) -> str:
        """`text` with this string's runs; plain where the lengths differ."""
        return Traced(text, self._runs) if len(text) == len(self) else text

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
        return Traced(text, self._runs * (len(text) // len(self))) if text else Traced()

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        text = str.__mod__(self, values)
        pieces = self._formatted(values)
        # Widths given as arguments are left alone: the whole text is then laid to what went in.
        return concat(pieces) if pieces and "".join(pieces) == text else attribute(text, (self, values))

    def _formatted(self, values: Any) -> list[str]:
        """The pieces of `self % values`: this string's own, and each value's."""
        given = iter(values if isinstance(values, tuple) else (values,))
        pieces: list[str] = []
        position = 0
        for match in _CONVERSION.finditer(self):
            pieces.append(self._cut(position, match.start()))
            position = match.end()
            if match["type"] == "%":
                pieces.append(self._cut(position - 1, position))
                continue
            value = values[match["key"]] if match["key"] is not None else next(given, None)
            if isinstance(value, Traced) and match["type"] == "s" and not match["how"]:
                pieces.append(value)
            else:
                pieces.append(attribute(f"%{match['how']}{match['type']}" % (value,), (value,)))
        return [*pieces, self._cut(position, len(self))]

    def join(self, pieces: Iterable[str]) -> str:
        joined: list[str] = []
        for piece in pieces:
            joined += (self, piece) if joined else (piece,)
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
        pieces, position = [], 0
        for piece in str.split(self, sep, maxsplit):
            # Between the pieces lies the separator, or whitespace alone: the next occurrence is the piece itself.
            start = position if sep is not None else self.find(piece, position)
            pieces.append(self._cut(start, start + len(piece)))
            position = start + len(piece) + (len(sep) if sep is not None else 0)
        return cast("list[str]", pieces)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        pieces, position = [], len(self)
        for piece in reversed(str.rsplit(self, sep, maxsplit)):
            start = position - len(piece) if sep is not None else self.rfind(piece, 0, position)
            pieces.append(self._cut(start, start + len(piece)))
            position = start - (len(sep) if sep is not None else 0)
        return cast("list[str]", pieces[::-1])

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines, position = [], 0
        whole = str.splitlines(self, keepends=True)
        for line, kept in zip(whole, str.splitlines(self, keepends=keepends), strict=True):
            lines.append(self._cut(position, position + len(kept)))
            position += len(line)
        return cast("list[str]", lines)

    def partition(self, sep: str) -> tuple[str, str, str]:
        return self._parted(self.find(sep), sep, before=False)

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return self._parted(self.rfind(sep), sep, before=True)

    def _parted(self, index: int, sep: str, *, before: bool) -> tuple[str, str, str]:
        if not sep:
            raise ValueError("empty separator")
        if index < 0:
            return (Traced(), Traced(), self) if before else (self, Traced(), Traced())
        end = index + len(sep)
        return self._cut(0, index), self._cut(index, end), self._cut(end, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        limit = count.__index__()
        pieces: list[str] = []
        position = 0
        if not old:
            # `new` goes before every character, and behind the last.
            places = len(self) + 1 if limit < 0 else min(limit, len(self) + 1)
            for position in range(places):
                pieces += (new, self._cut(position, position + 1))
            return concat([*pieces, self._cut(places, len(self))]) if places else self
        while limit != 0 and (found := self.find(old, position)) >= 0:
            pieces += (self._cut(position, found), new)
            position = found + len(old)
            limit -= 1
        return concat([*pieces, self._cut(position, len(self))]) if pieces else self

    def lower(self) -> str:
        return self._same_length(str.lower(self))

    def upper(self) -> str:
        return self._same_length(str.upper(self))

    def title(self) -> str:
        return self._same_length(str.title(self))

    def capitalize(self) -> str:
        return self._same_length(str.capitalize(self))

    def swapcase(self) -> str:
        return self._same_length(str.swapcase(self))


class TracedDict(dict[Any, Any]):
    """A mapping from the data, with the field it came from: the origin of what is made from the whole of it."""

    __slots__ = ("_origin",)
    _origin: Origin


class TracedList(list[Any]):
    """A list from the data, with the field it came from."""

    __slots__ = ("_origin",)
    _origin: Origin


def literal(text: str) -> Traced:
    """Text that the template wrote."""
    return Traced(text, ((len(text), TEMPLATE),) if text else ())


def plain_text(text: str) -> str:
    """The same characters in a `str` without runs."""
    if isinstance(text, Traced):
        return text._plain()
    return text if type(text) is str else str.__getitem__(text, slice(None))


def traced(value: Any, origin: Origin) -> Any:
    """A copy of JSON-like data in which every text, key, list and mapping knows its origin."""
    if isinstance(value, str):
        return Traced(value, ((len(value), origin),) if value else ())
    if isinstance(value, Mapping):
        mapping = TracedDict((traced(key, origin), traced(item, origin)) for key, item in value.items())
        mapping._origin = origin
        return mapping
    if isinstance(value, (list, tuple)):
        items = TracedList(traced(item, origin) for item in value)
        items._origin = origin
        return items
    return value


def concat(pieces: Iterable[str]) -> Traced:
    """The pieces in one string; plain ones are of computed origin."""
    pieces = list(pieces)
    runs: list[tuple[int, Origin]] = []
    for piece in pieces:
        new = piece._runs if isinstance(piece, Traced) else ((len(piece), COMPUTED),) if piece else ()
        for run in new:
            if runs and (runs[-1][1] is run[1] or runs[-1][1] == run[1]):
                runs[-1] = (runs[-1][0] + run[0], run[1])
            else:
                runs.append(run)
    return Traced("".join(pieces), tuple(runs))


def attribute(text: str, sources: Iterable[Any]) -> Traced:
    """Lays what is computed in `text` to the fields it was made from.

    One field: to that field. Only template text: to the template. Several, or none: it stays computed.
    """
    runs: Runs = text._runs if isinstance(text, Traced) else ((len(text), COMPUTED),) if text else ()
    if all(origin != COMPUTED for _, origin in runs):
        return text if isinstance(text, Traced) else Traced(text, runs)
    origin = common_origin(sources)
    return Traced(text, tuple((length, origin if known == COMPUTED else known) for length, known in runs))


def common_origin(sources: Iterable[Any]) -> Origin:
    """The origin of what is computed from these values."""
    origins = {origin for source in sources for origin in _origins(source)}
    data = {origin for origin in origins if not origin.is_template and origin != _NUMBER}
    if len(data) == 1:
        return data.pop()
    # Template text beside a number is not the template's, since the number may be data.
    return TEMPLATE if origins and not data and _NUMBER not in origins else COMPUTED


def _origins(value: Any) -> Iterator[Origin]:
    if isinstance(value, Traced):
        yield from (origin for _, origin in value._runs)
    elif isinstance(value, (TracedDict, TracedList)):
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
        # What cannot be looked into (a view of a mapping, bytes, a generator) may hold data.
        yield COMPUTED


@lru_cache(maxsize=4096)
def in_generation(origin: Origin) -> Origin:
    """The same origin, in a `{% generation %}` block."""
    return replace(origin, generation=True)


def mark_generation(text: str) -> Traced:
    """The same text, marked as standing in a `{% generation %}` block."""
    runs = text._runs if isinstance(text, Traced) else ((len(text), COMPUTED),) if text else ()
    return Traced(text, tuple((length, in_generation(origin)) for length, origin in runs))


def spans_of(text: Traced) -> tuple[Span, ...]:
    """The runs as spans: ordered, gap-free, neighbours of one origin joined."""
    spans: list[Span] = []
    position = 0
    for length, origin in concat([text])._runs:
        spans.append(Span(start=position, end=position + length, origin=origin))
        position += length
    return tuple(spans)


def keeps_provenance(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a Jinja filter so that text it returns is laid to its arguments."""
    # Jinja reads from the function whether to pass it its context, environment or evaluation context, which come first.
    passed = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return attribute(result, [*args[passed:], *kwargs.values()]) if isinstance(result, str) else result

    return wrapper
