"""Causal attention over a prefix tree on a GPU, in one kernel: PyTorch's FlexAttention.

Segments lie in the order of a tree walk, so the tokens that see a shared segment are those of it and one run right
behind it. A single number a token therefore says who sees it: where that run ends. From these numbers the kernel learns
which blocks hold anything to see, and passes over the others; no scores are held and no key is copied.

The kernel is compiled for each device, type and width of heads at its first use, and must there give what plain
attention gives, forwards and backwards, before it is trusted (`refusal`). FlexAttention has no backward pass on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from templatekit.types import Segment


@dataclass(frozen=True, slots=True, eq=False)  # autocast would take a tuple apart
class BlockLayout:
    """How a pack is computed."""

    behind: Tensor
    """Shape (tokens,): the last token that may see each one stands right before this place."""
    positions: Tensor
    """Shape (tokens,): where each stands in its documents."""
    _masks: dict[int | None, Any] = field(default_factory=dict)

    def sees(self, window: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """Whether tokens at some places see those at others, with a sliding `window` no farther than it reaches."""
        # Nothing but tensors is held, so that the kernel is compiled once for all packs.
        behind, positions = self.behind, self.positions
        reach = positions if window is None else positions + window

        def seen(query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < behind[key])

        def near(query: Tensor, key: Tensor) -> Tensor:
            return seen(query, key) & (positions[query] < reach[key])

        return seen if window is None else near

    def mask(self, window: int | None) -> Any:
        """The blocks to compute, made once for all layers."""
        if window not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            sees, tokens = self.sees(window), len(self.behind)

            def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return sees(query, key)

            mask = create_block_mask(seen, None, None, tokens, tokens, device=self.behind.device)
            for part in mask.as_tuple():
                for dimension in range(2, part.dim() if isinstance(part, Tensor) else 0):
                    # Or the kernel would be compiled anew for each number of blocks.
                    torch._dynamo.maybe_mark_dynamic(part, dimension)
            self._masks[window] = mask
        return self._masks[window]


def lay_out_blocks(segments: Sequence[Segment], device: torch.device) -> BlockLayout:
    """The layout of a pack's segments."""
    behind = [segment.end for segment in segments]
    firsts: list[int] = []  # of each segment, where its first token stands in its documents
    for segment in segments:  # parents come first
        parent = segment.parent
        firsts.append(0 if parent is None else firsts[parent] + segments[parent].end - segments[parent].start)
    for index in reversed(range(len(segments))):
        parent = segments[index].parent
        if parent is not None:
            behind[parent] = max(behind[parent], behind[index])
    lengths = torch.tensor([segment.end - segment.start for segment in segments], dtype=torch.int64)
    starts = torch.tensor([segment.start for segment in segments], dtype=torch.int64)
    shifts = torch.tensor(firsts, dtype=torch.int64) - starts
    positions = torch.arange(int(lengths.sum())) + shifts.repeat_interleave(lengths)
    ends = torch.tensor(behind, dtype=torch.int64).repeat_interleave(lengths)
    return BlockLayout(ends.to(device), positions.to(device))


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of a pack: shapes (1, heads, tokens, width) in, (1, tokens, heads, width) out.

    `key` and `value` may have fewer heads than `query`, each then serving a run of them. Scores may pass through
    `softcap * tanh(score / softcap)`.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):  # which knows nothing of this function
        query, key, value = (states.to(torch.get_autocast_dtype(device)) for states in (query, key, value))
    output = _kernel(device)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=layout.mask(window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", output).transpose(1, 2)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled for any number of tokens; on the CPU, where tests look at it, as it is."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel = flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)
    return cast("Callable[..., Any]", kernel)


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """One function a cap, since each new one would be compiled anew."""

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def refusal(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """None where the kernel computes heads of this width in this type on this device; else why it does not."""
    if device.type != "cuda":
        return f"no backward pass on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{dtype} is computed elsewhere, to its full precision"
    try:
        equal = _equal(device, dtype, width)
    except Exception as error:  # no compiler, a width that the kernel does not take, too little shared memory
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None if equal else f"it gave other values than plain attention in {dtype} for heads of {width}"


def _equal(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel gives what plain attention gives, up to rounding, forwards and backwards."""
    generator = torch.Generator(device).manual_seed(0)
    # Two documents that go on from 130 tokens, and one alone: whole blocks, parts of blocks and empty ones.
    segments = [
        Segment(documents=(), start=0, end=130),
        Segment(documents=(0,), start=130, end=200, parent=0),
        Segment(documents=(1,), start=200, end=333, parent=0),
        Segment(documents=(2,), start=333, end=481),
    ]
    layout = lay_out_blocks(segments, device)
    query, key, value = states = [
        torch.randn(1, heads, 481, width, device=device, generator=generator).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]
    scale = width**-0.5
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        found = block_attention(query, key, value, layout, scale).transpose(1, 2)
        gradients = torch.autograd.grad([found.square().sum()], states)
        query, key, value = wide = [state.detach().float().requires_grad_() for state in states]
        places = torch.arange(481, device=device)
        mask = layout.sees()(places[:, None], places)
        expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
        right = torch.autograd.grad([expected.square().sum()], wide)
    return all(
        bool(torch.linalg.vector_norm(one.float() - other) <= 0.05 * torch.linalg.vector_norm(other))
        for one, other in zip((found, *gradients), (expected, *right), strict=True)
    )
