"""Reads JSON from standard input, plain or compressed, as it arrives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import ClassVar

from templatekit.errors import RecordError, SourceError
from templatekit.sources.compression import decompressed, make_rewindable
from templatekit.sources.json_records import read_json
from templatekit.sources.limits import LimitedSource
from templatekit.types import Record


class StdinSource(LimitedSource):
    """`-`. Standard input has no file extension: it is read as JSON, in any layout."""

    name: ClassVar[str] = "stdin"
    description: ClassVar[str] = "Standard input, as `-`: JSON or JSON Lines, plain or compressed."

    def accepts(self, address: str) -> bool:
        """Whether the address is `-`; a file with that name is `./-`."""
        return address == "-"

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The rows, as they arrive. They can be read once: a second reading is an error."""
        stream = None if sys.stdin is None else sys.stdin.buffer
        if stream is None or stream.closed:
            raise SourceError(f"{address}: standard input is closed; expected records: … | templatekit … --dataset -")
        if stream.isatty():
            raise SourceError(
                f"{address}: standard input is a terminal; expected records: zcat rows.jsonl.gz | templatekit … "
                "--dataset -"
            )
        with decompressed(make_rewindable(stream), address) as text:
            yield from read_json(text, address, limits=self.limits)
