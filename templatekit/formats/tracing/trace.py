"""What is asked about texts while a template is rendered symbolically, in Python's words, and what came of it."""

from __future__ import annotations

from typing import NamedTuple

LONGEST = 5000
"""Steps of a tape, and pieces of a text: what takes more is not worth a plan."""


class Unplannable(BaseException):
    """A rendering depends on a text in a way that nobody writes down.

    It is no error, so nothing may treat it as one.
    """


class Step(NamedTuple):
    """A line of a tape, in Python's words."""

    code: str
    """An expression over the variables before it."""
    name: str
    """The variable that it is given to; empty for a question."""
    outcome: bool
    """What came of a question."""


class Tape:
    """What was made of an example's texts, and asked about them, in order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._made: dict[str, str] = {}
        self._asked: dict[str, bool] = {}

    def field(self, name: str) -> str:
        """A field that is not empty, as a variable."""
        self._asked[name] = True
        return name

    def make(self, code: str) -> str:
        """The variable for an expression's value."""
        if code not in self._made:
            self._made[code] = f"t{len(self._made)}"
            self._add(Step(code, self._made[code], False))
        return self._made[code]

    def ask(self, code: str, outcome: bool) -> bool:
        """Puts down a question about the texts; gives its outcome."""
        if code not in self._asked:
            self._asked[code] = outcome
            self._add(Step(code, "", outcome))
        return outcome

    def _add(self, step: Step) -> None:
        if len(self.steps) >= LONGEST:
            raise Unplannable("too many steps")
        self.steps.append(step)
