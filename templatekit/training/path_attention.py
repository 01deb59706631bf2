"""Causal attention over a prefix tree on the CPU, each token behind a copy of all that it sees.

A short run of a segment is one row of queries, and the tokens from its document's beginning to its own end are that
row's keys. One softmax covers them all, so nothing has to be joined, and rows of unlike length share a product where
padding them costs less than another product would. Copies of shared keys are small beside the scores while what is
shared is short: `lay_out_paths` says whether it is, and `tree_attention` computes the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from templatekit.training.autograd import apply, cast_backward, cast_forward
from templatekit.training.products import wide_product
from templatekit.types import Segment

RUN = 96
"""About how many queries of a segment go behind one copy of their keys: longer runs see more of what they must not."""
COPIES = 6
"""Keys for each token of a pack, copies counted, from which copying is not worth it."""
KEPT = 128
"""Keys up to which the weights of the forward pass are kept for the backward one; of more they are computed again."""
PRODUCT = 4096
"""How many pairs of query and key cost as much as to begin one more product."""
TOGETHER = 2**16
"""Pairs of query and key, of each head, in one product: few enough that a cache holds most of their scores."""


class Rows(NamedTuple):
    """Runs that are computed together, one a row, padded on the right."""

    rows: int
    longest: int
    """Queries of a row."""
    widest: int
    """Keys of a row."""
    queries: Tensor
    """Shape (rows * longest,): the pack's token at each place. Padding repeats the row's last token."""
    keys: Tensor
    """Shape (rows * widest,), likewise."""
    padding: Tensor | None
    """Shape (rows * longest, 1, 1), bool: true for queries that are padding; None where there are none."""
    hidden: Tensor
    """Shape (rows, 1, longest, widest): minus infinity where a query does not see a key, else 0. Padding queries see
    what the last query of their row sees."""


@dataclass(frozen=True, slots=True)  # autocast would take a tuple apart
class PathLayout:
    """How a pack is computed."""

    groups: tuple[Rows, ...]
    places: Tensor
    """Shape (tokens,): where each token stands in the groups laid end to end."""


def lay_out_paths(segments: Sequence[Segment]) -> PathLayout | None:
    """The layout of a pack's segments; None where copies would be many."""
    tokens = max((segment.end for segment in segments), default=0)
    whole: list[Tensor] = []
    paths: list[Tensor] = []
    sizes: list[tuple[int, int]] = []
    for segment in segments:  # parents come first
        own = torch.arange(segment.start, segment.end)
        path = own if segment.parent is None else torch.cat([whole[segment.parent], own])
        whole.append(path)
        before = len(path) - len(own)
        runs = max(1, round(len(own) / RUN))
        for begin, end in pairwise(before + len(own) * run // runs for run in range(runs + 1)):
            paths.append(path[:end])
            sizes.append((end, end - begin))
    if not segments or sum(keys for keys, _ in sizes) > COPIES * tokens:
        return None
    places = torch.empty(tokens, dtype=torch.int64)
    groups = []
    first = 0
    for members in _alike(sizes):
        groups.append(_together([paths[index] for index in members], [sizes[index][1] for index in members]))
        for row, index in enumerate(members):
            place, queries = first + row * groups[-1].longest, sizes[index][1]
            places[paths[index][-queries:]] = torch.arange(place, place + queries)
        first += len(groups[-1].queries)
    return PathLayout(tuple(groups), places)


def _alike(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of (keys, queries) in the groups that cost least, of those that follow each other by size.

    Where one is more than is to go together, it is alone.
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)
    costs, cuts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = 0
        best = cut = -1
        for start in range(end - 1, -1, -1):
            widest, queries = sizes[order[start]]
            longest = max(longest, queries)
            if end - start > 1 and (end - start) * longest * widest > TOGETHER:
                break
            cost = costs[start] + (end - start) * longest * widest + PRODUCT
            if best < 0 or cost < best:
                best, cut = cost, start
        costs.append(best)
        cuts.append(cut)
    groups = []
    end = len(order)
    while end:
        groups.append(order[cuts[end] : end])
        end = cuts[end]
    return groups[::-1]


def _together(paths: Sequence[Tensor], lengths: Sequence[int]) -> Rows:
    """Runs of these paths, whose last so many tokens are their own."""
    rows, longest, widest = len(paths), max(lengths), max(map(len, paths))
    keys = torch.stack([_padded(path, widest) for path in paths])
    queries = torch.stack([_padded(path[-own:], longest) for path, own in zip(paths, lengths, strict=True)])
    own, whole = torch.tensor(lengths)[:, None], torch.tensor([len(path) for path in paths])[:, None]
    numbers = torch.arange(longest).expand(rows, longest)
    last_seen = torch.minimum(whole - own + numbers, whole - 1)
    hidden = torch.zeros(rows, 1, longest, widest)
    hidden.masked_fill_((torch.arange(widest) > last_seen[:, :, None])[:, None], float("-inf"))
    padding = numbers >= own
    return Rows(
        rows,
        longest,
        widest,
        queries.flatten(),
        keys.flatten(),
        padding.reshape(-1, 1, 1) if bool(padding.any()) else None,
        hidden,
    )


def _padded(tokens: Tensor, length: int) -> Tensor:
    return torch.cat([tokens, tokens[-1:].expand(length - len(tokens))])


def path_attention(query: Tensor, key: Tensor, value: Tensor, layout: PathLayout, scale: float) -> Tensor:
    """Attention of a pack: shapes (1, heads, tokens, width) in, (1, tokens, heads, width) out.

    `key` and `value` may have fewer heads than `query`, each then serving a run of them.
    """
    return apply(_PathAttention, query, key, value, layout, scale)


class _PathAttention(Function):
    """Tensors in here have shape (tokens, heads, width), those of a group (rows * key heads, places, width)."""

    @staticmethod
    @cast_forward(torch.bfloat16)
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PathLayout, scale: float) -> Tensor:
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        parts, kept = [], []
        for group in layout.groups:
            weights = _weights(q, k, group, scale)
            part = torch.bmm(weights, _rows(v, group.keys, group.rows, k.shape[1]))
            parts.append(_from_rows(part, group.rows, k.shape[1], group.longest))
            kept.append(weights if group.widest <= KEPT else None)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.scale = layout, scale
        return torch.cat(parts).index_select(0, layout.places)[None]

    @staticmethod
    @cast_backward
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        heads = k.shape[1]
        grad = grad[0].to(q.dtype)
        wide = torch.promote_types(q.dtype, torch.float32)
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        parts = []
        for group, known in zip(ctx.layout.groups, kept, strict=True):
            weights = _weights(q, k, group, ctx.scale) if known is None else known
            # Padding asks for nothing, so no key gets anything of it.
            given = grad.index_select(0, group.queries)
            if group.padding is not None:
                given.masked_fill_(group.padding, 0)
            given = _parted(given, group.rows, heads)
            query, key, value = (
                _rows(states, places, group.rows, heads)
                for states, places in ((q, group.queries), (k, group.keys), (v, group.keys))
            )
            of_weights = wide_product(given, value.transpose(1, 2))
            dscores = torch._softmax_backward_data(of_weights, weights.to(wide), -1, wide)
            dscores = dscores.mul_(ctx.scale).to(q.dtype)
            parts.append(_from_rows(torch.bmm(dscores, key), group.rows, heads, group.longest))
            for total, part in (
                (dk, torch.bmm(dscores.transpose(1, 2), query)),
                (dv, torch.bmm(weights.transpose(1, 2), given)),
            ):
                total.index_add_(0, group.keys, _from_rows(part, group.rows, heads, group.widest).to(wide))
        dq = torch.cat(parts).index_select(0, ctx.layout.places)
        return (*(states.to(q.dtype).transpose(0, 1)[None] for states in (dq, dk, dv)), None, None)


