"""Trackers receive the metrics of `metrics.jsonl`, and no run depends on them."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
import types
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.training.trackers import check_installed, open_trackers

LINES: list[dict[str, float]] = [
    {"step": 0, "total_steps": 2},
    {"step": 0, "eval_loss": 2.0, "eval_reward_margin": 0.5, "seconds": 0.1},
    {"step": 1, "loss": 1.5, "learning_rate": 0.1, "seconds": 0.2},
    {"step": 2, "loss": 1.25, "learning_rate": 0.05, "seconds": 0.2},
]
TOLD = [
    (0, {"eval/loss": 2.0, "eval/reward_margin": 0.5, "eval/seconds": 0.1}),
    (1, {"train/loss": 1.5, "train/learning_rate": 0.1, "train/seconds": 0.2}),
    (2, {"train/loss": 1.25, "train/learning_rate": 0.05, "train/seconds": 0.2}),
]


def _tell(name: str, folder: Path, warn: Callable[[str], None] = pytest.fail) -> None:
    with open_trackers((name,), folder, {"seed": 1, "output": None}, warn) as tell:
        for line in LINES:
            tell(line)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    _tell("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted({name for _, numbers in TOLD for name in numbers})
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, pytest.approx(1.5)), (2, pytest.approx(1.25))]


@pytest.mark.filterwarnings("ignore")  # its own, and its dependencies'
def test_wandb_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _tell("wandb", tmp_path)
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    names = {name.encode() for _, numbers in TOLD for name in numbers}
    until = time.monotonic() + 20  # its own process writes, a moment after `finish`
    while not all(name in record.read_bytes() for name in names):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert b"train/other" not in record.read_bytes()


@pytest.mark.filterwarnings("ignore")  # its own, and its dependencies'
def test_trackio_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    _tell("trackio", tmp_path / "my-run")
    with closing(sqlite3.connect(tmp_path / "trackio" / "templatekit.db")) as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'my-run' order by step").fetchall()
    assert [(step, json.loads(numbers)) for step, numbers in rows] == TOLD


@pytest.mark.filterwarnings("ignore")  # its own, and its dependencies'
def test_mlflow_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs more packages
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    _tell("mlflow", tmp_path / "my-run")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("templatekit")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["seed"]) == ("my-run", "FINISHED", "1")
    for name in {name for _, numbers in TOLD for name in numbers}:
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert found == [(step, numbers[name]) for step, numbers in TOLD if name in numbers]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_others_are_called_as_their_manuals_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With a module that takes the documented calls and nothing else, where the libraries are not installed."""
    calls: list[tuple[Any, ...]] = []
    module: Any = types.ModuleType(name)
    if name == "mlflow":
        module.set_experiment = lambda experiment: calls.append(("begin", experiment))
        module.start_run = lambda run_name: calls.append(("name", run_name))
        module.log_params = lambda params: calls.append(("config", params["seed"]))
        module.log_metrics = lambda numbers, step: calls.append((step, numbers))
        module.end_run = lambda: calls.append(("end",))
    else:

        def init(*, project: str, name: str, config: Any, dir: str = "", resume: str = "") -> None:
            calls.extend([("begin", project), ("name", name), ("config", config["seed"])])

        module.init = init
        module.log = lambda numbers, step: calls.append((step, numbers))
        module.finish = lambda: calls.append(("end",))
    monkeypatch.setitem(sys.modules, name, module)
    _tell(name, tmp_path / "my-run")
    assert calls == [("begin", "templatekit"), ("name", "my-run"), ("config", 1), *TOLD, ("end",)]


def test_a_tracker_that_fails_is_left_out_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("wandb")
    module.init = lambda **_: None

    def log(numbers: Any, step: int) -> None:
        raise ConnectionError("no route")

    module.log = log
    module.finish = lambda: pytest.fail("it has been left out")
    monkeypatch.setitem(sys.modules, "wandb", module)
    said: list[str] = []
    _tell("wandb", tmp_path, said.append)
    assert said == ["wandb is left out from here on: ConnectionError: no route"]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templatekit.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to='wandb' needs the package wandb: pip install wandb"):
        check_installed(("wandb",))
    check_installed(())


def test_trackers_are_named_in_one_option_or_several() -> None:
    both = ("tensorboard", "wandb")
    for given in ("tensorboard,wandb", ["tensorboard", "wandb"], ("tensorboard, wandb",)):
        assert FinetuneOptions.parse({"report_to": given}).report_to == both
    with pytest.raises(ConfigError, match="report_to"):
        FinetuneOptions.parse({"report_to": "tensorbored"})
