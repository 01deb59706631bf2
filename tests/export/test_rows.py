"""Files of rows from the exporters: complete, and of one schema for any number of rows."""

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
from testkit.traced_texts import ANSWER, USER, TracedText, layout

from templatekit import Exporter, Registry, RenderedText, TokenizedExample, render
from templatekit.export import rows as rows_module
from templatekit.export import span_column as span_column_module
from templatekit.export.rows import JsonLines, to_row
from templatekit.export.span_column import span_column
from templatekit.packing.columns import TokenizedColumns
from templatekit.types import COMPUTED, TEMPLATE


def table(exporter: Exporter, examples: Sequence[RenderedText | TokenizedExample]) -> list[dict[str, Any]]:
    """The rows of a file, read back."""
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
def traced_texts(draw: st.DrawFn) -> TracedText:
    """Traced texts of any number of pieces."""
    texts = st.sampled_from(["a", "été", "\n"])
    pieces = st.tuples(st.none() | texts, st.sampled_from([TEMPLATE, USER, COMPUTED]))
    given = layout(*draw(st.lists(pieces, max_size=4)), (None, ANSWER))
    return TracedText(given, tuple(draw(texts) for text, _ in given.pieces if text is None))


@given(several=st.lists(st.tuples(traced_texts(), st.booleans()), max_size=4), again=st.integers(1, 2))
def test_spans_of_many_texts_at_once(several: list[tuple[TracedText, bool]], again: int) -> None:
    texts = [one.lazy() if from_trace else one.eager() for one, from_trace in several * again]
    expected = [to_row(one.eager())["spans"] for one, _ in several * again]
    assert span_column(texts).to_pylist() == expected


def test_negative_control_neighbours_of_one_origin_are_one_span(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TracedText(layout(("a", TEMPLATE), ("b", TEMPLATE), (None, ANSWER)), ("c",))
    assert span_column([text.lazy()]).to_pylist() == [to_row(text.eager())["spans"]]
    separate = partial(span_column_module._piece_spans, merged=False)
    monkeypatch.setattr(span_column_module, "_piece_spans", lambda origins, names, merged: separate(origins, names))
    assert span_column([text.lazy()]).to_pylist() != [to_row(text.eager())["spans"]]


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


@pytest.mark.parametrize("options", [{}, {"train_on": "response=0.5"}, {"max_length": 60, "truncation": "response"}])
@pytest.mark.parametrize("many", [1, 2, 7, 1 << 16])
def test_a_row_of_many_tokens_is_the_same_line(
    monkeypatch: pytest.MonkeyPatch, tokenizer_of: Any, options: dict[str, Any], many: int
) -> None:
    """It is written in parts, of this many tokens."""
    records = [*chat(3), {"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "ja " * 40}]}]
    examples = [*render(records, template="chatml", tokenizer=tokenizer_of("bytes"), **options)]
    file = io.BytesIO()
    JsonLines().write(examples, file)
    monkeypatch.setattr(rows_module, "_MANY_TOKENS", many)
    assert JsonLines().convert(TokenizedColumns.of(examples)) == (4, file.getvalue())
