"""The base classes of exporters, which write prepared samples.

| base class | writes | content for each sample |
| --- | --- | --- |
| `Exporter` | a file | text, ids and labels |
| `RecordExporter` | JSON Lines | the conversation, as a record of an adapter's shape |
| `FolderExporter` | a folder | what its `admit` returns |
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from templatekit.errors import RecordError, shorten
from templatekit.hooks.contracts import Adapter
from templatekit.types import Example, Message, RenderedText, Sample, TokenizedExample

if TYPE_CHECKING:
    from templatekit.packing import Packs
    from templatekit.packing.columns import TokenizedColumns  # which needs NumPy

NOT_EXPRESSIBLE = "not_expressible"
"""The reason code for a sample that a format cannot hold."""


class BaseExporter(ABC):
    """Writes prepared samples."""

    name: str
    """The value of `render --format`."""
    description: str = ""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File endings that choose this exporter if no format is named; of several, the one that was offered first."""
    whole_records: ClassVar[bool] = False
    """Whether it receives the whole conversation of a record once, instead of each sample of the record."""
    takes_packs: ClassVar[bool] = False
    """Whether it implements `write_packs`."""

    def admit(self, sample: Sample) -> Any:
        """Return the content to write for a sample; raise `RecordError` if the format cannot hold the sample."""
        return sample.result

    def admits_all(self, columns: TokenizedColumns) -> bool:
        """Return True if `admit` returns each of these tokenized examples unchanged; False if it must be called."""
        return type(self).admit is BaseExporter.admit


class Exporter(BaseExporter):
    """Writes prepared examples to a file."""

    @abstractmethod
    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """Write every example and return their count. Without a tokenizer the examples are `RenderedText`s.

        `file` may be a pipe, so write it without seeking. The caller opens it, and discards an incomplete file.
        """

    def convert(self, columns: TokenizedColumns) -> Any:
        """Convert tokenized examples to what `write_converted` writes, such as arrays or lines.

        This runs in the worker that tokenized them, so the result must be picklable. By default a list of examples.
        """
        return list(columns)

    def write_converted(self, parts: Iterable[Any], file: BinaryIO) -> int:
        """Write the results of `convert` in order and return the count of examples. By default by a call to `write`."""
        return self.write(chain.from_iterable(parts), file)

    def write_packs(self, packs: Iterable[Packs], file: BinaryIO) -> int:
        """Write packs of examples, one row each, and return their count; for exporters with `takes_packs`.

        There is at least one `Packs`, which may be empty.
        """
        raise NotImplementedError(f"format {self.name!r} takes no packs")


class FolderExporter(BaseExporter):
    """Writes samples to a folder."""

    @abstractmethod
    def write_folder(self, items: Iterable[Any], folder: Path) -> int:
        """Write every result of `admit` and return their count.

        The folder exists and is empty. The caller discards an incomplete folder.
        """

    def write_packs(self, packs: Iterable[Packs], folder: Path) -> int:
        """As `Exporter.write_packs`, for examples that `admit` returns unchanged."""
        raise NotImplementedError(f"format {self.name!r} takes no packs")


class RecordExporter(BaseExporter):
    """Writes conversations as records of an adapter's shape, one JSON object a line.

    The adapter reads each record back. If the example differs from the original, the sample is refused, and the error
    names the difference. A context for which the shape has no place is appended to the content, after an empty line.
    """

    whole_records: ClassVar[bool] = True

    def __init__(self, adapter: Adapter, *, name: str | None = None, description: str = "") -> None:
        self.adapter = adapter
        self.name = name or adapter.name
        self.description = description or f"JSON Lines of {adapter.description}"

    def admit(self, sample: Sample) -> Any:
        """Return the record; raise `RecordError` if the adapter does not read the same example from it."""
        tokenized = sample.tokenized
        if tokenized is not None and tokenized.truncated == "response":
            raise self.refusal("an answer that was cut; expected whole ones: another --truncation")
        example = sample.example
        record, difference = self._round_trip(example)
        if difference and any(message.context for message in example.messages):
            record, difference = self._round_trip(_append_contexts(example))
        if difference:
            raise self.refusal(difference)
        return self.laid_out(record, example)

    def laid_out(self, record: Mapping[str, Any], example: Example) -> Mapping[str, Any]:
        """Return the record in the format's own form, if that is stricter than the adapter's; may raise `refusal`."""
        return record

    def refusal(self, what: str) -> RecordError:
        """Return the error for a sample that the format cannot hold because of `what`."""
        return RecordError(f"format {self.name!r} has no place for {what}", reason=NOT_EXPRESSIBLE)

    def write(self, records: Iterable[Mapping[str, Any]], file: BinaryIO) -> int:
        """Write one line for each record and return their count."""
        return write_json_lines(records, file)

    def _round_trip(self, example: Example) -> tuple[Mapping[str, Any], str]:
        """The example's record, and the first difference of the example that is read back from it; "" if none."""
        try:
            record = self.adapter.to_record(example)
            back = self.adapter.to_example(json.loads(json.dumps(record)))
        except RecordError as error:
            return {}, f"it: {error}"
        except (NotImplementedError, ValueError, TypeError, IndexError, KeyError) as error:
            return {}, f"this conversation: {type(error).__name__} {error}"
        return record, _difference(example, back)


def write_json_lines(rows: Iterable[Mapping[str, Any]], file: BinaryIO) -> int:
    """Write a line for each row, which escapes only the characters that JSON must escape; return their count."""
    count = 0
    for row in rows:
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        count += 1
    return count


def _append_contexts(example: Example) -> Example:
    """The example with each message's context at the end of its content."""
    return replace(
        example,
        messages=tuple(
            replace(m, content=f"{m.content}\n\n{m.context}" if m.content else m.context, context="", parts=())
            if m.context
            else m
            for m in example.messages
        ),
    )


_COMPARED = ("role", "content", "context", "reasoning", "tool_calls", "tool_call_id", "name", "weight")


def _difference(example: Example, back: Example) -> str:
    """The first difference between an example and the one that was read back; content parts are compared as text."""
    if len(example.messages) != len(back.messages):
        return f"{len(example.messages)} messages; {len(back.messages)} would come back"
    for index, (one, other) in enumerate(zip(example.messages, back.messages, strict=True)):
        for name in _COMPARED:
            if (found := _value(one, name)) != _value(other, name):
                return f"messages[{index}].{name}={shorten(found)}"
    for name in ("tools", "documents"):
        if list(getattr(example, name)) != list(getattr(back, name)):
            return f"{name}={shorten(getattr(example, name))}"
    return ""


def _value(message: Message, name: str) -> Any:
    value = getattr(message, name)
    if name == "weight" and message.role != "assistant":
        return None  # by default only answers are trained, so the weight of another message has no effect
    return list(value) if isinstance(value, tuple) else value
