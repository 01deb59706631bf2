"""A part of the examples on disk, checked when it is opened and read memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from templatekit.cache.disk import STATE, Damaged, check_size, hash_file, read_state
from templatekit.cache.values import example_from_json, origin_from_json
from templatekit.cache.writer import EXAMPLES, TEXTS, TOKENS
from templatekit.columns import TokenizedColumns, places_of
from templatekit.counts import Counts
from templatekit.prepared import BATCH, Batch, Prepared
from templatekit.types import Example, LossSpan, Origin, RenderedText, Span, TargetSpan, TokenizedExample, Truncation

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known of a part beside its examples."""

    records: int
    """Read from the source for it."""
    samples: int
    counts: Counts
    """Of its records alone."""
    adapter: str | None
    """None where no record came that one could be told by."""
    origins: list[Origin]
    """Those that spans refer to."""
    roles: list[str]


class Part:
    """A part on disk. Opening it reads what is known of it; each file is checked before it is first read."""

    def __init__(self, folder: Path) -> None:
        """Raises `Damaged`."""
        self.folder = folder
        values = read_state(folder / STATE)
        try:
            self._files: Mapping[str, Any] = values["files"]
            self.state = State(
                records=values["records"],
                samples=values["samples"],
                counts=Counts.from_dict(values["counts"]),
                adapter=values["adapter"],
                origins=[origin_from_json(origin) for origin in values["origins"]],
                roles=values["roles"],
            )
            sizes = {name: self._files[name]["bytes"] for name in (TOKENS, TEXTS, EXAMPLES)}
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{folder / STATE}: lacks what it should hold ({type(error).__name__}: {error})") from None
        for name, size in sizes.items():
            check_size(folder / name, size)

    def check(self, *, texts: bool = True) -> None:
        """Checks the tokens, and with `texts` the other files too; raises `Damaged`."""
        self._tokens.validate()
        if texts:
            self._text_table.validate()
            self._example_table.validate()

    def batches(self) -> Iterator[Batch]:
        """The examples, their tokens as they lie on the disk, their texts when they are asked for."""
        for start in range(0, self.state.samples, BATCH):
            end = min(start + BATCH, self.state.samples)
            columns = self.columns(start, end)
            yield Batch(items=_Later(end - start, partial(self._items, start, columns.rendered)), columns=columns)

    def columns(self, start: int, end: int) -> TokenizedColumns:
        """The examples `start` to `end`."""
        count = end - start
        return TokenizedColumns(
            rendered=_Later(count, lambda: self._texts(start, end)),
            loss_spans=_Later(count, lambda: self._loss_spans(start, end)),
            truncated=_Later(count, lambda: self._truncated(start, end)),
            offsets=self.offsets[start : end + 1] - self.offsets[start],
            input_ids=self.input_ids[self.offsets[start] : self.offsets[end]],
            loss_weights=self._weights(start, end),
        )

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Shape (samples + 1,): where each example's tokens begin."""
        return _offsets(self._tokens, "input_ids")

    @cached_property
    def input_ids(self) -> NDArray[np.int32]:
        """Shape (tokens,), memory-mapped."""
        return _values(self._tokens, "input_ids")

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Shape (samples,): the record that each example came from."""
        return _flat(self._tokens, "row")

    def tokens_of(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The ids and weights of the examples at these places, end to end."""
        tokens = places_of(self.offsets[places], np.diff(self.offsets)[places])
        return self.input_ids[tokens], self._weights(0, self.state.samples)[tokens]

    def _weights(self, start: int, end: int) -> NDArray[np.float64]:
        first, last = self._runs[start], self._runs[end]
        return np.repeat(self._run_weights[first:last], self._run_lengths[first:last])

    @cached_property
    def _runs(self) -> NDArray[np.int64]:
        return _offsets(self._tokens, "weights")

    @cached_property
    def _run_weights(self) -> NDArray[np.float64]:
        return _values(self._tokens, "weights")

    @cached_property
    def _run_lengths(self) -> NDArray[np.int32]:
        return _values(self._tokens, "run_lengths")

    @cached_property
    def _tokens(self) -> pa.RecordBatch:
        return self._table(TOKENS)

    @cached_property
    def _text_table(self) -> pa.RecordBatch:
        return self._table(TEXTS)

    @cached_property
    def _example_table(self) -> pa.RecordBatch:
        return self._table(EXAMPLES)

    def _table(self, name: str) -> pa.RecordBatch:
        import pyarrow as pa

        path = self.folder / name
        try:
            found = hash_file(path)
        except OSError as error:
            raise Damaged(f"{path}: cannot be read: {error.strerror or error}") from None
        if found != self._files[name]["xxh3_128"]:
            raise Damaged(f"{path}: has another hash than {STATE} says; a new run makes it again")
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            return reader.get_batch(0)

    def _items(self, start: int, texts: Sequence[RenderedText]) -> list[Prepared]:
        stored = self._example_table.column("example").slice(start, len(texts)).to_pylist()
        return [Prepared(example=example_from_json(e), rendered=text) for e, text in zip(stored, texts, strict=True)]

    def tokenized(self, index: int) -> TokenizedExample:
        """One example without its conversation."""
        return self.columns(index, index + 1)[0]

    def example(self, index: int) -> Example:
        """The conversation of one example."""
        return example_from_json(self._example_table.column("example")[index].as_py())

    def _texts(self, start: int, end: int) -> list[RenderedText]:
        table, origins, roles = self._text_table, self.state.origins, self.state.roles

        def lists(name: str) -> list[list[Any]]:
            found: list[list[Any]] = table.column(name).slice(start, end - start).to_pylist()
            return found

        def plain(name: str, of: pa.RecordBatch) -> list[Any]:
            found: list[Any] = of.column(name).slice(start, end - start).to_pylist()
            return found

        columns = zip(
            plain("text", table),
            lists("spans"),
            lists("targets"),
            lists("message_weights"),
            lists("roles"),
            plain("history", table),
            plain("row", self._tokens),
            plain("sample", self._tokens),
            plain("samples", self._tokens),
            strict=True,
        )
        return [
            RenderedText(
                text=text,
                spans=tuple(Span(start=a, end=b, origin=origins[o]) for a, b, o in _groups(spans, 3)),
                target_spans=tuple(
                    TargetSpan(message=m, start=a, marker_start=b, end=c) for m, a, b, c in _groups(targets, 4)
                ),
                message_weights=tuple(weights),
                roles=tuple(roles[number] for number in numbers),
                row=row,
                sample=sample,
                samples=samples,
                history=history,
            )
            for text, spans, targets, weights, numbers, history, row, sample, samples in columns
        ]

    def _loss_spans(self, start: int, end: int) -> list[tuple[LossSpan, ...]]:
        edges = self._text_table.column("loss_spans").slice(start, end - start).to_pylist()
        weights = self._text_table.column("loss_span_weights").slice(start, end - start).to_pylist()
        return [
            tuple(LossSpan(start=a, end=b, weight=w) for (a, b), w in zip(_groups(one, 2), of, strict=True))
            for one, of in zip(edges, weights, strict=True)
        ]

    def _truncated(self, start: int, end: int) -> list[Truncation | None]:
        found: list[Truncation | None] = self._text_table.column("truncated").slice(start, end - start).to_pylist()
        return found


class _Later(Sequence[T]):
    """A sequence of known length that is made when it is first asked for."""

    def __init__(self, count: int, make: Callable[[], Sequence[T]]) -> None:
        self._count, self._make = count, make
        self._made: Sequence[T] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if self._made is None:
            self._made = self._make()
        return self._made[index]


def _groups(values: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(values)] * size, strict=True)


def _flat(table: pa.RecordBatch, name: str) -> NDArray[Any]:
    found: NDArray[Any] = table.column(name).to_numpy(zero_copy_only=True)
    return found


def _offsets(table: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    found: NDArray[np.int64] = table.column(name).offsets.to_numpy(zero_copy_only=True)
    return found


def _values(table: pa.RecordBatch, name: str) -> NDArray[Any]:
    found: NDArray[Any] = table.column(name).values.to_numpy(zero_copy_only=True)
    return found
