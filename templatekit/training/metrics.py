"""The metrics file `metrics.jsonl`: one JSON object a line, for each optimizer step and each evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, TypeAlias

from templatekit.config.staging import open_regular
from templatekit.errors import RunError
from templatekit.training.distributed import SINGLE_PROCESS, TrainingGroup
from templatekit.training.run_folder import write_text

METRICS = "metrics.jsonl"
MetricsLine: TypeAlias = Mapping[str, float]
"""A step has `step`, `loss`, `learning_rate`, `grad_norm`, `tokens`, `computed_tokens`, `padded_tokens`,
`target_tokens`, `seconds`. An evaluation has `step`, `eval_loss`, `seconds`. With DPO both also have means over pairs:
`reward_chosen`, `reward_rejected`, `reward_margin`, `reward_accuracy`, in an evaluation with the prefix `eval_`. Steps
count from 1; step 0 is the model before training."""


def read_metrics(path: Path) -> list[MetricsLine]:
    """The lines of a metrics file, up to the first that is none: a killed process may leave half a line at the end."""
    lines: list[MetricsLine] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    with suppress(ValueError):
        for line in map(json.loads, text.splitlines()):
            if not isinstance(line, dict) or "step" not in line or not all(map(_is_number, line.values())):
                break
            lines.append(line)
    return lines


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


class MetricsFile:
    """Appends lines to the metrics file of a run."""

    def __init__(self, folder: Path, *, up_to_step: int, group: TrainingGroup = SINGLE_PROCESS) -> None:
        """Rewrite the file with its lines of steps up to `up_to_step`; with 0 it starts empty.

        Every process holds the lines; the main process writes them.
        """
        self._path = folder / METRICS
        self._is_main = group.is_main
        self.lines = [line for line in read_metrics(self._path) if line["step"] <= up_to_step] if up_to_step else []
        group.any(False)  # wait until every process has read the file
        group.run_on_main(lambda: write_text(self._path, "".join(json.dumps(line) + "\n" for line in self.lines)))

    def write(self, line: MetricsLine) -> None:
        """Append a line to the file. Closing the file flushes it, so that others can follow it."""
        self.lines.append(line)
        if self._is_main:
            with self._reporting_errors(), self._open() as file:
                file.write(json.dumps(line) + "\n")

    def fsync(self) -> None:
        """Sync the file to the disk."""
        if self._is_main:
            with self._reporting_errors(), self._open() as file:
                os.fsync(file.fileno())

    def eval_loss_at(self, step: int) -> float | None:
        """The held-out loss after `step` steps; None where it was not evaluated."""
        return next((line["eval_loss"] for line in self.lines if "eval_loss" in line and line["step"] == step), None)

    def _open(self) -> TextIO:
        return os.fdopen(open_regular(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"{str(self._path)!r} cannot be written: {error.strerror}") from error
