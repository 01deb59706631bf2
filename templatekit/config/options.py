"""`Options`, the base of all option sets, and the types that their fields have in common.

The option sets are `data_options.DataOptions`, `render_options.RenderOptions` and `finetune_options.FinetuneOptions`.
Their fields are the options of the command line, the keys of a recipe and the keywords of the Python calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from templatekit.config.addresses import shown
from templatekit.errors import ConfigError, nearest, shorten


def refuse_bool(value: object) -> object:
    """Raise `ValueError` for true and false: YAML reads `yes` as true, which Python would accept as the number 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _json_value(value: Any) -> Any:
    """The value, if a template can print it as JSON; YAML also has dates and NaN, which are errors."""
    if isinstance(value, dict):
        return {_json_value(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and isfinite(value)):
        return value
    raise ValueError(f"expected text, a number, true, false or null; found {shorten(value)}; quote it where it is text")


PositiveInt = Annotated[int, BeforeValidator(refuse_bool), Field(gt=0)]
JsonValue = Annotated[Any, AfterValidator(_json_value)]
OptionSet = TypeVar("OptionSet", bound="Options")


class Options(BaseModel):
    """Base of all option sets: unknown names and wrong types are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    nested: ClassVar[Mapping[str, type[Options]]] = {}
    """The option set in each field that holds one. For an unknown name in it, errors suggest its options."""

    @classmethod
    def parse(cls: type[OptionSet], values: Mapping[str, Any], *, source: str | None = None) -> OptionSet:
        """Check the values; raise a `ConfigError` that names each wrong one and says what was expected.

        `source` is the file with the values, if there is one.
        """
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            lines = [_explain(cls, detail) for detail in error.errors()]
            raise ConfigError((f"{source}: " if source else "") + "; ".join(lines)) from None


def parse_pairs(text: str, option: str, expected: str, separator: str | re.Pattern[str] = ",") -> dict[str, str]:
    """Parse `NAME=VALUE,NAME=VALUE`; raise a `ConfigError` for anything else, and for a name that is there twice.

    Errors start with `option` and say what was `expected`. Whitespace around names and values does not count.
    """
    pairs: dict[str, str] = {}
    for part in re.split(separator, text) if text.strip() else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ConfigError(f"{option}: found {part.strip()!r}; expected {expected}")
        if name in pairs:
            raise ConfigError(f"{option}: {name!r} twice, as {pairs[name]!r} and {value!r}; keep one")
        pairs[name] = value
    return pairs


def _explain(cls: type[Options], detail: Any) -> str:
    """One of pydantic's errors in this package's words."""
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = cls.nested.get(detail["loc"][0], cls).model_fields
        return f"unknown option {name!r}; {nearest(str(detail['loc'][-1]), known)}"
    message = str(detail["msg"]).removeprefix("Value error, ").partition(", unable to")[0]
    expected = message.removeprefix("Input should be ")
    if expected != message:
        message = f"expected {'a number ' if expected.startswith(('greater', 'less')) else ''}{expected}"
    given = shown(detail["input"]) if isinstance(detail["input"], str) else detail["input"]
    return f"{name}: found {shorten(given)}; {message[:1].lower()}{message[1:]}" if name else message
