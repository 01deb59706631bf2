"""Resuming: whether a run may continue from a checkpoint, and from which one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.training.checkpoint import (
    check_identity,
    has_checkpoints,
    newest_checkpoint,
    open_checkpoint,
    restore,
    restore_weights,
)
from templatekit.training.distributed import ProcessGroup

_CHANGEABLE_OPTIONS = {
    "output",
    "resume",
    "device",
    "activation_checkpointing",
    "eval_every",
    "eval_limit",
    "save_every",
    "keep_checkpoints",
    "keep_best",
    "patience",
    "min_delta",
    "distributed",
    "report_to",
    "cache",
    "cache_dir",
    "workers",
    "samples",
    "max_new_tokens",
}
"""Options that a resumed run may change, since no weight depends on them."""


def run_identity(
    options: FinetuneOptions, *, bf16: bool, example_count: int, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """All that the weights of a run depend on. A checkpoint resumes only in a run with an equal identity."""
    return {
        **options.model_dump(mode="json", exclude=_CHANGEABLE_OPTIONS),
        "precision": "bf16" if bf16 else "fp32",
        "training examples": example_count,
        **fingerprints,
    }


def resume_run(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    *,
    resume: bool,
    group: ProcessGroup,
    warn: Callable[[str], None],
) -> int:
    """Restore the newest checkpoint that is not damaged. Returns the steps it has done, 0 where the run starts here.

    Raises `ConfigError` for a checkpoint of another run, and without `resume` for any checkpoint in the folder;
    `RunError` where all checkpoints are damaged.
    """
    if not resume:
        if has_checkpoints(folder):
            raise ConfigError(f"output {str(folder)!r} holds checkpoints of a run; use --resume or another --output")
        return 0
    checkpoint, damaged = newest_checkpoint(folder)
    for message in damaged:
        warn(message)
    if checkpoint is None:
        if damaged:
            raise RunError(f"no checkpoint in {str(folder)!r} is whole; begin anew in another --output")
        return 0
    check_identity(checkpoint, identity)
    restore(checkpoint, model, optimizer, group)
    return checkpoint.step


def load_best(folder: Path, model: nn.Module, step: int, warn: Callable[[str], None]) -> int | None:
    """Load the weights of an earlier step. Returns the step, or None where its checkpoint is damaged."""
    checkpoint, problem = open_checkpoint(folder, step)
    if checkpoint is None:
        warn(f"the best step is {step}, but {problem}; the model keeps the last step's weights")
        return None
    restore_weights(checkpoint, model)
    return step
