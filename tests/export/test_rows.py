"""Files of rows, as the exporters write them: whole, of one schema, however many rows there are."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.outlined import ANSWER, USER, Filled, outline

from templatekit import Exporter, Registry, RenderedText, TokenizedExample, render
from templatekit.export import spans
from templatekit.export.rows import to_row
from templatekit.export.spans import span_lists
from templatekit.types import COMPUTED, TEMPLATE


def table(exporter: Exporter, examples: Sequence[RenderedText | TokenizedExample]) -> list[dict[str, Any]]:
    """What a file holds, read back."""
    file = io.BytesIO()
    assert exporter.write(iter(examples), file) == len(examples)
    data = file.getvalue()
    if exporter.name == "jsonl":
        return [json.loads(line) for line in data.decode().split("\n") if line]
    read = pq.read_table(pa.BufferReader(data)) if exporter.name == "parquet" else pa.ipc.open_file(data).read_all()
    rows: list[dict[str, Any]] = read.to_pylist()
    if not rows:
        assert read.column_names == ["row", "sample", "text", "spans"]
    for row in rows:
        assert row.pop("sample") == 0  # the rows here give one sample each
    return rows


def chat(count: int, *, weighted: int | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"n\u2028{row}"}, {"role": "assistant", "content": "ja\x85"}]}
        for row in range(count)
    ]
    if weighted is not None:
        rows[weighted]["messages"][1]["weight"] = 0.5
    return rows


@st.composite
def filled(draw: st.DrawFn) -> Filled:
    """Texts of a few outlines, of any number of pieces."""
    texts = st.sampled_from(["a", "été", "\n"])
    pieces = st.tuples(st.none() | texts, st.sampled_from([TEMPLATE, USER, COMPUTED]))
    given = outline(*draw(st.lists(pieces, max_size=4)), (None, ANSWER))
    return Filled(given, tuple(draw(texts) for text, _ in given.pieces if text is None))


@given(several=st.lists(st.tuples(filled(), st.booleans()), max_size=4), again=st.integers(1, 2))
def test_spans_worked_out_all_at_once(several: list[tuple[Filled, bool]], again: int) -> None:
    texts = [one.deferred() if by_plan else one.whole() for one, by_plan in several * again]
    expected = [to_row(one.whole())["spans"] for one, _ in several * again]
    assert span_lists(texts).to_pylist() == expected


def test_negative_control_neighbours_of_one_origin_are_one_span(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Filled(outline(("a", TEMPLATE), ("b", TEMPLATE), (None, ANSWER)), ("c",))
    assert span_lists([text.deferred()]).to_pylist() == [to_row(text.whole())["spans"]]
    apart = partial(spans._runs, joined=False)
    monkeypatch.setattr(spans, "_runs", lambda origins, names, joined: apart(origins, names))
    assert span_lists([text.deferred()]).to_pylist() != [to_row(text.whole())["spans"]]


@pytest.fixture(params=["jsonl", "parquet", "arrow"])
def exporter(request: pytest.FixtureRequest, builtin: Registry) -> Exporter:
    found = builtin.exporters[request.param]
    assert isinstance(found, Exporter)
    return found


@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_text_comes_back(exporter: Exporter, count: int) -> None:
    examples = list(render(chat(count), template="chatml"))
    assert table(exporter, examples) == [to_row(example) for example in examples]


def test_ids_come_back_with_weights_from_any_batch(exporter: Exporter, tokenizer_of: Any) -> None:
    examples = list(render(chat(1100, weighted=1099), template="chatml", tokenizer=tokenizer_of("bytes")))
    rows = table(exporter, examples)
    for row, example in zip(rows, examples, strict=True):
        assert isinstance(example, TokenizedExample)
        weights = row.pop("loss_weights", None)
        if exporter.name != "jsonl" or example.row == 1099:
            assert weights == list(example.loss_weights)
        assert row.pop("truncated", None) is None
        assert row == {key: value for key, value in to_row(example).items() if key != "loss_weights"}
    assert exporter.name != "jsonl" or [row["row"] for row in rows if "loss_weights" in row] == []


@pytest.mark.parametrize("train_on", ["response=0.5", "response,user=0.25", "content=2,user.content=0.25,system"])
def test_weights_of_parts_come_back(train_on: str, exporter: Exporter, tokenizer_of: Any) -> None:
    examples = list(render(chat(3), template="chatml", tokenizer=tokenizer_of("bytes"), train_on=train_on))
    for row, example in zip(table(exporter, examples), examples, strict=True):
        assert isinstance(example, TokenizedExample)
        assert row["loss_weights"] == list(example.loss_weights)
        assert [label == -100 for label in row["labels"]] == [not weight for weight in row["loss_weights"]]
        weights = {"response=0.5": {0.5}, "response,user=0.25": {1, 0.25}}.get(train_on, {2, 0.25})
        assert {weight for weight in row["loss_weights"] if weight} == weights


def test_what_was_shortened_is_marked(exporter: Exporter, tokenizer_of: Any) -> None:
    rows = chat(2)
    rows[1]["messages"][1]["content"] = "so " * 99
    options = {"template": "chatml", "tokenizer": tokenizer_of("bytes"), "max_length": 100, "truncation": "response"}
    assert [row.get("truncated") for row in table(exporter, list(render(rows, **options)))] == [None, "response"]


def test_spans_cover_the_text(exporter: Exporter) -> None:
    (row,) = table(exporter, list(render(chat(1), template="chatml")))
    assert "".join(row["text"][span["start"] : span["end"]] for span in row["spans"]) == row["text"]
    assert [span["origin"] for span in row["spans"] if span["origin"] != "template"] == [
        "messages[0].role",
        "messages[0].content",
        "messages[1].role",
        "messages[1].content",
    ]
