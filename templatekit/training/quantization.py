"""Quantization by bitsandbytes: frozen weights in four bits under adapters (QLoRA, https://arxiv.org/abs/2305.14314).

Each weight of a linear layer becomes one of sixteen values (NF4). Blocks of 64 share a scale, and the scales are
quantized too: half a byte a weight. Weights are dequantized for each product, forwards and backwards.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from templatekit.errors import ConfigError
from templatekit.training.kernels.autograd import autocast_dtype

_PACKAGE = "bitsandbytes"


def bitsandbytes(option: str) -> Any:
    """Import bitsandbytes for an option. Raises `ConfigError` where it is not installed."""
    if find_spec(_PACKAGE) is None:
        raise ConfigError(f"{option} needs the package {_PACKAGE}: pip install 'templatekit[quantized]'")
    silence_bitsandbytes()
    import bitsandbytes as package

    return package


def silence_bitsandbytes() -> None:
    """Silence messages about kernels that were not downloaded: PEFT imports the package wherever it is installed."""
    logging.getLogger(_PACKAGE).setLevel(logging.ERROR)


def quantize(model: PreTrainedModel) -> None:
    """Quantize the linear layers of a model, except its head, to four bits in place.

    The result depends on the weights alone. Raises `ConfigError` for a model without linear layers.
    """
    package = bitsandbytes("quantize='4bit'")
    head = cast("Any", model).get_output_embeddings()
    layers = [(name, each) for name, each in model.named_modules() if type(each) is nn.Linear and each is not head]
    if not layers:
        raise ConfigError(f"quantize='4bit': {type(model).__name__} has no linear layers besides its head")
    for name, layer in layers:
        quantized = _linear4bit()(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        quantized.weight = package.nn.Params4bit(
            layer.weight.detach().cpu().contiguous(), requires_grad=False, quant_type="nf4", module=quantized
        )
        quantized.bias = layer.bias
        quantized.compute_type_is_set = True  # else the dtype of the first states would be used for all states
        # Else the layer would repack its weights for good at the first forward pass without gradients.
        quantized.support_avx512bf16_for_cpu = False
        model.set_submodule(name, quantized.to(layer.weight.device))
    cast("Any", model).is_loaded_in_4bit = True  # PEFT checks this attribute


@lru_cache(maxsize=1)
def _linear4bit() -> Any:
    """The class of a layer that computes in the dtype of its states, or in that of autocast, as `nn.Linear` does."""
    base: Any = bitsandbytes("quantize='4bit'").nn.Linear4bit

    class Linear4bit(base):  # type: ignore[misc]  # bitsandbytes has no types
        def forward(self, x: Tensor) -> Tensor:
            return cast("Tensor", super().forward(x.to(autocast_dtype(x) or x.dtype)))

    return Linear4bit


def dequantized_weights(model: nn.Module) -> dict[str, Tensor]:
    """The quantized weights by name, in fp32, with the values that products use."""
    functional = bitsandbytes("quantize='4bit'").functional
    return {
        f"{name}.weight": functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        for name, module in cast("Any", model).named_modules()
        if isinstance(module, _linear4bit())
    }
