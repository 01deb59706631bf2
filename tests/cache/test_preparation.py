"""Samples from disk equal the samples that were made, in every column and count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers

import templatekit
from templatekit import DataOptions, Registry
from templatekit.cache import atomic_files, tables
from templatekit.cache import preparation as run
from templatekit.cache import shard as shard_module
from templatekit.cache.example_json import NotJsonSafe, example_from_json, example_to_json
from templatekit.cache.folder import entries
from templatekit.cache.preparation import prepare_batches, prepare_samples
from templatekit.config.staging import staging_folder
from templatekit.errors import ConfigError, RecordError
from templatekit.packing.columns import TokenizedColumns, token_arrays
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.mixture import create_pipeline
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Example, Message, RenderedText

SMALL = 5
"""Records of a shard in these tests."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHARD_RECORDS", SMALL)


def alpaca(number: int, answer: str = "So be it.") -> dict[str, Any]:
    return {"instruction": f"Say {number}.", "input": "here" * (number % 2), "output": answer}


def chat(turns: list[str]) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


class Look:
    """All results of a run."""

    def __init__(self, pipeline: Pipeline, batches: Iterator[SampleBatch]) -> None:
        found = list(batches)
        self.items = [item for batch in found for item in batch]
        self.tokens = {
            name: [value for batch in found if batch.columns for value in token_arrays(batch.columns)[name].to_pylist()]
            for name in ("input_ids", "labels", "loss_weights")
        }
        self.counts = pipeline.counts.as_dict()
        self.adapter = pipeline.adapter.name if pipeline.adapter else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Look) and vars(self) == vars(other)


class Bench:
    """A data set in a file, prepared in any way, with a cache of its own."""

    def __init__(self, folder: Path, registry: Registry, tokenizers: Tokenizers, records: list[Any]) -> None:
        self.data, self.cache = folder / "data.jsonl", folder / "cache"
        shutil.rmtree(self.cache, ignore_errors=True)
        self.data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        self.registry, self.tokenizer = registry, tokenizers("nfc")
        self.said: list[str] = []

    def pipeline(self, **options: Any) -> Pipeline:
        values = {"dataset": str(self.data), "cache_dir": self.cache, **options}
        return Pipeline(DataOptions(**values), self.registry, tokenizer=self.tokenizer)

    def look(self, **options: Any) -> Look:
        pipeline = self.pipeline(**options)
        self.said = []
        return Look(pipeline, prepare_batches(pipeline, say=self.said.append))

    def shards(self) -> list[Path]:
        return sorted(self.cache.glob("prepared-*/*/[0-9]*"))


@pytest.fixture
def bench(tmp_path: Path, builtin: Registry, tokenizer_of: Tokenizers) -> Any:
    return lambda records: Bench(tmp_path, builtin, tokenizer_of, records)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
RECORDS = st.one_of(
    st.lists(st.builds(alpaca, st.integers(0, 99), TEXT), min_size=1, max_size=14),
    st.lists(st.builds(chat, st.lists(TEXT, min_size=1, max_size=6)), min_size=1, max_size=14),
)
OPTIONS = st.fixed_dictionaries(
    {"template": st.sampled_from(["alpaca", "chatml", "llama2"]), "on_error": st.just("skip")},
    optional={
        "train_on": st.sampled_from(["last", "all", "response=0.3,context=0.1", "content"]),
        "max_length": st.sampled_from([40, 120]),
        "limit": st.integers(1, 16),
        "empty_context": st.just(("here",)),
    },
)


@given(records=RECORDS, options=OPTIONS, gone=st.sets(st.integers(0, 3)))
def test_cached_is_uncached(bench: Any, records: list[Any], options: dict[str, Any], gone: set[int]) -> None:
    at = bench(records)
    try:
        plain = at.look(**options)
    except ConfigError as error:  # no sample is left: the error is the same for made and for cached samples
        for _ in range(2):
            with pytest.raises(ConfigError, match=str(error).partition(";")[0]):
                at.look(cache=True, **options)
        return
    assert at.look(cache=True, **options) == plain
    assert len(at.shards()) == min(len(records), options.get("limit", 99)) // SMALL + 1
    assert at.look(cache=True, **options) == plain
    assert at.said[0].startswith("cache: examples are taken from")
    for number, shard in enumerate(at.shards()):
        if number in gone:
            shutil.rmtree(shard)
    assert at.look(cache=True, **options) == plain, "shards that are gone are made again"


