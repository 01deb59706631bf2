"""The report of a run: its progress on stderr, its cost, and the loss curves as a picture."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from templatekit.config.staging import replace_file
from templatekit.errors import RunError
from templatekit.training.metrics import MetricsLine, read_metrics

_LINE_INTERVAL = 30.0
"""Seconds between lines where stderr is not a terminal."""
_SMOOTHING = 0.8
"""The share of the previous steps in the displayed speed."""


class Progress:
    """Shows the progress of a run on stderr: a bar on a terminal, else a line now and then. Call it with each line of
    the metrics."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total = 0
        self._speed = 0.0
        self._shown = {"loss": "", "held-out": "", "tokens/s": ""}
        self._last_line = float("-inf")
        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, numbers="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, line: MetricsLine) -> None:
        """Show a line of the metrics. The loop's first message has `total_steps` instead of metrics."""
        step = int(line["step"])
        if "total_steps" in line:
            self._total = int(line["total_steps"])
            self._bar.update(self._task, total=self._total)
        elif "eval_loss" in line:
            self._shown["held-out"] = f"held-out {line['eval_loss']:.3f}"
            self._say(f"step {step}: held-out loss {line['eval_loss']:.4f}")
        else:
            speed = line["tokens"] / max(line["seconds"], 1e-9)
            self._speed = _SMOOTHING * self._speed + (1 - _SMOOTHING) * speed if self._speed else speed
            self._shown |= {"loss": f"loss {line['loss']:.3f}", "tokens/s": f"{self._speed:,.0f} tokens/s"}
            if time.monotonic() - self._last_line >= _LINE_INTERVAL or step == self._total:
                self._say(f"step {step}/{self._total}: loss {line['loss']:.4f}, {self._speed:,.0f} tokens/s")
        self._bar.update(self._task, completed=step, numbers="  ".join(filter(None, self._shown.values())))

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._last_line = time.monotonic()
            self._console.print(text, highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a run over all its starts, without steps of a killed process that were lost."""

    seconds: float
    """Time in steps and evaluations."""
    step_seconds: float
    """Time in steps alone."""
    tokens: int
    """Input tokens of the examples; a shared prefix counts for each example that has it."""
    computed_tokens: int
    """Input tokens that the model computed in training."""
    padded_tokens: int
    """Input tokens that padded batches would have taken."""
    target_tokens: int
    peak_memory: int
    """Bytes on the GPU, or of this process where there is none."""

    def line(self) -> str:
        """One line for the terminal."""
        speed = f" ({self.tokens / self.step_seconds:,.0f} tokens/s)" if self.step_seconds else ""
        rest = self.seconds - self.step_seconds
        return (
            f"cost: {self.step_seconds:.0f} s of steps{speed}, {rest:.0f} s of evaluations; {self.tokens:,} tokens "
            f"({self.padded_tokens:,} in padded batches), of which {self.computed_tokens:,} were computed and "
            f"{self.target_tokens:,} trained; peak memory {self.peak_memory / 2**30:.2f} GiB"
        )


def cost_of(metrics: Path, device: torch.device) -> Cost:
    """The cost that the metrics file adds up to, with the peak memory of this process."""
    lines = read_metrics(metrics)
    names = ("tokens", "computed_tokens", "padded_tokens", "target_tokens")
    totals = {name: sum(int(line.get(name, 0)) for line in lines) for name in names}
    seconds = round(sum(line["seconds"] for line in lines), 3)
    step_seconds = round(sum(line["seconds"] for line in lines if "loss" in line), 3)
    return Cost(seconds=seconds, step_seconds=step_seconds, peak_memory=_peak_memory(device), **totals)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def plot_run(metrics: Path, picture: Path) -> str | None:
    """Draw the losses, learning rate, speed and savings of packing of a run; with DPO also rewards and their accuracy.

    Returns None, or the reason why there is no picture.
    """
    if find_spec("matplotlib") is None:
        return "no picture of the losses: pip install 'templatekit[plots]'"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = read_metrics(metrics)
    steps = [line for line in lines if "loss" in line]
    losses, held_out = _points(steps, "loss"), _points(lines, "eval_loss")
    if not steps and not held_out:
        return f"no picture of the losses: {str(metrics)!r} holds none"
    preferences = any("reward_margin" in line for line in steps)
    unit = "pair" if preferences else "trained token"
    curves = {"each step": losses, "running mean": _running_mean(losses), "held out": held_out}
    panels = {f"mean loss of a {unit} (nats)": curves}
    if preferences:
        rewards = {label: _points(steps, f"reward_{label}") for label in ("margin", "chosen", "rejected")}
        panels["mean reward"] = rewards
        panels["share of pairs with a margin above 0"] = {"accuracy": _points(steps, "reward_accuracy")}
    speed = [(line["step"], line["tokens"] / max(line["seconds"], 1e-9)) for line in steps]
    panels["learning rate"] = {"": _points(steps, "learning_rate")}
    panels["tokens a second"] = {"each step": speed, "running mean": _running_mean(speed)}
    panels["tokens for each one computed"] = {
        "in padded batches (padding avoided)": _ratios(steps, "padded_tokens"),
        "in plain packs (sharing gained)": _ratios(steps, "tokens"),
    }
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(11, 3.2 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    styles: dict[str, dict[str, Any]] = {
        "each step": {"alpha": 0.3, "linewidth": 1},
        "held out": {"marker": "o"},  # few points, and the curve between them is unknown
    }
    for number, (title, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, 2, number)
        for label, points in curves.items():
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **{"linewidth": 2} | styles.get(label, {}))
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_lines() and any(curves):
            axes.legend()
    drawn = BytesIO()
    figure.savefig(drawn, format=picture.suffix[1:])
    try:
        replace_file(picture, drawn.getvalue())
    except OSError as error:
        raise RunError(f"{str(picture)!r} cannot be written: {error.strerror}") from error
    return None


def _points(lines: list[MetricsLine], name: str) -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in lines if name in line]


def _ratios(lines: list[MetricsLine], name: str) -> list[tuple[float, float]]:
    """A count of tokens divided by the tokens computed, as a running mean."""
    found = [(line["step"], line[name] / line["computed_tokens"]) for line in lines if line.get("computed_tokens")]
    return _running_mean(found) if all(name in line for line in lines) else []


def _running_mean(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of the values up to each point, over a window of a tenth of all points."""
    width = max(1, len(points) // 10)
    windows = [points[max(0, end - width) : end] for end in range(1, len(points) + 1)]
    return [(window[-1][0], sum(value for _, value in window) / len(window)) for window in windows]
