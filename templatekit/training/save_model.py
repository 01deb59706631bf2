"""Save the trained model as a folder that transformers and vLLM load, without PEFT or templatekit."""

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

from templatekit.cache.atomic_files import sync_path
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.config.staging import staging_folder
from templatekit.errors import RunError
from templatekit.training.checkpoint import fsync_folder
from templatekit.training.model import quiet_transformers, unwrap, uses_bf16

ADAPTER = "adapter"
_LAST = "config.json"
"""transformers loads nothing from a folder without this file, so this file is moved into the folder last."""


def final_dtype(options: FinetuneOptions, device: torch.device) -> torch.dtype:
    """The dtype of the saved weights: that of the matrix products in training.

    bf16 products round the fp32 weights to bf16, and the held-out loss was measured that way. Saving them in bf16 keeps
    that loss and takes half the space.
    """
    return torch.bfloat16 if uses_bf16(options.precision, device) else torch.float32


def save_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    eos_ids: Sequence[int],
    pad_id: int | None,
    stop_strings: Sequence[str] = (),
    dtype: torch.dtype,
    extra: Callable[[Path], object] | None = None,
) -> None:
    """Save the model in `folder`, which may hold other files. A killed process never leaves half a model there.

    Adapters are merged into the weights, and also saved separately under `adapter/`. This merges the given model, which
    must not be trained afterwards. `generation_config.json` says when to stop: at any of `eos_ids`, at `stop_strings`.
    `extra` gets a folder and writes files that belong beside the weights, such as the tokenizer.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging_folder(folder / "model") as staging:
            if model is not unwrap(model):
                adapted: Any = model
                # "auto" would ask the hub whether the embeddings were resized. Trained rows are in the adapter anyway.
                adapted.save_pretrained(staging / ADAPTER, save_embedding_layers=False)
                (staging / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
                model = adapted.merge_and_unload()
            _write(model, staging, eos_ids, pad_id, stop_strings, dtype)
            if extra is not None:
                extra(staging)
            fsync_folder(staging)
            _move(staging, folder)
    except (OSError, SafetensorError) as error:
        raise RunError(f"the model cannot be saved in {str(folder)!r}: {error}") from error


def _write(
    model: PreTrainedModel,
    staging: Path,
    eos_ids: Sequence[int],
    pad_id: int | None,
    stop_strings: Sequence[str],
    dtype: torch.dtype,
) -> None:
    """Write weights and settings without changing those of the model in memory."""
    cast_once: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one tensor, and are saved once
    weights = {}
    for name, weight in model.state_dict().items():
        key = weight.data_ptr(), weight.shape
        weights[name] = cast_once.setdefault(key, weight.to(dtype) if weight.is_floating_point() else weight)
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    if type(model).__module__.startswith("transformers.") and hasattr(config, "auto_map"):
        del config.auto_map  # names Python that lies in the folder of the base model, and was not used
    own = model.generation_config
    model.generation_config = stops = _generation_settings(own, stop_strings)
    for settings in (config, stops):
        settings.eos_token_id = eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None
        settings.pad_token_id = pad_id
    try:
        with quiet_transformers():
            model.save_pretrained(staging, state_dict=weights)
            config.save_pretrained(staging)  # overwrites the configuration of the model in memory, which says fp32
    finally:
        model.generation_config = own
    for path in staging.rglob("*.safetensors"):  # transformers makes these files readable only to their owner
        path.chmod((staging / _LAST).stat().st_mode)


def _generation_settings(own: Any, stop_strings: Sequence[str]) -> Any:
    """The model's own generation settings with `stop_strings`.

    Some published models have settings that transformers refuses to save, such as a temperature without sampling. The
    settings of such a model are dropped.
    """
    settings = deepcopy(own)
    try:
        settings.validate(strict=True)
    except ValueError:
        settings = cast("Any", GenerationConfig)(bos_token_id=own.bos_token_id)
    settings.stop_strings = list(stop_strings) or None
    settings._from_model_config = False  # else transformers would replace them by the model's configuration
    return settings


def _move(staging: Path, folder: Path) -> None:
    (folder / _LAST).unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: (path.name == _LAST, path.name)):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    sync_path(folder)