def test_the_comparison_notices(bench: Any) -> None:
    """The negative control: another weight, text or count makes another `Look`."""
    at = bench([alpaca(n) for n in range(7)])
    plain = at.look()
    assert plain != at.look(train_on="response=0.5")
    assert plain != at.look(limit=6)
    assert plain != at.look(empty_context=("here",))


@pytest.mark.parametrize("size", [0, 4, 5, 6, 10])
def test_parts_end_where_the_records_do(bench: Any, size: int) -> None:
    at = bench([alpaca(n) for n in range(size)] or [{"instruction": "a", "output": ""}])
    if not size:
        at.data.write_text("[]", encoding="utf-8")
        with pytest.raises(templatekit.SourceError):
            at.look(cache=True)
        return
    plain = at.look()
    assert [at.look(cache=True) == plain for _ in range(2)] == [True, True]
    assert len(at.shards()) == size // SMALL + 1


SIZES = st.lists(st.sampled_from([10, 10, 300, 900]), min_size=1, max_size=14)


def records_of_shards(sizes: list[int]) -> list[int]:
    """How many records each shard has, where those of 300 and 900 bytes count, and more than 1,000 end a shard."""
    found, taken = [0], 0
    for size in sizes:
        found[-1] += 1
        taken += size if size > 10 else 0
        if found[-1] == SMALL or taken > 1000:
            found, taken = [*found, 0], 0
    return found


@given(sizes=SIZES, gone=st.sets(st.integers(0, 6)), chunk=st.integers(1, 4), shuffle=st.sampled_from([None, 3]))
@example([900] * 4, {1}, 1, None)  # a shard that was there is made between two that are
def test_shards_end_early_after_many_bytes(
    bench: Any, monkeypatch: pytest.MonkeyPatch, sizes: list[int], gone: set[int], chunk: int, shuffle: int | None
) -> None:
    """At the same records in every run."""
    monkeypatch.setattr(run, "SHARD_BYTES", 1000)
    monkeypatch.setattr("templatekit.pipeline.pipeline.CHUNK_SIZE", chunk)
    at = bench([{"instruction": "", "input": "", "output": "x" * (size - 46)} for size in sizes])
    options = {"max_record_size": 1, "on_error": "skip", "shuffle": shuffle}
    if max(sizes) == 10:
        at = bench([{"instruction": "", "input": "", "output": "x"} for _ in sizes])
    plain = at.look(**options)
    assert at.look(cache=True, **options) == plain
    states = [json.loads((shard / "part.json").read_text().split("\n")[1]) for shard in at.shards()]
    if shuffle is None:
        assert [state["records"] for state in states] == records_of_shards(sizes)
    assert [state["first_row"] for state in states] == [
        sum(state["records"] for state in states[:index]) for index in range(len(states))
    ]
    assert [state["is_last"] for state in states] == [*[False] * (len(states) - 1), True]
    before = files_of(at.shards())
    for number, shard in enumerate(at.shards()):
        if number in gone:
            shutil.rmtree(shard)
    assert at.look(cache=True, **options) == plain
    assert files_of(at.shards()) == before