def _weights(q: Tensor, k: Tensor, group: Rows, scale: float) -> Tensor:
    """What each query takes of each key's value, in their type; the scores are in fp32 or wider.

    Shape (rows * key heads, heads a key head * queries, keys).
    """
    heads = k.shape[1]
    query = _rows(q, group.queries, group.rows, heads)
    key = _rows(k, group.keys, group.rows, heads)
    scores = wide_product(query, key.transpose(1, 2), scale)
    scores.view(group.rows, -1, group.longest, group.widest).add_(group.hidden)
    return torch.softmax(scores, dim=-1).to(q.dtype)


def _rows(states: Tensor, tokens: Tensor, rows: int, heads: int) -> Tensor:
    """From (tokens, any heads, width) to (rows * key heads, heads a key head * places, width)."""
    return _parted(states.index_select(0, tokens), rows, heads)


def _parted(laid: Tensor, rows: int, heads: int) -> Tensor:
    """From (rows * places, any heads, width) to (rows * key heads, heads a key head * places, width)."""
    width = laid.shape[-1]
    parted = laid.view(rows, -1, heads, laid.shape[1] // heads, width).permute(0, 2, 3, 1, 4)
    return parted.reshape(rows * heads, -1, width)


def _from_rows(states: Tensor, rows: int, heads: int, places: int) -> Tensor:
    """The inverse of `_parted`: shape (rows * places, any heads, width)."""
    width = states.shape[-1]
    parted = states.view(rows, heads, -1, places, width).permute(0, 3, 1, 2, 4)
    return parted.reshape(rows * places, -1, width)
