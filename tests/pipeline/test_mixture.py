"""Sets are mixed as by `datasets`, each with its own adapter and template, and every row is a sample or counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templatekit
from templatekit.config.data_options import DataOptions
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RecordError
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.mixture import Mixture, create_pipeline
from templatekit.sources.mixing import DrawnItem, Mix, Strategy

REGISTRY = create_registry(select=[])
STRATEGIES: dict[Strategy, str] = {
    "first_exhausted": "first_exhausted",
    "all_exhausted": "all_exhausted",
    "once": "all_exhausted_without_replacement",
}
SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=4)


def drawn(sizes: list[int], weights: list[float], strategy: Strategy, seed: int) -> list[tuple[int, int]]:
    mix = Mix(openers=[partial(range, n) for n in sizes], weights=weights, strategy=strategy, seed=seed)
    return [(one.set_index, one.item) for one in mix]


def peers(sizes: list[int], weights: list[float], strategy: Strategy, seed: int) -> list[tuple[int, int]]:
    def rows(index: int, size: int) -> Iterator[dict[str, int]]:
        yield from ({"set": index, "item": item} for item in range(size))

    sets = [
        datasets.IterableDataset.from_generator(rows, gen_kwargs={"index": index, "size": size})
        for index, size in enumerate(sizes)
    ]
    shares = [weight / sum(weights) for weight in weights]
    mixed = datasets.interleave_datasets(sets, shares, seed=seed, stopping_strategy=STRATEGIES[strategy])
    return [(row["set"], row["item"]) for row in mixed]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("sizes", [[3, 9], [5, 5, 5], [1, 20, 4]])
def test_the_order_is_the_one_of_datasets(strategy: Strategy, seed: int, sizes: list[int]) -> None:
    weights = [3.0, 1.0, 0.5][: len(sizes)]
    assert drawn(sizes, weights, strategy, seed) == peers(sizes, weights, strategy, seed)


def test_the_comparison_sees_another_seed() -> None:
    assert drawn([5, 5], [1, 1], "once", 1) != peers([5, 5], [1, 1], "once", 2)


@given(sizes=SIZES, seed=st.integers(0, 9), strategy=st.sampled_from([*STRATEGIES, "concat"]))
def test_each_set_keeps_its_order_and_its_promise(sizes: list[int], seed: int, strategy: Strategy) -> None:
    weights = [float(1 + index) for index in range(len(sizes))]
    mix = Mix(openers=[partial(range, n) for n in sizes], weights=weights, strategy=strategy, seed=seed)
    found = list(mix)
    for index, (size, passes) in enumerate(zip(sizes, mix.passes, strict=True)):
        own = [one.item for one in found if one.set_index == index]
        assert own == [number % size for number in range(len(own))]
        assert len(own) == passes.complete * size + passes.partial
        assert passes.unfinished == (len(own) < size)
        if strategy in ("concat", "once"):
            assert len(own) == size
        elif strategy == "all_exhausted":
            assert len(own) >= size
    if strategy == "first_exhausted":
        assert any(passes.complete == 1 and not passes.partial for passes in mix.passes)
    if strategy == "concat":
        assert [one.set_index for one in found] == sorted(one.set_index for one in found)


def test_shares_are_those_of_the_weights() -> None:
    mix = Mix(openers=[lambda: range(10**9)] * 3, weights=[5, 3, 2], strategy="all_exhausted", seed=1)
    counted = Counter(one.set_index for one in islice(mix, 20_000))
    assert all(abs(counted[index] / 20_000 - share) < 0.015 for index, share in enumerate([0.5, 0.3, 0.2]))
    assert abs(counted[0] / 20_000 - 0.3) > 0.015, "the bound would see a wrong share"


def test_empty_sets_do_not_hang() -> None:
    for strategy in ("once", "first_exhausted", "all_exhausted", "concat"):
        mix = Mix[int](openers=[list, lambda: [1]], weights=[1, 1], strategy=strategy)
        assert list(mix) in ([], [DrawnItem(1, 1)])
        assert list(Mix[int](openers=[list], weights=[1], strategy=strategy)) == []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    alpaca = [{"instruction": f"i{n}", "output": f"a{n}"} for n in range(6)]
    chat = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"c{n}"}]}
        for n in range(4)
    ]
    for name, rows in (("alpaca", alpaca), ("chat", chat)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mixed(files: Path, *sets: dict[str, Any], **options: Any) -> tuple[Mixture, list[tuple[str, int, str]]]:
    mix = [{"dataset": str(files / "alpaca.jsonl"), "name": "alpaca"},
           {"dataset": str(files / "chat.jsonl"), "name": "chat", "template": "chatml"}]  # fmt: skip
    mix = [{**one, **more} for one, more in zip(mix, sets or ({}, {}), strict=True)]
    pipeline = create_pipeline(DataOptions.parse({"mix": mix, **options}), REGISTRY)
    assert isinstance(pipeline, Mixture)
    items = [(i.rendered.source, i.rendered.row, i.rendered.text) for i in pipeline.run()]
    return pipeline, items


def test_each_set_has_its_own_adapter_and_template(files: Path) -> None:
    pipeline, items = mixed(files)
    assert [item[:2] for item in items] == [*(("alpaca", n) for n in range(6)), *(("chat", n) for n in range(4))]
    assert "### Instruction:\ni0" in items[0][2]
    assert items[6][2].startswith("<|im_start|>user\nq0")
    assert {name: counts.rows_out for name, counts in pipeline.counts.sets.items()} == {"alpaca": 6, "chat": 4}
    assert pipeline.counts.rows_in == 10
    assert not pipeline.has_one_template
    assert pipeline.counts.lines(tokens=False) == [
        "rows in: 10, rows out: 10, dropped: 0",
        "alpaca: rows in: 6, rows out: 6, dropped: 0 (60.0% of the rows)",
        "  note: adapter alpaca, inferred from the records' keys",
        "chat: rows in: 4, rows out: 4, dropped: 0 (40.0% of the rows)",
        "  note: adapter messages, inferred from the records' keys",
    ]


@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize("strategy", [*STRATEGIES, "concat", None])
def test_rows_are_out_or_told(files: Path, strategy: str | None, shuffle: int | None) -> None:
    weights = ({}, {}) if strategy == "concat" else ({"weight": 1}, {"weight": 3})
    pipeline, items = mixed(files, *weights, mix_strategy=strategy, shuffle=shuffle)
    again = mixed(files, *weights, mix_strategy=strategy, shuffle=shuffle)[1]
    assert items == again
    for name, size in (("alpaca", 6), ("chat", 4)):
        own = [row for source, row, _ in items if source == name]
        if strategy in ("once", "concat"):
            assert sorted(own) == list(range(size))
        elif set(own) != set(range(size)):
            assert strategy == "first_exhausted"
            assert f"only its first {len(own)} rows were drawn" in pipeline.counts.notes[name]
        elif len(own) > size:
            assert "gone through" in pipeline.counts.notes[name]


def test_repeats_limits_and_filters_of_a_set(files: Path) -> None:
    pipeline, items = mixed(files, {"repeat": 2, "limit": 3}, {"filter": ["messages[1]['content'] != 'c1'"]})
    assert [row for source, row, _ in items if source == "alpaca"] == [0, 1, 2, 0, 1, 2]
    assert [row for source, row, _ in items if source == "chat"] == [0, 2, 3]
    assert pipeline.counts.sets["chat"].dropped == {"filtered": 1}


def test_repeats_over_sets_are_named_and_those_on_purpose_are_none(files: Path) -> None:
    rows = [{"instruction": "i1", "output": "a1"}, {"instruction": "new", "output": "a1"}]
    (files / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline, items = mixed(files, {"repeat": 2}, {"template": "alpaca"}, dedup="exact")
    assert len(items) == 13
    assert pipeline.counts.sets["chat"].first_dropped["duplicate"].endswith("chat.jsonl:0: the same as row 1 of alpaca")
    assert pipeline.has_one_template


def test_an_error_names_the_file_and_its_row(files: Path) -> None:
    with (files / "chat.jsonl").open("a") as file:
        file.write('{"messages": 3}\n')
    with pytest.raises(RecordError, match=r"chat\.jsonl:4:messages"):
        mixed(files)
    pipeline, items = mixed(files, on_error="skip", shuffle=1)
    assert len(items) == 10
    assert pipeline.counts.sets["chat"].dropped == {"bad_messages": 1}
    with pytest.raises(ConfigError, match="chat: 0 of 5 samples left; dropped: 4 filtered; 1 filter_failed"):
        mixed(files, {}, {"filter": ["messages[0] == 1"]}, on_error="skip")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mix_strategy": "once"}, "expected --mix too"),
        ({"mix": ["starter"], "dataset": "x.json"}, "expected one of them"),
        ({"mix": ["starter,weight=2"], "mix_strategy": "concat"}, "draws nothing"),
        ({"mix": ["starter,weight=0"]}, "greater than or equal to 0.000000001"),
        ({"mix": ["starter,wieght=2"]}, "unknown option 'mix.0.wieght'; did you mean 'weight'"),
        ({"mix": ["starter,weight"]}, "ADDRESS,key=value"),
    ],
)
def test_what_a_mixture_is_not(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DataOptions.parse(options)


def test_names_tell_sets_apart() -> None:
    with pytest.raises(ConfigError, match=r"two sets are named 'starter'; .*name="):
        create_pipeline(DataOptions.parse({"mix": ["starter", "starter"]}), REGISTRY)


def test_the_command_line(files: Path) -> None:
    command = [sys.executable, "-m", "templatekit", "render", "--json"]
    sets = ["--mix", f"{files}/alpaca.jsonl,weight=2,name=a", "--mix", f"{files}/chat.jsonl,template=chatml,name=c"]
    done = subprocess.run([*command, *sets], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["source"] for row in rows} == {"a", "c"}
    assert all(("<|im_start|>" in row["text"]) == (row["source"] == "c") for row in rows)
    counts = json.loads(done.stderr.splitlines()[-1])
    assert counts["sets"]["a"]["rows_out"] + counts["sets"]["c"]["rows_out"] == len(rows) == counts["rows_out"]
    done = subprocess.run([*command[:3], "audit", *sets], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "one set is read at a time here" in done.stderr


def test_columnar_files_say_the_source(files: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    output = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "templatekit", "render", "--output", str(output), "--shuffle", "1"]
    sets = ["--mix", f"{files}/alpaca.jsonl,name=a", "--mix", f"{files}/chat.jsonl,template=chatml,name=c"]
    subprocess.run([*command, *sets], capture_output=True, check=True)
    assert Counter(pyarrow.parquet.read_table(output)["source"].to_pylist()) == {"a": 6, "c": 4}


def test_python_calls_mix_too(files: Path) -> None:
    found = templatekit.render(None, mix=[{"dataset": str(files / "alpaca.jsonl")}, "starter,limit=2"])
    assert len(list(found)) == 8
    with pytest.raises(ConfigError, match="beside mix"):
        templatekit.render([], mix=["starter"])


def test_training_refuses_two_templates_and_splits_by_row(files: Path, tokenizer_of: Any) -> None:
    from templatekit.training.data import read_splits, training_pipeline

    sets: list[Any] = [f"{files}/alpaca.jsonl,repeat=3", f"{files}/chat.jsonl,name=chat,template=chatml"]
    tokenizer = tokenizer_of("bytes")
    with pytest.raises(ConfigError, match="served with one template, 'alpaca'"):
        training_pipeline(FinetuneOptions.parse({"mix": sets}), REGISTRY, tokenizer=tokenizer)
    options = FinetuneOptions.parse({"mix": sets, "template": "chatml", "split": "train=rest,validation=0.3"})
    splits = read_splits(options, training_pipeline(options, REGISTRY, tokenizer=tokenizer)).samples
    rows = {name: {(i.rendered.source, i.rendered.row) for i in items} for name, items in splits.items()}
    assert not rows["train"] & rows["validation"], "a row's repeats are on one side"
    assert len(rows["train"]) + len(rows["validation"]) == 10
    assert len(splits["train"]) + len(splits["validation"]) == 22


def test_pairs_are_mixed_too(tmp_path: Path, tokenizer_of: Any) -> None:
    from templatekit.training.data import read_splits, training_pipeline

    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    (tmp_path / "one.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({**pair, "prompt": f"p{n}"}) + "\n" for n in range(4)))
    options = FinetuneOptions.parse(
        {"method": "dpo", "mix": [f"{tmp_path}/one.jsonl,weight=3", f"{tmp_path}/two.jsonl"], "split": "train=rest"}
    )
    pipeline = training_pipeline(options, REGISTRY, tokenizer=tokenizer_of("bytes"))
    splits = read_splits(options, pipeline)
    assert splits.sizes["train"] * 2 == pipeline.counts.samples
    assert pipeline.counts.rows_in == pipeline.counts.rows_out == splits.sizes["train"] > 8
