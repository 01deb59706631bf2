"""Causal attention over a prefix tree on the CPU that copies no shared key, forwards or backwards.

A token sees its own segment up to itself, and all of its segment's ancestors. The segments lie in the order of a tree
walk, so the tokens that see a shared prefix are one run directly after it. They attend to it in one product, whatever
documents they belong to. The partial results are merged by their log-sum-exp, as flash attention merges its blocks.

PyTorch's fused kernel is built for long rows: on rows of 40 tokens in bf16 its backward pass takes twenty times as long
as batched matrix products. Short rows therefore use batched products, with scores in fp32 as in the kernel. Long rows,
whose scores would take too much memory, use the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from templatekit.training.attention.matmul import scaled_bmm
from templatekit.training.kernels.autograd import apply, cast_backward, cast_forward
from templatekit.types import Segment

MAX_SCORED_KEYS = 256
"""Rows of more keys than this go through PyTorch's fused kernel, which stores no scores."""
MAX_SAVED_KEYS = 128
"""Rows of at most this many keys save their attention weights for the backward pass. The weights are then small beside
a layer's other saved tensors. The weights of longer rows are computed again."""

_kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class SegmentGroup(NamedTuple):
    """Segments of similar length, one a row, each of which attends to itself."""

    rows: int
    length: int
    """Tokens of a row, padding included."""
    tokens: Tensor
    """Shape (rows * length,): the pack's token at each index. Padding repeats the row's last token."""
    real: Tensor | None
    """Shape (rows * length, 1, 1), bool: false for padding; None where there is none."""


class SharedPrefix(NamedTuple):
    """A shared segment, and the run of tokens after it that see it."""

    start: int
    end: int
    seen_until: int
    """The tokens from `end` to `seen_until` see the tokens from `start` to `end`."""


@dataclass(frozen=True, slots=True)  # autocast would take a tuple apart
class TreeLayout:
    """How the tokens of a pack are grouped for `tree_attention`."""

    groups: tuple[SegmentGroup, ...]
    output_index: Tensor
    """Shape (tokens,): the index of each token in the concatenated groups."""
    prefixes: tuple[SharedPrefix, ...]


def create_tree_layout(segments: Sequence[Segment]) -> TreeLayout:
    """Return the layout of a pack's segments."""
    output_index = torch.empty(max((segment.end for segment in segments), default=0), dtype=torch.int64)
    groups = []
    group_start = 0
    for indices in group_by_length([(segment.end - segment.start,) for segment in segments], 3 / 4):
        members = [segments[index] for index in indices]
        length = members[0].end - members[0].start
        starts = torch.tensor([segment.start for segment in members])[:, None]
        ends = torch.tensor([segment.end for segment in members])[:, None]
        tokens = starts + torch.arange(length)
        real = tokens < ends
        output_index[tokens[real]] = torch.arange(group_start, group_start + tokens.numel()).view_as(tokens)[real]
        padding = None if bool(real.all()) else real.view(-1, 1, 1)
        groups.append(SegmentGroup(len(members), length, torch.minimum(tokens, ends - 1).flatten(), padding))
        group_start += tokens.numel()
    seen_until = [segment.end for segment in segments]
    for index in reversed(range(len(segments))):
        parent = segments[index].parent
        if parent is not None:
            seen_until[parent] = max(seen_until[parent], seen_until[index])
    prefixes = (
        SharedPrefix(segment.start, segment.end, end)
        for segment, end in zip(segments, seen_until, strict=True)
        if end > segment.end
    )
    return TreeLayout(tuple(groups), output_index, tuple(prefixes))


def group_by_length(sizes: Sequence[tuple[int, ...]], share: float) -> list[list[int]]:
    """Group the indices of `sizes`, largest first. In a group each size is at least this `share` of the largest one.

    An element of `sizes` is one size or several. Several are compared one by one.
    """
    groups: list[list[int]] = []
    largest: tuple[int, ...] = ()
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if groups and all(size >= share * most for size, most in zip(sizes[index], largest, strict=True)):
            groups[-1].append(index)
            largest = tuple(map(max, largest, sizes[index]))
        else:
            groups.append([index])
            largest = sizes[index]
    return groups


