"""Frozen values are made often: a dozen for each record."""

from __future__ import annotations

from dataclasses import MISSING, fields
from inspect import signature
from typing import Any, TypeVar

T = TypeVar("T")


def quickly_made(cls: type[T]) -> type[T]:
    """A frozen, slotted, keyword-only dataclass whose fields are set by their slots, in two thirds of the time.

    What dataclasses write looks up `object.__setattr__` for each field, and there the slot by its name. Rendering
    conversations, of which each message is such a value, took 6 % longer with it (ShareGPT's rows by `python -m
    benchmarks.render`). Like dataclasses this writes the constructor as text: a signature cannot be made otherwise.
    """
    names: dict[str, Any] = {}
    parameters, lines = [], []
    for one in fields(cls):  # type: ignore[arg-type]  # a dataclass, which no type can ask for
        assert one.init and one.kw_only
        names[f"set_{one.name}"] = getattr(cls, one.name).__set__
        value = one.name
        if one.default_factory is not MISSING:
            names[f"make_{one.name}"], names["absent"] = one.default_factory, MISSING
            parameters.append(f"{one.name}=absent")
            value = f"make_{one.name}() if {one.name} is absent else {one.name}"
        elif one.default is not MISSING:
            names[f"default_{one.name}"] = one.default
            parameters.append(f"{one.name}=default_{one.name}")
        else:
            parameters.append(one.name)
        lines.append(f" set_{one.name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec("\n".join([f"def __init__(self, *, {', '.join(parameters)}):", *lines]), names)
    made = names["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    made.__signature__ = signature(cls.__init__)
    made.__annotations__ = cls.__init__.__annotations__
    cls.__init__ = made  # type: ignore[method-assign]
    return cls
