"""Experiment trackers: TensorBoard, trackio, Weights & Biases, MLflow get the metrics that `metrics.jsonl` gets.

A tracker is chosen by name and has to be installed; the others are not imported. Metrics have the prefix `train/` or
`eval/`. A tracker that fails during a run is dropped with a warning, so that the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from templatekit.errors import ConfigError
from templatekit.training.metrics import MetricsLine

PROJECT = "templatekit"
_PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """Receives the metrics of a run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step or an evaluation."""
        ...

    def close(self) -> None:
        """Finish the run."""
        ...


class _TensorBoard:
    """Writes event files to `tensorboard/` in the run folder."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(log_dir=str(folder / "tensorboard"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandbLike:
    """Weights & Biases, or trackio, which has the same functions."""

    def __init__(self, module: str, **settings: Any) -> None:
        self._module = import_module(module)
        self._module.init(project=PROJECT, **settings)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._module.log(dict(metrics), step=step)

    def close(self) -> None:
        self._module.finish()


def _trackio(folder: Path, options: Mapping[str, Any]) -> Tracker:
    return _WandbLike("trackio", name=folder.name, config=dict(options), resume="allow")


def _wandb(folder: Path, options: Mapping[str, Any]) -> Tracker:
    return _WandbLike("wandb", name=folder.name, config=dict(options), dir=str(folder))


class _MLflow:
    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_params(dict(options))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _MLflow,
}


def check_installed(names: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a tracker whose package is not installed."""
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise ConfigError(f"report_to={name!r} needs the package {name}: pip install {name}")


@contextmanager
def open_trackers(
    names: tuple[str, ...], folder: Path, options: Mapping[str, Any], warn: Callable[[str], None]
) -> Iterator[Callable[[MetricsLine], None]]:
    """Open the trackers of these names; yield a function that logs a line of the metrics to all of them."""
    trackers: dict[str, Tracker] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # third-party code, which may use a network
            trackers.pop(name, None)
            warn(f"{name} is left out from here on: {type(error).__name__}: {error}")

    def open_one(name: str) -> None:
        trackers[name] = _TRACKERS[name](folder, options)

    def log(line: MetricsLine) -> None:
        metrics = _with_prefix(line)
        for name, tracker in list(trackers.items()) if metrics else ():
            attempt(name, partial(tracker.log, metrics, int(line["step"])))

    for name in names:
        attempt(name, partial(open_one, name))
    try:
        yield log
    finally:
        for name, tracker in list(trackers.items()):
            attempt(name, tracker.close)


def _with_prefix(line: MetricsLine) -> dict[str, float]:
    """The metrics of a line by prefixed name; none for the loop's first message, which only has the count of steps."""
    if "seconds" not in line:
        return {}
    kind = "eval" if "eval_loss" in line else "train"
    return {f"{kind}/{name.removeprefix('eval_')}": value for name, value in line.items() if name != "step"}
