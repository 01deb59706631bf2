"""Examples in Arrow tables: tokens, texts and conversations, quick to send to another process and to lay end to end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from templatekit.cache.example_json import NotPlain, example_to_json
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import SampleBatch
from templatekit.types import Origin, RenderedText, TargetSpan

if TYPE_CHECKING:
    import pyarrow as pa

_SPAN = 3
"""Numbers of a span: start, end, and its origin's place among the origins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """Some examples, a row each in three tables."""

    tokens: pa.RecordBatch
    texts: pa.RecordBatch
    examples: pa.RecordBatch
    origins: Sequence[Origin]
    """Those that spans refer to by their places, in the order in which they come up."""
    roles: Sequence[str]
    """So, too."""

    def __len__(self) -> int:
        return int(self.tokens.num_rows)

    @classmethod
    def of(cls, batch: SampleBatch) -> Tables:
        """A batch with tokens; raises `NotPlain` for an example that would not come back as it is."""
        import pyarrow as pa

        columns = tokens_of(batch)
        texts = list(columns.rendered)
        if any(text.source for text in texts):
            raise NotPlain("the name of one of several sets")
        examples = [example_to_json(item.example) for item in batch.items]
        origins: dict[Origin, int] = {}
        roles: dict[str, int] = {}
        return cls(
            tokens=pa.record_batch(_token_columns(columns, texts)),
            texts=pa.record_batch(_text_columns(columns, texts, origins, roles)),
            examples=pa.record_batch({"example": pa.array(examples, type=pa.large_binary())}),
            origins=list(origins),
            roles=list(roles),
        )

    @classmethod
    def join(cls, several: Iterable[Tables]) -> Tables:
        """One after another, each table one run of memory: the same, however the examples were parted before."""
        found = list(several) or [cls.of(SampleBatch(items=[], columns=TokenizedColumns.of([])))]
        origins: dict[Origin, int] = {}
        roles: dict[str, int] = {}
        texts = []
        for one in found:
            places = _places(one.origins, origins), _places(one.roles, roles)
            texts.append(_renumbered(one.texts, *places))
        return cls(
            tokens=_end_to_end([one.tokens for one in found]),
            texts=_end_to_end(texts),
            examples=_end_to_end([one.examples for one in found]),
            origins=list(origins),
            roles=list(roles),
        )


def tokens_of(batch: SampleBatch) -> TokenizedColumns:
    """A batch's columns, made where it has none, as of pairs."""
    if batch.columns is not None:
        return batch.columns
    return TokenizedColumns.of([item.tokenized for item in batch.items if item.tokenized is not None])


def _places(names: Sequence[Any], of: dict[Any, int]) -> NDArray[np.int32]:
    return np.array([of.setdefault(name, len(of)) for name in names], dtype=np.int32)


def _renumbered(texts: pa.RecordBatch, origins: NDArray[np.int32], roles: NDArray[np.int32]) -> pa.RecordBatch:
    """The table with other numbers for origins and roles."""
    spans = texts.column("spans").values.to_numpy().copy()
    spans[_SPAN - 1 :: _SPAN] = origins[spans[_SPAN - 1 :: _SPAN]]
    for name, values in (("spans", spans), ("roles", roles[texts.column("roles").values.to_numpy()])):
        place = texts.schema.get_field_index(name)
        texts = texts.set_column(place, name, _list_array(texts.column(name).offsets.to_numpy(), values))
    return texts


def _end_to_end(tables: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    table = pa.Table.from_batches(tables).combine_chunks()
    return table.to_batches()[0] if table.num_rows else tables[0]


def _text_columns(
    columns: TokenizedColumns, texts: Sequence[RenderedText], origins: dict[Origin, int], roles: dict[str, int]
) -> dict[str, pa.Array]:
    import pyarrow as pa

    def number(of: dict[Any, int], value: Any) -> int:
        return of.setdefault(value, len(of))

    known: dict[int, tuple[int, Origin]] = {}  # by object, of which there are few: hashing them takes its time

    def origin(value: Origin) -> int:
        if id(value) not in known:
            known[id(value)] = number(origins, value), value
        return known[id(value)][0]

    spans = [[n for s in text.spans for n in (s.start, s.end, origin(s.origin))] for text in texts]
    targets = [[n for t in text.target_spans for n in _of_target(t)] for text in texts]
    return {
        "text": pa.array([text.text for text in texts], type=pa.large_string()),
        "spans": _lists(spans, pa.int32()),
        "targets": _lists(targets, pa.int32()),
        "message_weights": _lists([text.message_weights for text in texts], pa.float64()),
        "roles": _lists([[number(roles, role) for role in text.roles] for text in texts], pa.int32()),
        "history": pa.array([text.history for text in texts], type=pa.int32()),
        "loss_spans": _lists(
            [[n for s in spans for n in (s.start, s.end)] for spans in columns.loss_spans], pa.int32()
        ),
        "loss_span_weights": _lists([[s.weight for s in spans] for spans in columns.loss_spans], pa.float64()),
        "truncated": pa.array(list(columns.truncated), type=pa.string()),
    }


def _token_columns(columns: TokenizedColumns, texts: Sequence[RenderedText]) -> dict[str, pa.Array]:
    """Ids as they are; weights, of which there are few changes, as runs."""
    import pyarrow as pa

    weights, offsets = columns.loss_weights, columns.offsets
    starts = np.unique(np.concatenate([offsets[:-1], np.flatnonzero(weights[1:] != weights[:-1]) + 1]))
    starts = starts[starts < len(weights)].astype(np.int64)
    runs = np.searchsorted(starts, offsets)
    return {
        "row": pa.array([text.row for text in texts], type=pa.int64()),
        "sample": pa.array([text.sample for text in texts], type=pa.int32()),
        "samples": pa.array([text.samples for text in texts], type=pa.int32()),
        "input_ids": _list_array(offsets, columns.input_ids),
        "weights": _list_array(runs, weights[starts]),
        "run_lengths": _list_array(runs, np.diff(np.append(starts, len(weights))).astype(np.int32)),
    }


def _lists(values: Sequence[Sequence[Any]], kind: pa.DataType) -> pa.LargeListArray:
    import pyarrow as pa

    return pa.array(values, type=pa.large_list(kind))


def _list_array(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.LargeListArray:
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array(offsets.astype(np.int64)), pa.array(values))


def _of_target(target: TargetSpan) -> tuple[int, int, int, int]:
    return target.message, target.start, target.marker_start, target.end
