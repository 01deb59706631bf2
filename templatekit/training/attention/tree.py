"""Causal attention over a prefix tree on the CPU, forwards and backwards, without a copy of any shared key.

A token sees its own segment up to itself, and all of its segment's ancestors. Segments lie in the order of a tree walk,
so the tokens that see a shared prefix are one run right behind it: they attend to it in one product, whatever documents
they belong to. The parts are joined by their log-sum-exp, as flash attention joins its blocks.

PyTorch's fused kernel is built for long rows: on rows of 40 tokens in bf16 its backward pass takes twenty times as long
as batched matrix products. Short rows therefore go through those, with scores in fp32 as in the kernel, and long ones,
whose scores would take too much memory, through the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from templatekit.training.attention.products import product
from templatekit.training.kernels.autograd import apply, cast_backward, cast_forward
from templatekit.types import Segment

LONG = 256
"""Keys from which a product goes through PyTorch's kernel, which holds no scores."""
KEPT = 128
"""Keys up to which the weights of the forward pass are kept for the backward one. They are small beside a layer's other
states then; of longer rows they are computed again."""

_kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Rows(NamedTuple):
    """Segments of like length, one a row, each of which attends to itself."""

    rows: int
    longest: int
    tokens: Tensor
    """Shape (rows * longest,): the pack's token at each place. Padding repeats the row's last token."""
    real: Tensor | None
    """Shape (rows * longest, 1, 1), bool: false for padding; None where there is none."""


class Prefix(NamedTuple):
    """A shared segment, and the run of tokens that follow on it."""

    start: int
    end: int
    behind: int
    """The tokens from `end` up to here see those from `start` to `end`."""


@dataclass(frozen=True, slots=True)  # autocast would take a tuple apart
class TreeLayout:
    """How a pack is computed."""

    groups: tuple[Rows, ...]
    places: Tensor
    """Shape (tokens,): where each token stands in the groups laid end to end."""
    prefixes: tuple[Prefix, ...]


def lay_out(segments: Sequence[Segment]) -> TreeLayout:
    """The layout of a pack's segments."""
    places = torch.empty(max((segment.end for segment in segments), default=0), dtype=torch.int64)
    groups = []
    first = 0
    for members in _alike(segments):
        longest = members[0].end - members[0].start
        starts = torch.tensor([segment.start for segment in members])[:, None]
        ends = torch.tensor([segment.end for segment in members])[:, None]
        tokens = starts + torch.arange(longest)
        real = tokens < ends
        places[tokens[real]] = torch.arange(first, first + tokens.numel()).view_as(tokens)[real]
        padding = None if bool(real.all()) else real.view(-1, 1, 1)
        groups.append(Rows(len(members), longest, torch.minimum(tokens, ends - 1).flatten(), padding))
        first += tokens.numel()
    behind = [segment.end for segment in segments]
    for index in reversed(range(len(segments))):
        parent = segments[index].parent
        if parent is not None:
            behind[parent] = max(behind[parent], behind[index])
    prefixes = (
        Prefix(segment.start, segment.end, last)
        for segment, last in zip(segments, behind, strict=True)
        if last > segment.end
    )
    return TreeLayout(tuple(groups), places, tuple(prefixes))


