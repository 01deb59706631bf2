"""The data sets that ship with the package, so that everything runs without a file or a network."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import BinaryIO, ClassVar, cast

from templatekit.errors import RecordError, SourceError
from templatekit.sources.json_records import read_json
from templatekit.sources.limits import LimitedSource
from templatekit.types import Record

FILES = {"starter": "alpaca.json", "starter-dolly": "dolly.jsonl"}


class StarterSource(LimitedSource):
    """`starter` and `starter-dolly`. A file or folder with that name is `./starter`."""

    name: ClassVar[str] = "starter"
    description: ClassVar[str] = "The bundled sets: starter (Alpaca's columns), starter-dolly (Dolly's)."

    def accepts(self, address: str) -> bool:
        """Whether the address is one of the two names."""
        return address in FILES

    def files(self, address: str) -> list[Path] | None:
        """The one file; None if the package is not in a folder but in an archive."""
        file = resources.files("templatekit.sources") / "starter" / FILES[address]
        return [file] if isinstance(file, Path) else None

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The set's rows."""
        file = resources.files("templatekit.sources") / "starter" / FILES[address]
        try:
            with file.open("rb") as stream:
                yield from read_json(cast("BinaryIO", stream), address, limits=self.limits)
        except OSError as error:
            raise SourceError(f"{address}: the installed package lacks {file}; install templatekit again") from error
