"""Fuse a model's norms, rotary embeddings and casts into fewer passes over memory while the model is trained.

`fuse` inspects a model once. On any device, weights are cast to the type of matrix products once a step. On the CPU,
norms and rotary embeddings are replaced too, each only if a trial on random states gives the result of the module
itself. Everything else runs unchanged. `compiled` compiles whole layers instead. Within `Fusion.active()` the model
runs with the replacements, outside without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from templatekit.training.kernels.autograd import autocast_dtype
from templatekit.training.kernels.elementwise import embedding_lookup, rms_norm, rotary_embedding
from templatekit.training.kernels.memory import needs_persistent_buffer

_ROTARY = "apply_rotary_pos_emb"
"""The function that rotates queries and keys, in each module of transformers that defines a model."""


class _WeightCopy(NamedTuple):
    """A weight, cast to the type of matrix products.

    The copy of a trained weight is a leaf itself; a hook adds its gradient to that of the weight.
    """

    version: int
    """The version of the weight when it was copied. It shows, with the address, whether the weight has changed."""
    address: int
    values: Tensor


@dataclass(slots=True, eq=False)
class Fusion:
    """The parts of a model that are replaced in training."""

    norms: dict[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    linears: list[nn.Linear] = field(default_factory=list)
    embeddings: list[nn.Embedding] = field(default_factory=list)
    rotary_modules: list[str] = field(default_factory=list)
    """Names of the Python modules in which the rotary embedding is replaced."""
    compiled_layers: dict[nn.Module, Callable[..., Any]] = field(default_factory=dict)
    """The compiled forward methods of layers. They take the place of the replacements above inside these layers."""
    accumulates_gradients: bool = True
    """Whether gradients of trained weights are accumulated here and not by autograd: those of weights that are cast
    once a step, and the rows of embeddings. False under DDP and FSDP, which wait for autograd to accumulate them."""
    _copies: dict[Tensor, _WeightCopy] = field(default_factory=dict)
    _gradient_buffers: dict[Tensor, Tensor] = field(default_factory=dict)
    """The gradients of large weights. Their memory is reused from step to step, as that of large copies is."""
    _last_cast: tuple[Tensor, int, Tensor] | None = None
    """The last states that were cast, their version, and the result. Queries, keys and values, which have the same
    input, share one cast."""

    def __str__(self) -> str:
        counts = {"norms": len(self.norms), "linear layers": len(self.linears)}
        counts.update({"embeddings": len(self.embeddings), "rotary embeddings": len(self.rotary_modules)})
        counts["compiled layers"] = len(self.compiled_layers)
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the model run with the replacements. Run the backward pass inside too."""
        replacements: dict[nn.Module, Any] = {**self.norms, **self.compiled_layers}
        replacements.update((module, self._linear(module)) for module in self.linears)
        replacements.update((module, partial(_embed, module)) for module in self.embeddings)
        originals = {name: getattr(sys.modules[name], _ROTARY) for name in self.rotary_modules}
        # A module on which someone else has set a forward method keeps it.
        replaced = {module: forward for module, forward in replacements.items() if "forward" not in vars(module)}
        try:
            for module, forward in replaced.items():
                vars(module)["forward"] = forward
            for name, original in originals.items():
                setattr(sys.modules[name], _ROTARY, _with_fused_rotary(original))
            yield
        finally:
            self._last_cast = None
            for module in replaced:
                vars(module).pop("forward", None)
            for name, original in originals.items():
                setattr(sys.modules[name], _ROTARY, original)

    def _linear(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(states: Tensor) -> Tensor:
            dtype = autocast_dtype(states)
            if dtype is None:
                return linear(states, module.weight, module.bias)
            return linear(self._cast_states(states, dtype), self._cast_weight(module.weight, dtype), module.bias)

        return forward

    def weight(self, module: nn.Linear) -> Tensor:
        """Return the weight of a layer; under autocast, its copy in autocast's type if the layer is fused."""
        dtype = autocast_dtype(module.weight)
        if module not in self.linears or dtype is None:
            return module.weight
        return self._cast_weight(module.weight, dtype)

    def _cast_states(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the states in this type. Consecutive layers with the same input share one cast."""
        tracked = states.requires_grad and torch.is_grad_enabled()
        source, version, values = self._last_cast or (None, 0, states)
        if source is not states or version != states._version or values.requires_grad != tracked:
            values = states.to(dtype)
            self._last_cast = states, states._version, values
        return values

    def _cast_weight(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight in this type, cast only after it changed; autocast casts it at every use or every batch."""
        if weight.requires_grad and not self.accumulates_gradients:
            return weight
        copy = self._copies.get(weight)
        if copy is None or copy.values.requires_grad != weight.requires_grad or copy.values.dtype != dtype:
            values = weight.detach().to(dtype)
            if weight.requires_grad:
                values.requires_grad_().register_post_accumulate_grad_hook(partial(self._accumulate_gradient, weight))
        elif (copy.version, copy.address) != (weight._version, weight.data_ptr()):
            values = copy.values
            values.detach().copy_(weight.detach())
        else:
            return copy.values
        self._copies[weight] = _WeightCopy(weight._version, weight.data_ptr(), values)
        return values

    def _accumulate_gradient(self, weight: Tensor, copy: Tensor) -> None:
        """Add a copy's gradient to that of its weight, in the weight's type, as autocast's cast does."""
        gradient, copy.grad = copy.grad, None
        if gradient is None:
            return
        if weight.grad is not None:
            weight.grad.add_(gradient)
        elif weight in self._gradient_buffers:
            weight.grad = self._gradient_buffers[weight].copy_(gradient)
        else:
            weight.grad = gradient.to(weight.dtype)
            if needs_persistent_buffer(weight):
                self._gradient_buffers[weight] = weight.grad

    def invalidate_trained_copies(self) -> None:
        """Have trained weights cast again. Call this before they change: some optimizers do not update the version."""
        self._copies = {
            weight: copy._replace(version=-1) if weight.requires_grad else copy
            for weight, copy in self._copies.items()
            if needs_persistent_buffer(weight) or not weight.requires_grad
        }


def _embed(module: nn.Embedding, ids: Tensor) -> Tensor:
    weight = module.weight
    if weight.requires_grad and torch.is_grad_enabled():
        return embedding_lookup(weight, ids, module.padding_idx)
    return embedding(ids, weight)


def fuse(model: PreTrainedModel, *, accumulates_gradients: bool = True, compiled: Sequence[nn.Module] = ()) -> Fusion:
    """Find the parts of a model that can be replaced. On devices other than the CPU these are only the casts.

    Where layers are `compiled`, these are only the casts outside of them.
    """
    fusion = Fusion(accumulates_gradients=accumulates_gradients)
    inside = {module for layer in compiled for module in layer.modules()}
    modules = [module for module in model.modules() if "forward" not in vars(module) and module not in inside]
    fusion.linears = [module for module in modules if type(module) is nn.Linear]
    if model.device.type != "cpu" or compiled:
        return fusion
    tried: dict[tuple[Any, ...], float | None] = {}
    for module in modules:
        if (
            type(module) is nn.Embedding
            and accumulates_gradients
            and not (module.max_norm or module.scale_grad_by_freq)
        ):
            fusion.embeddings.append(module)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight = getattr(module, "weight", None)
        # A bias is zero before training, so the trial cannot see it. A norm may therefore have no parameter but its
        # weight.
        only_weight = not any((module._buffers, module._modules)) and list(module._parameters) == ["weight"]
        if only_weight and isinstance(eps, float) and isinstance(weight, Tensor) and weight.dim() == 1:
            key = (type(module), eps, weight.dtype)
            if key not in tried:
                tried[key] = _norm_offset(module, weight, eps)
            if (offset := tried[key]) is not None:
                fusion.norms[module] = partial(_norm, module, eps, offset)
    python_modules = {type(module).__module__ for module in model.modules()}
    fusion.rotary_modules = sorted(name for name in python_modules if _can_replace_rotary(name))
    return fusion


def _norm(module: nn.Module, eps: float, offset: float, states: Tensor) -> Tensor:
    return rms_norm(states, cast("Tensor", module.weight), eps, offset)


def _norm_offset(module: nn.Module, weight: Tensor, eps: float) -> float | None:
    """Return what this norm adds to its weight, 0 or 1; None where it gives another result than `rms_norm`."""
    states = _random(3, len(weight)).to(weight.dtype)
    try:
        with torch.no_grad():
            expected = module(states)
            candidates = [(offset, rms_norm(states, weight, eps, offset)) for offset in (0.0, 1.0)]
    except Exception:  # a module can raise anything; whatever it is, the module is not replaced
        return None
    return next((offset for offset, found in candidates if _is_close(found, expected)), None)


def _can_replace_rotary(name: str) -> bool:
    """Whether the rotary embedding of the Python module of this name gives the result of `rotary_embedding`."""
    original = getattr(sys.modules[name], _ROTARY, None)
    if original is None:
        return False
    query, key, cos, sin = (_random(1, *shape, 8) for shape in ((2, 3), (1, 3), (3,), (3,)))
    try:
        pairs = zip(_with_fused_rotary(original)(query, key, cos, sin), original(query, key, cos, sin), strict=True)
        return all(_is_close(found, expected) for found, expected in pairs)
    except Exception:  # another signature
        return False


def _with_fused_rotary(original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, **others: Any
    ) -> tuple[Tensor, Tensor]:
        if others or cos.shape[-1] != q.shape[-1] or cos.requires_grad or q.device.type != "cpu":
            return original(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim, **others)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotary_embedding(q, cos, sin), rotary_embedding(k, cos, sin)

    return rotate


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(torch.allclose(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6))
