"""Excluded records are counted with their reason; the others come out unchanged, in an order that a seed decides."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import templatekit
from templatekit import Record, Registry
from templatekit.config.data_options import DataOptions, MixedSet, parse_dedup
from templatekit.errors import ConfigError, RecordError
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.deduplication import DuplicateOf, ExactTextIndex, NearTextIndex, TextIndex
from templatekit.pipeline.mixture import Mixture
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources import shuffle
from templatekit.sources.limits import Limits, sized
from templatekit.sources.mixing import Mix
from templatekit.sources.shuffle import shuffled

REGISTRY = create_registry(select=[])
TEXTS = st.lists(st.sampled_from(["a", "b", "c", "a b", "A", " a", "é", "e\u0301"]), min_size=1, max_size=20)


def records(answers: list[str]) -> list[dict[str, Any]]:
    return [{"instruction": "Say.", "output": text, "id": number} for number, text in enumerate(answers)]


def run(rows: list[Any], **options: Any) -> tuple[Pipeline, list[int], list[str]]:
    """The pipeline after its run, and the rows and answers of its samples."""
    pipeline = Pipeline(DataOptions.parse({"template": "alpaca", "on_error": "skip", **options}), REGISTRY)
    items = list(pipeline.run(pipeline.reader.select(rows)))
    return pipeline, [i.rendered.row for i in items], [i.example.messages[-1].content for i in items]


@given(answers=TEXTS, seed=st.integers(0, 5), buffer=st.integers(1, 25))
def test_every_row_is_out_or_counted(answers: list[str], seed: int, buffer: int) -> None:
    pipeline, rows, out = run(
        [*records(answers), {"instruction": "no answer", "output": "zzz"}],
        dedup="exact",
        filter=["output != 'b'"],
        shuffle=seed,
        shuffle_buffer=buffer,
    )
    left_out = [row for rows in pipeline.counts.dropped_rows.values() for row in rows]
    assert sorted(rows + left_out) == list(range(len(answers) + 1))
    assert all(([*answers, "zzz"])[row] == text for row, text in zip(rows, out, strict=True))
    assert Counter(out) == Counter({*answers, "zzz"} - {"b"})
    assert pipeline.counts.dropped["filtered"] == answers.count("b")


@given(count=st.integers(0, 60), seed=st.integers(0, 3), buffer=st.integers(1, 70))
def test_shuffling_keeps_every_item_and_its_bound(count: int, seed: int, buffer: int) -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for item in range(count):
            taken += 1
            yield item

    given_out = []
    for item in shuffled(source(), seed=seed, buffer=buffer, bytes_of=no_bytes):
        given_out.append(item)
        assert taken - len(given_out) <= buffer
    assert sorted(given_out) == list(range(count))
    assert given_out == list(by_places(range(count), seed=seed, buffer=buffer))


def by_places(items: Iterable[int], *, seed: int, buffer: int) -> Iterator[int]:
    """The order where no record is large, in its plainest words: a record takes the place of the one it replaces."""
    rng = random.Random(seed)
    held: list[int] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = rng.randrange(buffer)
        yield held[place]
        held[place] = item
    rng.shuffle(held)
    yield from held


def no_bytes(item: object) -> int:
    return 0


@given(sizes=st.lists(st.integers(0, 50), max_size=60), seed=st.integers(0, 3), buffer=st.integers(1, 70))
def test_a_shuffle_buffer_has_few_bytes(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], seed: int, buffer: int
) -> None:
    """Or one record. The records and the seed alone decide the order."""
    monkeypatch.setattr(shuffle, "BUFFER_BYTES", 100)
    held: Counter[int] = Counter()

    def source() -> Iterator[int]:
        for number, size in enumerate(sizes):
            held[number] = size
            yield number
            assert held.total() <= 100 or len(held) == 1
            assert len(held) <= buffer

    given_out = []
    for number in shuffled(source(), seed=seed, buffer=buffer, bytes_of=sizes.__getitem__):
        del held[number]
        given_out.append(number)
    assert sorted(given_out) == list(range(len(sizes)))
    assert given_out == list(shuffled(range(len(sizes)), seed=seed, buffer=buffer, bytes_of=sizes.__getitem__))


def test_large_records_leave_the_shuffle_buffer_early(monkeypatch: pytest.MonkeyPatch, builtin: Registry) -> None:
    """Of one set and of a mixture; without their sizes (negative control) they all stay in it."""
    monkeypatch.setattr(shuffle, "BUFFER_BYTES", 5000)
    text = "x" * 1000
    rows = [{"instruction": text, "output": str(number)} for number in range(20)]
    for large, most in ((True, 6), (False, 20)):
        for mixed in (False, True):
            read = 0

            def source(large: bool = large) -> Iterator[Record]:
                nonlocal read
                for row in rows:
                    read += 1
                    yield sized(row, 1000, Limits(record=1)) if large else row

            if mixed:
                options = DataOptions(mix=(MixedSet(dataset="x"),), shuffle=1)
                mixture = Mixture(options, builtin)
                monkeypatch.setattr(mixture.pipelines[0], "open", source)
                drawn = Mix(openers=[mixture.pipelines[0].open], weights=[1], strategy="concat")
                next(iter(mixture._deduplicated_and_shuffled(drawn)))
                most += large  # a set is read one record ahead
            else:
                next(iter(Pipeline(DataOptions(shuffle=1), builtin).reader.select(source())))
            assert read == most


def test_shuffling_within_the_buffer_is_even() -> None:
    firsts = Counter(tuple(shuffled(range(3), seed=seed, buffer=3, bytes_of=no_bytes)) for seed in range(1200))
    assert len(firsts) == 6
    assert min(firsts.values()) > 140
    biased = Counter(tuple(shuffled(range(3), seed=seed, buffer=1, bytes_of=no_bytes)) for seed in range(12))
    assert len(biased) == 1, "a buffer of one cannot shuffle: the check would see it"


def same(one: list[Any], other: list[Any]) -> bool:
    return one == other


def test_a_seed_decides_the_order() -> None:
    rows = records([str(n) for n in range(50)])
    orders = [run(rows, shuffle=seed)[1] for seed in (1, 1, 2)]
    assert same(orders[0], orders[1])
    assert not same(orders[0], orders[2])


@given(texts=TEXTS)
def test_exact_repeats_are_those_of_a_dictionary(texts: list[str]) -> None:
    first: dict[str, int] = {}
    expected = []
    for place, text in enumerate(texts):
        known = first.setdefault(text, place)
        expected.append(None if known == place else DuplicateOf(known))
    whole, index = ExactTextIndex(), ExactTextIndex()
    assert whole.add(texts, list(range(len(texts)))) == expected
    assert [index.add([text], [place])[0] for place, text in enumerate(texts)] == expected


def test_near_repeats() -> None:
    draw = random.Random(3)
    words = [f"w{n}" for n in range(500)]
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(300)]
    changed = [" ".join("changed" if n == 30 else w for n, w in enumerate(text.split())) for text in texts]
    other = [" ".join("changed" if n % 4 == 0 else w for n, w in enumerate(text.split())) for text in texts]

    def repeats(index: TextIndex, more: list[str]) -> int:
        index.add(texts, list(range(300)))
        found = index.add(more, list(range(300, 600)))
        assert all(one is None or one.id == at for at, one in enumerate(found))
        return sum(one is not None for one in found)

    assert repeats(NearTextIndex(0.8), changed) >= 290  # 55 of 61 runs are equal: 0.9
    assert repeats(NearTextIndex(0.8), other) == 0
    assert repeats(ExactTextIndex(), changed) == 0
    index = NearTextIndex(0.8)
    assert index.add(texts, list(range(300))) == [None] * 300
    assert index.add(texts, list(range(300, 600))) == [DuplicateOf(at, 1.0) for at in range(300)]


def test_texts_that_are_kept_are_all_found() -> None:
    """Stored texts are found even where they repeat each other; the most similar is named. `find` stores nothing."""
    words = [f"w{n}" for n in range(60)]
    texts = [" ".join(["x"] * count + words[count:]) for count in (0, 6, 12)]
    index = NearTextIndex(0.7)
    index.store(texts, [5, 6, 7])
    found = index.find(texts)
    assert found == [DuplicateOf(place, 1.0) for place in (5, 6, 7)]
    assert index.find(["other " * 30] * 2) == [None, None]
    without_similar = NearTextIndex(0.7)
    without_similar.add(texts[:2], [5, 6])
    assert without_similar.find(texts[1:2]) != found[1:2], "where repeats are left out, the nearest may be gone"


def test_near_names_what_it_repeats() -> None:
    text = " ".join(f"word{n}" for n in range(40))
    pipeline, rows, _ = run(records([text, "other", text + " more"]), dedup="near")
    assert rows == [0, 1]
    assert pipeline.counts.first_dropped["near_duplicate"].startswith("2: nearly the same as row 0 (similarity 0.9")


def test_ids_and_unread_columns_part_nothing() -> None:
    pipeline, rows, _ = run(records(["x", "x"]), dedup="exact")
    assert rows == [0]
    assert pipeline.counts.first_dropped == {"duplicate": "1: the same as row 0"}
    assert run([{"instruction": "a", "input": "b", "output": "x"}, {"instruction": "a", "output": "x"}], dedup="exact")[
        1
    ] == [0, 1]


def test_a_left_out_row_stops_nothing_and_a_broken_condition_does() -> None:
    rows = [*records(["x", "y"]), {"instruction": "i"}]
    assert run(rows[:2], filter=["output == 'y'"], on_error="stop")[1] == [1]
    with pytest.raises(RecordError, match=r"2: filter \"output == 'x'\": no column 'output'.*to skip"):
        run(rows, filter=["output == 'x'"], on_error="stop")
    assert run(rows, filter=["output == 'x'"])[0].counts.dropped == {"filtered": 1, "filter_failed": 1}
    with pytest.raises(ConfigError, match="0 of 2 samples left; dropped: 2 filtered; the first: 0: not False"):
        run(rows[:2], filter=["False"])


@pytest.mark.parametrize("text", ["", "nearly", "near=", "near=1", "near=0", "near=nan", "exact=1", "near=0.8=1"])
def test_what_dedup_is_not(text: str) -> None:
    with pytest.raises(ConfigError, match="expected exact, near, or near with a similarity"):
        parse_dedup(text)


def test_conversations_of_rows_that_make_one_example(tmp_path: Path) -> None:
    tree = [
        {"message_tree_id": t, "message_id": f"{t}{n}", "parent_id": p and f"{t}{p}", "role": r, "text": x}
        for t in "abc"
        for n, p, r, x in [("1", None, "prompter", "Q?"), ("2", "1", "assistant", "A.")]
    ]
    pipeline, rows, _ = run(tree, template="chatml", dedup="exact", shuffle=1)
    assert rows == [0]
    assert pipeline.counts.dropped == {"duplicate": 2}


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records(["x", "yy", "x", "zzz"])))
    command = [sys.executable, "-m", "templatekit", "render", "--dataset", str(path), "--template", "alpaca"]
    options = ["--filter", "len(output) < 3", "--dedup", "exact", "--shuffle", "3", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert {json.loads(line)["row"] for line in done.stdout.splitlines()} == {0, 1}
    counts = json.loads(done.stderr.splitlines()[-1])
    assert counts["dropped"] == {"filtered": 1, "duplicate": 1}
    assert counts["first_dropped"] == {
        "filtered": f"{path}:3: not len(output) < 3",
        "duplicate": f"{path}:2: the same as row 0",
    }
    done = subprocess.run([*command, "--filter", "open('x')"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: filter.0: found")


def test_python_calls_take_the_same_options() -> None:
    found = templatekit.render(records(["x", "x", "y"]), dedup="exact", filter=["output == 'x'"])
    assert len(list(found)) == 1


def test_workers_see_the_same_rows(tmp_path: Path, tokenizer_of: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records([f"x{n % 900}" for n in range(1300)])))
    command = [sys.executable, "-m", "templatekit", "render", "--dataset", str(path), "--template", "alpaca"]
    options = ["--tokenizer", str(tokenizer_of.folder("bytes")), "--shuffle", "3", "--dedup", "exact"]
    options += ["--filter", "not output.endswith('7')"]
    one, two = (
        subprocess.run([*command, *options, "--workers", workers], capture_output=True, check=True)
        for workers in ("1", "2")
    )
    assert len(one.stdout.splitlines()) == 810
    assert (one.stdout, one.stderr) == (two.stdout, two.stderr)
