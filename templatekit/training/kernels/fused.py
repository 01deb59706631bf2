"""A model whose norms, rotations and casts take fewer passes over memory while it is trained.

`fuse` looks at a model once. Weights are cast to the type of products once a step, on any device. On the CPU norms and
rotations are taken over too, each only if a trial on random states gives what the module gives by itself; everything
else runs as it is. `compiled` has whole layers compiled instead. Within `Fusion.active()` the model computes with what
was taken over, outside of it the model is as it came.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from templatekit.training.kernels.elementwise import lookup, rms_norm, rotary
from templatekit.training.kernels.memory import is_large

_ROTARY = "apply_rotary_pos_emb"
"""The function that transformers' models rotate queries and keys with, in each file of theirs."""


class _Copy(NamedTuple):
    """A weight in the type that products are computed in; of one that is trained a leaf of its own, which hands its
    gradients on."""

    version: int
    """The weight's own, and its address: whether it has changed since."""
    address: int
    values: Tensor


class _Cast(NamedTuple):
    """States in the type that products are computed in."""

    of: Tensor
    version: int
    values: Tensor


@dataclass(slots=True, eq=False)
class Fusion:
    """What of a model is taken over."""

    norms: dict[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    linears: list[nn.Linear] = field(default_factory=list)
    embeddings: list[nn.Embedding] = field(default_factory=list)
    rotations: list[str] = field(default_factory=list)
    """Modules of Python in which the rotation is replaced."""
    layers: dict[nn.Module, Callable[..., Any]] = field(default_factory=dict)
    """Compiled, in place of what of the above is in them."""
    takes_gradients: bool = True
    """Whether gradients of trained weights are added here and not by autograd: those of copies that are cast once a
    step, and those of embeddings, by their rows. Not where others wait for autograd to add them."""
    _copies: dict[Tensor, _Copy] = field(default_factory=dict)
    _gradients: dict[Tensor, Tensor] = field(default_factory=dict)
    """The places of large gradients, which last from step to step, as those of large copies do."""
    _cast: _Cast | None = None
    """The last states that were cast: queries, keys and values are computed of the same ones."""

    def __str__(self) -> str:
        parts = {"norms": len(self.norms), "linear layers": len(self.linears)}
        parts.update({"embeddings": len(self.embeddings), "rotary embeddings": len(self.rotations)})
        parts["compiled layers"] = len(self.layers)
        return ", ".join(f"{count} {name}" for name, count in parts.items() if count) or "nothing"

    @contextmanager
    def active(self) -> Iterator[None]:
        """While it lasts the model computes with what was taken over. The backward pass belongs inside, too."""
        forwards: dict[nn.Module, Any] = {**self.norms, **self.layers}
        forwards.update((module, self._linear(module)) for module in self.linears)
        forwards.update((module, partial(_looked_up, module)) for module in self.embeddings)
        rotations = {name: getattr(sys.modules[name], _ROTARY) for name in self.rotations}
        # Whoever has put a forward of his own on a module keeps it.
        mine = {module: forward for module, forward in forwards.items() if "forward" not in vars(module)}
        try:
            for module, forward in mine.items():
                vars(module)["forward"] = forward
            for name, own in rotations.items():
                setattr(sys.modules[name], _ROTARY, _rotation(own))
            yield
        finally:
            self._cast = None
            for module in mine:
                vars(module).pop("forward", None)
            for name, own in rotations.items():
                setattr(sys.modules[name], _ROTARY, own)

    def _linear(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(states: Tensor) -> Tensor:
            dtype = _of_autocast(states)
            if dtype is None:
                return linear(states, module.weight, module.bias)
            return linear(self._narrow(states, dtype), self._narrow_weight(module.weight, dtype), module.bias)

        return forward

    def weight(self, module: nn.Linear) -> Tensor:
        """Of a layer that was taken over, in autocast's type where that is on."""
        dtype = _of_autocast(module.weight)
        if module not in self.linears or dtype is None:
            return module.weight
        return self._narrow_weight(module.weight, dtype)

    def _narrow(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """The states in this type; one cast for all layers that take the same states in a row."""
        tracked = states.requires_grad and torch.is_grad_enabled()
        if (
            self._cast is None
            or self._cast.of is not states
            or self._cast.version != states._version
            or self._cast.values.requires_grad != tracked
        ):
            self._cast = _Cast(states, states._version, states.to(dtype))
        return self._cast.values

    def _narrow_weight(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in this type. Autocast casts one at every use, or for every batch; this when it changed."""
        if weight.requires_grad and not self.takes_gradients:
            return weight
        known = self._copies.get(weight)
        if known is None or known.values.requires_grad != weight.requires_grad or known.values.dtype != dtype:
            values = weight.detach().to(dtype)
            if weight.requires_grad:
                values.requires_grad_().register_post_accumulate_grad_hook(partial(self._hand_over, weight))
        elif (known.version, known.address) != (weight._version, weight.data_ptr()):
            values = known.values
            values.detach().copy_(weight.detach())
        else:
            return known.values
        self._copies[weight] = _Copy(weight._version, weight.data_ptr(), values)
        return values

    def _hand_over(self, weight: Tensor, copy: Tensor) -> None:
        """Adds a copy's gradient to its weight's, in the weight's type, as autocast's own cast does."""
        gradient, copy.grad = copy.grad, None
        if gradient is None:
            return
        if weight.grad is not None:
            weight.grad.add_(gradient)
        elif weight in self._gradients:
            weight.grad = self._gradients[weight].copy_(gradient)
        else:
            weight.grad = gradient.to(weight.dtype)
            if is_large(weight):
                self._gradients[weight] = weight.grad

    def forget_trained(self) -> None:
        """To be called before trained weights change: some optimizers do so behind PyTorch's back."""
        self._copies = {
            weight: copy._replace(version=-1) if weight.requires_grad else copy
            for weight, copy in self._copies.items()
            if is_large(weight) or not weight.requires_grad
        }


def _of_autocast(like: Tensor) -> torch.dtype | None:
    """The type that autocast computes products in on the device of this tensor; None where it is off."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _looked_up(module: nn.Embedding, ids: Tensor) -> Tensor:
    weight = module.weight
    if weight.requires_grad and torch.is_grad_enabled():
        return lookup(weight, ids, module.padding_idx)
    return embedding(ids, weight)


def fuse(model: PreTrainedModel, *, takes_gradients: bool = True) -> Fusion:
    """What of the model can be taken over; on devices other than the CPU, whose kernels are other ones, casts alone."""
    fusion = Fusion(takes_gradients=takes_gradients)
    modules = [module for module in model.modules() if "forward" not in vars(module)]
    fusion.linears = [module for module in modules if type(module) is nn.Linear]
    if model.device.type != "cpu":
        return fusion
    tried: dict[tuple[Any, ...], float | None] = {}
    for module in modules:
        if type(module) is nn.Embedding and takes_gradients and not (module.max_norm or module.scale_grad_by_freq):
            fusion.embeddings.append(module)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight = getattr(module, "weight", None)
        # A bias is zero before it is trained: the trial alone would not see it.
        alone = not any((module._buffers, module._modules)) and list(module._parameters) == ["weight"]
        if alone and isinstance(eps, float) and isinstance(weight, Tensor) and weight.dim() == 1:
            key = (type(module), eps, weight.dtype)
            if key not in tried:
                tried[key] = _offset(module, weight, eps)
            if tried[key] is not None:
                fusion.norms[module] = _Norm(module, eps, cast("float", tried[key]))
    fusion.rotations = sorted(name for name in {type(module).__module__ for module in model.modules()} if _turns(name))
    return fusion


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    module: nn.Module
    eps: float
    offset: float

    def __call__(self, states: Tensor) -> Tensor:
        return rms_norm(states, cast("Tensor", self.module.weight), self.eps, self.offset)


def _offset(module: nn.Module, weight: Tensor, eps: float) -> float | None:
    """What this norm adds to its weight, 0 or 1; None where it is no RMS norm as it is known here."""
    states = _random(3, len(weight)).to(weight.dtype)
    try:
        with torch.no_grad():
            expected = module(states)
            candidates = [(offset, rms_norm(states, weight, eps, offset)) for offset in (0.0, 1.0)]
    except Exception:  # a stranger's module: whatever it raises, it is not ours to compute
        return None
    return next((offset for offset, found in candidates if _equal(found, expected)), None)


def _turns(name: str) -> bool:
    """Whether the module of Python of this name rotates as `rotary` does."""
    own = getattr(sys.modules[name], _ROTARY, None)
    if own is None:
        return False
    query, key, cos, sin = (_random(1, *shape, 8) for shape in ((2, 3), (1, 3), (3,), (3,)))
    try:
        pairs = zip(_rotation(own)(query, key, cos, sin), own(query, key, cos, sin), strict=True)
        return all(_equal(found, expected) for found, expected in pairs)
    except Exception:  # another signature
        return False


def _rotation(own: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, **more: Any
    ) -> tuple[Tensor, Tensor]:
        if more or cos.shape[-1] != q.shape[-1] or cos.requires_grad or q.device.type != "cpu":
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim, **more)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotary(q, cos, sin), rotary(k, cos, sin)

    return rotate


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _equal(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(torch.allclose(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6))
