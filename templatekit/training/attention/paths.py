"""Causal attention over a prefix tree on the CPU, each token behind a copy of all that it sees.

A short run of a segment is one row of queries, and the tokens from its document's beginning to its own end are that
row's keys. One softmax covers them all, so nothing has to be joined, and rows of unlike length share a product where
padding them costs less than another product would. Copies of shared keys are small beside the scores while what is
shared is short: `lay_out_paths` says whether it is, and `tree_attention` computes the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from templatekit.training.attention.products import product
from templatekit.training.kernels.autograd import apply, cast_backward, cast_forward
from templatekit.types import Segment

RUN = 96
"""About how many queries of a segment go behind one copy of their keys: longer runs see more of what they must not."""
COPIES = 6
"""Keys for each token of a pack, copies counted, from which copying is not worth it."""
KEPT = 512
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
    """Shape (rows, longest), bool: true for queries that are padding; None where there are none."""
    seen: int
    """So many of a row's first keys are seen by all of its queries."""
    hidden: Tensor
    """Shape (rows, longest, widest - seen): minus infinity where a query does not see one of the other keys, else 0.
    Padding queries see what the last query of their row sees."""


@dataclass(frozen=True, slots=True)  # autocast would take a tuple apart
class PathLayout:
    """How a pack is computed."""

    groups: tuple[Rows, ...]
    places: Tensor
    """Shape (tokens,): where each token stands in the groups laid end to end."""
    _by_heads: dict[int, PathLayout] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of_heads(self, heads: int) -> PathLayout:
        """The same where each token's states are a row for each key head, as they lie in memory.

        The heads of a group come before its rows: `queries` and `keys` have shapes (heads * rows * longest,) and
        (heads * rows * widest,), and `places` has (tokens * heads,).
        """
        known = self._by_heads.get(heads)
        if known is None:
            numbers = torch.arange(heads)
            groups, places = [], self.places[:, None].repeat(1, heads)
            start = 0
            for group in self.groups:
                queries, keys = ((numbers[:, None] + heads * own).flatten() for own in (group.queries, group.keys))
                groups.append(group._replace(queries=queries, keys=keys))
                size = group.rows * group.longest
                here = (self.places >= start) & (self.places < start + size)
                places[here] += (heads - 1) * start + numbers * size
                start += size
            known = self._by_heads[heads] = PathLayout(tuple(groups), places.flatten())
        return known


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
    seen = int(last_seen.min()) + 1
    hidden = torch.zeros(rows, longest, widest - seen)
    hidden.masked_fill_(torch.arange(seen, widest) > last_seen[:, :, None], float("-inf"))
    padding = numbers >= own
    return Rows(
        rows,
        longest,
        widest,
        queries.flatten(),
        keys.flatten(),
        padding if bool(padding.any()) else None,
        seen,
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
    """Tensors in here have shape (tokens * key heads, heads a key head * width), those of a group (key heads * rows,
    places * heads a key head, width).
    """

    @staticmethod
    @cast_forward(torch.bfloat16)
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PathLayout, scale: float) -> Tensor:
        heads, width = key.shape[1], key.shape[3]
        layout = layout.of_heads(heads)
        q, k, v = (_by_token(states, heads) for states in (query, key, value))
        wide_q, wide_k = _wide(q), _wide(k)
        parts, kept = [], []
        for group in layout.groups:
            weights = _weights(wide_q, wide_k, group, heads, q.dtype, scale).to(q.dtype)
            part = torch.bmm(weights, _rows(v, group.keys, group.rows * heads, width))
            parts.append(part.view(len(group.queries), -1))
            kept.append(weights if group.widest <= KEPT else None)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.heads, ctx.scale = layout, heads, scale
        return torch.cat(parts).index_select(0, layout.places).view(1, query.shape[2], query.shape[1], width)

    @staticmethod
    @cast_backward
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        heads, width = ctx.heads, k.shape[1]
        given = grad.to(q.dtype).reshape(q.shape)
        wide_v = _wide(v)
        wide_q, wide_k = (_wide(q), _wide(k)) if any(weights is None for weights in kept) else (q, k)
        dk, dv = torch.zeros_like(wide_v), torch.zeros_like(wide_v)
        parts = []
        for group, weights in zip(ctx.layout.groups, kept, strict=True):
            rows = group.rows * heads
            if weights is None:
                wide_weights = _weights(wide_q, wide_k, group, heads, q.dtype, ctx.scale)
                weights = wide_weights.to(q.dtype)
            else:
                wide_weights = _wide(weights)
            asked = _rows(given, group.queries, rows, width)
            if group.padding is not None:  # padding asks for nothing, so no key gets anything of it
                asked.view(heads, *group.padding.shape, -1).masked_fill_(group.padding[:, :, None], 0)
            value = _rows(wide_v, group.keys, rows, width).transpose(1, 2)
            of_weights = product(_wide(asked), value, q.dtype, ctx.scale)
            dscores = torch._softmax_backward_data(of_weights, wide_weights, -1, of_weights.dtype).to(q.dtype)
            parts.append(torch.bmm(dscores, _rows(k, group.keys, rows, width)).view(len(group.queries), -1))
            for total, towards, asking in ((dk, dscores, _rows(q, group.queries, rows, width)), (dv, weights, asked)):
                part = torch.bmm(towards.transpose(1, 2), asking)
                total.index_add_(0, group.keys, part.view(-1, width).to(total.dtype))
        dq = torch.cat(parts).index_select(0, ctx.layout.places)
        gradients = (states.to(q.dtype).view(1, grad.shape[1], -1, width).transpose(1, 2) for states in (dq, dk, dv))
        return (*gradients, None, None)


def _by_token(states: Tensor, heads: int) -> Tensor:
    """From (1, any heads, tokens, width) to (tokens * key heads, heads a key head * width), which is no copy as a rule:
    a model's products make states that lie so.
    """
    return states[0].transpose(0, 1).reshape(states.shape[2] * heads, -1)


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _rows(states: Tensor, places: Tensor, rows: int, width: int) -> Tensor:
    """The states of a group's queries or keys."""
    return states.index_select(0, places).view(rows, -1, width)


def _weights(q: Tensor, k: Tensor, group: Rows, heads: int, values: torch.dtype, scale: float) -> Tensor:
    """What each query takes of each key's value, shape (key heads * rows, queries * heads a key head, keys)."""
    rows, width = group.rows * heads, k.shape[1]
    query, key = _rows(q, group.queries, rows, width), _rows(k, group.keys, rows, width)
    scores = product(query, key.transpose(1, 2), values, scale)
    each = scores.view(heads, group.rows, group.longest, -1, group.widest)
    each[..., group.seen :].add_(group.hidden[:, :, None])
    return torch.softmax(scores, dim=-1)
