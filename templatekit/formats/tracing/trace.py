"""A trace: the operations on an example's texts and the guards on them, recorded while a template renders it."""

from __future__ import annotations

from typing import NamedTuple

MAX_LENGTH = 5000
"""Most steps of a trace, and most pieces of a symbolic text: more are not worth compiling."""


class TraceAborted(BaseException):
    """Ends a recording: the rendering depends on a text in a way that no guard can express.

    It is no `Exception`, so that code that handles a template's errors lets it pass.
    """


class TraceStep(NamedTuple):
    """An operation (`t0 = content0.strip()`) or a guard (`'</think>' in t0`)."""

    expression: str
    """A Python expression over the example's fields and the variables of earlier operations."""
    variable: str
    """The variable that the operation assigns; empty for a guard."""
    outcome: bool
    """The truth value of a guard's expression for the recorded example."""


class Trace:
    """The operations and guards of one example's rendering, in order, each recorded once."""

    def __init__(self) -> None:
        self.steps: list[TraceStep] = []
        self._variables: dict[str, str] = {}
        self._outcomes: dict[str, bool] = {}

    def field(self, name: str) -> str:
        """The variable of a field that is empty in no example of the shape."""
        self._outcomes[name] = True
        return name

    def operation(self, expression: str) -> str:
        """Record an operation; return the variable that holds its result."""
        if expression not in self._variables:
            self._variables[expression] = f"t{len(self._variables)}"
            self._add(TraceStep(expression, self._variables[expression], False))
        return self._variables[expression]

    def guard(self, expression: str, outcome: bool) -> bool:
        """Record a guard; return its outcome."""
        if expression not in self._outcomes:
            self._outcomes[expression] = outcome
            self._add(TraceStep(expression, "", outcome))
        return outcome

    def _add(self, step: TraceStep) -> None:
        if len(self.steps) >= MAX_LENGTH:
            raise TraceAborted("too many steps")
        self.steps.append(step)