def tree_attention(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
    """Compute the attention of a pack: shapes (1, heads, tokens, head_dim) in, (1, tokens, heads, head_dim) out.

    `key` and `value` may have fewer heads than `query`: each of them then serves several adjacent query heads.
    """
    return apply(_TreeAttention, query, key, value, layout, scale)


class _TreeAttention(Function):
    """The autograd function. Tensors have shape (tokens, heads, head_dim), log-sum-exps (`lse`) (tokens, heads, 1)."""

    @staticmethod
    @cast_forward(torch.bfloat16)
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        heads = k.shape[1]
        results, saved = [], []
        for group in layout.groups:
            product = _segment_product(q, k, v, group, scale)
            part, part_lse, weights = product.forward()
            results.append([_by_token(states, heads, group.length, group.rows) for states in (part, part_lse)])
            # The backward pass rescales the weights: there they are shares of all keys that a query sees, prefixes
            # included.
            saved += [weights, part_lse]
        output, lse = (torch.cat(parts).index_select(0, layout.output_index) for parts in zip(*results, strict=True))
        if layout.prefixes:
            output = output.to(lse.dtype)
        for prefix in layout.prefixes:
            own, run = slice(prefix.start, prefix.end), slice(prefix.end, prefix.seen_until)
            product = _prefix_product(q[run], k[own], v[own], scale)
            part, part_lse, weights = product.forward()
            parts = (_by_token(states, heads, run.stop - run.start) for states in (part, part_lse))
            _merge(output[run], lse[run], *parts)
            saved += [weights, part_lse]
        output = output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, lse, *saved)
        ctx.layout, ctx.scale = layout, scale
        return output[None]

    @staticmethod
    @cast_backward
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse, *saved = ctx.saved_tensors
        weights_and_lse = iter(zip(saved[::2], saved[1::2], strict=True))
        layout: TreeLayout = ctx.layout
        heads = k.shape[1]
        grad = grad[0].to(q.dtype)
        # The softmax subtracts the same value from the gradient of each score of a query, over all keys that it sees.
        delta = (grad.to(lse.dtype) * output).sum(-1, keepdim=True)
        results = []
        for group in layout.groups:
            product = _segment_product(q, k, v, group, ctx.scale)
            arguments = [_to_group(states, group, heads) for states in (output, lse)]
            arguments += [_to_group(states, group, heads, padding=0) for states in (grad, delta)]
            arguments += next(weights_and_lse)
            gradients = product.backward(*arguments)
            results.append([_by_token(states, heads, group.length, group.rows) for states in gradients])
        dq, dk, dv = (torch.cat(parts).index_select(0, layout.output_index) for parts in zip(*results, strict=True))
        if layout.prefixes:
            dq, dk, dv = (states.to(lse.dtype) for states in (dq, dk, dv))
        for prefix in layout.prefixes:
            own, run = slice(prefix.start, prefix.end), slice(prefix.end, prefix.seen_until)
            product = _prefix_product(q[run], k[own], v[own], ctx.scale)
            arguments = [_by_head(states[run], heads) for states in (output, lse, grad, delta)]
            arguments += next(weights_and_lse)
            gradients = product.backward(*arguments)
            for states, tokens, part in zip((dq, dk, dv), (run, own, own), gradients, strict=True):
                states[tokens] += _by_token(part, heads, tokens.stop - tokens.start)
        return (*(states.to(q.dtype).transpose(0, 1)[None] for states in (dq, dk, dv)), None, None)


