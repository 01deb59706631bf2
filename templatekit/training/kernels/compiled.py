"""Compile a model's layers, so that the work between matrix products takes one pass over memory, not several.

That work is RMSNorms, rotary embeddings, activations and residual sums, forwards and backwards. Attention keeps its own
kernels (`training/attention`). Compiling takes a minute, so it is an option. It is meant for GPUs: on the CPU `fusion`
already gives most of the speed that can be gained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from templatekit.errors import ConfigError
from templatekit.training.kernels.fusion import Fusion

COMPILER = "inductor"
"""PyTorch's own compiler backend. It generates kernels for GPUs, and C++ for CPUs."""


def compile_layers(
    model: nn.Module,
    layers: Sequence[nn.Module],
    fusion: Fusion,
    trial: Callable[[], tuple[float, float]],
    *,
    tolerance: float,
    has_dropout: bool,
) -> None:
    """Compile the model's layers, for any count of tokens, and add them to `fusion`. Equal layers share their code.

    `trial` runs a micro-batch of full size through the model and returns its loss and its gradient norm. With compiled
    layers both must be the same as without, to the relative `tolerance`. In training mode dropout makes them differ, so
    with dropout they are not compared there. The sizes that the compiler sees first decide which kernels it generates.
    The trial has the same sizes in every run, so a resumed run gets the same kernels.

    Raises `ConfigError` where there are no layers, they cannot be compiled, or they give another result.
    """
    if not layers:
        raise ConfigError(f"compile: {type(model).__name__} does not name its layers; leave it out")
    training = model.training
    # The forward methods, not the modules themselves: FSDP's hooks stay outside of the compiled code.
    compiled = {layer: torch.compile(layer.forward, dynamic=True, backend=COMPILER) for layer in layers}
    try:
        for train in (False, True):
            model.train(train)
            fusion.compiled_layers = {}
            expected = trial()
            fusion.compiled_layers = compiled
            try:
                found = trial()
            except Exception as error:  # no compiler, code that it does not support, too little memory
                reason = " ".join(str(error).split("\n\n")[0].split())
                raise ConfigError(f"compile: {type(error).__name__}: {reason}; leave it out") from error
            same = all(math.isclose(*pair, rel_tol=tolerance) for pair in zip(found, expected, strict=True))
            if not same and not (train and has_dropout):  # compiled layers draw other dropout masks
                raise ConfigError(
                    f"compile: {type(model).__name__} gives loss {found[0]:.6g} and gradient {found[1]:.6g}, "
                    f"without it {expected[0]:.6g} and {expected[1]:.6g}; leave it out"
                )
    finally:
        model.train(training)
