"""Where the numbers of a run go besides `metrics.jsonl`: TensorBoard, trackio, Weights & Biases, MLflow.

Each is asked for by name and has to be installed; none is imported otherwise. They are told the same numbers, under
`train/` and `eval/`. A tracker that fails while the run goes on is left out with a word: a run does not depend on it.
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
from templatekit.training.metrics import Line

PROJECT = "templatekit"
_PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """What is told of a run."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Takes the numbers of a step or an evaluation."""
        ...

    def close(self) -> None:
        """Is told that no more will come."""
        ...


class _TensorBoard:
    """Event files in the run's folder, under `tensorboard/`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(log_dir=str(folder / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Run:
    """What trackio and Weights & Biases have in common: trackio took its calls from there."""

    def __init__(self, module: str, **how: Any) -> None:
        self._module = import_module(module)
        self._module.init(project=PROJECT, **how)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._module.log(dict(numbers), step=step)

    def close(self) -> None:
        self._module.finish()


def _trackio(folder: Path, options: Mapping[str, Any]) -> Tracker:
    return _Run("trackio", name=folder.name, config=dict(options), resume="allow")


def _wandb(folder: Path, options: Mapping[str, Any]) -> Tracker:
    return _Run("wandb", name=folder.name, config=dict(options), dir=str(folder))


class _MLflow:
    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_params(dict(options))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_MAKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _MLflow,
}


def check_installed(names: tuple[str, ...]) -> None:
    """Raises `ConfigError` for a tracker whose package is not there."""
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise ConfigError(f"report_to={name!r} needs the package {name}: pip install {name}")


@contextmanager
def tracking(
    names: tuple[str, ...], folder: Path, options: Mapping[str, Any], warn: Callable[[str], None]
) -> Iterator[Callable[[Line], None]]:
    """What takes each line of the metrics, and tells it to the trackers of these names."""
    trackers: dict[str, Tracker] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a stranger's code, perhaps a network
            trackers.pop(name, None)
            warn(f"{name} is left out from here on: {type(error).__name__}: {error}")

    def begin(name: str) -> None:
        trackers[name] = _MAKERS[name](folder, options)

    def tell(line: Line) -> None:
        numbers = _named(line)
        for name, tracker in list(trackers.items()) if numbers else ():
            attempt(name, partial(tracker.log, numbers, int(line["step"])))

    for name in names:
        attempt(name, partial(begin, name))
    try:
        yield tell
    finally:
        for name, tracker in list(trackers.items()):
            attempt(name, tracker.close)


def _named(line: Line) -> dict[str, float]:
    """A line's numbers as trackers group them; none of the loop's first message, which has no time."""
    if "seconds" not in line:
        return {}
    kind = "eval" if "eval_loss" in line else "train"
    return {f"{kind}/{name.removeprefix('eval_')}": value for name, value in line.items() if name != "step"}
