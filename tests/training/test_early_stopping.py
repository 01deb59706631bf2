"""The held-out loss decides which step is kept and when to stop, also in a resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.training.early_stopping import best_step, should_stop_early
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.loop import train
from templatekit.training.objective import Objective
from templatekit.training.step import evaluate
from templatekit.types import TokenizedExample

MakeModel = Callable[..., PreTrainedModel]
LOSSES = [3.0, 2.0, 1.5, 1.7, 1.5, 1.6, 1.0, 2.0]
"""Made-up held-out losses of the steps 0, 2, 4, …: the best of the first six is step 4, then 12."""


def _lines(losses: list[float]) -> list[dict[str, float]]:
    return [{"step": 2 * number, "eval_loss": loss} for number, loss in enumerate(losses)]


def test_the_best_step_is_the_first_of_the_lowest() -> None:
    assert best_step(_lines(LOSSES)) == 12
    assert best_step(_lines(LOSSES[:6])) == 4
    assert best_step([{"step": 1, "loss": 0.1}]) is None
    assert best_step(_lines([0.1, 2.0])) == 2, "the model as it came is no step"


@given(
    st.lists(st.floats(0, 9, allow_nan=False), min_size=1, max_size=12), st.integers(1, 4), st.sampled_from([0.0, 0.5])
)
def test_patience_is_what_its_help_says(losses: list[float], patience: int, min_delta: float) -> None:
    expected = False
    for end in range(1, len(losses) + 1):
        seen, best = losses[:end], float("inf")
        without = 0
        for loss in seen:
            without = 0 if loss < best - min_delta else without + 1
            best = loss if loss < best - min_delta else best
        expected = without >= patience
        assert should_stop_early(_lines(seen), patience=patience, min_delta=min_delta) == expected
    assert not should_stop_early(_lines(losses), patience=None, min_delta=min_delta)


def _options(**values: object) -> FinetuneOptions:
    defaults = {
        "epochs": 5, "batch_size": 4, "learning_rate": 5e-3, "precision": "fp32", "lora": False, "eval_every": 2,
        "keep_checkpoints": 1,
    }  # fmt: skip
    return FinetuneOptions.parse({**defaults, **values})


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has evaluations give the made-up losses; the list says how many there were."""
    count = [0]

    def pretended(objective: Any, items: Any) -> dict[str, float]:
        count[0] += 1
        evaluate(objective, items)
        return {"loss": LOSSES[(count[0] - 1) % len(LOSSES)]}

    monkeypatch.setattr("templatekit.training.loop.evaluate", pretended)
    return count


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept_and_its_weights_are_the_runs(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, made_up: list[int]
) -> None:
    before: dict[str, torch.Tensor] = {}

    def report(line: Any) -> None:
        if line["step"] == 4 and "eval_loss" in line:
            before.update({name: weight.detach().clone() for name, weight in model.named_parameters()})

    model = tiny_model()
    options = _options(keep_best=True, save_every=1, max_steps=10)
    result = train(model, examples, examples[:2], options, folder=tmp_path, report=report)
    assert (result.steps, result.best_step, result.stopped_early) == (10, 4, False)
    assert (result.eval_before, result.eval_after) == (3.0, 1.5)
    assert _names(tmp_path) == ["step-00000004", "step-00000010"]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_without_it_the_last_weights_stay(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, made_up: list[int]
) -> None:
    result = train(tiny_model(), examples, examples[:2], _options(max_steps=10), folder=tmp_path)
    assert (result.best_step, result.eval_after) == (None, 1.6)
    assert _names(tmp_path) == ["step-00000010"]


def test_patience_ends_a_run_with_a_checkpoint(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, made_up: list[int]
) -> None:
    options = _options(patience=3)
    result = train(tiny_model(), examples, examples[:2], options, folder=tmp_path)
    assert (result.steps, result.stopped_early, result.eval_after) == (10, True, 1.6)
    assert _names(tmp_path) == ["step-00000010"]
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = train(tiny_model(), examples, examples[:2], options.model_copy(update={"resume": True}), folder=tmp_path)
    assert (again.steps, again.stopped_early) == (10, True)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    more = train(tiny_model(), examples, examples[:2], _options(patience=9, resume=True), folder=tmp_path)
    assert (more.steps, more.stopped_early) == (15, False)


def test_a_damaged_best_checkpoint_is_said(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, made_up: list[int]
) -> None:
    def damage(line: Any) -> None:
        if line["step"] == 9 and "loss" in line:
            path = tmp_path / "checkpoints" / "step-00000004" / "weights.safetensors"
            path.write_bytes(path.read_bytes()[:-1])

    said: list[str] = []
    options = _options(keep_best=True, max_steps=10)
    result = train(tiny_model(), examples, examples[:2], options, folder=tmp_path, report=damage, warn=said.append)
    assert (result.best_step, result.eval_after) == (None, 1.6)
    assert len(said) == 1
    assert "the best step is 4, but checkpoint" in said[0]
    assert "is damaged" in said[0]


def test_a_resumed_run_keeps_the_best_of_both_halves(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    """With true losses, at a rate at which they rise again."""
    options = _options(learning_rate=0.05, schedule="constant", warmup=0, epochs=6, keep_best=True, save_every=3)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    expected = tiny_model()
    result = train(expected, examples[:8], examples[8:], options, folder=whole)

    def kill(line: Any) -> None:
        if line["step"] == 8 and "loss" in line:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tiny_model(), examples[:8], examples[8:], options, folder=stopped, report=kill)
    found = tiny_model(seed=4)
    resumed = options.model_copy(update={"resume": True})
    again = train(found, examples[:8], examples[8:], resumed, folder=stopped)
    assert (again.best_step, again.eval_after) == (result.best_step, result.eval_after)
    assert result.best_step is not None
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    objective = Objective(ForwardPass.of(found, options))
    assert evaluate(objective, examples[8:])["loss"] == result.eval_after


def test_what_cannot_be_compared_is_refused(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="patience compares held-out losses; found no eval_every; expected --eval-every"
    ):
        FinetuneOptions.parse({"patience": 2})
    with pytest.raises(ConfigError, match="keep_best compares held-out losses"):
        FinetuneOptions.parse({"keep_best": True})
    with pytest.raises(ConfigError, match="found no held-out examples; see --split"):
        train(tiny_model(), examples, [], _options(patience=1), folder=tmp_path)


def test_metrics_of_a_resumed_run_hold_no_step_twice(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    options = _options(save_every=3)
    train(tiny_model(), examples, examples[:2], options, folder=tmp_path)
    steps = [
        line["step"]
        for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    assert steps == list(range(1, 16))
