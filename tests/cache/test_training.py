"""Training on memory-mapped samples equals training on samples in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.pieces import in_pieces
from testkit.tiny_model import tiny_folder

import templatekit
from templatekit import FinetuneOptions, Registry
from templatekit.cache import preparation as run
from templatekit.cache.atomic_files import Damaged
from templatekit.cache.preparation import prepare_samples
from templatekit.cache.sequences import ColumnarExamples, ColumnarSamples
from templatekit.errors import RunError
from templatekit.pipeline.pipeline import Pipeline
from templatekit.training import data as data_module
from templatekit.training.data import data_fingerprints, read_splits, training_pipeline

ROWS = [
    {"messages": [{"role": ("user", "assistant")[t % 2], "content": f"{n} {t} so"} for t in range(2 + 2 * (n % 3))]}
    for n in range(23)
]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHARD_RECORDS", 5)


@pytest.fixture(autouse=True)
def workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process, with everything they get and return pickled, in chunks of four records."""
    monkeypatch.setattr("templatekit.pipeline.pipeline.CHUNK_SIZE", 4)
    monkeypatch.setattr(data_module, "process_engine", lambda workers: in_pieces if workers == 2 else None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def stored(data: Path, builtin: Registry, tokenizer_of: Tokenizers, tmp_path: Path) -> Any:
    """A pipeline's options and tokenizer, with or without a cache."""

    def pipeline(cache: bool, **more: Any) -> tuple[FinetuneOptions, Pipeline]:
        values = {"dataset": str(data), "template": "qwen3", "cache": cache, "cache_dir": tmp_path / "cache", **more}
        options = FinetuneOptions.parse(values)
        return options, Pipeline(options, builtin, tokenizer=tokenizer_of("nfc"))

    return pipeline


@settings(max_examples=max(2, settings().max_examples // 3))
@given(
    split=st.sampled_from(["train=rest,validation=0.2", "train=0.5,test=0.2,validation=rest", "train=rest"]),
    order=st.sampled_from(["shuffled", "sequential"]),
    train_on=st.sampled_from(["response", "response=0.3,user=0.1", "last"]),
)
def test_splits_are_the_same(stored: Any, split: str, order: str, train_on: str) -> None:
    more = {"split": split, "split_order": order, "train_on": train_on}
    options, in_memory = stored(False, **more)
    plain = read_splits(options, in_memory)
    for cache, workers in ((False, 2), (True, 1), (True, 2)):  # sent by workers, made here, then read from the cache
        options, mapped = stored(cache, workers=workers, **more)
        found = read_splits(options, mapped)
        assert all(isinstance(samples, ColumnarSamples) for samples in found.samples.values())
        assert {name: list(samples) for name, samples in found.samples.items()} == {
            name: list(samples) for name, samples in plain.samples.items()
        }
        assert list(found.train) == list(plain.train)
        assert list(found.held_out) == list(plain.held_out)
        assert list(found.prompt_samples) == list(plain.prompt_samples)
        assert (found.sizes, list(found.serving_samples)) == (plain.sizes, list(plain.serving_samples))
        assert data_fingerprints(mapped, found.train) == data_fingerprints(in_memory, plain.train)
        assert mapped.counts.as_dict() == in_memory.counts.as_dict()


@pytest.mark.parametrize("cache", [False, True])
def test_workers_prepare_pairs_and_several_sets(
    data: Path, builtin: Registry, tokenizer_of: Tokenizers, tmp_path: Path, cache: bool
) -> None:
    """Workers make the same samples of pairs and mixtures as this process; neither are cached."""
    pairs = tmp_path / "pairs.jsonl"
    answers = [f"yes {n} " * (n % 5 + 1) for n in range(40)]
    rows = [
        {"prompt": f"q{n}", "chosen": answer, "rejected": "no" if n % 7 else answer} for n, answer in enumerate(answers)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    of_kind: dict[str, dict[str, Any]] = {
        "dpo": {"dataset": str(pairs), "method": "dpo", "max_length": 60},
        "sft": {"mix": [{"dataset": str(data), "weight": 2}, {"dataset": str(pairs), "name": "pairs"}]},
    }
    for kind, more in of_kind.items():
        found = []
        for workers in (1, 2):
            values = {"template": "chatml", "cache": cache, "cache_dir": tmp_path / "cache", "workers": workers, **more}
            options = FinetuneOptions.parse(values)
            pipeline = training_pipeline(options, builtin, tokenizer=tokenizer_of("nfc"))
            splits = read_splits(options, pipeline)
            samples = {name: list(items) for name, items in splits.samples.items()}
            trained = list(splits.train), list(splits.held_out), list(splits.prompt_samples)
            found.append((samples, trained, data_fingerprints(pipeline, splits.train), pipeline.counts.as_dict()))
        assert found[0] == found[1], kind
        assert len(found[0][0]["train"]) > 20
    assert not (tmp_path / "cache").exists()


def test_samples_in_memory_lie_in_columns(stored: Any) -> None:
    """They equal the samples that the pipeline gives one by one; without rows there are none."""
    _, pipeline = stored(False)
    found = prepare_samples(pipeline)
    _, other = stored(False)
    expected = list(other.run(other.open(), source=other.options.dataset))
    assert isinstance(found, ColumnarSamples)
    assert list(found) == expected
    assert found.rows.tolist() == [item.rendered.row for item in expected]
    assert found.lengths.tolist() == [len(item.tokenized.input_ids) for item in expected]
    backwards = found.take(np.arange(len(found))[::-1])
    ids = [id for item in expected[::-1] for id in item.tokenized.input_ids]
    assert np.concatenate([ids for ids, _ in backwards.token_arrays()]).tolist() == ids
    assert list(ColumnarSamples([])) == [] and len(ColumnarSamples([]).rows) == 0


def test_another_weight_is_another_identity(stored: Any) -> None:
    hashes = set()
    for more in ({}, {"train_on": "response=0.5"}, {"limit": 22}, {"seed": 5}):
        options, pipeline = stored(True, **more)
        hashes.add(data_fingerprints(pipeline, read_splits(options, pipeline).train)["data"])
    assert len(hashes) == 4


@settings(max_examples=max(2, settings().max_examples // 2))
@given(chosen=st.lists(st.integers(0, 22), max_size=12), start=st.integers(0, 12), step=st.integers(1, 3))
def test_any_choice_in_any_order(stored: Any, chosen: list[int], start: int, step: int) -> None:
    _, in_memory = stored(False)
    plain = prepare_samples(in_memory)
    _, mapped = stored(True)
    samples = prepare_samples(mapped)
    assert isinstance(samples, ColumnarSamples)
    some = samples.take(np.array(chosen, dtype=np.int64))
    expected = [plain[place] for place in chosen]
    assert list(some) == expected
    assert list(some[start::step]) == expected[start::step]
    assert list(some.tokenized[start::step]) == [item.tokenized for item in expected[start::step]]
    assert some.rows.tolist() == [item.rendered.row for item in expected]
    assert some.lengths.tolist() == [len(item.tokenized.input_ids) for item in expected if item.tokenized]
    ids, weights = ([value for pair in some.token_arrays() for value in pair[at].tolist()] for at in (0, 1))
    assert ids == [id for item in expected if item.tokenized for id in item.tokenized.input_ids]
    assert weights == [weight for item in expected if item.tokenized for weight in item.tokenized.loss_weights]


def test_training_maps_tokens_and_reads_no_text(stored: Any) -> None:
    """Before its first step, training reads only the file of tokens."""
    options, pipeline = stored(True)
    read_splits(options, pipeline)
    folder = next((options.cache_dir or Path()).glob("prepared-*/*"))
    for path in folder.glob("*/texts.arrow"):
        path.write_bytes(b"\0" * path.stat().st_size)
    options, pipeline = stored(True)
    splits = read_splits(options, pipeline)
    assert isinstance(splits.train, ColumnarExamples)
    data_fingerprints(pipeline, splits.train)
    assert splits.train.samples.lengths.sum() > 0
    with pytest.raises(Damaged, match=r"texts\.arrow: has another hash"):
        splits.train[0]
    assert issubclass(Damaged, RunError)


def test_a_run_is_the_same_with_a_cache(data: Path, tmp_path: Path) -> None:
    """Losses are equal to the last bit; a run that started without a cache continues with one."""
    tiny_folder(tmp_path / "model")
    shared = {
        "dataset": str(data),
        "template": "chatml",
        "model": str(tmp_path / "model"),
        "cache_dir": tmp_path / "cache",
        "samples": 1,
        "max_new_tokens": 2,
        "lora": False,
        "save_every": 2,
    }
    losses = {}
    runs: dict[str, dict[str, Any]] = {"plain": {}, "sent": {"workers": 2}}
    runs |= {"made": {"cache": True, "workers": 2}, "taken": {"cache": True}}
    for name, more in runs.items():
        said: list[str] = []
        folder = tmp_path / name
        templatekit.finetune(shared | more | {"output": folder, "max_steps": 4}, say=said.append)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        assert any("cache: examples are taken" in line for line in said) == (name == "taken")
    assert len(losses["plain"]) == 4
    assert losses["sent"] == losses["made"] == losses["taken"] == losses["plain"]
    run = templatekit.finetune(
        shared | {"cache": True, "resume": True, "output": tmp_path / "plain", "max_steps": 4}, say=said.append
    )
    assert run.steps == 4
