"""`finetune`, killed at any moment and resumed, has the same losses as a run that was not killed, bit for bit.

The default suite kills a run a few times; `TEMPLATEKIT_KILLS=100` or `HYPOTHESIS_PROFILE=long` kills it a hundred
times.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from testkit.forks import Fork
from testkit.platforms import not_on_windows
from testkit.tiny_model import tiny_folder

import templatekit
from templatekit.hooks.loading import create_registry
from templatekit.training.run_folder import RECIPE

pytestmark = not_on_windows
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
KILLS = int(os.environ.get("TEMPLATEKIT_KILLS", "100" if LONG else "4"))
ROWS = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(20)]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"No idea, {n}."} for n, row in enumerate(ROWS)
]
KINDS: dict[str, dict[str, Any]] = {
    "sft": {"dataset": "rows.json", "lora": False, "learning_rate": 1e-2},
    "dpo": {"dataset": "pairs.json", "method": "dpo", "lora": True, "learning_rate": 1e-2},
    "best": {"dataset": "rows.json", "lora": False, "learning_rate": 3e-2, "keep_best": True, "patience": 6},
}


def _finetune(place: Path, folder: Path, options: dict[str, Any]) -> Fork:
    """A process that starts the run, or resumes it."""
    given = {
        "model": str(place / "model"),
        "template": "chatml",
        "output": folder,
        "resume": (folder / RECIPE).exists(),
        "epochs": 12,
        "batch_size": 4,
        "save_every": 3,
        "eval_every": 5,
        "samples": 1,
        "max_new_tokens": 2,
        "precision": "fp32",
        **options,
        "dataset": str(place / options["dataset"]),
    }

    def run() -> None:
        torch.set_num_threads(1)
        templatekit.finetune(given)

    return Fork(run)


def _import_all() -> None:
    """Import everything here, not again in every process."""
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure", "peft", "templatekit.training.run"):
        importlib.import_module(name)
    assert create_registry().templates


def _numbers(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_runs_are_the_unbroken_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _import_all()
    tiny_folder(tmp_path / "model")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS), encoding="utf-8")
    whole: dict[str, tuple[list[dict[str, float]], bytes, float]] = {}
    kinds = list(KINDS)[: max(1, KILLS // 2)]
    for kind in kinds:
        options = KINDS[kind]
        began = time.monotonic()
        ending = _finetune(tmp_path, tmp_path / kind, options).ended()
        assert ending.code == 0, f"{kind}: {ending.said}"
        whole[kind] = (_numbers(tmp_path / kind), _weights(tmp_path / kind), time.monotonic() - began)
    draw = random.Random(11)
    kills = runs = 0
    while kills < KILLS:
        kind = kinds[runs % len(kinds)]
        numbers, weights, seconds = whole[kind]
        folder = tmp_path / f"{kind}-{runs}"
        while True:
            fork = _finetune(tmp_path, folder, KINDS[kind])
            # Half of the kills are anywhere in a run, half of them during the steps.
            moment = draw.uniform(0, seconds) if draw.random() < 0.5 else draw.uniform(0.3, 0.8) * seconds
            ending = fork.killed_after(moment) if kills < KILLS else fork.ended()
            if ending.code == -signal.SIGKILL:
                kills += 1
                continue
            assert ending.code == 0, f"{kind}, after {kills} kills: {ending.said}"
            break
        assert _numbers(folder) == numbers, f"{kind}, after {kills} kills"
        assert _weights(folder) == weights, f"{kind}, after {kills} kills"
        runs += 1
    with capsys.disabled():
        if KILLS > 4:
            print(f"\n{kills} kills in {runs} runs: every loss and every weight is that of the unbroken run")


def test_the_comparison_would_notice(tmp_path: Path) -> None:
    """A run that resumes without the optimizer's state has other losses."""
    tiny_folder(tmp_path / "model")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    seeds = []
    for seed in (1, 2):
        ending = _finetune(tmp_path, tmp_path / str(seed), {**KINDS["sft"], "seed": seed, "max_steps": 3}).ended()
        assert ending.code == 0, ending.said
        seeds.append(_numbers(tmp_path / str(seed)))
    assert seeds[0] != seeds[1]
