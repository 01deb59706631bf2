"""Parses the option `train_on`, which says what is trained and with which weight: `response=1,context=0.1`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from templatekit.errors import ConfigError, nearest
from templatekit.types import STANDARD_ROLES, WEIGHT_RANGE, TrainOn, is_weight

Base = Literal["response", "content", "last", "all"]
_BASES: tuple[Base, ...] = get_args(Base)
_FIELDS = ("content", "context", "reasoning", "tool_calls", "tool_call_id", "name")
_OF_NO_MESSAGE = ("tools", "documents")
_ANY = "*"


class TrainOnWeights(NamedTuple):
    """The parsed option `train_on`."""

    base: Base
    weight: float
    """The weight of the text that the base selects."""
    named: Mapping[tuple[str, str], float]
    """The weights of other texts, by role and field; `*` stands for any."""

    def weight_of(self, role: str, field: str) -> float | None:
        """Return the weight of a field's text, from the most specific entry that names it; None if the base decides.

        A role alone names the texts of its messages, but not their headers (`role` and `name`). A field that belongs to
        no message has the role `""`.
        """
        for key in ((role, field), (_ANY, field), (role, _ANY)):
            if key in self.named and not (key[1] == _ANY and field in ("role", "name")):
                return self.named[key]
        return None


@lru_cache(maxsize=64)
def parse_train_on(text: TrainOn) -> TrainOnWeights:
    """Parse `part[=weight],…`; a weight that is left out is 1. Raise `ConfigError`.

    A part is one of:

    - a base, at most one; `response` is the default
    - a role, such as `user`; one that is not standard is written as `ipython.*`
    - a field of every role, such as `context`; `content` is written as `*.content`, because `content` is a base
    - a field of one role, such as `user.context`
    """
    base: Base | None = None
    weight = 1.0
    named: dict[tuple[str, str], float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        if not name:
            raise ConfigError("a part has no name; expected part=weight, separated by commas: response=1,context=0.1")
        part_weight = _parse_weight(name, number) if equals else 1.0
        if name in _BASES:
            if base is not None:
                raise ConfigError(
                    f"{name!r} twice" if name == base else f"two bases, {base!r} and {name!r}; expected one of them"
                )
            base, weight = _BASES[_BASES.index(name)], part_weight
            continue
        key = _parse_name(name)
        if key in named:
            raise ConfigError(f"{name!r} twice")
        named[key] = part_weight
    if not weight and not any(named.values()):
        raise ConfigError("every weight is 0: nothing would be trained")
    return TrainOnWeights(base or "response", weight, named)


def _parse_weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not is_weight(weight):
        raise ConfigError(f"the weight of {name!r} is {text!r}; expected {WEIGHT_RANGE}")
    return weight


def _parse_name(name: str) -> tuple[str, str]:
    """The role and the field that a part names."""
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
