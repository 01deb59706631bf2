"""What plugins offer: one small class a kind. Subclass it, give it a name, return an instance from the hook."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from templatekit.errors import RecordError, TemplateError, shorten
from templatekit.types import Example, Record


def text_of(record: Record, key: str, *, required: bool = True) -> str:
    """The text under `key`; a missing or null value is an error, or "" where it is not required.

    Anything but text is an error: numbers and lists are never turned into text in silence.
    """
    value = record.get(key)
    if value is None:
        if not required:
            return ""
        close = [] if key in record else get_close_matches(key, map(str, record), n=1)
        found = "null" if key in record else f"keys {', '.join(sorted(map(str, record))) or '(none)'}"
        hint = f"; is {close[0]!r} meant? then --columns {key}={close[0]}" if close else ""
        raise RecordError(f"missing; found {found}; expected text{hint}", field=key, reason=f"missing_{key}")
    if not isinstance(value, str):
        raise RecordError(
            f"not text; found {type(value).__name__} {shorten(value)}; expected text", field=key, reason=f"bad_{key}"
        )
    return value


def objects_of(record: Record, key: str) -> tuple[Mapping[str, Any], ...]:
    """The list of objects under `key`, which may be JSON text, and so may each object; null and "" are none.

    Files with columns hold such lists as text where their objects have no keys in common.
    """
    values = _from_json(record.get(key), key)
    if values is None or values == "":
        return ()
    if isinstance(values, list):
        values = [_from_json(value, key) for value in values]
        if all(isinstance(value, Mapping) for value in values):
            return tuple(values)
    raise RecordError(
        f"found {shorten(record[key])}; expected a list of objects, or JSON of one", field=key, reason=f"bad_{key}"
    )


def _from_json(value: object, key: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"found {shorten(value)}; expected a list of objects, or JSON of one; not JSON: {error}",
            field=key,
            reason=f"bad_{key}",
        ) from None


def tools_of(record: Record, key: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """The tools under `key` as servers are sent them: `{"type": "function", "function": {…}}`.

    Functions that stand there bare are put into that shape. JSON text is read as in `objects_of`.
    """
    return tuple(as_function(tool) for tool in objects_of(record, key))


def as_function(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool, or a call of one, as `{"type": "function", "function": {…}}`, with its `id`; what it is not stays."""
    if "function" in value or not isinstance(value.get("name"), str) or value.get("type", "function") != "function":
        return value
    outside = {key: item for key, item in value.items() if key in ("id", "index")}
    inside = {key: item for key, item in value.items() if key not in ("id", "index", "type")}
    return {**outside, "type": "function", "function": inside}


WEIGHT_KEYS = ("weight", "loss_weight", "train")
"""Under which a message may say how much of its loss counts: a number, or true and false."""


def weight_of(record: Record) -> float:
    """The product of what a message holds under `WEIGHT_KEYS`: 1 without any, 0 with `train: false`."""
    product = 1.0
    for key in WEIGHT_KEYS:
        weight = record.get(key)
        if weight is None:
            continue
        if not isinstance(weight, (int, float)) or not 0 <= weight <= sys.float_info.max:
            raise RecordError(
                f"found {shorten(weight)}; expected a number of at least 0, or true or false",
                field=key,
                reason="bad_weight",
            )
        product *= weight
    return min(product, sys.float_info.max)


class Adapter(ABC):
    """Turns one shape of record into an `Example`.

    An adapter is pure: equal records give equal examples. The record it is handed is a copy of its own.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    keys: ClassVar[tuple[str, ...]] = ()
    """Every key this adapter reads. Other keys of a record are reported, once."""
    inner_keys: ClassVar[Mapping[str, Set[str]]] = {}
    """Of keys that hold an object or a list of objects, the keys that are read inside. Others are reported as
    `messages[].name`, unless they hold null."""
    required: ClassVar[tuple[str, ...]] = ()
    """The keys by which a record of this shape is known."""
    example_records: ClassVar[tuple[Record, ...]] = ()
    """Records of this shape, one of each kind: `templatekit check` puts other texts in them."""
    strips_content: ClassVar[bool] = False
    """Declares that whitespace is taken off the edges of texts; `templatekit check` allows it then."""

    def matches(self, keys: Set[str]) -> bool:
        """Whether records with these keys are of this shape; used where no adapter is named."""
        return bool(self.required) and keys >= set(self.required)

    def unread(self, record: Record) -> dict[str, Any]:
        """What a record holds that this adapter does not read, by key."""
        found = {str(key): value for key, value in record.items() if key not in self.keys}
        for key, known in self.inner_keys.items():
            items = record.get(key)
            for item in items if isinstance(items, list) else (items,):
                if isinstance(item, Mapping) and not item.keys() <= known:
                    for name, value in item.items():
                        if name not in known and value is not None:
                            found.setdefault(f"{key}[].{name}", value)
        return found

    @abstractmethod
    def to_example(self, record: Record) -> Example:
        """The record's conversation; raises `RecordError`, with the field, for what it cannot use."""

    def to_examples(self, record: Record) -> Iterable[Example]:
        """All conversations of the record, in order: what is rendered. By default the one of `to_example`."""
        return (self.to_example(record),)

    def group(self, record: Record) -> Hashable:
        """What records that make one example have in common; None, the default, for a record that is one by itself.

        Records in a row with one value come together, as `{"records": [...]}`.
        """
        return None

    def to_record(self, example: Example) -> Record:
        """The inverse of `to_example` on this adapter's own keys; optional, and tested where it is given."""
        raise NotImplementedError(f"adapter {self.name!r} reads records but does not write them")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFile:
    """A template as a plugin offers it: Jinja source, with its metadata in a leading comment."""

    name: str
    source: str
    path: str | None = None
    """Where it lies, for error messages."""


def template_files(folder: str | Path) -> list[TemplateFile]:
    """Every `*.jinja` file of a folder, named by its stem, in order of names; raises `TemplateError`."""
    files = []
    for path in sorted(Path(folder).glob("*.jinja"), key=lambda path: path.stem):
        try:
            files.append(TemplateFile(name=path.stem, source=path.read_text(encoding="utf-8"), path=str(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"template file {str(path)!r} cannot be read: {error}") from None
    return files


class Source(ABC):
    """Reads records from one kind of place."""

    name: ClassVar[str]
    description: ClassVar[str] = ""

    @abstractmethod
    def accepts(self, address: str) -> bool:
        """Whether `address` (a path, a name) is for this source. Cheap: no data is read."""

    @abstractmethod
    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The records in order. A row that cannot be read is yielded as a `RecordError`, so that the caller decides
        whether to stop; what makes the whole place unreadable raises `SourceError`."""

    def files(self, address: str) -> Sequence[Path] | None:
        """The files on this machine that decide, in this order, about all that `read` gives: while they hold the same,
        so does it. None, the default, where nobody can tell; then nothing that comes of it is kept in the cache.
        Raises `SourceError`."""
        return None


class ModelResolver(ABC):
    """Finds a model by name on this machine."""

    name: ClassVar[str]
    description: ClassVar[str] = ""

    @abstractmethod
    def resolve(self, name: str) -> Path | None:
        """A folder that `transformers` loads, or a `.gguf` file; None where the name is not for this resolver."""
