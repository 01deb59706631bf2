"""Attention over a pack, forwards and backwards: each way to compute it beside a mask over the whole pack.

usage: python -m benchmarks.attention [--device cuda] [--heads 9,3] [--width 64] [--repeat N]

In bf16, for packs of short examples that begin alike, of long ones, and of conversations of which each turn is one.
A way that the device does not know is left out, with the reason.
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

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def alike(documents: int, shared: int, own: int) -> list[Segment]:
    """Examples of equal length that begin alike."""
    segments = [Segment(documents=(), start=0, end=shared)] if shared else []
    for number in range(documents):
        start = segments[-1].end if segments else 0
        segments.append(Segment(documents=(number,), start=start, end=start + own, parent=0 if shared else None))
    return segments


def turns(conversations: int, samples: int, length: int) -> list[Segment]:
    """Conversations of which each sample goes on from the prompt of the one before."""
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
    "64 short examples that begin alike": alike(64, shared=40, own=30),
    "8 long examples": alike(8, shared=40, own=600),
    "8 conversations of 5 turns": turns(8, samples=5, length=40),
}


def ways(segments: Sequence[Segment], device: torch.device, width: int) -> Iterator[tuple[str, Way | str]]:
    """Each way by its name, or the reason why there is none."""
    scale = width**-0.5
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
    reason = flex_unsupported_reason(device, torch.bfloat16, width)
    yield "FlexAttention", reason or (lambda q, k, v: packed_flex_attention(q, k, v, pack.flex_layout, scale))
    paths, tree = create_path_layout(segments), create_tree_layout(segments)
    on_cpu = device.type == "cpu"
    yield (
        "paths",
        (lambda q, k, v: path_attention(q, k, v, paths, scale)) if on_cpu and paths else "on the CPU, of short ones",
    )
    yield "tree", (lambda q, k, v: tree_attention(q, k, v, tree, scale)) if on_cpu else "on the CPU"


def seconds(way: Way, states: Sequence[Tensor], repeat: int) -> float:
    """Of one pass forwards and backwards, the shortest of several."""
    device = states[0].device
    found = []
    for _ in range(repeat + 2):  # the first ones compile and take memory
        start = time.perf_counter()
        torch.autograd.grad([way(*states).float().sum()], states)
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[2:])


@click.command(help=__doc__)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--heads", default="9,3", show_default=True, help="Of queries, and of keys.")
@click.option("--width", default=64, show_default=True, help="Of a head.")
@click.option("--repeat", default=10, show_default=True)
def main(device: str, heads: str, width: int, repeat: int) -> None:
    keep_freed_memory()  # as a run does
    many, few = map(int, heads.split(","))
    for name, segments in PACKS.items():
        tokens = segments[-1].end
        click.echo(f"{name}: {tokens:,} tokens, heads {heads} of {width}, bf16, {device}")
        shapes = [(1, count, tokens, width) for count in (many, few, few)]
        states = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        plain = None
        for way, work in ways(segments, torch.device(device), width):
            if isinstance(work, str):
                click.echo(f"  {way:24} left out: {work}")
                continue
            took = seconds(work, states, repeat)
            plain = plain or took
            click.echo(f"  {way:24} {took * 1000:8.2f} ms   {plain / took:6.2f} x")


if __name__ == "__main__":
    main()