@dataclass(slots=True)
class _AttentionProduct:
    """The attention of some queries to some keys, computed at once.

    Each query sees every key of its row, or with `causal` the keys up to its own. All query heads that share a key head
    are concatenated in one row, so no key is repeated.
    """

    query: Tensor
    """Shape (rows, heads for each key head * queries, head_dim)."""
    key: Tensor
    """Shape (rows, keys, head_dim)."""
    value: Tensor
    scale: float
    causal: int | None = None
    """Under the causal mask, the keys of a row, which are as many as the queries of one head; else None."""

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the output, the log-sum-exp of each query's scores, and the attention weights of short rows.

        The output has the shape of `query`, the log-sum-exp (rows, queries, 1), the weights (rows, queries, keys) and
        the type of `value`.
        """
        if self.key.shape[1] > MAX_SCORED_KEYS:
            inputs = (self._for_kernel(states) for states in (self.query, self.key, self.value))
            output, lse = _kernel(*inputs, 0.0, self.causal is not None, scale=self.scale)
            return output.reshape(self.query.shape), lse.reshape(*self.query.shape[:2], 1), None
        scores = self._scores()
        highest = scores.amax(-1, keepdim=True)
        exponentials = scores.sub_(highest).exp_()
        sums = exponentials.sum(-1, keepdim=True)
        weights = exponentials.div_(sums).to(self.value.dtype)
        saved = weights if self.key.shape[1] <= MAX_SAVED_KEYS else None
        return torch.bmm(weights, self.value), sums.log_().add_(highest), saved

    def backward(
        self, output: Tensor, lse: Tensor, grad: Tensor, delta: Tensor, saved: Tensor | None, own_lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value.

        `output` and `lse` are taken over all keys that the queries see. `saved` and `own_lse` are the weights and the
        log-sum-exp that `forward` returned, of this product alone.
        """
        if self.key.shape[1] > MAX_SCORED_KEYS:
            inputs = (self._for_kernel(states) for states in (grad, self.query, self.key, self.value, output))
            kernel_lse = self._for_kernel(lse).squeeze(-1)
            dq, dk, dv = _kernel_backward(*inputs, kernel_lse, 0.0, self.causal is not None, scale=self.scale)
            return dq.reshape(self.query.shape), dk.sum(1), dv.sum(1)
        if saved is None:
            weights = self._scores().sub_(lse).exp_()
        else:
            weights = saved * (own_lse - lse).exp_()
        dv = torch.bmm(weights.to(grad.dtype).transpose(1, 2), grad)
        wide_value = self.value.to(lse.dtype)
        dscores = scaled_bmm(grad.to(lse.dtype), wide_value.transpose(1, 2), self.value.dtype)
        dscores = dscores.sub_(delta).mul_(weights).mul_(self.scale).to(grad.dtype)
        return torch.bmm(dscores, self.key), torch.bmm(dscores.transpose(1, 2), self.query), dv

    def _scores(self) -> Tensor:
        """Shape (rows, queries, keys), in fp32 or wider."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        scores = scaled_bmm(self.query.to(wide), self.key.to(wide).transpose(1, 2), self.query.dtype, self.scale)
        if self.causal is not None:
            hidden = torch.ones(self.causal, self.causal, dtype=torch.bool).triu_(1)
            scores.view(-1, self.causal, self.causal).masked_fill_(hidden, float("-inf"))
        return scores

    def _for_kernel(self, states: Tensor) -> Tensor:
        """In the kernel's shape: (rows, heads for each key head, tokens, head_dim). Keys repeat without a copy."""
        rows, queries, _ = self.query.shape
        keys = self.key.shape[1]
        heads = queries // keys if self.causal is not None else 1
        if states.shape[1] == queries:
            return states.view(rows, heads, queries // heads, states.shape[-1])
        return states[:, None].expand(rows, heads, keys, states.shape[-1])


def _segment_product(q: Tensor, k: Tensor, v: Tensor, group: SegmentGroup, scale: float) -> _AttentionProduct:
    """The attention of segments to themselves."""
    query, key, value = (_to_group(states, group, k.shape[1]) for states in (q, k, v))
    return _AttentionProduct(query, key, value, scale, causal=group.length)


def _prefix_product(q: Tensor, k: Tensor, v: Tensor, scale: float) -> _AttentionProduct:
    """The attention of a run of tokens to one prefix, which all of them see."""
    query, key, value = (_by_head(states, k.shape[1]) for states in (q, k, v))
    return _AttentionProduct(query, key, value, scale)


def _to_group(states: Tensor, group: SegmentGroup, heads: int, *, padding: int | None = None) -> Tensor:
    """From (tokens, any heads, width) to (rows * key heads, heads for each key head * length, width)."""
    gathered = states.index_select(0, group.tokens)
    if padding is not None and group.real is not None:
        gathered.masked_fill_(~group.real, padding)
    return _by_head(gathered, heads, group.rows)


def _by_head(states: Tensor, heads: int, rows: int = 1) -> Tensor:
    """From (rows * tokens, any heads, width) to (rows * key heads, heads for each key head * tokens, width)."""
    by_row = states.reshape(rows, len(states) // rows, heads, -1, states.shape[-1])
    return by_row.permute(0, 2, 3, 1, 4).reshape(rows * heads, -1, states.shape[-1])


def _by_token(states: Tensor, heads: int, tokens: int, rows: int = 1) -> Tensor:
    """The inverse of `_by_head`."""
    by_row = states.view(rows, heads, -1, tokens, states.shape[-1])
    return by_row.permute(0, 3, 1, 2, 4).reshape(rows * tokens, -1, states.shape[-1])


def _merge(output: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a partial output into `output`, weighted by their shares of the exponentials; update both in place."""
    joint = torch.logaddexp(lse, part_lse)
    output.mul_((lse - joint).exp_()).add_(part * (part_lse - joint).exp_())
    lse.copy_(joint)
