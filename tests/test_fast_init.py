"""Dataclasses with `fast_init` behave as dataclasses without it."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.fast_init import fast_init
from templatekit.types import Example, LossSpan, Message, Sample, Span, TargetSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    size: int
    name: str = "none"
    items: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size={self.size}")


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class Fast(Plain):
    """The same fields."""


def outcome(cls: type[Any], given: dict[str, Any]) -> Any:
    """The values of the fields, or the error."""
    try:
        value = cls(**given)
    except (TypeError, ValueError) as error:
        return str(error).replace(cls.__name__, "CLASS")
    return [getattr(value, field.name) for field in fields(cls)]


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
def test_fields_and_errors_are_those_of_a_plain_dataclass(given: dict[str, Any]) -> None:
    assert outcome(Fast, given) == outcome(Plain, given)


def test_dataclass_functions_pickle_and_freezing_work() -> None:
    fast = Fast(size=1)
    assert fast == replace(Fast(size=2), size=1) == pickle.loads(pickle.dumps(fast))
    assert asdict(fast) == {"size": 1, "name": "none", "items": []}
    assert fast.items is not Fast(size=1).items
    with pytest.raises(FrozenInstanceError):
        fast.size = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Fast(1)  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", [Message, Example, Sample, LossSpan, Span, TargetSpan])
def test_signatures_list_the_fields(cls: type[Any]) -> None:
    assert [*inspect.signature(cls).parameters] == [field.name for field in fields(cls)]
    assert cls.__init__.__qualname__ == f"{cls.__name__}.__init__"


def test_negative_control_a_field_that_is_not_set() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Broken(Plain):
        def __init__(self, **given: Any) -> None:
            object.__setattr__(self, "size", given["size"])

    with pytest.raises(AttributeError):
        outcome(Broken, {"size": 1})
