from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers

from templatekit import create_registry
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.pipeline.pipeline import Pipeline
from templatekit.training.data import read_splits
from templatekit.training.sample_answers import samples_with_prompt
from templatekit.training.split import parse_split, split_rows

CHAPTER7 = "train=0.85,test=0.1,validation=rest"


def test_the_split_of_chapter_7() -> None:
    parts = split_rows(CHAPTER7, 1100, shuffle=False, seed=123)
    assert parts == {
        "train": list(range(935)),
        "test": list(range(935, 1045)),
        "validation": list(range(1045, 1100)),
    }


@given(count=st.integers(8, 500), seed=st.integers(0, 2**32), shuffle=st.booleans())
def test_every_row_is_in_one_part(count: int, seed: int, shuffle: bool) -> None:
    parts = split_rows(CHAPTER7, count, shuffle=shuffle, seed=seed)
    assert sorted(row for rows in parts.values() for row in rows) == list(range(count))
    assert [len(rows) for rows in parts.values()] == [
        int(count * 0.85),
        int(count * 0.1),
        count - int(count * 0.85) - int(count * 0.1),
    ]
    assert all(rows == sorted(rows) for rows in parts.values())
    assert split_rows(CHAPTER7, count, shuffle=shuffle, seed=seed) == parts


def test_the_seed_decides_a_shuffled_split() -> None:
    first, second = (split_rows(CHAPTER7, 100, shuffle=True, seed=seed) for seed in (1, 2))
    assert first != second
    assert first["train"] != list(range(85))


def test_the_order_stated_is_the_order_of_the_rows() -> None:
    assert split_rows("validation=0.25,train=rest", 8, shuffle=False, seed=0) == {
        "validation": [0, 1],
        "train": [2, 3, 4, 5, 6, 7],
    }
    assert parse_split(" train = rest , held-out=1e-1") == {"train": None, "held-out": 0.1}
    assert split_rows("train=rest", 3, shuffle=True, seed=0) == {"train": [0, 1, 2]}


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("", "no part named 'train'"),
        ("train", "expected NAME=FRACTION"),
        ("train=0.5,test=0.5", "exactly one part has to be 'rest'"),
        ("train=rest,test=rest", "exactly one part has to be 'rest'"),
        ("train=rest,train=0.1", "'train' twice, as 'rest' and '0.1'; keep one"),
        ("trian=rest,test=0.1", "no part named 'train'; did you mean 'trian'"),
        ("train=rest,test=0.7,validation=0.4", "add up to 1.1"),
        ("train=rest,test=-0.1", "found '-0.1'"),
        ("train=rest,test=nan", "found 'nan'"),
        ("train=rest,test=ten", "found 'ten'"),
        ("train=rest,test=1.5", "found '1.5'"),
        ("train=rest,test=1.0", "leaves none of 10 rows to train on"),
    ],
)
def test_a_wrong_split_says_what_is_wrong(spec: str, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_rows(spec, 10, shuffle=False, seed=0)
    assert found in str(caught.value)


@given(seed=st.integers(0, 2**16))
def test_the_examples_of_a_row_stay_in_one_part(seed: int, tokenizer_of: Tokenizers) -> None:
    """They share text: a held-out half would not be held out."""
    replies = [{"role": "assistant", "text": text} for text in ("b", "c")]
    rows = [
        {"message_tree_id": f"t{row}", "prompt": {"role": "prompter", "text": f"a{row}", "replies": replies}}
        for row in range(10)
    ]
    options = FinetuneOptions.parse({"adapter": "oasst-all", "split": "train=0.5,validation=rest", "seed": seed})
    pipeline = Pipeline(options, create_registry(), tokenizer=tokenizer_of("bytes"))
    with patch.object(pipeline, "open", return_value=iter(rows)):
        samples = read_splits(options, pipeline).samples
    parts = {name: [item.rendered.row for item in items] for name, items in samples.items()}
    assert {name: len(items) for name, items in parts.items()} == {"train": 10, "validation": 10}
    assert not set(parts["train"]) & set(parts["validation"])


def test_texts_without_a_prompt_are_not_sampled(tokenizer_of: Tokenizers) -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    pipeline = Pipeline(FinetuneOptions.parse({"template": "text"}), create_registry(), tokenizer=tokenizer_of("bytes"))
    texts = list(pipeline.run(rows))
    assert len(texts) == 2
    assert list(samples_with_prompt(texts)) == []
    asked = list(
        Pipeline(pipeline.options, pipeline.registry, tokenizer=pipeline.tokenizer).run(
            [{"prompt": "a", "completion": "b"}]
        )
    )
    assert list(samples_with_prompt(asked)) == asked
