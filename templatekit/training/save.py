"""The trained model as a folder that `transformers` and vLLM load, without PEFT and without us."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from templatekit.config.options import FinetuneOptions
from templatekit.errors import RunError
from templatekit.training.checkpoint import sync
from templatekit.training.model import computes_in_bf16, quiet, unwrap

ADAPTER = "adapter"
_STAGING = ".model-in-the-making"
_LAST = "config.json"
"""Without it `transformers` loads nothing from a folder, so it comes last."""


def final_dtype(options: FinetuneOptions, device: torch.device) -> torch.dtype:
    """The type of saved weights: the one in which training multiplied with them.

    With bf16 products the fp32 weights were rounded to bf16 for every one of them, and the held-out loss was measured
    so: the folder holds what was measured, in half the space.
    """
    return torch.bfloat16 if computes_in_bf16(options.precision, device) else torch.float32


def save_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    eos_ids: Sequence[int],
    pad_id: int | None,
    stop_strings: Sequence[str] = (),
    dtype: torch.dtype,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Puts the model into `folder`, which may hold other things, in such a way that it is never half there.

    Adapters are merged into the weights, and saved apart under `adapter/`; the model that was given is merged too, and
    is not to be trained on. `generation_config.json` says when to stop: at any of `eos_ids`, at `stop_strings`. `extra`
    writes what belongs beside the weights, such as the tokenizer, into the folder it is given.
    """
    staging = folder / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        if model is not unwrap(model):
            adapted: Any = model
            # "auto" would ask the hub whether the embeddings were resized; trained rows are in the adapter anyway.
            adapted.save_pretrained(staging / ADAPTER, save_embedding_layers=False)
            (staging / ADAPTER / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
            model = adapted.merge_and_unload()
        _write(model, staging, eos_ids, pad_id, stop_strings, dtype)
        if extra is not None:
            extra(staging)
        sync(staging)
        _move(staging, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise RunError(f"the model cannot be saved in {str(folder)!r}: {error}") from error


def _write(
    model: PreTrainedModel,
    staging: Path,
    eos_ids: Sequence[int],
    pad_id: int | None,
    stop_strings: Sequence[str],
    dtype: torch.dtype,
) -> None:
    """Writes weights and settings; those of the model in memory stay as they are."""
    cast_once: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one tensor, and are saved once
    weights = {}
    for name, weight in model.state_dict().items():
        key = weight.data_ptr(), weight.shape
        weights[name] = cast_once.setdefault(key, weight.to(dtype) if weight.is_floating_point() else weight)
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    own = model.generation_config
    model.generation_config = stops = _when_to_stop(own, stop_strings)
    for settings in (config, stops):
        settings.eos_token_id = eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None
        settings.pad_token_id = pad_id
    try:
        with quiet():
            model.save_pretrained(staging, state_dict=weights)
            config.save_pretrained(staging)  # over that of the model in memory, which is fp32
    finally:
        model.generation_config = own
    for path in staging.rglob("*.safetensors"):  # which come readable to their owner alone
        path.chmod((staging / _LAST).stat().st_mode)


def _when_to_stop(own: Any, stop_strings: Sequence[str]) -> Any:
    """The model's own generation settings with our stop strings.

    Published models have settings that transformers no longer saves, such as a temperature without sampling; those of
    such a model are left behind.
    """
    settings = deepcopy(own)
    try:
        settings.validate(strict=True)
    except ValueError:
        settings = cast("Any", GenerationConfig)(bos_token_id=own.bos_token_id)
    settings.stop_strings = list(stop_strings) or None
    settings._from_model_config = False  # or they would give way to the model's configuration
    return settings


def _move(staging: Path, folder: Path) -> None:
    (folder / _LAST).unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: (path.name == _LAST, path.name)):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    staging.rmdir()
    sync(folder, deep=False)
