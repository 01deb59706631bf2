"""Fables and their morals: an adapter, a template, an exporter, as anyone may publish them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from templatekit import (
    Adapter,
    Example,
    Exporter,
    Message,
    Record,
    RenderedText,
    TemplateFile,
    TokenizedExample,
    hookimpl,
    template_files,
    text_of,
)


class Fable(Adapter):
    """`fable` is asked, told by an optional `teller`; `moral` is trained."""

    name = "fable"
    description = "fable, moral, optional teller"
    keys = ("fable", "moral", "teller")
    required = ("fable", "moral")

    def to_example(self, record: Record) -> Example:
        teller = text_of(record, "teller", required=False)
        fable = Message(role="user", content=text_of(record, "fable"), context=teller)
        return Example(messages=(fable, Message(role="assistant", content=text_of(record, "moral"))))

    def to_record(self, example: Example) -> Record:
        fable, moral = example.messages
        record = {"fable": fable.content, "moral": moral.content}
        return {**record, "teller": fable.context} if fable.context else record


class Csv(Exporter):
    """Row number and text, as a spreadsheet opens them."""

    name = "csv"
    description = "row, text"
    suffixes = (".csv",)

    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        rows = csv.writer(text)
        rows.writerow(("row", "text"))
        count = 0
        for example in examples:
            count += 1
            rendered = example.rendered if isinstance(example, TokenizedExample) else example
            rows.writerow((rendered.row, rendered.text))
        text.flush()
        text.detach()  # the caller opened the file, and closes it
        return count


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    return [Fable()]


@hookimpl
def templatekit_templates() -> Iterable[TemplateFile]:
    return template_files(Path(__file__).parent)


@hookimpl
def templatekit_exporters() -> Iterable[Exporter]:
    return [Csv()]
