"""Writes the examples of a part: tokens, texts and conversations, each in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from templatekit.cache.disk import STATE, size_and_hash, staging, write_state
from templatekit.cache.values import example_to_json, origin_to_json
from templatekit.columns import TokenizedColumns
from templatekit.counts import Counts
from templatekit.prepared import Batch
from templatekit.types import Origin, RenderedText, TargetSpan

if TYPE_CHECKING:
    import pyarrow as pa

TOKENS, TEXTS, EXAMPLES = "tokens.arrow", "texts.arrow", "examples.arrow"


class PartWriter:
    """Takes the batches of one part."""

    def __init__(self) -> None:
        self._rows: dict[str, list[pa.RecordBatch]] = {TOKENS: [], TEXTS: [], EXAMPLES: []}
        self._origins: dict[Origin, int] = {}
        self._roles: dict[str, int] = {}
        self._samples = 0

    def add(self, batch: Batch) -> None:
        """Takes a batch with tokens; raises `NotPlain` for an example that cannot be kept."""
        import pyarrow as pa

        assert batch.columns is not None
        columns = batch.columns
        texts = list(columns.rendered)
        examples = [example_to_json(item.example) for item in batch.items]
        self._rows[TOKENS].append(pa.record_batch(_token_columns(columns, texts)))
        self._rows[TEXTS].append(pa.record_batch(self._text_columns(columns, texts)))
        self._rows[EXAMPLES].append(pa.record_batch({"example": pa.array(examples, type=pa.large_binary())}))
        self._samples += len(texts)

    def finish(self, target: Path, *, records: int, counts: Counts, adapter: str | None) -> None:
        """Writes the part, or leaves one that another process has written meanwhile: they are the same.

        Raises `RunError` where the disk takes no more, and leaves nothing then.
        """
        with staging(target) as folder:
            for name, batches in self._rows.items():
                _write_table(folder / name, batches, _empty(name))
            state = {
                "records": records,
                "samples": self._samples,
                "counts": counts.as_dict(),
                "adapter": adapter,
                "origins": [origin_to_json(origin) for origin in self._origins],
                "roles": list(self._roles),
                "files": {name: size_and_hash(folder / name) for name in self._rows},
            }
            write_state(folder / STATE, state)

    def _text_columns(self, columns: TokenizedColumns, texts: Sequence[RenderedText]) -> dict[str, pa.Array]:
        import pyarrow as pa

        def number(of: dict[Any, int], value: Any) -> int:
            return of.setdefault(value, len(of))

        known: dict[int, tuple[int, Origin]] = {}  # by object, of which there are few: hashing them takes its time

        def origin(value: Origin) -> int:
            if id(value) not in known:
                known[id(value)] = number(self._origins, value), value
            return known[id(value)][0]

        spans = [[n for s in text.spans for n in (s.start, s.end, origin(s.origin))] for text in texts]
        targets = [[n for t in text.target_spans for n in _of_target(t)] for text in texts]
        return {
            "text": pa.array([text.text for text in texts], type=pa.large_string()),
            "spans": _lists(spans, pa.int32()),
            "targets": _lists(targets, pa.int32()),
            "message_weights": _lists([text.message_weights for text in texts], pa.float64()),
            "roles": _lists([[number(self._roles, role) for role in text.roles] for text in texts], pa.int32()),
            "history": pa.array([text.history for text in texts], type=pa.int32()),
            "loss_spans": _lists(
                [[n for s in spans for n in (s.start, s.end)] for spans in columns.loss_spans], pa.int32()
            ),
            "loss_span_weights": _lists([[s.weight for s in spans] for spans in columns.loss_spans], pa.float64()),
            "truncated": pa.array(list(columns.truncated), type=pa.string()),
        }


def _write_table(path: Path, batches: Sequence[pa.RecordBatch], empty: pa.Schema) -> None:
    """One record batch, so that a column is one run of memory."""
    import pyarrow as pa

    table = pa.Table.from_batches(batches, schema=batches[0].schema if batches else empty).combine_chunks()
    whole = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema=table.schema)
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_batch(whole)


def _empty(name: str) -> pa.Schema:
    import pyarrow as pa

    if name == EXAMPLES:
        return pa.schema({"example": pa.large_binary()})
    nothing = TokenizedColumns.of([])
    arrays = _token_columns(nothing, []) if name == TOKENS else PartWriter()._text_columns(nothing, [])
    return pa.record_batch(arrays).schema


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
