"""AdamW over what is trained of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from templatekit.config.options import FinetuneOptions
from templatekit.training.checkpoint import trainable
from templatekit.training.quantization import bitsandbytes


def make_optimizer(model: nn.Module, options: FinetuneOptions) -> torch.optim.Optimizer:
    """AdamW, fused, or with moments in eight bits; biases and norms, which have one dimension, do not decay.

    Raises `ConfigError` where the package that eight bits need is not installed.
    """
    weights = list(trainable(model).values())
    parts = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    groups: list[dict[str, Any]] = [group for group in parts if group["params"]]
    rate, betas = options.peak_learning_rate, (options.beta1, options.beta2)
    if options.optimizer == "adamw8bit":
        narrow: torch.optim.Optimizer = bitsandbytes("optimizer='adamw8bit'").optim.AdamW8bit(
            groups, lr=rate, betas=betas
        )
        return narrow
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
