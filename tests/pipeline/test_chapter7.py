"""The exact figures of chapter 7's data with GPT-2's tokenizer, over all 1,100 rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from templatekit import DataOptions, Registry, TokenizedExample, Tokenizer
from templatekit.pipeline.pipeline import Pipeline

TOKENS = {
    ("chapter7", "joint"): 62_025,
    ("chapter7", "cut"): 62_025,
    ("seed", "joint"): 69_200,
    ("seed", "cut"): 69_200,
    ("alpaca", "joint"): 63_841,
    ("alpaca", "cut"): 63_850,
    ("alpaca-lora", "joint"): 64_950,
    ("alpaca-lora", "cut"): 64_950,
    ("phi3-chapter7", "joint"): 42_800,
    ("phi3-chapter7", "cut"): 42_800,
    ("dolly", "joint"): 66_100,
    ("dolly", "cut"): 66_100,
}
"""Tokens of the whole texts without EOS: only Stanford's format changes where it is cut at the generation boundary."""
TARGETS = {"all": 62_025, "response": 21_039, "content": 14_439}
"""Target tokens of `chapter7`, EOS included; `all` leaves out each row's first token."""

Run = Callable[..., list[TokenizedExample]]


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((shared / "data/ch07/instruction-data.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def run(rows: list[dict[str, Any]], builtin: Registry, tokenizer_of: Callable[[str], Tokenizer]) -> Run:
    @cache
    def run(template: str, **options: Any) -> list[TokenizedExample]:
        parsed = DataOptions.parse({"dataset": "rows", "adapter": "alpaca", "template": template, **options})
        pipeline = Pipeline(parsed, builtin, tokenizer=tokenizer_of("gpt2"))
        return [item.tokenized for item in pipeline.run(rows) if item.tokenized is not None]

    return run


def without_eos(examples: list[TokenizedExample]) -> int:
    return sum(1 for example in examples for id in example.input_ids if id != 50256)


def test_the_rows(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 1_100
    assert sum(1 for row in rows if not row["input"]) == 775


@pytest.mark.parametrize(("template", "boundary"), TOKENS)
def test_tokens_without_eos(run: Run, template: str, boundary: str) -> None:
    examples = run(template, boundary=boundary)
    assert len(examples) == 1_100
    assert without_eos(examples) == TOKENS[template, boundary]


@pytest.mark.parametrize("train_on", TARGETS)
@pytest.mark.parametrize("boundary", ["cut", "joint"])
def test_target_tokens(run: Run, train_on: str, boundary: str) -> None:
    examples = run("chapter7", train_on=train_on, boundary=boundary)
    assert sum(example.trained_tokens for example in examples) == TARGETS[train_on]
    assert all(example.input_ids[-1] == example.labels[-1] == 50256 for example in examples)


def test_row_0(
    run: Run, rows: list[dict[str, Any]], builtin: Registry, tokenizer_of: Callable[[str], Tokenizer]
) -> None:
    example = run("chapter7")[0]
    assert without_eos([example]) == 74
    assert len(example) == 75
    options = DataOptions.parse({"dataset": "rows", "adapter": "alpaca", "template": "chapter7"})
    pipeline = Pipeline(options, builtin, tokenizer=tokenizer_of("gpt2"))
    (prepared,) = pipeline.run(rows[:1])
    prompt = pipeline.prompt_ids(prepared.example)
    assert len(prompt) == 48
    assert example.input_ids[:48] == prompt
    assert [label != -100 for label in example.labels] == [False] * 48 + [True] * 27
    trained = tokenizer_of("gpt2").decode(example.input_ids[48:])
    assert trained == f"\n\n### Response:\n{rows[0]['output']}<|endoftext|>"


def test_the_figures_are_of_this_data(run: Run) -> None:
    """Negative control: other words, another count."""
    assert without_eos(run("alpaca", boundary="cut")) != TOKENS["alpaca", "joint"]
    assert sum(e.trained_tokens for e in run("alpaca")) != TARGETS["response"]
