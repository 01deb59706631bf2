"""`metrics.jsonl`: one object a line, for each step and each evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO, TypeAlias

from templatekit.errors import RunError
from templatekit.training.distributed import ALONE, World

METRICS = "metrics.jsonl"
Line: TypeAlias = Mapping[str, float]
"""A step's: `step`, `loss`, `learning_rate`, `grad_norm`, `tokens`, `computed_tokens`, `padded_tokens`,
`target_tokens`, `seconds`. An evaluation's: `step`, `eval_loss`, `seconds`. With DPO both have `reward_chosen`,
`reward_rejected`, `reward_margin` and `reward_accuracy` too, means over pairs; an evaluation's begin with `eval_`.
Steps count from 1; 0 is the model as it came."""


def read_metrics(path: Path) -> list[Line]:
    """The lines of a file, as far as they are whole: a killed process may leave half of one at the end."""
    lines: list[Line] = []
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
    """Appends lines to a run's metrics."""

    def __init__(self, folder: Path, *, until: int, world: World = ALONE) -> None:
        """Begins the file anew, with those of its lines that are of steps up to `until`.

        Of several processes each knows the lines, and the first writes them.
        """
        self._path = folder / METRICS
        self._file: TextIO | None = None
        self.lines = [line for line in read_metrics(self._path) if line["step"] <= until] if until else []
        world.any(False)  # all have read it
        world.first(lambda: self._begin(folder))

    def _begin(self, folder: Path) -> None:
        staging = folder / f".{METRICS}"
        try:
            staging.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
            staging.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, line: Line) -> None:
        """Adds a line, readable at once by whoever follows the file."""
        self.lines.append(line)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def sync(self) -> None:
        """Brings the lines to the disk."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def evaluated(self, step: int) -> float | None:
        """The held-out loss after `step` steps, where it is known."""
        return next((line["eval_loss"] for line in self.lines if "eval_loss" in line and line["step"] == step), None)

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been said
                self._file.close()

    def _failure(self, error: OSError) -> RunError:
        return RunError(f"{str(self._path)!r} cannot be written: {error.strerror}")
