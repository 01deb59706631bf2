"""Fewer bits by bitsandbytes: frozen weights in four under adapters (QLoRA, https://arxiv.org/abs/2305.14314).

Each weight of a linear layer becomes one of sixteen values (NF4), blocks of 64 share a scale, and the scales are
quantized too: half a byte a weight. They are put together for each product, forwards and backwards.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from templatekit.errors import ConfigError

_PACKAGE = "bitsandbytes"


def bitsandbytes(option: str) -> Any:
    """The package; raises `ConfigError` where it is not installed."""
    if find_spec(_PACKAGE) is None:
        raise ConfigError(f"{option} needs the package {_PACKAGE}: pip install 'templatekit[quantized]'")
    hush()
    import bitsandbytes as package

    return package


def hush() -> None:
    """Has the package keep to itself which kernels it has not downloaded. PEFT imports it wherever it is installed."""
    logging.getLogger(_PACKAGE).setLevel(logging.ERROR)


def quantize(model: PreTrainedModel) -> None:
    """Turns the linear layers of a model, but for its head, to four bits in place.

    The result depends on the weights alone. Raises `ConfigError` for a model without such layers.
    """
    package = bitsandbytes("quantize='4bit'")
    head = cast("Any", model).get_output_embeddings()
    layers = [(name, each) for name, each in model.named_modules() if type(each) is nn.Linear and each is not head]
    if not layers:
        raise ConfigError(f"quantize='4bit': {type(model).__name__} has no linear layers besides its head")
    for name, layer in layers:
        narrow = _layer()(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        narrow.weight = package.nn.Params4bit(
            layer.weight.detach().cpu().contiguous(), requires_grad=False, quant_type="nf4", module=narrow
        )
        narrow.bias = layer.bias
        narrow.compute_type_is_set = True  # or the first states would decide it for all
        # Or it would lay its weights out anew, for good, the first time that no gradient is asked for.
        narrow.support_avx512bf16_for_cpu = False
        model.set_submodule(name, narrow.to(layer.weight.device))
    cast("Any", model).is_loaded_in_4bit = True  # what PEFT looks for


@lru_cache(maxsize=1)
def _layer() -> Any:
    """A layer that computes in the type of its states, or in autocast's, as others do."""
    base: Any = bitsandbytes("quantize='4bit'").nn.Linear4bit

    class Linear4bit(base):  # type: ignore[misc]  # bitsandbytes has no types
        def forward(self, x: Tensor) -> Tensor:
            device = x.device.type
            if torch.is_autocast_enabled(device):
                x = x.to(torch.get_autocast_dtype(device))
            result: Tensor = super().forward(x)
            return result

    return Linear4bit


def put_together(model: nn.Module) -> dict[str, Tensor]:
    """The weights that were quantized, in fp32 and as they are computed with, by name."""
    functional = bitsandbytes("quantize='4bit'").functional
    return {
        f"{name}.weight": functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        for name, module in cast("Any", model).named_modules()
        if isinstance(module, _layer())
    }
