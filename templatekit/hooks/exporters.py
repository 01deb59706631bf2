"""Where prepared samples go: what an exporter is, whatever it writes.

| an exporter of kind | writes | of each sample |
| --- | --- | --- |
| `Exporter` | a file | its text, ids and labels |
| `RecordExporter` | JSON Lines | its conversation, as an adapter's records have it |
| `FolderExporter` | a folder | what its `admit` says |
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
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
"""The reason under which a sample is counted that a layout has no place for."""


class Sink(ABC):
    """Writes prepared samples."""

    name: str
    """Also the value of `render --format`."""
    description: str = ""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File endings that choose this exporter where no format is named."""
    whole_records: ClassVar[bool] = False
    """Whether it wants a record's conversation once, rather than each of the samples it is trained in."""

    takes_packs: ClassVar[bool] = False
    """Whether it has `write_packs`."""

    def admit(self, sample: Sample) -> Any:
        """What is written of a sample; raises `RecordError` for one that the layout has no place for."""
        return sample.result

    def admits_all(self, columns: TokenizedColumns) -> bool:
        """Whether `admit` would take each of these tokenized examples as it is; False where that is to be tried."""
        return type(self).admit is Sink.admit


class Exporter(Sink):
    """Writes prepared examples to a file."""

    @abstractmethod
    def write(self, examples: Iterable[RenderedText | TokenizedExample], file: BinaryIO) -> int:
        """Writes every example and returns their number. Without a tokenizer the examples are `RenderedText`s.

        `file` may be a pipe: it is written from front to back. The caller opens it, and sees that a file is whole."""

    def convert(self, columns: TokenizedColumns) -> Any:
        """What is written for many tokenized examples, made in the process that made them: arrays, lines.

        It must be of a kind that can be pickled. By default the examples one by one."""
        return list(columns)

    def write_converted(self, parts: Iterable[Any], file: BinaryIO) -> int:
        """Writes what `convert` gave, in order, and returns the number of examples. By default `write` gets them."""
        return self.write(chain.from_iterable(parts), file)

    def write_packs(self, packs: Iterable[Packs], file: BinaryIO) -> int:
        """Writes packs of examples, a row each, and returns their number; for exporters with `takes_packs`.

        At least one `Packs` comes, which may hold none."""
        raise NotImplementedError(f"format {self.name!r} takes no packs")


class FolderExporter(Sink):
    """Writes what it admits to a folder."""

    @abstractmethod
    def write_folder(self, items: Iterable[Any], folder: Path) -> int:
        """Writes every item and returns their number. The folder is there, empty; the caller sees that it is whole."""

    def write_packs(self, packs: Iterable[Packs], folder: Path) -> int:
        """As an `Exporter`'s, for what `admit` takes as it is."""
        raise NotImplementedError(f"format {self.name!r} takes no packs")


class RecordExporter(Sink):
    """Writes conversations as records of an adapter's shape, one a line.

    Each record is read back by the adapter: what does not come back as it was cannot be said in this layout, and is
    refused by name. A context is put behind its message's content, after an empty line, where the layout keeps none.
    """

    whole_records: ClassVar[bool] = True

    def __init__(self, adapter: Adapter, *, name: str | None = None, description: str = "") -> None:
        self.adapter = adapter
        self.name = name or adapter.name
        self.description = description or f"JSON Lines of {adapter.description}"

    def admit(self, sample: Sample) -> Any:
        """The record; raises `RecordError` for what does not come back from it."""
        tokenized = sample.tokenized
        if tokenized is not None and tokenized.truncated == "response":
            raise self.refusal("an answer that was cut; expected whole ones: another --truncation")
        example = sample.example
        record, lost = self._tried(example)
        if lost and any(message.context for message in example.messages):
            record, lost = self._tried(_with_contexts_inside(example))
        if lost:
            raise self.refusal(lost)
        return self.laid_out(record, example)

    def laid_out(self, record: Mapping[str, Any], example: Example) -> Mapping[str, Any]:
        """The record as the layout has it, where it is stricter than the adapter; may raise `refusal`."""
        return record

    def refusal(self, what: str) -> RecordError:
        """The error for a sample that the layout has no place for."""
        return RecordError(f"format {self.name!r} has no place for {what}", reason=NOT_EXPRESSIBLE)

    def write(self, records: Iterable[Mapping[str, Any]], file: BinaryIO) -> int:
        """A line for each record."""
        count = 0
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            count += 1
        return count

    def _tried(self, example: Example) -> tuple[Mapping[str, Any], str]:
        """The record, and what of the example does not come back from it; "" where all does."""
        try:
            record = self.adapter.to_record(example)
            back = self.adapter.to_example(json.loads(json.dumps(record)))
        except RecordError as error:
            return {}, f"it: {error}"
        except (NotImplementedError, ValueError, TypeError, IndexError, KeyError) as error:
            return {}, f"this conversation: {type(error).__name__} {error}"
        return record, _difference(example, back)


def whole_records(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Of each record's samples those that no later one goes on from."""
    held: Sample | None = None
    for sample in samples:
        if held is not None and not _goes_on(held, sample):
            yield held
        held = sample
    if held is not None:
        yield held


def _goes_on(one: Sample, other: Sample) -> bool:
    same = (one.rendered.row, one.rendered.source) == (other.rendered.row, other.rendered.source)
    begun = other.rendered.sample > one.rendered.sample
    return same and begun and other.example.messages[: len(one.example.messages)] == one.example.messages


def _with_contexts_inside(example: Example) -> Example:
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
    """The first thing in which the two differ, in words; content parts count by their text."""
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
        return None  # nothing of it is trained by default, whatever it weighs
    return list(value) if isinstance(value, tuple) else value