def test_a_shard_that_starts_elsewhere_is_made_anew(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records would be there twice, or not at all."""
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)
    before = files_of(at.shards())
    other = json.loads((at.shards()[1] / "part.json").read_text().split("\n")[1]) | {"first_row": 6}
    atomic_files.write_state(at.shards()[1] / "part.json", other)
    assert at.look(cache=True) == plain
    assert any("00000001/part.json: starts with record 6, not with 5" in line for line in at.said)
    assert files_of(at.shards()) == before


def test_a_whole_set_reads_no_record(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)

    def refuse(self: Pipeline) -> Any:
        raise AssertionError("the data were read")

    monkeypatch.setattr(Pipeline, "open", refuse)
    assert at.look(cache=True) == plain
    with pytest.raises(AssertionError, match="were read"):
        at.look()


def test_an_error_in_a_row_comes_after_the_cached_shards(bench: Any) -> None:
    rows: list[Any] = [alpaca(n) for n in range(12)]
    rows[7] = {"instruction": "x", "input": "", "output": 3}
    at = bench(rows)
    for taken in (0, 1):
        with pytest.raises(RecordError, match=r"data\.jsonl:7:output"):
            at.look(cache=True)
        assert len(at.shards()) == 1
        assert len(at.said) == 2 * taken


def test_grouped_trees_are_cached(bench: Any) -> None:
    rows = []
    for tree in range(8):
        for turn in range(4):
            rows.append(
                {
                    "message_id": f"{tree}-{turn}",
                    "parent_id": f"{tree}-{turn - 1}" if turn else None,
                    "message_tree_id": f"{tree}-0",
                    "role": "assistant" if turn % 2 else "prompter",
                    "text": f"text {tree} {turn}",
                    "rank": 0,
                }
            )
    at = bench(rows)
    plain = at.look(template="chatml")
    assert at.look(template="chatml", cache=True) == plain
    shutil.rmtree(at.shards()[-1])
    assert at.look(template="chatml", cache=True) == plain


def flipped(data: bytes) -> bytes:
    """Change one bit of a file."""
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


DAMAGES = {
    "flipped": lambda path: path.write_bytes(
        bytes([*path.read_bytes()[:-9], path.read_bytes()[-9] ^ 4, *path.read_bytes()[-8:]])
    ),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"\x89PNG" + b"\0" * (path.stat().st_size - 4)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tokens.arrow", "texts.arrow", "examples.arrow", "part.json"])
def test_a_damaged_file_is_named_and_made_anew(bench: Any, name: str, damage: str) -> None:
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)
    before = {path: path.read_bytes() for shard in at.shards() for path in shard.iterdir()}
    DAMAGES[damage](at.shards()[1] / name)
    assert at.look(cache=True) == plain
    told = [line for line in at.said if "is damaged and made anew" in line]
    assert len(told) == 1
    assert "00000001" in told[0]
    assert name in told[0]
    assert {path: path.read_bytes() for shard in at.shards() for path in shard.iterdir()} == before
    at.look(cache=True)
    assert not any("is damaged" in line for line in at.said)


def test_without_the_hashes_damage_would_pass(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)
    path = at.shards()[1] / "texts.arrow"
    data = path.read_bytes()
    assert b"Say 6." in data
    path.write_bytes(data.replace(b"Say 6.", b"Say 9."))
    monkeypatch.setattr(shard_module, "hash_file", _expected)
    assert at.look(cache=True) != plain


def _expected(path: Path) -> str:
    """The hash that a file should have."""
    state = json.loads((path.parent / "part.json").read_text().split("\n")[1])
    return str(state["files"][path.name]["xxh3_128"])


def swap(one: Path, other: Path) -> None:
    """Exchange two files or folders."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def files_of(shards: list[Path]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for shard in shards for path in shard.iterdir()}


def test_swapped_shards_are_made_anew(bench: Any) -> None:
    """Both have the hashes that their states say: only their places tell that they are not these shards."""
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)
    before = files_of(at.shards())
    swap(*at.shards()[:2])
    swapped = files_of(at.shards())
    assert at.look(cache=True) == plain
    assert swapped != before
    assert files_of(at.shards()) == before
    told = [line for line in at.said if "is damaged and made anew" in line]
    assert len(told) == 2
    assert "00000000/part.json: is of shard 00000001 of entry" in told[0]
    assert "00000001/part.json: is of shard 00000000 of entry" in told[1]
    at.look(cache=True)
    assert not any("is damaged" in line for line in at.said)


def test_swapped_shards_are_made_anew_for_training(bench: Any) -> None:
    at = bench([alpaca(n) for n in range(12)])
    rows = [sample.rendered.row for sample in prepare_samples(at.pipeline(cache=True))]
    swap(*at.shards()[:2])
    assert [sample.rendered.row for sample in prepare_samples(at.pipeline(cache=True))] == rows


def test_a_shard_of_another_entry_is_made_anew(bench: Any) -> None:
    """The same shard of two templates, then all shards of both: each time the texts are those of the template."""
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)
    others = at.look(cache=True, template="chatml")
    assert plain != others
    entries = sorted(path for path in at.cache.glob("prepared-*/*"))
    swap(entries[0] / "00000001", entries[1] / "00000001")
    assert at.look(cache=True) == plain
    assert at.look(cache=True, template="chatml") == others
    swap(*entries)
    assert at.look(cache=True) == plain
    assert at.look(cache=True, template="chatml") == others


def test_without_its_place_a_swapped_shard_would_pass(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)
    swap(*at.shards()[:2])
    monkeypatch.setattr(shard_module, "place_of", _stated_place)
    monkeypatch.setattr(shard_module.Shard, "check_start", lambda self, first_row: None)
    assert at.look(cache=True) != plain


