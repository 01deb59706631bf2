"""Experiment trackers: TensorBoard, trackio, Weights & Biases, MLflow get the metrics that `metrics.jsonl` gets.

A tracker is chosen by name and has to be installed; the others are not imported. Metrics have the prefix `train/` or
`eval/`. A tracker that fails during a run is dropped with a warning, so that the run continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from templatekit.errors import ConfigError
from templatekit.training.metrics import MetricsLine

PROJECT = "templatekit"


class Tracker(NamedTuple):
    """Receives the metrics of a run."""

    log: Callable[[dict[str, float], int], object]
    """Log the metrics of a step or an evaluation, with the index of the step."""
    close: Callable[[], object]


def _tensorboard(folder: Path, options: dict[str, Any]) -> Tracker:
    """Event files in `tensorboard/` in the run folder."""
    writer = import_module("torch.utils.tensorboard").SummaryWriter(log_dir=str(folder / "tensorboard"))

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def _wandb_like(module_name: str, folder: Path, options: dict[str, Any], **settings: Any) -> Tracker:
    """Weights & Biases, or trackio, which has the same functions."""
    module = import_module(module_name)
    module.init(project=PROJECT, name=folder.name, config=options, **settings)
    return Tracker(lambda metrics, step: module.log(metrics, step=step), module.finish)


def _mlflow(folder: Path, options: dict[str, Any]) -> Tracker:
    mlflow = import_module("mlflow")
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=folder.name)
    mlflow.log_params(options)
    return Tracker(lambda metrics, step: mlflow.log_metrics(metrics, step=step), mlflow.end_run)


_TRACKERS: Mapping[str, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": _tensorboard,
    "trackio": lambda folder, options: _wandb_like("trackio", folder, options, resume="allow"),
    "wandb": lambda folder, options: _wandb_like("wandb", folder, options, dir=str(folder)),
    "mlflow": _mlflow,
}


def check_installed(names: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"report_to={name!r} needs the package {name}: pip install {name}")


@contextmanager
def open_trackers(
    names: tuple[str, ...], folder: Path, options: dict[str, Any], warn: Callable[[str], None]
) -> Iterator[Callable[[MetricsLine], None]]:
    """Open the trackers of these names; yield a function that logs a line of the metrics to all of them."""
    trackers: dict[str, Tracker] = {}

    def attempt(name: str, action: Callable[..., object], *arguments: object) -> None:
        try:
            action(*arguments)
        except Exception as error:  # third-party code, which may use a network
            trackers.pop(name, None)
            warn(f"{name} is left out from here on: {type(error).__name__}: {error}")

    def log(line: MetricsLine) -> None:
        if "seconds" not in line:  # the loop's first message, which only has the count of steps
            return
        kind = "eval" if "eval_loss" in line else "train"
        metrics = {f"{kind}/{name.removeprefix('eval_')}": value for name, value in line.items() if name != "step"}
        for name, tracker in list(trackers.items()):
            attempt(name, tracker.log, metrics, int(line["step"]))

    def open_tracker(name: str) -> None:
        trackers[name] = _TRACKERS[name](folder, dict(options))

    for name in names:
        attempt(name, open_tracker, name)
    try:
        yield log
    finally:
        for name, tracker in list(trackers.items()):
            attempt(name, tracker.close)
