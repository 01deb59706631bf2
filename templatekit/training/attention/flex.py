"""Causal attention over a prefix tree on a GPU, in one kernel: PyTorch's FlexAttention.

The segments of a pack lie in the order of a tree walk. The tokens that see a shared segment are therefore its own and
one run directly after it. One number per token, the end of that run, says which queries see the token as a key. From
these numbers FlexAttention computes which blocks of scores to skip. It stores no scores and copies no keys.

The kernel is compiled at its first use for each device, type and head dimension. Before it is used, it must give the
same results and gradients as plain attention (`flex_unsupported_reason`). FlexAttention has no backward pass on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from templatekit.packing import segment_paths
from templatekit.training.kernels.autograd import autocast_dtype
from templatekit.types import Segment


@dataclass(frozen=True, slots=True, eq=False)  # autocast would take a tuple apart
class FlexLayout:
    """Which tokens of a pack see each other."""

    seen_until: Tensor
    """Shape (tokens,): the end, exclusive, of the run of queries that see each token."""
    positions: Tensor
    """Shape (tokens,): the position of each token in its documents."""
    _block_masks: dict[int | None, Any] = field(default_factory=dict)

    def mask_mod(self, window: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that says whether queries see keys, given the indices of both.

        With a sliding `window`, a query sees that many tokens of its document at most, itself included.
        """
        # The closures hold nothing but tensors, so that the kernel is compiled once for all packs.
        seen_until, positions = self.seen_until, self.positions
        window_ends = positions if window is None else positions + window

        def visible(query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < seen_until[key])

        def visible_in_window(query: Tensor, key: Tensor) -> Tensor:
            return visible(query, key) & (positions[query] < window_ends[key])

        return visible if window is None else visible_in_window

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's mask: the blocks to compute. It is computed once for all layers."""
        if window not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            visible, tokens = self.mask_mod(window), len(self.seen_until)

            def visible_for_all_heads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return visible(query, key)

            mask = create_block_mask(visible_for_all_heads, None, None, tokens, tokens, device=self.seen_until.device)
            for component in mask.as_tuple():
                for dimension in range(2, component.dim() if isinstance(component, Tensor) else 0):
                    # Without this the kernel is compiled again for each count of blocks.
                    torch._dynamo.maybe_mark_dynamic(component, dimension)
            self._block_masks[window] = mask
        return self._block_masks[window]


def create_flex_layout(segments: Sequence[Segment], device: torch.device) -> FlexLayout:
    """Return the layout of a pack's segments."""
    seen_until = [segment.end for segment in segments]
    for index in reversed(range(len(segments))):
        parent = segments[index].parent
        if parent is not None:
            seen_until[parent] = max(seen_until[parent], seen_until[index])
    lengths = torch.tensor([segment.end - segment.start for segment in segments], dtype=torch.int64)
    # In a segment, the position of a token in its documents differs from its index in the pack by one number.
    segments_by_path = zip(segment_paths(segments), segments, strict=True)
    shifts = torch.tensor([len(path) - segment.end for path, segment in segments_by_path], dtype=torch.int64)
    positions = torch.arange(int(lengths.sum())) + shifts.repeat_interleave(lengths)
    ends = torch.tensor(seen_until, dtype=torch.int64).repeat_interleave(lengths)
    return FlexLayout(ends.to(device), positions.to(device))


def packed_flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: FlexLayout,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Compute the attention of a pack: shapes (1, heads, tokens, head_dim) in, (1, tokens, heads, head_dim) out.

    `key` and `value` may have fewer heads than `query`: each of them then serves several adjacent query heads. With a
    `softcap`, a score becomes `softcap * tanh(score / softcap)`.
    """
    dtype = autocast_dtype(query) or query.dtype  # autocast does not cast the inputs of FlexAttention
    query, key, value = (states.to(dtype) for states in (query, key, value))
    output = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _softcap_score_mod(softcap),
        block_mask=layout.block_mask(window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", output).transpose(1, 2)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """FlexAttention, compiled for any count of tokens. On the CPU, where only tests call it, it stays uncompiled."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel = flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)
    return cast("Callable[..., Any]", kernel)


@cache
def _softcap_score_mod(softcap: float) -> Callable[..., Tensor]:
    """Return the same function for the same cap: with a new function the kernel would be compiled again."""

    def score_mod(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


@cache
def flex_unsupported_reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why the kernel cannot compute heads of this size and type on this device; None where it can."""
    if device.type != "cuda":
        return f"no backward pass on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{dtype} is computed elsewhere, to its full precision"
    try:
        equal = _matches_plain_attention(device, dtype, head_dim)
    except Exception as error:  # no compiler, an unsupported head dimension, too little shared memory
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None if equal else f"it gave other values than plain attention in {dtype} for heads of {head_dim}"


def _matches_plain_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel gives the output and the gradients of plain attention, up to rounding."""
    generator = torch.Generator(device).manual_seed(0)
    # Two documents that share their first 130 tokens, and a third: full blocks, partial blocks and empty blocks.
    segments = [
        Segment(documents=(), start=0, end=130),
        Segment(documents=(0,), start=130, end=200, parent=0),
        Segment(documents=(1,), start=200, end=333, parent=0),
        Segment(documents=(2,), start=333, end=481),
    ]
    layout = create_flex_layout(segments, device)
    query, key, value = states = [
        torch.randn(1, heads, 481, head_dim, device=device, generator=generator).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]
    scale = head_dim**-0.5
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        found = packed_flex_attention(query, key, value, layout, scale).transpose(1, 2)
        found_gradients = torch.autograd.grad([found.square().sum()], states)
        query, key, value = wide = [state.detach().float().requires_grad_() for state in states]
        indices = torch.arange(481, device=device)
        mask = layout.mask_mod()(indices[:, None], indices)
        expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
        expected_gradients = torch.autograd.grad([expected.square().sum()], wide)
    return all(
        bool(torch.linalg.vector_norm(actual.float() - wanted) <= 0.05 * torch.linalg.vector_norm(wanted))
        for actual, wanted in zip((found, *found_gradients), (expected, *expected_gradients), strict=True)
    )
