"""The models that training is measured on."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from templatekit.hooks.loading import create_registry
from templatekit.tokens.load import resolve_model
from templatekit.training.model import load_model, resolve_device

SMALL = "smollm2-135m-instruct"
SHAPES = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3b": {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24},
}
"""Of Llama 3.2, as their configurations on the hub say it."""
ALIKE = {"intermediate_size": 8192, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True}


def path_of_small() -> Path:
    """The small built-in model's file."""
    return Path(resolve_model(SMALL, create_registry()) or SMALL)


def model_of(shape: str | None, device: str) -> PreTrainedModel:
    """The small built-in model, or random weights of a shape, in fp32."""
    if shape is None:
        return load_model(path_of_small(), device=resolve_device(device))
    torch.manual_seed(0)
    config = LlamaConfig.from_dict({**SHAPES[shape], **ALIKE})
    with resolve_device(device):
        return LlamaForCausalLM(config)


def product_flops(device: str, *, bf16: bool) -> float:
    """What a large matrix product reaches there, in operations a second: the best of some."""
    place = resolve_device(device)
    size, number = (8192, 20) if place.type == "cuda" else (2048, 20)
    one = torch.randn(size, size, device=place, dtype=torch.bfloat16 if bf16 else torch.float32)
    found = []
    for _ in range(number):
        start = time.perf_counter()
        one @ one
        if place.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return 2 * size**3 / min(found)
