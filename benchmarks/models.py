"""The models for the benchmarks of training."""

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
"""Sizes of Llama 3.2, from the configurations on the hub."""
COMMON_SHAPE = {"intermediate_size": 8192, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True}


def small_model_path() -> Path:
    """The file of the small built-in model."""
    return Path(resolve_model(SMALL, create_registry()) or SMALL)


def load_benchmark_model(shape: str | None, device: str) -> PreTrainedModel:
    """The small built-in model, or a model with random weights of a shape, in fp32."""
    if shape is None:
        return load_model(small_model_path(), device=resolve_device(device))
    torch.manual_seed(0)
    config = LlamaConfig.from_dict({**SHAPES[shape], **COMMON_SHAPE})
    with resolve_device(device):
        return LlamaForCausalLM(config)


def matmul_flops(device: str, *, bf16: bool) -> float:
    """The speed of a large matrix product on the device, in operations a second, the best of several."""
    target = resolve_device(device)
    size, repeats = (8192, 20) if target.type == "cuda" else (2048, 20)
    matrix = torch.randn(size, size, device=target, dtype=torch.bfloat16 if bf16 else torch.float32)
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        matrix @ matrix
        if target.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return 2 * size**3 / min(durations)
