"""Layers that PyTorch compiles: what they do between matrix products takes one pass over memory where it took several.

That is norms, rotations, activations and residual sums, forwards and backwards. Attention keeps the kernels that it has
(`attention`). Compiling takes a minute, so it is an option; it is meant for GPUs, since on the CPU `fused` has most of
what there is to gain.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from templatekit.errors import ConfigError
from templatekit.training.attention.dispatch import leave_uncompiled
from templatekit.training.distributed import whole
from templatekit.training.kernels.fused import Fusion
from templatekit.training.model import drops_out, layers_of
from templatekit.types import RenderedText, TokenizedExample

if TYPE_CHECKING:
    from templatekit.training.step import Computation

COMPILER = "inductor"
"""PyTorch's own: it writes kernels for GPUs, and C++ for CPUs."""
TRIED = 128
"""Tokens of each example of the trial: fewer than any model has positions."""


def fuse_outside(model: PreTrainedModel, *, takes_gradients: bool = True) -> Fusion:
    """What is left to take over of a model whose layers are compiled: the casts of linear layers outside of them.

    Raises `ConfigError` for a model that does not say what its layers are.
    """
    layers = layers_of(model)
    if not layers:
        raise ConfigError(f"compile: {type(model).__name__} does not name its layers; leave it out")
    inside = {module for layer in layers for module in layer.modules()}
    linears = [module for module in model.modules() if type(module) is nn.Linear and module not in inside]
    return Fusion(linears=linears, takes_gradients=takes_gradients)


def compile_layers(computation: Computation) -> None:
    """Has the model's layers compiled, for any number of tokens; those that are alike share the code.

    A micro-batch of full size goes through them and through the layers' own code, and has to give the same. The sizes
    that a compiler sees first decide which kernels it writes: these are the same in every run, so a run that is resumed
    gets the kernels that it had. Raises `ConfigError` where layers cannot be compiled, or do not give the same.
    """
    model, fusion = computation.model, computation.fusion
    training, near = model.training, 0.03 if computation.bf16 else 1e-3
    leave_uncompiled()
    # Not the modules themselves: FSDP's hooks stay outside of what is compiled.
    compiled = {layer: torch.compile(layer.forward, dynamic=True, backend=COMPILER) for layer in layers_of(model)}
    try:
        for train in (False, True):
            model.train(train)
            fusion.layers = {}
            expected = _trial(computation)
            fusion.layers = compiled
            try:
                found = _trial(computation)
            except Exception as error:  # no compiler, code that it does not know, too little memory
                reason = " ".join(str(error).split("\n\n")[0].split())
                raise ConfigError(f"compile: {type(error).__name__}: {reason}; leave it out") from error
            same = all(math.isclose(*pair, rel_tol=near) for pair in zip(found, expected, strict=True))
            if not same and not (train and drops_out(model)):  # which drops other states when it is compiled
                raise ConfigError(
                    f"compile: {type(model).__name__} gives loss {found[0]:.6g} and gradient {found[1]:.6g}, "
                    f"without it {expected[0]:.6g} and {expected[1]:.6g}; leave it out"
                )
    finally:
        model.train(training)


def _trial(computation: Computation) -> tuple[float, float]:
    """The mean loss of a micro-batch of full size, and, of a model in training, the gradient's norm; none is left."""
    model = computation.model
    count = max(1, computation.pack_tokens // TRIED) if computation.packing else computation.batch_size
    vocabulary = model.config.get_text_config().vocab_size
    # Unlike each other: what is equal would be computed once.
    ids = torch.randint(vocabulary, (count, TRIED), generator=torch.Generator().manual_seed(0))
    rendered = RenderedText(text="", spans=())
    weights = (1.0,) * TRIED
    examples = [TokenizedExample(input_ids=tuple(row), loss_weights=weights, rendered=rendered) for row in ids.tolist()]
    (_, batch), *_ = computation.micro_batches(examples, range(count))
    norm = 0.0
    with torch.set_grad_enabled(model.training), computation.loss(batch) as loss:
        loss = loss / (batch.weight or 1.0)  # of a process that idles
        if model.training:
            torch.autograd.backward([loss])
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            norm = float(whole(torch.nn.utils.get_total_norm(gradients)))
            model.zero_grad(set_to_none=True)
    computation.fusion.forget_trained()
    return float(loss.detach()), norm
