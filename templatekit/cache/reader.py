"""`TableColumns`: samples in Arrow tables, read one by one or in columns, each value when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from templatekit.cache.example_json import example_from_json
from templatekit.packing.columns import TokenizedColumns, range_indices
from templatekit.pipeline.batches import BATCH_SIZE, SampleBatch
from templatekit.types import (
    Example,
    LossSpan,
    Origin,
    RenderedText,
    Sample,
    Span,
    TargetSpan,
    TokenizedExample,
)

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


@dataclass(kw_only=True, eq=False, repr=False)
class TableColumns:
    """Samples in three tables, which have a row for each."""

    tokens: pa.RecordBatch
    """Ids, weights, row numbers."""
    texts: pa.RecordBatch
    """Texts and their spans."""
    examples: pa.RecordBatch
    """The conversations."""
    origins: Sequence[Origin]
    """The origins that spans refer to by their index, in the order of their first use."""
    roles: Sequence[str]
    """The roles that texts refer to by their index, in the order of their first use."""

    def __len__(self) -> int:
        return int(self.tokens.num_rows)

    def batches(self) -> Iterator[SampleBatch]:
        """The samples in batches. Tokens are views of the tables; texts are made when they are first needed."""
        for start in range(0, len(self), BATCH_SIZE):
            end = min(start + BATCH_SIZE, len(self))
            columns = self.columns(start, end)
            yield SampleBatch(
                items=_LazySequence(end - start, partial(self._samples, start, columns.rendered)), columns=columns
            )

    def columns(self, start: int, end: int) -> TokenizedColumns:
        """The samples `start` to `end`."""
        count = end - start
        return TokenizedColumns(
            rendered=_LazySequence(count, lambda: self._texts(start, end)),
            loss_spans=_LazySequence(count, lambda: self._loss_spans(start, end)),
            truncated=_LazySequence(count, lambda: _list(self.texts, "truncated", start, end)),
            offsets=self.offsets[start : end + 1] - self.offsets[start],
            input_ids=self.input_ids[self.offsets[start] : self.offsets[end]],
            loss_weights=self._weights(start, end),
        )

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Shape (samples + 1,): sample i has the tokens `offsets[i]` to `offsets[i + 1]`."""
        return _numpy(self.tokens.column("input_ids").offsets)

    @cached_property
    def input_ids(self) -> NDArray[np.int32]:
        """Shape (tokens,), memory-mapped."""
        return _numpy(self.tokens.column("input_ids").values)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Shape (samples,): the row of each sample's record."""
        return _numpy(self.tokens.column("row"))

    def concatenated(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The ids and weights of the samples with these indices, concatenated."""
        tokens = range_indices(self.offsets[indices], np.diff(self.offsets)[indices])
        return self.input_ids[tokens], self._weights(0, len(self))[tokens]

    def _weights(self, start: int, end: int) -> NDArray[np.float64]:
        offsets, weights, lengths = self._runs
        runs = slice(offsets[start], offsets[end])
        return np.repeat(weights[runs], lengths[runs])

    @cached_property
    def _runs(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
        """Where the runs of each sample start and end, and the weight and length of each run."""
        column = self.tokens.column("weights")
        return _numpy(column.offsets), _numpy(column.values), _numpy(self.tokens.column("run_lengths").values)

    def _samples(self, start: int, texts: Sequence[RenderedText]) -> list[Sample]:
        stored = _list(self.examples, "example", start, start + len(texts))
        return [Sample(example=example_from_json(e), rendered=text) for e, text in zip(stored, texts, strict=True)]

    def tokenized(self, index: int) -> TokenizedExample:
        """Sample `index` without its conversation."""
        return self.columns(index, index + 1)[0]

    def example(self, index: int) -> Example:
        """The conversation of sample `index`."""
        return example_from_json(self.examples.column("example")[index].as_py())

    def _texts(self, start: int, end: int) -> list[RenderedText]:
        origins, roles = self.origins, self.roles
        of_text = ("text", "spans", "targets", "message_weights", "roles", "history")
        of_tokens = ("row", "sample", "samples")
        columns = zip(
            *(_list(self.texts, name, start, end) for name in of_text),
            *(_list(self.tokens, name, start, end) for name in of_tokens),
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
                roles=tuple(roles[index] for index in role_indices),
                row=row,
                sample=sample,
                samples=samples,
                history=history,
            )
            for text, spans, targets, weights, role_indices, history, row, sample, samples in columns
        ]

    def _loss_spans(self, start: int, end: int) -> list[tuple[LossSpan, ...]]:
        all_edges = _list(self.texts, "loss_spans", start, end)
        all_weights = _list(self.texts, "loss_span_weights", start, end)
        return [
            tuple(LossSpan(start=a, end=b, weight=w) for (a, b), w in zip(_groups(edges, 2), weights, strict=True))
            for edges, weights in zip(all_edges, all_weights, strict=True)
        ]


class _LazySequence(Sequence[T]):
    """A sequence of known length that is made when an item is first needed."""

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


def _list(table: pa.RecordBatch, name: str, start: int, end: int) -> list[Any]:
    values: list[Any] = table.column(name).slice(start, end - start).to_pylist()
    return values


def _numpy(column: pa.Array) -> NDArray[Any]:
    values: NDArray[Any] = column.to_numpy()
    return values
