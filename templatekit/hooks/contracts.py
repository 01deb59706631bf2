"""The base classes of what plugins offer: `Adapter`, `TemplateFile`, `Source` and `ModelResolver`.

A plugin subclasses one, gives the class a name, and returns an instance from the hook. Exporters are in
`templatekit.hooks.exporters`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from templatekit.config.text_files import read_text_file
from templatekit.errors import RecordError, TemplateError
from templatekit.types import Example, Record


class Adapter(ABC):
    """Converts records of one shape to `Example`s.

    An adapter is pure: equal records give equal examples. It receives a copy of the record, which it may change.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    keys: ClassVar[tuple[str, ...]] = ()
    """Every key that this adapter reads. Other keys of a record are reported once."""
    inner_keys: ClassVar[Mapping[str, Set[str]]] = {}
    """For each key that holds an object or a list of objects: the keys that are read inside it. Others are reported as
    `messages[].name`, unless they hold null."""
    required: ClassVar[tuple[str, ...]] = ()
    """The keys that identify records of this shape."""
    example_records: ClassVar[tuple[Record, ...]] = ()
    """Records of this shape, one of each kind. `templatekit check` replaces their texts with others."""
    strips_content: ClassVar[bool] = False
    """Whether the adapter strips whitespace from the ends of texts; `templatekit check` then allows it."""

    def matches(self, keys: Set[str]) -> bool:
        """Return whether records with these keys have this shape; called if no adapter is named."""
        return bool(self.required) and keys >= set(self.required)

    def unread(self, record: Record) -> dict[str, Any]:
        """Return the values of a record that this adapter does not read, by key."""
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
        """Convert a record to an example; raise `RecordError`, with the field, for a record that cannot be used."""

    def to_examples(self, record: Record) -> Iterable[Example]:
        """Convert a record to its examples, in the order in which they are rendered. By default `to_example` alone."""
        return (self.to_example(record),)

    def group(self, record: Record) -> Hashable:
        """Return a value that is equal for consecutive records that form one example; None if the record is complete.

        The adapter receives such records as one: `{"records": [...]}`. The default is None.
        """
        return None

    def to_record(self, example: Example) -> Record:
        """Convert an example to a record with this adapter's own keys: the inverse of `to_example`.

        Optional; `templatekit check` tests it where it exists.
        """
        raise NotImplementedError(f"adapter {self.name!r} reads records but does not write them")


_BLANK_START = re.compile(r"[\s\ufeff]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFile:
    """A template as a plugin offers it: Jinja source, with its metadata in a leading comment.

    Byte-order marks before or in the whitespace at its start are removed: they belong to the file, not to the text.
    """

    name: str
    source: str
    path: str | None = None
    """The file, for error messages."""

    def __post_init__(self) -> None:
        start = _BLANK_START.match(self.source)
        if start is not None:
            source = start[0].replace("\ufeff", "") + self.source[start.end() :]
            object.__setattr__(self, "source", source)


def template_files(folder: str | Path) -> list[TemplateFile]:
    """Read every `*.jinja` file of a folder, sorted by its name without the ending; raise `TemplateError`."""
    files = []
    for path in sorted(Path(folder).glob("*.jinja"), key=lambda path: path.stem):
        try:
            files.append(TemplateFile(name=path.stem, source=read_text_file(path), path=str(path)))
        except (OSError, ValueError) as error:
            raise TemplateError(f"template file {str(path)!r} cannot be read: {error}") from None
    return files


class Source(ABC):
    """Reads records from one kind of address."""

    name: ClassVar[str]
    description: ClassVar[str] = ""

    @abstractmethod
    def accepts(self, address: str) -> bool:
        """Return whether this source reads `address` (a path, a name). Must be cheap: no data is read."""

    @abstractmethod
    def read(self, address: str) -> Iterator[Record | RecordError]:
        """Yield the records in order.

        Yield a `RecordError` for a row that cannot be read: the caller decides whether to stop. Raise `SourceError` if
        nothing can be read at all.
        """

    def files(self, address: str) -> Sequence[Path] | None:
        """Return the local files, in order, that determine everything that `read` yields; raise `SourceError`.

        As long as their content is the same, `read` must yield the same. None, the default, means that this cannot be
        known; the examples of such a source are not cached.
        """
        return None


class ModelResolver(ABC):
    """Finds a model by name on this machine."""

    name: ClassVar[str]
    description: ClassVar[str] = ""

    @abstractmethod
    def resolve(self, name: str) -> Path | None:
        """Return a folder that `transformers` loads, or a `.gguf` file; None if the name is not this resolver's."""
