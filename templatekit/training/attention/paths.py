"""Causal attention over a prefix tree on the CPU, in which each run of queries gets a copy of all keys that it sees.

A short run of a segment's tokens is one row of queries. The keys of the row are the path: all tokens from the start of
the document to the end of the run. One softmax covers all of a row's keys, so no partial results have to be merged.
Rows of different lengths share a matrix product where padding costs less than another product. While the shared
prefixes are short, the copies of their keys are small beside the scores. `create_path_layout` decides whether they are;
`tree_attention` computes the other packs.
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

from templatekit.packing import segment_paths
from templatekit.training.attention.matmul import scaled_bmm
from templatekit.training.kernels.autograd import apply, at_least_fp32, cast_backward, cast_forward
from templatekit.types import Segment

RUN_LENGTH = 96
"""About how many queries of a segment share one copy of their keys. Longer runs compute more scores that the causal
mask hides."""
MAX_KEYS_PER_TOKEN = 6
"""Keys for each token of a pack, copies included. A pack with more goes to `tree_attention`."""
MAX_SAVED_KEYS = 512
"""Rows of at most this many keys save their attention weights for the backward pass; others recompute them."""
PRODUCT_COST = 4096
"""The cost of one more matrix product, in scores: computing this many takes as long as starting a product."""
MAX_SCORES_PER_PRODUCT = 2**16
"""Scores of each head in one product: few enough that a cache holds most of them."""


class RunGroup(NamedTuple):
    """Runs of queries that are computed together, one a row, padded on the right."""

    rows: int
    query_length: int
    """Queries of a row, padding included."""
    key_length: int
    """Keys of a row, padding included."""
    queries: Tensor
    """Shape (rows * query_length,): the pack's token of each query. Padding repeats the row's last token."""
    keys: Tensor
    """Shape (rows * key_length,): the same for keys."""
    padding: Tensor | None
    """Shape (rows, query_length), bool: true for queries that are padding; None where there are none."""
    unmasked: int
    """Number of leading keys of a row that all of its queries see."""
    causal_mask: Tensor
    """Shape (rows, query_length, key_length - unmasked): minus infinity where a query does not see one of the other
    keys, else 0. Padding queries see the same keys as the last query of their row.
    """
    last_visible: Tensor
    """Shape (rows, query_length): the index of the last key that each query sees."""
    has_prefix: bool
    """Whether a row has keys before its first query."""


@dataclass(frozen=True, slots=True)  # autocast would take a tuple apart
class PathLayout:
    """How the tokens of a pack are grouped for `path_attention`."""

    groups: tuple[RunGroup, ...]
    output_index: Tensor
    """Shape (tokens,): the index of each token in the concatenated groups."""
    _by_key_heads: dict[int, PathLayout] = field(default_factory=dict, init=False, repr=False, compare=False)

    def for_key_heads(self, heads: int) -> PathLayout:
        """Return the layout for states with one row for each token and key head, as they lie in memory.

        In a group the head is the outermost dimension: `queries` and `keys` have shapes (heads * rows * query_length,)
        and (heads * rows * key_length,). `output_index` has shape (tokens * heads,).
        """
        known = self._by_key_heads.get(heads)
        if known is None:
            head_index = torch.arange(heads)
            groups, output_index = [], self.output_index[:, None].repeat(1, heads)
            start = 0
            for group in self.groups:
                queries, keys = (
                    (head_index[:, None] + heads * tokens).flatten() for tokens in (group.queries, group.keys)
                )
                groups.append(group._replace(queries=queries, keys=keys))
                size = group.rows * group.query_length
                inside = (self.output_index >= start) & (self.output_index < start + size)
                output_index[inside] += (heads - 1) * start + head_index * size
                start += size
            known = self._by_key_heads[heads] = PathLayout(tuple(groups), output_index.flatten())
        return known


def create_path_layout(segments: Sequence[Segment]) -> PathLayout | None:
    """Return the layout of a pack's segments; None where it would copy too many keys."""
    tokens = max((segment.end for segment in segments), default=0)
    run_paths: list[Tensor] = []
    sizes: list[tuple[int, int]] = []
    for segment, path in zip(segments, map(torch.from_numpy, segment_paths(segments)), strict=True):
        own = segment.end - segment.start
        runs = max(1, round(own / RUN_LENGTH))
        for start, end in pairwise(len(path) - own + own * run // runs for run in range(runs + 1)):
            run_paths.append(path[:end])
            sizes.append((end, end - start))
    if not segments or sum(keys for keys, _ in sizes) > MAX_KEYS_PER_TOKEN * tokens:
        return None
    groups, output_index = pad_groups(_cheapest_groups(sizes), run_paths, [queries for _, queries in sizes])
    return PathLayout(tuple(groups), output_index)


def _cheapest_groups(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Group runs of (keys, queries) so that the total cost is least; return the indices in each group.

    Groups are consecutive in the order of size. A run that exceeds `MAX_SCORES_PER_PRODUCT` alone is a group of one.
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)
    costs, cuts = [0], [0]
    for end in range(1, len(order) + 1):
        query_length = 0
        best = cut = -1
        for start in range(end - 1, -1, -1):
            key_length, queries = sizes[order[start]]
            query_length = max(query_length, queries)
            if end - start > 1 and (end - start) * query_length * key_length > MAX_SCORES_PER_PRODUCT:
                break
            cost = costs[start] + (end - start) * query_length * key_length + PRODUCT_COST
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


def pad_groups(
    groups_of_indices: Sequence[Sequence[int]], paths: Sequence[Tensor], lengths: Sequence[int]
) -> tuple[list[RunGroup], Tensor]:
    """Pad `paths[i]`, whose last `lengths[i]` tokens are the queries, for each i of each group.

    Returns the groups, and the index of each token of the pack in the concatenated groups, shape (tokens,).
    """
    output_index = torch.empty(sum(lengths), dtype=torch.int64)
    groups = []
    group_start = 0
    for indices in groups_of_indices:
        groups.append(_pad_group([paths[index] for index in indices], [lengths[index] for index in indices]))
        for row, index in enumerate(indices):
            start = group_start + row * groups[-1].query_length
            output_index[paths[index][-lengths[index] :]] = torch.arange(start, start + lengths[index])
        group_start += len(groups[-1].queries)
    return groups, output_index


def _pad_group(paths: Sequence[Tensor], lengths: Sequence[int]) -> RunGroup:
    """Return the group of these paths, whose last `lengths` tokens are the queries."""
    rows, query_length, key_length = len(paths), max(lengths), max(map(len, paths))
    keys = torch.stack([_padded(path, key_length) for path in paths])
    queries = torch.stack([_padded(path[-length:], query_length) for path, length in zip(paths, lengths, strict=True)])
    query_counts, key_counts = torch.tensor(lengths)[:, None], torch.tensor([len(path) for path in paths])[:, None]
    query_index = torch.arange(query_length).expand(rows, query_length)
    last_visible = torch.minimum(key_counts - query_counts + query_index, key_counts - 1)
    unmasked = int(last_visible.min()) + 1
    causal_mask = torch.zeros(rows, query_length, key_length - unmasked)
    causal_mask.masked_fill_(torch.arange(unmasked, key_length) > last_visible[:, :, None], float("-inf"))
    padding = query_index >= query_counts
    return RunGroup(
        rows,
        query_length,
        key_length,
        queries.flatten(),
        keys.flatten(),
        padding if bool(padding.any()) else None,
        unmasked,
        causal_mask,
        last_visible,
        bool(last_visible[:, 0].any()),
    )


def _padded(tokens: Tensor, length: int) -> Tensor:
    return torch.cat([tokens, tokens[-1:].expand(length - len(tokens))])


def path_attention(query: Tensor, key: Tensor, value: Tensor, layout: PathLayout, scale: float) -> Tensor:
    """Compute the attention of a pack: shapes (1, heads, tokens, head_dim) in, (1, tokens, heads, head_dim) out.

    `key` and `value` may have fewer heads than `query`: each of them then serves several adjacent query heads.
    """
    return apply(_PathAttention, query, key, value, layout, scale)


class _PathAttention(Function):
    """The autograd function. Let `g` be the query heads for each key head (for keys, 1).

    Tensors have shape (tokens * key heads, g * head_dim); those of a group have (key heads * rows, row length * g,
    head_dim).
    """

    @staticmethod
    @cast_forward(torch.bfloat16)
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PathLayout, scale: float) -> Tensor:
        heads, head_dim = key.shape[1], key.shape[3]
        layout = layout.for_key_heads(heads)
        q, k, v = (_token_rows(states, heads) for states in (query, key, value))
        wide_q, wide_k = at_least_fp32(q), at_least_fp32(k)
        outputs, saved_weights = [], []
        for group in layout.groups:
            weights = _attention_weights(wide_q, wide_k, group, heads, q.dtype, scale).to(q.dtype)
            output = torch.bmm(weights, _gather(v, group.keys, group.rows * heads, head_dim))
            outputs.append(output.view(len(group.queries), -1))
            saved_weights.append(weights if group.key_length <= MAX_SAVED_KEYS else None)
        ctx.save_for_backward(q, k, v, *saved_weights)
        ctx.layout, ctx.heads, ctx.scale = layout, heads, scale
        return torch.cat(outputs).index_select(0, layout.output_index).view(1, query.shape[2], query.shape[1], head_dim)

    @staticmethod
    @cast_backward
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved_weights = ctx.saved_tensors
        heads, head_dim = ctx.heads, k.shape[1]
        grad_output = grad.to(q.dtype).reshape(q.shape)
        wide_v = at_least_fp32(v)
        recompute = any(weights is None for weights in saved_weights)
        wide_q, wide_k = (at_least_fp32(q), at_least_fp32(k)) if recompute else (q, k)
        dk, dv = torch.zeros_like(wide_v), torch.zeros_like(wide_v)
        dq_groups = []
        for group, weights in zip(ctx.layout.groups, saved_weights, strict=True):
            rows = group.rows * heads
            if weights is None:
                wide_weights = _attention_weights(wide_q, wide_k, group, heads, q.dtype, ctx.scale)
                weights = wide_weights.to(q.dtype)
            else:
                wide_weights = at_least_fp32(weights)
            dout = _gather(grad_output, group.queries, rows, head_dim)
            if group.padding is not None:  # padding queries give no gradient to any key
                dout.view(heads, *group.padding.shape, -1).masked_fill_(group.padding[:, :, None], 0)
            value = _gather(wide_v, group.keys, rows, head_dim).transpose(1, 2)
            dweights = scaled_bmm(at_least_fp32(dout), value, q.dtype, ctx.scale)
            dscores = torch._softmax_backward_data(dweights, wide_weights, -1, dweights.dtype).to(q.dtype)
            dq_groups.append(torch.bmm(dscores, _gather(k, group.keys, rows, head_dim)).view(len(group.queries), -1))
            for gradient, left, right in (
                (dk, dscores, _gather(q, group.queries, rows, head_dim)),
                (dv, weights, dout),
            ):
                added = torch.bmm(left.transpose(1, 2), right)
                gradient.index_add_(0, group.keys, added.view(-1, head_dim).to(gradient.dtype))
        dq = torch.cat(dq_groups).index_select(0, ctx.layout.output_index)
        gradients = (states.to(q.dtype).view(1, grad.shape[1], -1, head_dim).transpose(1, 2) for states in (dq, dk, dv))
        return (*gradients, None, None)


def _token_rows(states: Tensor, heads: int) -> Tensor:
    """From (1, any heads, tokens, head_dim) to (tokens * key heads, heads for each key head * head_dim).

    This is usually a view, since a model's matrix products write their results in this order.
    """
    return states[0].transpose(0, 1).reshape(states.shape[2] * heads, -1)


def _gather(states: Tensor, index: Tensor, rows: int, head_dim: int) -> Tensor:
    """Return the states of a group's queries or keys."""
    return states.index_select(0, index).view(rows, -1, head_dim)


def _attention_weights(
    q: Tensor, k: Tensor, group: RunGroup, heads: int, source_dtype: torch.dtype, scale: float
) -> Tensor:
    """Return the softmax of the scores, shape (key heads * rows, queries * heads for each key head, keys)."""
    rows, head_dim = group.rows * heads, k.shape[1]
    query, key = _gather(q, group.queries, rows, head_dim), _gather(k, group.keys, rows, head_dim)
    scores = scaled_bmm(query, key.transpose(1, 2), source_dtype, scale)
    by_query = scores.view(heads, group.rows, group.query_length, -1, group.key_length)
    by_query[..., group.unmasked :].add_(group.causal_mask[:, :, None])
    return torch.softmax(scores, dim=-1)
