"""LoRA: low-rank adapters by PEFT, on every linear layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from templatekit.errors import ConfigError
from templatekit.training.quantization import silence_bitsandbytes


def attach_lora(
    model: PreTrainedModel, *, rank: int, alpha: int, seed: int, new_tokens: Sequence[int] = ()
) -> PreTrainedModel:
    """Freeze the model and add an adapter of `rank`, scaled by `alpha / rank`, to every linear layer but the head.

    Equal seeds give equal adapters, on any device. There is no dropout. The embeddings of `new_tokens` are trained in
    full, as are their rows in a head that is not tied to the embeddings. Returns PEFT's model, which wraps the given
    one.
    """
    if find_spec("peft") is None:
        raise ConfigError(
            "LoRA needs the package peft: pip install 'templatekit[lora]', or train all weights with --no-lora"
        )
    silence_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's transposed weights
        trainable_token_indices={name: list(new_tokens) for name in _token_tables(model)} if new_tokens else None,
    )
    device = model.device
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT 0.21, transformers 5.23
        torch.manual_seed(seed)
        adapted = get_peft_model(cast("PreTrainedModel", cast("nn.Module", model).to("cpu")), config)
    return cast("PreTrainedModel", adapted.to(device))


def _token_tables(model: Any) -> list[str]:
    """The names of the modules with a row for each token. PEFT follows tied weights itself."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embeddings.weight
    names = {module: name for name, module in model.named_modules()}
    return [names[table].rpartition(".")[2] for table in ([embeddings] if tied else [embeddings, head])]
