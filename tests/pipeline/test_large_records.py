"""Many large records, one after the other: what counts records counts their bytes as well."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from testkit.at_hand import Tokenizers

from templatekit import DataOptions, Example, Message, RecordError, Registry
from templatekit.config.data_options import MixedSet
from templatekit.config.render_options import RenderOptions
from templatekit.export import folders, rows
from templatekit.export.rows import ArrowExporter
from templatekit.pipeline import batches, outputs, pipeline
from templatekit.pipeline.deduplication import IdentifiedRecord, create_text_index, mark_duplicates
from templatekit.pipeline.mixture import Mixture, create_pipeline
from templatekit.pipeline.pipeline import Pipeline
from templatekit.pipeline.preference import PreferencePipeline
from templatekit.sources import chunked, open_source
from templatekit.sources.limits import Limits, SizedRecord, told_size

Write = Callable[[str, "str | bytes"], str]

LIMITS = Limits(record=1_024_000)
SIZES = (10, 900, 1200, 20, 30_000, 30, 160_000, 160_000, 40)
ROWS = [{"instruction": "say", "output": f"{number}" * size} for number, size in enumerate(SIZES)]


def as_table(given: list[dict[str, str]], kind: str) -> bytes:
    table, buffer = pa.Table.from_pylist(given), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, buffer)
    else:
        with pa.ipc.new_file(buffer, table.schema) as writer:
            writer.write_table(table)
    return buffer.getvalue()


def as_file(name: str, given: list[dict[str, str]]) -> bytes:
    if name.endswith((".parquet", ".arrow")):
        return as_table(given, name.rpartition(".")[2])
    if name == "x.json":
        return json.dumps(given).encode()
    if name == "object.json":
        return json.dumps({"data": given}).encode()
    return b"".join(json.dumps(row).encode() + b"\n" for row in given)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file and gives its address."""

    def write(name: str, data: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return str(path)

    return write


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of a few kilobytes."""
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 70_000)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 70_000)
    monkeypatch.setattr(pipeline, "BATCH_BYTES", 20_000)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "object.json", "x.parquet", "x.arrow"])
def test_large_records_tell_their_size(write: Write, builtin: Registry, name: str) -> None:
    found = list(open_source(write(name, as_file(name, ROWS)), builtin, limits=LIMITS))
    assert found == ROWS
    told = [told_size(record) for record in found]
    assert [size > 0 for size in told] == [size > LIMITS.large for size in SIZES]
    assert all(size <= told <= size + 60 for size, told in zip(SIZES, told, strict=True) if told)


def test_large_rows_of_csv_tell_their_size(write: Write, builtin: Registry) -> None:
    """Where they are larger than two of the chunks that are read."""
    text = "instruction,output\n" + "".join(f'{row["instruction"]},"{row["output"]}"\n' for row in ROWS)
    found = list(open_source(write("x.csv", text), builtin, limits=LIMITS))
    assert found == ROWS
    assert [told_size(record) > 0 for record in found[-4:]] == [False, True, True, False]


def test_a_size_is_kept_on_the_way(write: Write, builtin: Registry) -> None:
    address = write("x.jsonl", as_file("x.jsonl", ROWS))
    options = DataOptions(
        dataset=address, adapter="alpaca", columns={"input": "output"}, filter=("len(instruction) > 0",), shuffle=1
    )
    found = Pipeline(options.model_copy(update={"max_record_size": 1}), builtin).open()
    assert sorted(map(told_size, found), reverse=True)[:4] > [159_000, 159_000, 29_000, 0]


@pytest.mark.usefixtures("few_bytes")
def test_chunks_end_early(write: Write, builtin: Registry) -> None:
    given = [{"instruction": "say", "output": "x" * 30_000}] * 10 + [{"instruction": "say", "output": "y"}] * 600
    options = DataOptions(dataset=write("x.jsonl", as_file("x.jsonl", given)), max_record_size=1)
    found = [len(chunk.records) for chunk in create_pipeline(options, builtin).chunks()]
    assert found == [3, 3, 3, 512, 89]
    mixed = options.model_copy(update={"mix": (MixedSet(dataset=options.dataset),)})
    assert [len(chunk.records) for chunk in create_pipeline(mixed, builtin).chunks()] == [3, 3, 3, 601, 0]
    assert isinstance(create_pipeline(mixed, builtin), Mixture)
    plain = Pipeline(options, builtin).split_into_chunks(given)  # negative control: these tell no size
    assert [len(chunk.records) for chunk in plain] == [512, 98]


def large(count: int, size: int = 15_000) -> list[SizedRecord]:
    found = []
    for number in range(count):
        record = SizedRecord(instruction="say", output=f"{number} " + "x " * (size // 2))
        record.size = size
        found.append(record)
    return found


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("template", ["chatml", "alpaca"])
def test_batches_end_early(builtin: Registry, tokenizer_of: Tokenizers, template: str) -> None:
    options = DataOptions(adapter="alpaca", template=template)
    for tokenizer in (None, tokenizer_of("bytes")):
        own = Pipeline(options, builtin, tokenizer=tokenizer)
        assert [len(batch) for batch in own.batches(large(7), source="x")] == [2, 2, 2, 1]
        small = [dict(record) for record in large(7)]
        assert [len(batch) for batch in own.batches(small, source="x")] == [7]  # negative control


@pytest.mark.usefixtures("few_bytes")
def test_pairs_are_not_separated(builtin: Registry, tokenizer_of: Tokenizers) -> None:
    record = SizedRecord(prompt="say", chosen="a " * 11_000, rejected="b " * 11_000)
    record.size = 44_000
    own = PreferencePipeline(DataOptions(template="chatml"), builtin, tokenizer=tokenizer_of("bytes"))
    assert [len(batch) for batch in own.batches([record] * 3, source="x")] == [2, 2, 2]


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("sink", ["jsonl", "openai"])
def test_output_chunks_end_with_a_batch(builtin: Registry, sink: str) -> None:
    own = Pipeline(DataOptions(adapter="alpaca", template="chatml"), builtin)
    exporter = builtin.exporters[sink]
    found = outputs.chunks_for_exporter(own.batches(large(7), source="x"), exporter, own)
    assert [chunk.samples for chunk in found] == [2, 2, 2, 1]
    small = [{"instruction": "say", "output": f"{number}"} for number in range(600)]
    found = outputs.chunks_for_exporter(own.batches(small, source="x"), exporter, own)
    assert [chunk.samples for chunk in found] == [256, 256, 88]


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("sink", ["parquet", "arrow"])
def test_row_groups_end_early(
    builtin: Registry, tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch, sink: str
) -> None:
    """At the same rows, with and without a tokenizer, however the rows are divided on their way."""
    given = [record for row in large(12) for record in (row, {"instruction": "é", "output": "è"})]
    files = set()
    for tokenizer, size in itertools.product((None, tokenizer_of("bytes")), (20_000, 100_000, 1_000_000)):
        monkeypatch.setattr(pipeline, "BATCH_BYTES", size)
        own = Pipeline(RenderOptions(adapter="alpaca", template="chatml"), builtin, tokenizer=tokenizer)
        exporter, file = builtin.exporters[sink], io.BytesIO()
        assert isinstance(exporter, ArrowExporter)
        parts = outputs.chunks_for_exporter(own.batches(given, source="x"), exporter, own)
        if tokenizer is None:
            exporter.write((item for part in parts for item in part.content), file)
        else:
            exporter.write_converted((part.content for part in parts), file)
        if sink == "parquet":
            metadata = pq.read_metadata(file)
            lengths = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        else:
            reader = pa.ipc.open_file(file.getvalue())
            lengths = [reader.get_batch(index).num_rows for index in range(reader.num_record_batches)]
        assert lengths == [9, 10, 5]
        files.add((tokenizer is None, file.getvalue()))
    assert len(files) == 2


@pytest.mark.usefixtures("few_bytes")
def test_a_folder_of_tokens_has_batches_of_few_bytes(builtin: Registry, tokenizer_of: Tokenizers) -> None:
    own = Pipeline(DataOptions(adapter="alpaca", template="chatml"), builtin, tokenizer=tokenizer_of("bytes"))
    items = [sample.tokenized for sample in own.run(large(6, 4000), source="x") if sample.tokenized is not None]
    ids = pa.list_(pa.int32())
    schema = pa.schema({"input_ids": ids, "labels": ids, "attention_mask": ids})
    assert [batch.num_rows for batch in folders._batches(items, schema)] == [3, 3]


@pytest.mark.usefixtures("few_bytes")
def test_duplicates_are_sought_among_few_large_records() -> None:
    """And those that were read before an error come out."""
    pulled = 0

    def records() -> Iterator[IdentifiedRecord]:
        nonlocal pulled
        for number, record in enumerate(large(40)):
            pulled += 1
            yield IdentifiedRecord(record, number)
        raise ValueError("ended")

    marked: Any = mark_duplicates(records(), create_text_index("exact"), lambda id, record: [], str)
    assert next(marked).id == 0
    assert pulled == 5
    found: list[int] = []
    with pytest.raises(ValueError, match="ended"):
        found += (one.id for one in marked)
    assert batches.BATCH_SIZE > 40


def test_a_text_that_cannot_be_divided_is_refused(builtin: Registry, tokenizer_of: Tokenizers) -> None:
    """It would be encoded at once, in gigabytes; one with blanks is not, and a maximum length bounds the rest."""
    letters, words = "a" * 2_700_000, "ab " * 900_000

    def refused(answer: str, **options: Any) -> str:
        given = Pipeline(DataOptions(**options), builtin, tokenizer=tokenizer_of("bytes"))
        messages = (Message(role="user", content="say"), Message(role="assistant", content=answer))
        try:
            given._render_conversation(Example(messages=messages), 0)
        except RecordError as error:
            return error.reason
        return ""

    assert refused(letters) == "too_long_to_encode"
    assert refused(letters, max_record_size=17) == ""
    assert refused(letters, max_length=2048) == ""
    assert refused(words) == ""
    assert refused(letters[:900_000], max_record_size=1) == ""
