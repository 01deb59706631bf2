"""`train_on`: what is trained, and how much. `response=1,context=0.1` as a value."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from templatekit.errors import ConfigError, nearest
from templatekit.types import STANDARD_ROLES, TrainOn

Base = Literal["response", "content", "last", "all"]
_BASES: tuple[Base, ...] = get_args(Base)
_FIELDS = ("content", "context", "reasoning", "tool_calls", "tool_call_id", "name")
_OF_NO_MESSAGE = ("tools", "documents")
_ANY = "*"


class TrainedParts(NamedTuple):
    """`train_on`, parsed."""

    base: Base
    weight: float
    """Of what the base names."""
    named: Mapping[tuple[str, str], float]
    """By role and field; `*` stands for any."""

    def weight_of(self, role: str, field: str) -> float | None:
        """The weight of a field's text, from the most specific part that names it; None where the base decides.

        A role alone names its messages' texts, not what stands in their headers. What belongs to no message has no
        role (`""`).
        """
        for part in ((role, field), (_ANY, field), (role, _ANY)):
            if part in self.named and not (part[1] == _ANY and field in ("role", "name")):
                return self.named[part]
        return None


@lru_cache(maxsize=64)
def parse_train_on(text: TrainOn) -> TrainedParts:
    """Reads `part[=weight],…`, a weight being 1 where it is left out; raises `ConfigError`.

    A part is a base, at most one (`response` if none is named); a role (`user`, one that is not standard as
    `ipython.*`); or a field, of every role (`context`, but `*.content`, since `content` is a base) or of one
    (`user.context`).
    """
    base: Base | None = None
    weight = 1.0
    named: dict[tuple[str, str], float] = {}
    for item in text.split(","):
        name, equals, number = (word.strip() for word in item.partition("="))
        if not name:
            raise ConfigError("a part has no name; expected part=weight, parted by commas: response=1,context=0.1")
        found = _weight(name, number) if equals else 1.0
        if name in _BASES:
            if base is not None:
                raise ConfigError(
                    f"{name!r} twice" if name == base else f"two bases, {base!r} and {name!r}; expected one of them"
                )
            base, weight = _BASES[_BASES.index(name)], found
            continue
        part = _role_and_field(name)
        if part in named:
            raise ConfigError(f"{name!r} twice")
        named[part] = found
    if not weight and not any(named.values()):
        raise ConfigError("every weight is 0: nothing would be trained")
    return TrainedParts(base or "response", weight, named)


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"the weight of {name!r} is {text!r}; expected a number of at least 0")
    return weight


def _role_and_field(name: str) -> tuple[str, str]:
    role, dot, field = name.rpartition(".")
    if not dot and name != _ANY:
        if name in STANDARD_ROLES:
            return name, _ANY
        if name in (*_FIELDS, *_OF_NO_MESSAGE):
            return _ANY, name
        known = {*_BASES, *STANDARD_ROLES, *_FIELDS, *_OF_NO_MESSAGE}
        raise ConfigError(f"no part is named {name!r} (a role is written '{name}.*'); {nearest(name, known)}")
    fields = _FIELDS if role != _ANY else (*_FIELDS, *_OF_NO_MESSAGE)
    if not role or (field not in fields and (field != _ANY or role == _ANY)):
        expected = f"ROLE.FIELD, ROLE.* or *.FIELD; {nearest(field, fields)}"
        raise ConfigError(f"no part is named {name!r}; expected {expected}")
    return role, field