def _alike(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments by falling length, in groups whose shortest is at least three quarters as long as their longest."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: segment.start - segment.end):
        if groups and 4 * (segment.end - segment.start) >= 3 * (groups[-1][0].end - groups[-1][0].start):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def tree_attention(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
    """Attention of a pack: shapes (1, heads, tokens, width) in, (1, tokens, heads, width) out.

    `key` and `value` may have fewer heads than `query`, each then serving a run of them.
    """
    return apply(_TreeAttention, query, key, value, layout, scale)


class _TreeAttention(Function):
    """Tensors in here have shape (tokens, heads, width); the log-sum-exp of a query's scores has width 1."""

    @staticmethod
    @cast_forward(torch.bfloat16)
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        heads = k.shape[1]
        parts, kept = [], []
        for group in layout.groups:
            block = _own_block(q, k, v, group, scale)
            part, part_total, weights = block.attend()
            parts.append([_from_rows(states, group, heads) for states in (part, part_total)])
            # In the backward pass the weights count as a share of all that a query sees: of this and of its prefixes.
            kept += [weights, part_total]
        output, total = (torch.cat(part).index_select(0, layout.places) for part in zip(*parts, strict=True))
        if layout.prefixes:
            output = output.to(total.dtype)
        for prefix in layout.prefixes:
            own, run = slice(prefix.start, prefix.end), slice(prefix.end, prefix.behind)
            block = _cross_block(q[run], k[own], v[own], scale)
            part, part_total, weights = block.attend()
            _join(output[run], total[run], *(_from_row(states, heads, run) for states in (part, part_total)))
            kept += [weights, part_total]
        output = output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, total, *kept)
        ctx.layout, ctx.scale = layout, scale
        return output[None]

    @staticmethod
    @cast_backward
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, total, *kept = ctx.saved_tensors
        made = iter(zip(kept[::2], kept[1::2], strict=True))
        layout: TreeLayout = ctx.layout
        heads = k.shape[1]
        grad = grad[0].to(q.dtype)
        # What the softmax takes off the gradient of every score is one number a query, over all the keys that it sees.
        delta = (grad.to(total.dtype) * output).sum(-1, keepdim=True)
        parts = []
        for group in layout.groups:
            block = _own_block(q, k, v, group, ctx.scale)
            given = [_rows(states, group, heads) for states in (output, total)]
            given += [_rows(states, group, heads, padding=0) for states in (grad, delta)]
            given += next(made)
            gradients = block.gradients(*given)
            parts.append([_from_rows(states, group, heads) for states in gradients])
        dq, dk, dv = (torch.cat(part).index_select(0, layout.places) for part in zip(*parts, strict=True))
        if layout.prefixes:
            dq, dk, dv = (states.to(total.dtype) for states in (dq, dk, dv))
        for prefix in layout.prefixes:
            own, run = slice(prefix.start, prefix.end), slice(prefix.end, prefix.behind)
            block = _cross_block(q[run], k[own], v[own], ctx.scale)
            given = [_row(states[run], heads) for states in (output, total, grad, delta)]
            given += next(made)
            gradients = block.gradients(*given)
            for states, at, part in zip((dq, dk, dv), (run, own, own), gradients, strict=True):
                states[at] += _from_row(part, heads, at)
        return (*(states.to(q.dtype).transpose(0, 1)[None] for states in (dq, dk, dv)), None, None)


@dataclass(slots=True)
class _Block:
    """One product of attention, in which each query sees every key of its row, or with `causal` those up to its own.

    The queries of all heads that share a key head stand one after the other in one row, so no key is repeated.
    """

    query: Tensor
    """Shape (rows, heads a key head * queries, width)."""
    key: Tensor
    """Shape (rows, keys, width)."""
    value: Tensor
    scale: float
    causal: int | None = None
    """The keys of a row where they are causal: as many as queries of one head."""

    def attend(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The outputs, shape of `query`; the log-sum-exp of each query's scores, shape (rows, queries, 1); the weights
        of short rows, shape (rows, queries, keys), in the type of `value`.
        """
        if self.key.shape[1] > LONG:
            laid = (self._laid(states) for states in (self.query, self.key, self.value))
            output, total = _kernel(*laid, 0.0, self.causal is not None, scale=self.scale)
            return output.reshape(self.query.shape), total.reshape(*self.query.shape[:2], 1), None
        scores = self._scores()
        highest = scores.amax(-1, keepdim=True)
        exponentials = scores.sub_(highest).exp_()
        sums = exponentials.sum(-1, keepdim=True)
        weights = exponentials.div_(sums).to(self.value.dtype)
        kept = weights if self.key.shape[1] <= KEPT else None
        return torch.bmm(weights, self.value), sums.log_().add_(highest), kept

    def gradients(
        self, output: Tensor, total: Tensor, grad: Tensor, delta: Tensor, kept: Tensor | None, own_total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value, given the output and log-sum-exp over all that the queries see.

        `kept` and `own_total` are the weights and the log-sum-exp that `attend` gave, of this product alone.
        """
        if self.key.shape[1] > LONG:
            states = (self._laid(states) for states in (grad, self.query, self.key, self.value, output))
            sums = self._laid(total).squeeze(-1)
            dq, dk, dv = _kernel_backward(*states, sums, 0.0, self.causal is not None, scale=self.scale)
            return dq.reshape(self.query.shape), dk.sum(1), dv.sum(1)
        if kept is None:
            weights = self._scores().sub_(total).exp_()
        else:
            weights = kept * (own_total - total).exp_()
        dv = torch.bmm(weights.to(grad.dtype).transpose(1, 2), grad)
        wide_value = self.value.to(total.dtype)
        dscores = product(grad.to(total.dtype), wide_value.transpose(1, 2), self.value.dtype)
        dscores = dscores.sub_(delta).mul_(weights).mul_(self.scale).to(grad.dtype)
        return torch.bmm(dscores, self.key), torch.bmm(dscores.transpose(1, 2), self.query), dv

    def _scores(self) -> Tensor:
        """Shape (rows, queries, keys), in fp32 or wider."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        scores = product(self.query.to(wide), self.key.to(wide).transpose(1, 2), self.query.dtype, self.scale)
        if self.causal is not None:
            hidden = torch.ones(self.causal, self.causal, dtype=torch.bool).triu_(1)
            scores.view(-1, self.causal, self.causal).masked_fill_(hidden, float("-inf"))
        return scores

    def _laid(self, states: Tensor) -> Tensor:
        """As the kernel takes it, shape (rows, heads a key head, tokens, width): keys repeat without a copy."""
        rows, queries, _ = self.query.shape
        keys = self.key.shape[1]
        heads = queries // keys if self.causal is not None else 1
        if states.shape[1] == queries:
            return states.view(rows, heads, queries // heads, states.shape[-1])
        return states[:, None].expand(rows, heads, keys, states.shape[-1])


def _own_block(q: Tensor, k: Tensor, v: Tensor, group: Rows, scale: float) -> _Block:
    """Segments that each see themselves."""
    query, key, value = (_rows(states, group, k.shape[1]) for states in (q, k, v))
    return _Block(query, key, value, scale, causal=group.longest)


def _cross_block(q: Tensor, k: Tensor, v: Tensor, scale: float) -> _Block:
    """A run of tokens that all see one prefix."""
    query, key, value = (_row(states, k.shape[1]) for states in (q, k, v))
    return _Block(query, key, value, scale)


def _rows(states: Tensor, group: Rows, heads: int, *, padding: int | None = None) -> Tensor:
    """From (tokens, any heads, width) to (rows * key heads, heads a key head * longest, width)."""
    laid = states.index_select(0, group.tokens)
    if padding is not None and group.real is not None:
        laid.masked_fill_(~group.real, padding)
    width = states.shape[-1]
    parted = laid.view(group.rows, group.longest, heads, -1, width).permute(0, 2, 3, 1, 4)
    return parted.reshape(group.rows * heads, -1, width)


def _from_rows(states: Tensor, group: Rows, heads: int) -> Tensor:
    """The inverse of `_rows`, padding included: shape (rows * longest, heads, width)."""
    width = states.shape[-1]
    parted = states.view(group.rows, heads, -1, group.longest, width).permute(0, 3, 1, 2, 4)
    return parted.reshape(group.rows * group.longest, -1, width)


def _row(states: Tensor, heads: int) -> Tensor:
    """From (tokens, any heads, width) to (key heads, heads a key head * tokens, width)."""
    tokens, _, width = states.shape
    return states.reshape(tokens, heads, -1, width).permute(1, 2, 0, 3).reshape(heads, -1, width)


def _from_row(states: Tensor, heads: int, run: slice) -> Tensor:
    """The inverse of `_row`, for this run of tokens."""
    tokens, width = run.stop - run.start, states.shape[-1]
    return states.view(heads, -1, tokens, width).permute(2, 0, 1, 3).reshape(tokens, -1, width)


def _join(output: Tensor, total: Tensor, part: Tensor, part_total: Tensor) -> None:
    """Adds a part's outputs to `output`, each weighed by its share of the exponentials; `total` becomes their sum."""
    joint = torch.logaddexp(total, part_total)
    output.mul_((total - joint).exp_()).add_(part * (part_total - joint).exp_())
    total.copy_(joint)
