"""The Jinja sandbox over symbolic text, in which an example is recorded.

It differs from the environment that tracks provenance in that all of its text is symbolic, and in what a template may
call. Filters, tests and functions run unchanged where they look at a text through its own methods and operators alone.
Other filters and tests run on constants, and abort the recording on data. Other calls, and `random`, always abort it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from typing import Any

from jinja2 import Undefined
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import SandboxedEnvironment

from templatekit.formats.environment import ProvenanceEnvironment
from templatekit.formats.provenance import in_generation
from templatekit.formats.tracing.symbolic_text import (
    SymbolicText,
    depends_on_data,
    lift_result,
    pieces_of,
    symbolic_concat,
    symbolic_inherit_origin,
    symbolic_literal,
)
from templatekit.formats.tracing.symbolic_values import SymbolicLength, SymbolicList
from templatekit.formats.tracing.trace import TraceAborted


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SYMBOLIC_FILTERS = _names(
    "capitalize count d default first items join last length list lower map reject rejectattr replace reverse select "
    "selectattr string trim upper"
)
"""Filters that look at texts through their methods alone."""
_SYMBOLIC_TESTS = _names(
    "defined undefined none string mapping number integer float boolean true false callable filter test == eq equalto "
    "!= ne in"
)
"""Tests that look at texts through their operators, or at their type, alone."""
_ITERABLE_TESTS = ("iterable", "sequence")
"""Tests that every text passes; Jinja's own iterate over it to find out."""
_FUNCTIONS = _names("safe_range _raise_exception _Namespace _text strftime_now")
"""Functions that a template may call besides macros and methods, by their Python name."""


class RecordingEnvironment(ProvenanceEnvironment):
    """The same sandbox, whose text is symbolic."""

    concat = staticmethod(symbolic_concat)
    literal = staticmethod(symbolic_literal)

    def __init__(self) -> None:
        super().__init__()
        for name, function in self.filters.items():
            self.filters[name] = _recording_filter(name, function.__wrapped__)
        for name, test in self.tests.items():
            self.tests[name] = _recording_test(name, test)

    @staticmethod
    def mark_generation(text: str) -> SymbolicText:
        """As `provenance.mark_generation`."""
        return SymbolicText([replace(piece, origin=in_generation(piece.origin)) for piece in pieces_of(text)])

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls from a template."""
        owner = getattr(__obj, "__self__", None)
        given = (*args, *kwargs.values())
        is_modelled = isinstance(__obj, (Macro, Undefined)) or isinstance(
            owner, (SymbolicText, dict, list, LoopContext)
        )
        if not is_modelled and getattr(__obj, "__name__", None) not in _FUNCTIONS:
            raise TraceAborted("a call that is not modelled")
        result = SandboxedEnvironment.call(__self, __context, __obj, *args, **kwargs)
        if isinstance(result, str) and not isinstance(__obj, Macro):
            return symbolic_inherit_origin(result, (owner, *given))
        return result


def _recording_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if name == "random":
            raise TraceAborted("a random choice")
        given = (*args[passed:], *kwargs.values())
        if name in ("first", "last") and isinstance(given[0], SymbolicList):
            return given[0][0 if name == "first" else -1]
        if name in ("length", "count") and isinstance(given[0], SymbolicText):
            return given[0]._record_length()
        if name not in _SYMBOLIC_FILTERS:
            if any(map(depends_on_data, given)):
                raise TraceAborted(f"the filter {name}")
            return lift_result(function(*args, **kwargs), given)
        result = function(*args, **kwargs)
        return symbolic_inherit_origin(result, given) if isinstance(result, str) else result

    return wrapper


def _recording_test(name: str, function: Any) -> Callable[..., bool]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> bool:
        given = args[int(hasattr(function, "jinja_pass_arg")) :]
        if name in _ITERABLE_TESTS and isinstance(given[0], (str, SymbolicList)):
            return True
        if any(isinstance(value, SymbolicLength) for value in given):
            raise TraceAborted("a test of a length")
        if name not in (*_SYMBOLIC_TESTS, *_ITERABLE_TESTS) and any(map(depends_on_data, (*given, *kwargs.values()))):
            raise TraceAborted(f"the test {name}")
        return bool(function(*args, **kwargs))

    return wrapper


@cache
def recording_environment() -> RecordingEnvironment:
    """The environment of every recording."""
    return RecordingEnvironment()
