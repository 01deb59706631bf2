"""Packs of a stream: every example is complete in one pack within the budget, and packs contain nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit import Registry
from templatekit.packing import Packs, Sequences, pack_stream
from templatekit.packing.bin_packing import pack
from templatekit.packing.columns import TokenizedColumns
from templatekit.types import RenderedText, TokenizedExample

NUMBERS = st.lists(st.integers(1, 20), max_size=30)
"""Lengths of sequences; a pack holds `FEWEST` tokens at least."""
FEWEST = 20


def sequences(lengths: Iterable[int], *, sources: Iterable[str] = (), weight: float = 1.0) -> Sequences:
    """One sequence of each length: all tokens differ, and the first half of each sequence is not trained."""
    examples = []
    names = list(sources)
    start = 10
    for row, length in enumerate(lengths):
        text = RenderedText(
            text="", spans=(), row=row // 2, sample=row % 2, samples=2, source=names[row] if names else ""
        )
        weights = [0.0 if at < max(1, length // 2) else weight for at in range(length)]
        ids = tuple(range(start, start + length))
        examples.append(TokenizedExample(input_ids=ids, loss_weights=tuple(weights), rendered=text))
        start += length
    return Sequences.of(TokenizedColumns.of(examples))


def chunks_of(whole: Sequences, cuts: Iterable[int]) -> list[Sequences]:
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    return [whole.select(np.arange(start, end)) for start, end in pairwise(edges)]


def rows_of(packs: Iterable[Packs]) -> list[dict[str, list[Any]]]:
    """The rows computed by hand, pack by pack: the sequences of each pack one after the other."""
    found = []
    for some in packs:
        for first, last in zip(some.sequence_offsets[:-1], some.sequence_offsets[1:], strict=True):
            start, end = some.sequences.offsets[first], some.sequences.offsets[last]
            found.append(
                {
                    "input_ids": some.sequences.input_ids[start:end].tolist(),
                    "labels": some.labels[start:end].tolist(),
                    "position_ids": some.position_ids[start:end].tolist(),
                    "seq_lengths": some.sequences.lengths[first:last].tolist(),
                    "rows": some.sequences.rows[first:last].tolist(),
                    "samples": some.sequences.samples[first:last].tolist(),
                }
            )
    return found


def check(whole: Sequences, rows: list[dict[str, list[Any]]], pack_tokens: int) -> None:
    """Assert the properties of every set of packs."""
    expected = {
        (int(whole.rows[at]), int(whole.samples[at])): (
            whole.input_ids[whole.offsets[at] : whole.offsets[at + 1]].tolist(),
            whole.loss_weights[whole.offsets[at] : whole.offsets[at + 1]].tolist(),
        )
        for at in range(len(whole))
    }
    seen = [key for row in rows for key in zip(row["rows"], row["samples"], strict=True)]
    assert sorted(seen) == sorted(expected), "every sample is in exactly one pack"
    for row in rows:
        assert len(row["input_ids"]) <= pack_tokens, "no pack is over the budget"
        assert row["rows"], "no pack is empty"
        assert list(zip(row["rows"], row["samples"], strict=True)) == sorted(
            zip(row["rows"], row["samples"], strict=True)
        ), "samples come in their order"
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        for key in zip(row["rows"], row["samples"], strict=True):
            own, weights = expected[key]
            ids += own
            labels += [id if weight else -100 for id, weight in zip(own, weights, strict=True)]
            positions += range(len(own))
        assert row["input_ids"] == ids, "ids are the concatenation"
        assert row["labels"] == labels, "labels are the concatenation"
        assert row["position_ids"] == positions, "positions begin anew"
        assert row["seq_lengths"] == [len(expected[key][0]) for key in zip(row["rows"], row["samples"], strict=True)]


@given(
    lengths=NUMBERS, cuts=st.lists(st.integers(0, 30), max_size=5), room=st.integers(0, 40), window=st.integers(1, 4)
)
def test_packs_hold_every_sequence_whole(lengths: list[int], cuts: list[int], room: int, window: int) -> None:
    whole = sequences(lengths)
    found = list(pack_stream(chunks_of(whole, cuts), FEWEST + room, window=FEWEST * window))
    check(whole, rows_of(found), FEWEST + room)
    assert found


@given(lengths=NUMBERS, cuts=st.lists(st.integers(0, 30), max_size=5), window=st.integers(1, 4))
def test_the_division_into_chunks_decides_nothing(lengths: list[int], cuts: list[int], window: int) -> None:
    """Therefore the packs are the same for any count of workers."""
    whole = sequences(lengths)
    apart, together = (pack_stream(chunks, 32, window=32 * window) for chunks in (chunks_of(whole, cuts), [whole]))
    assert rows_of(apart) == rows_of(together)


def test_negative_control_packing_each_chunk_alone() -> None:
    chunks = chunks_of(sequences([10, 12, 10, 8]), [2])
    assert rows_of(some for chunk in chunks for some in pack_stream([chunk], FEWEST)) != rows_of(
        pack_stream(chunks, FEWEST)
    )


@given(lengths=NUMBERS)
def test_within_a_window_packs_are_those_of_training(lengths: list[int]) -> None:
    (one,) = pack_stream([sequences(lengths)], FEWEST)
    expected = sorted(pack(lengths, FEWEST))
    assert [[2 * r + s for r, s in zip(row["rows"], row["samples"], strict=True)] for row in rows_of([one])] == expected


@given(lengths=NUMBERS)
def test_windows_are_bounded(lengths: list[int]) -> None:
    """A window ends with the sequence that fills it: no more than a window waits in memory."""
    asked = 0

    def one_by_one() -> Iterable[Sequences]:
        nonlocal asked
        whole = sequences(lengths)
        for at in range(len(whole)):
            asked += lengths[at]
            yield whole.select(np.array([at]))

    given = 0
    for some in pack_stream(one_by_one(), FEWEST, window=2 * FEWEST):
        given += int(some.offsets[-1])
        assert asked == given
        assert int(some.offsets[-1]) < 2 * FEWEST + max([*lengths, 0])


def test_a_sequence_longer_than_a_pack_is_an_error() -> None:
    with pytest.raises(ValueError, match="a sequence of 21 tokens; expected at most pack_tokens=20"):
        list(pack_stream([sequences([3, 21])], 20))


def test_full_packs_are_full() -> None:
    draw = np.random.default_rng(0)
    whole = sequences(draw.lognormal(4.6, 0.8, 2000).astype(int).clip(1, 2048).tolist())
    found = rows_of(pack_stream([whole], 2048))
    assert sum(len(row["input_ids"]) for row in found) / (2048 * len(found)) > 0.98


def _twice(rows: list[dict[str, list[Any]]]) -> None:
    rows.append(rows[0])


def _lost(rows: list[dict[str, list[Any]]]) -> None:
    rows.pop()


def _crossed(rows: list[dict[str, list[Any]]]) -> None:
    rows[0]["position_ids"] = list(range(len(rows[0]["input_ids"])))


def _boundary(rows: list[dict[str, list[Any]]]) -> None:
    row = rows[0]
    row["labels"][row["seq_lengths"][0]] = row["input_ids"][row["seq_lengths"][0]]


def _merged(rows: list[dict[str, list[Any]]]) -> None:
    other = rows.pop()
    for key, values in other.items():
        rows[-1][key] += values


def _lengths(rows: list[dict[str, list[Any]]]) -> None:
    rows[0]["seq_lengths"] = [len(rows[0]["input_ids"])]


def _swapped(rows: list[dict[str, list[Any]]]) -> None:
    rows[0]["input_ids"][:2] = rows[0]["input_ids"][1::-1]


@pytest.mark.parametrize("broken", [_twice, _lost, _crossed, _boundary, _merged, _lengths, _swapped])
def test_the_check_notices(broken: Callable[[list[dict[str, list[Any]]]], None]) -> None:
    whole = sequences([10, 9, 8, 7, 6])
    rows = rows_of(pack_stream([whole], FEWEST))
    check(whole, rows, FEWEST)
    broken(rows)
    with pytest.raises(AssertionError):
        check(whole, rows, FEWEST)


def read(registry: Registry, format: str, packs: list[Packs], folder: Path) -> list[dict[str, Any]]:
    """The packs that an exporter writes, read back."""
    exporter: Any = registry.exporters[format]
    count = sum(map(len, packs))
    if format == "datasets":
        from datasets import load_from_disk

        assert exporter.write_packs(iter(packs), folder) == count
        found: list[dict[str, Any]] = load_from_disk(str(folder)).to_list()
        return found
    file = io.BytesIO()
    assert exporter.write_packs(iter(packs), file) == count
    data = file.getvalue()
    if format == "jsonl":
        return [json.loads(line) for line in data.decode().splitlines()]
    table = pq.read_table(pa.BufferReader(data)) if format == "parquet" else pa.ipc.open_file(data).read_all()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow", "datasets"])
@pytest.mark.parametrize("lengths", [[], [5], [6, 7, 8, 9, 10, 11, 12]])
def test_files_give_packs_back(format: str, lengths: list[int], builtin: Registry, tmp_path: Path) -> None:
    if format == "datasets" and not lengths:
        pytest.skip("datasets loads no folder without rows, whoever saved it")
    packs = list(pack_stream([sequences(lengths)], FEWEST, window=FEWEST))
    read_back = read(builtin, format, packs, tmp_path)
    trainers = ("input_ids", "labels", "position_ids", "seq_lengths")
    for row, expected in zip(read_back, rows_of(packs), strict=True):
        names = trainers if format == "datasets" else expected
        assert {name: row.pop(name) for name in names if name in row} == {
            name: value
            for name, value in expected.items()
            if name in names and (name != "samples" or any(value) or format != "jsonl")
        }
        weights = row.pop("loss_weights", None)
        if format in ("parquet", "arrow"):
            assert weights == [float(label != -100) for label in expected["labels"]]
        else:
            assert weights is None
        assert row == {}


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow"])
def test_weights_and_sources_are_kept(format: str, builtin: Registry, tmp_path: Path) -> None:
    packs = list(pack_stream([sequences([6, 7, 8], sources=["a", "b", "a"], weight=0.25)], FEWEST))
    read_back = read(builtin, format, packs, tmp_path)
    assert [row["sources"] for row in read_back] == [["a"], ["b", "a"]]
    for row in read_back:
        assert [weight for weight in row["loss_weights"] if weight] == [0.25] * sum(x != -100 for x in row["labels"])


def test_sequences_begin_untrained() -> None:
    """Pipelines never train the first token of a sequence; otherwise a prediction would cross two examples."""
    whole = sequences([4, 4])
    assert all(row["labels"][0] == row["labels"][4] == -100 for row in rows_of(pack_stream([whole], FEWEST)))
    wrong = replace(whole, loss_weights=np.ones(8))
    assert rows_of(pack_stream([wrong], FEWEST))[0]["labels"][4] != -100