def _stated_place(folder: Path) -> dict[str, str]:
    """The place that a shard should have."""
    state = json.loads((folder / "part.json").read_text().split("\n")[1])
    return {name: state[name] for name in ("entry", "shard")}


def test_a_file_in_the_place_of_a_part_is_removed(bench: Any) -> None:
    at = bench([alpaca(n) for n in range(12)])
    plain = at.look(cache=True)
    shutil.rmtree(at.shards()[0])
    at.shards()[0].with_name("00000000").write_text("not mine")
    assert at.look(cache=True) == plain
    assert any("is damaged" in line for line in at.said)


def test_what_a_killed_process_left_is_swept(bench: Any) -> None:
    """A shard that was half made, and an entry that was half removed; one that is being made stays."""
    at = bench([alpaca(n) for n in range(12)])
    at.look(cache=True)
    entry = at.shards()[0].parent
    left = [entry / ".making-00000001-0123abcd", entry.with_name(f".making-{entry.name}-0123abcd")]
    for folder in left:
        folder.mkdir()
        (folder / "tokens.arrow").write_bytes(b"half")
    assert [found.path for found in entries(at.cache)] == [entry]
    with staging_folder(entry / "00000002") as being_made:
        at.look(cache=True)
        assert [path.exists() for path in (*left, being_made)] == [False, False, True]


def test_data_that_change_during_the_run_are_not_cached(bench: Any) -> None:
    at = bench([alpaca(n) for n in range(12)])
    pipeline = at.pipeline(cache=True)
    said: list[str] = []
    batches = prepare_batches(pipeline, say=said.append)
    next(batches)
    with at.data.open("a") as file:
        file.write(json.dumps(alpaca(12)) + "\n")
    list(batches)
    assert at.shards() == []
    assert any("changed during the run" in line for line in said)


def test_what_no_file_can_hold_is_said_and_not_kept(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bench([alpaca(n) for n in range(12)])

    def dated(example: Example) -> bytes:
        seen = {"seen": date(2020, 1, 1)} if example.messages[0].content == "Say 7." else {}
        return example_to_json(replace(example, metadata=seen))

    monkeypatch.setattr(tables, "example_to_json", dated)
    plain = at.look()
    for _ in range(2):
        assert at.look(cache=True) == plain
        assert [path.name for path in at.shards()] == ["00000000", "00000002"]
        assert "cache: records from 5 on are not cached: one holds date datetime.date(2020, 1, 1)" in at.said


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=3), PLAIN, max_size=3), max_size=2).map(tuple)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "ipython"]),
    content=st.text(),
    parts=OBJECTS,
    context=st.text(),
    reasoning=st.text(),
    tool_calls=OBJECTS,
    tool_call_id=st.text(),
    name=st.text(),
    weight=st.sampled_from([0.0, 1.0, 1, 0.1]),
)
EXAMPLES = st.builds(
    Example,
    messages=st.lists(MESSAGES, min_size=1, max_size=3).map(tuple),
    tools=OBJECTS,
    documents=OBJECTS,
    metadata=st.dictionaries(st.text(), PLAIN, max_size=3),
    left_out=st.dictionaries(st.text(), st.integers(1, 9), max_size=2),
)


@given(example=EXAMPLES)
def test_conversations_come_back_equal(example: Example) -> None:
    back = example_from_json(example_to_json(example))
    assert back == example
    assert repr(back) == repr(example), "1 is not 1.0, and not true"


@given(value=st.sampled_from([(1, 2), {1: 2}, {"a": {3}}, b"x", object()]))
def test_values_that_would_come_back_as_others_are_refused(value: Any) -> None:
    with pytest.raises(NotJsonSafe):
        example_to_json(Example(messages=(Message(role="user"),), metadata={"a": value}))


def test_prepare_takes_what_render_cached(bench: Any, tokenizer_of: Tokenizers) -> None:
    at = bench([alpaca(n) for n in range(12)])
    folder = str(tokenizer_of.folder("nfc"))
    given = {"tokenizer": folder, "cache_dir": at.cache}
    plain = templatekit.prepare(at.data, tokenizer=folder).to_dict()
    rendered = list(templatekit.render(at.data, cache=True, **given))
    assert len(at.shards()) == 3
    assert templatekit.prepare(at.data, cache=True, **given).to_dict() == plain
    assert len(at.shards()) == 3
    assert list(templatekit.render(at.data, tokenizer=folder)) == rendered


