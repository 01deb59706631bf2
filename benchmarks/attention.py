"""Attention over a pack, forwards and backwards: each implementation compared with a mask over the whole pack.

usage: python -m benchmarks.attention [--device cuda] [--heads 9,3] [--width 64] [--repeat N]

The packs, in bf16, hold short examples with a shared prefix, long examples, or conversations with one example for each
turn. An implementation that the device does not support is left out, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import click
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from templatekit.training.attention import dispatch as attention
from templatekit.training.attention.flex import flex_unsupported_reason, packed_flex_attention
from templatekit.training.attention.paths import create_path_layout, path_attention
from templatekit.training.attention.tree import create_tree_layout, tree_attention
from templatekit.training.kernels.memory import keep_freed_memory
from templatekit.types import Segment

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def equal_prefix_pack(documents: int, shared: int, own: int) -> list[Segment]:
    """Examples of equal length with a shared prefix."""
    segments = [Segment(documents=(), start=0, end=shared)] if shared else []
    for index in range(documents):
        start = segments[-1].end if segments else 0
        segments.append(Segment(documents=(index,), start=start, end=start + own, parent=0 if shared else None))
    return segments


def conversation_pack(conversations: int, samples: int, length: int) -> list[Segment]:
    """Conversations, of which each sample continues the prompt of the one before."""
    segments: list[Segment] = []
    for _ in range(conversations):
        parent = None
        for _ in range(samples):
            start = segments[-1].end if segments else 0
            segments.append(Segment(documents=(), start=start, end=start + length, parent=parent))
            parent = len(segments) - 1
            start = segments[-1].end
            segments.append(Segment(documents=(parent,), start=start, end=start + length, parent=parent))
    return segments


PACKS = {
    "64 short examples that begin alike": equal_prefix_pack(64, shared=40, own=30),
    "8 long examples": equal_prefix_pack(8, shared=40, own=600),
    "8 conversations of 5 turns": conversation_pack(8, samples=5, length=40),
}


def attention_functions(
    segments: Sequence[Segment], device: torch.device, head_dim: int
) -> Iterator[tuple[str, AttentionFunction | str]]:
    """Yield each implementation by name, or the reason why it is not available."""
    scale = head_dim**-0.5
    pack = attention._Pack(segments, device)
    indices = torch.arange(pack.length, device=device)
    mask = pack.flex_layout.mask_mod()(indices[:, None], indices)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)

    yield "mask over the pack", dense
    yield (
        "segments of like length",
        lambda q, k, v: attention._padded_attention(q, k, v, pack, 0, scale, window=None, softcap=None),
    )
    unsupported = flex_unsupported_reason(device, torch.bfloat16, head_dim)
    yield "FlexAttention", unsupported or (lambda q, k, v: packed_flex_attention(q, k, v, pack.flex_layout, scale))
    paths, tree = create_path_layout(segments), create_tree_layout(segments)
    on_cpu = device.type == "cpu"
    yield (
        "paths",
        (lambda q, k, v: path_attention(q, k, v, paths, scale)) if on_cpu and paths else "on the CPU, of short ones",
    )
    yield "tree", (lambda q, k, v: tree_attention(q, k, v, tree, scale)) if on_cpu else "on the CPU"


def seconds(function: AttentionFunction, states: Sequence[Tensor], repeat: int) -> float:
    """The time of one pass forwards and backwards, the shortest of several."""
    device = states[0].device
    durations = []
    for _ in range(repeat + 2):  # the first passes compile and allocate memory
        start = time.perf_counter()
        torch.autograd.grad([function(*states).float().sum()], states)
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return min(durations[2:])


@click.command(help=__doc__)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--heads", default="9,3", show_default=True, help="Number of query heads and of key heads.")
@click.option("--width", "head_dim", default=64, show_default=True, help="The head dimension.")
@click.option("--repeat", default=10, show_default=True)
def main(device: str, heads: str, head_dim: int, repeat: int) -> None:
    keep_freed_memory()  # as a training run does
    query_heads, key_heads = map(int, heads.split(","))
    for pack_name, segments in PACKS.items():
        tokens = segments[-1].end
        click.echo(f"{pack_name}: {tokens:,} tokens, heads {heads} of {head_dim}, bf16, {device}")
        shapes = [(1, count, tokens, head_dim) for count in (query_heads, key_heads, key_heads)]
        states = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        baseline = None
        for name, work in attention_functions(segments, torch.device(device), head_dim):
            if isinstance(work, str):
                click.echo(f"  {name:24} left out: {work}")
                continue
            duration = seconds(work, states, repeat)
            baseline = baseline or duration
            click.echo(f"  {name:24} {duration * 1000:8.2f} ms   {baseline / duration:6.2f} x")


if __name__ == "__main__":
    main()
