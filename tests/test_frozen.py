"""Values that are made quickly are what dataclasses make."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.frozen import quickly_made
from templatekit.types import Example, LossSpan, Message, Sample, Span, TargetSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    size: int
    name: str = "none"
    items: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size={self.size}")


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Quick(Plain):
    """The same, made quickly."""


def outcome(made: type[Any], given: dict[str, Any]) -> Any:
    """The fields, or the error."""
    try:
        value = made(**given)
    except (TypeError, ValueError) as error:
        return str(error).replace(made.__name__, "It")
    return [getattr(value, one.name) for one in fields(made)]


@given(
    given=st.fixed_dictionaries(
        {},
        optional={
            "size": st.integers(-1, 9),
            "name": st.text(max_size=2),
            "items": st.just([1]),
            "other": st.none(),
        },
    )
)
def test_they_are_what_dataclasses_make(given: dict[str, Any]) -> None:
    assert outcome(Quick, given) == outcome(Plain, given)


def test_they_are_frozen_and_known_by_their_fields() -> None:
    quick = Quick(size=1)
    assert quick == replace(Quick(size=2), size=1) == pickle.loads(pickle.dumps(quick))
    assert quick.items is not Quick(size=1).items
    with pytest.raises(FrozenInstanceError):
        quick.size = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Quick(1)  # type: ignore[call-arg]


@pytest.mark.parametrize("made", [Message, Example, Sample, LossSpan, Span, TargetSpan, Sample])
def test_signatures_say_what_there_is(made: type[Any]) -> None:
    assert [*inspect.signature(made).parameters] == [one.name for one in fields(made)]
    assert made.__init__.__qualname__ == f"{made.__name__}.__init__"


def test_negative_control_a_field_that_is_not_set() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Broken(Plain):
        def __init__(self, **given: Any) -> None:
            object.__setattr__(self, "size", given["size"])

    with pytest.raises(AttributeError):
        outcome(Broken, {"size": 1})