def test_a_datasets_object_is_kept_by_its_fingerprint(bench: Any) -> None:
    import datasets

    at = bench([alpaca(0)])
    rows = datasets.Dataset.from_list([alpaca(n) for n in range(12)])
    given = {"tokenizer": at.tokenizer, "cache": True, "cache_dir": at.cache}
    first = templatekit.prepare(rows, **given).to_dict()
    made = [path.stat().st_mtime_ns for path in at.shards()]
    assert len(made) == 3
    assert templatekit.prepare(rows, **given).to_dict() == first
    assert [path.stat().st_mtime_ns for path in at.shards()] == made
    templatekit.prepare(rows.select(range(11)), **given)
    assert len(at.shards()) == 6
    templatekit.prepare([alpaca(n) for n in range(12)], **given)
    assert len(at.shards()) == 6, "a list has no fingerprint"


def test_mixtures_are_said_not_to_be_kept(bench: Any) -> None:
    at = bench([alpaca(n) for n in range(3)])
    mix = ({"dataset": "starter-dolly", "limit": 2}, {"dataset": str(at.data)})
    options = DataOptions.parse({"mix": mix, "template": "alpaca", "cache": True, "cache_dir": str(at.cache)})
    said: list[str] = []
    mixture = create_pipeline(options, at.registry, tokenizer=at.tokenizer)
    found = Look(mixture, prepare_batches(mixture, say=said.append))
    assert len(found.items) == 5
    assert said == ["cache: not used: mixed sets and pairs of answers are not cached"]
    assert not at.cache.exists()


def test_counts_of_others_are_not_cached(bench: Any) -> None:
    """The samples that an exporter refuses while a shard is made are cached: another exporter may take them."""
    at = bench([alpaca(n) for n in range(12)])
    pipeline = at.pipeline(cache=True)
    for batch in prepare_batches(pipeline):
        for item in batch:
            pipeline.counts_of(item).drop(RecordError("cannot be said there", reason="refused"))
    assert pipeline.counts.dropped == {"refused": 12}
    assert pipeline.counts.rows_in == 12
    assert at.look(cache=True).counts["dropped"] == {}


def test_every_field_of_a_text_is_cached() -> None:
    """A new field has to be written and read, or has to be empty in cached samples, like `source`."""
    assert {one.name for one in fields(RenderedText)} - {"source"} == {
        *("text", "spans", "target_spans", "message_weights", "roles", "row", "sample", "samples", "history")
    }
    assert {one.name for one in fields(TokenizedColumns)} == {
        *("rendered", "loss_spans", "truncated", "offsets", "input_ids", "loss_weights")
    }


def test_joined_columns_of_parts_are_columns(bench: Any) -> None:
    at = bench([alpaca(n) for n in range(12)])
    at.look(cache=True)
    stored = [batch.columns for batch in prepare_batches(at.pipeline(cache=True)) if batch.columns is not None]
    plain = [batch.columns for batch in prepare_batches(at.pipeline()) if batch.columns is not None]
    assert list(TokenizedColumns.join(stored)) == list(TokenizedColumns.join(plain))
    assert list(stored[0].select([2, 0])) == list(plain[0].select([2, 0]))


PLUGIN = """
from templatekit import Adapter, Example, Message, hookimpl

class Same(Adapter):
    name = "same"
    description = "records of {who}"
    keys = required = ("{who}", "answer")

    def to_example(self, record):
        return Example(messages=(Message(role="user", content=record["{who}"]),
                                 Message(role="assistant", content=record["answer"])))

@hookimpl
def templatekit_adapters():
    return [Same()]
"""


def test_a_part_tells_an_adapter_of_two_with_one_name(tmp_path: Path, tokenizer_of: Tokenizers) -> None:
    """The records' keys show the adapter the first time, the shard the second time."""
    for who in ("first", "second"):
        (tmp_path / "plugins").mkdir(exist_ok=True)
        (tmp_path / "plugins" / f"{who}.py").write_text(PLUGIN.format(who=who), encoding="utf-8")
    registry = templatekit.create_registry(plugin_dirs=[tmp_path / "plugins"])
    bench = Bench(tmp_path, registry, tokenizer_of, [{"second": f"q{n}", "answer": "a"} for n in range(7)])
    made = bench.look(template="chatml", cache=True)
    assert bench.look(template="chatml", cache=True) == made
    assert any("are taken from" in said for said in bench.said)
    pipeline = bench.pipeline(template="chatml", cache=True)
    list(prepare_batches(pipeline))
    assert pipeline.reader.adapter_name == "second:same"
