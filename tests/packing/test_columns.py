"""Columns equal their examples: one by one, in files, and in the counts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers

from templatekit import Exporter, Registry, RenderedText, TokenizedExample
from templatekit.config.data_options import DataOptions
from templatekit.errors import TemplatekitError
from templatekit.export.rows import to_row
from templatekit.packing.columns import TokenizedColumns, token_arrays
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Sample

WEIGHTS = st.sampled_from([0.0, 1.0, 0.1, 0.25, 2.0])


@st.composite
def tokenized(draw: st.DrawFn) -> TokenizedExample:
    weights = draw(st.lists(WEIGHTS, max_size=6))
    return TokenizedExample(
        input_ids=tuple(draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(weights), max_size=len(weights)))),
        loss_weights=tuple(weights),
        rendered=RenderedText(text="", spans=(), row=draw(st.integers(0, 9))),
        truncated=draw(st.sampled_from([None, "response"])),
    )


@given(examples=st.lists(tokenized(), max_size=6), data=st.data())
def test_columns_hold_their_examples(examples: list[TokenizedExample], data: st.DataObject) -> None:
    columns = TokenizedColumns.of(examples)
    assert list(columns) == examples
    assert columns.lengths.tolist() == [len(example) for example in examples]
    assert columns.trained_tokens.tolist() == [example.trained_tokens for example in examples]
    assert columns.labels.tolist() == [label for example in examples for label in example.labels]
    assert columns.is_weighted == any(weight not in (0, 1) for e in examples for weight in e.loss_weights)
    keep = data.draw(st.lists(st.sampled_from(range(len(examples))), max_size=8)) if examples else []
    assert list(columns.select(keep)) == [examples[index] for index in keep]
    at = data.draw(st.integers(0, len(examples)))
    parts = [columns.select(range(at)), columns.select(range(at, len(examples)))]
    assert list(TokenizedColumns.join(parts)) == examples
    assert list(TokenizedColumns.join([])) == []
    for name, array in token_arrays(columns).items():
        assert [list(row) for row in array.to_pylist()] == [
            pytest.approx(list(getattr(example, name))) for example in examples
        ]


def records(count: int) -> list[dict[str, str]]:
    """Records, some with nothing to train, some too long."""
    return [
        {
            "instruction": f"Say {n}\u2028.",
            "input": "it " * (n % 5),
            "output": "" if n % 7 == 3 else "so " * (n * n % 40),
        }
        for n in range(count)
    ]


OPTIONS = [
    {},
    {"train_on": "response=0.5,context=0.1"},
    {"max_length": 110},
    {"max_length": 110, "truncation": "response"},
    {"max_length": 110, "truncation": "context", "boundary": "joint"},
    {"template": "chatml", "control_tokens": "everywhere"},
]


def pipeline_of(builtin: Registry, tokenizers: Tokenizers, **options: Any) -> Pipeline:
    return Pipeline(DataOptions(adapter="alpaca", **options), builtin, tokenizer=tokenizers("nfc"))


def one_by_one(pipeline: Pipeline, rows: Sequence[Any]) -> list[Sample]:
    """The samples of each record, prepared alone."""
    found: list[Sample] = []
    for row, record in enumerate(rows):
        try:
            found += pipeline.run([record], source="s", first_row=row)
        except TemplatekitError as error:
            if not str(error).startswith("0 of "):
                raise
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batches_are_what_the_records_are_one_by_one(
    builtin: Registry, tokenizer_of: Tokenizers, options: dict[str, Any]
) -> None:
    rows = records(300)
    batched = pipeline_of(builtin, tokenizer_of, **options)
    batches = list(batched.batches(rows, source="s"))
    alone = pipeline_of(builtin, tokenizer_of, **options, reuse=False)
    expected = one_by_one(alone, rows)
    assert [item for batch in batches for item in batch] == expected
    assert [len(batch) for batch in batches] == [len(list(batch)) for batch in batches]
    assert len(batches) == 2
    assert batched.counts == alone.counts
    assert batched.counts.dropped or batched.counts.truncated or "max_length" not in options


def test_samples_before_an_error_are_passed_on(builtin: Registry, tokenizer_of: Tokenizers) -> None:
    pipeline = pipeline_of(builtin, tokenizer_of, max_length=110, truncation="error")
    seen = []
    with pytest.raises(TemplatekitError, match=r"s:4: too long.*; to drop: --truncation drop"):
        for item in pipeline.run(records(20), source="s"):
            seen.append(item.rendered.row)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("count", [1, 300, 1300, 2200])
def test_files_of_columns_are_those_of_examples(
    builtin: Registry, tokenizer_of: Tokenizers, name: str, count: int
) -> None:
    exporter = builtin.exporters[name]
    assert isinstance(exporter, Exporter)
    pipeline = pipeline_of(builtin, tokenizer_of, train_on="response=0.5,context=0.1")
    batches = list(pipeline.batches(records(count)))
    columns = [batch.columns for batch in batches if batch.columns is not None]
    one, other = io.BytesIO(), io.BytesIO()
    written = sum(map(len, columns))
    assert exporter.write([item.result for batch in batches for item in batch], one) == written
    assert exporter.write_converted(map(exporter.convert, columns), other) == written
    assert one.getvalue() == other.getvalue()
    if name == "parquet":
        groups = pq.ParquetFile(other).metadata
        sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
        assert sizes[:-1] == [1024] * (len(sizes) - 1)


def test_no_columns_are_a_file_without_rows(builtin: Registry) -> None:
    file = io.BytesIO()
    exporter = builtin.exporters["parquet"]
    assert isinstance(exporter, Exporter)
    assert exporter.write_converted([], file) == 0
    assert pq.read_table(file).column_names[-1] == "truncated"


def test_an_exporter_of_one_by_one_takes_columns(builtin: Registry, tokenizer_of: Tokenizers) -> None:
    class Plain(Exporter):
        name = "plain"

        def write(self, examples: Any, file: Any) -> int:
            rows = [to_row(example) for example in examples]
            file.write(repr(rows).encode())
            return len(rows)

    file = io.BytesIO()
    batches = list(pipeline_of(builtin, tokenizer_of).batches(records(3)))
    columns = [batch.columns for batch in batches if batch.columns is not None]
    assert Plain().write_converted(map(Plain().convert, columns), file) == 3
    assert file.getvalue().decode() == repr([to_row(item.result) for batch in batches for item in batch])
