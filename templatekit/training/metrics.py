"""The metrics file `metrics.jsonl`: one JSON object a line, for each optimizer step and each evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO, TypeAlias

from templatekit.errors import RunError
from templatekit.training.distributed import SINGLE_PROCESS, ProcessGroup

METRICS = "metrics.jsonl"
MetricsLine: TypeAlias = Mapping[str, float]
"""A step has `step`, `loss`, `learning_rate`, `grad_norm`, `tokens`, `computed_tokens`, `padded_tokens`,
`target_tokens`, `seconds`. An evaluation has `step`, `eval_loss`, `seconds`. With DPO both also have means over pairs:
`reward_chosen`, `reward_rejected`, `reward_margin`, `reward_accuracy`, in an evaluation with the prefix `eval_`. Steps
count from 1; step 0 is the model before training."""


def read_metrics(path: Path) -> list[MetricsLine]:
    """The complete lines of a metrics file. A killed process may leave half a line at the end, which is skipped."""
    lines: list[MetricsLine] = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        lines.append(line)
    return lines


class MetricsFile:
    """Appends lines to the metrics file of a run."""

    def __init__(self, folder: Path, *, up_to_step: int, group: ProcessGroup = SINGLE_PROCESS) -> None:
        """Rewrite the file with its lines of steps up to `up_to_step`; with 0 it starts empty.

        Every process holds the lines; the main one writes them.
        """
        self._path = folder / METRICS
        self._file: TextIO | None = None
        self.lines = [line for line in read_metrics(self._path) if line["step"] <= up_to_step] if up_to_step else []
        group.any(False)  # wait until every process has read the file
        group.run_on_main(lambda: self._rewrite(folder))

    def _rewrite(self, folder: Path) -> None:
        staging = folder / f".{METRICS}"
        try:
            staging.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
            staging.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, line: MetricsLine) -> None:
        """Append a line and flush it, so that others can follow the file."""
        self.lines.append(line)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def fsync(self) -> None:
        """Sync the file to the disk."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def eval_loss_at(self, step: int) -> float | None:
        """The held-out loss after `step` steps; None where it was not evaluated."""
        return next((line["eval_loss"] for line in self.lines if "eval_loss" in line and line["step"] == step), None)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # `write` has reported that it cannot be written
                self._file.close()

    def _failure(self, error: OSError) -> RunError:
        return RunError(f"{str(self._path)!r} cannot be written: {error.strerror}")
