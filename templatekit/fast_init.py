"""`fast_init`: a decorator that makes frozen dataclasses cheaper to create."""

from __future__ import annotations

from dataclasses import MISSING, fields
from inspect import signature
from typing import Any, TypeVar

T = TypeVar("T")


def fast_init(cls: type[T]) -> type[T]:
    """Replace the `__init__` of a frozen, slotted, keyword-only dataclass by one that takes two thirds of the time.

    Each record needs a dozen instances of such classes. The `__init__` of `dataclasses` calls `object.__setattr__`,
    which looks up the slot by its name; this one calls the slot itself. Without it, rendering to ids takes about 4 %
    longer on ShareGPT's conversations and 2 % longer on Alpaca's records.

    The code is written as text and run by `exec`, as in `dataclasses`: there is no other way to give a function a
    signature. msgspec and attrs also have fast classes, but `dataclasses.replace`, `fields` and `asdict` refuse them,
    and plugins call those functions on the public types.
    """
    names: dict[str, Any] = {}
    parameters, lines = [], []
    for field in fields(cls):  # type: ignore[arg-type]  # no annotation can ask for a dataclass
        assert field.init and field.kw_only
        names[f"set_{field.name}"] = getattr(cls, field.name).__set__
        value = field.name
        if field.default_factory is not MISSING:
            names[f"make_{field.name}"], names["missing"] = field.default_factory, MISSING
            parameters.append(f"{field.name}=missing")
            value = f"make_{field.name}() if {field.name} is missing else {field.name}"
        elif field.default is not MISSING:
            names[f"default_{field.name}"] = field.default
            parameters.append(f"{field.name}=default_{field.name}")
        else:
            parameters.append(field.name)
        lines.append(f" set_{field.name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec("\n".join([f"def __init__(self, *, {', '.join(parameters)}):", *lines]), names)
    init = names["__init__"]
    init.__qualname__, init.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    init.__signature__ = signature(cls.__init__)
    init.__annotations__ = cls.__init__.__annotations__
    cls.__init__ = init  # type: ignore[method-assign]
    return cls
