"""The optimizer: AdamW over the trainable parameters of a model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.training.model import trainable_parameters
from templatekit.training.quantization import bitsandbytes


def make_optimizer(model: nn.Module, options: FinetuneOptions) -> torch.optim.Optimizer:
    """AdamW, fused or with eight-bit moments. Weights of one dimension (biases, norms) have no weight decay.

    Raises `ConfigError` where eight bits are wanted and bitsandbytes is not installed.
    """
    weights = list(trainable_parameters(model).values())
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = options.peak_learning_rate, (options.beta1, options.beta2)
    if options.optimizer == "adamw8bit":
        package = bitsandbytes("optimizer='adamw8bit'")
        return cast("torch.optim.Optimizer", package.optim.AdamW8bit(groups, lr=rate, betas=betas))
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
