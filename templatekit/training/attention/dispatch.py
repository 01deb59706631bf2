"""Attention in which no example of a pack sees another, without a mask over the pack.

transformers lets a model's attention be replaced by name (`AttentionInterface`). Ours computes each segment of a pack
by itself, with the shared prefixes that it goes on from, so the cost follows the documents' lengths, not the pack's. On
the CPU that is `path_attention`, or `tree_attention` where much is shared, on a GPU `block_attention`. Elsewhere,
and where a model asks for more than those know (dropout; on the CPU sliding windows that matter and capped scores),
segments of like length are laid side by side behind their prefixes, padded on the right, and go through one
`scaled_dot_product_attention`. `python -m benchmarks.attention` compares them. transformers builds no mask for a name
that it has no mask function for, which is what we want.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from templatekit.errors import RunError
from templatekit.training.attention.blocks import BlockLayout, block_attention, lay_out_blocks, refusal
from templatekit.training.attention.paths import PathLayout, lay_out_paths, path_attention
from templatekit.training.attention.tree import TreeLayout, lay_out, tree_attention
from templatekit.types import Segment

NAME = "templatekit_segments"
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_UNSUPPORTED_ARGUMENTS = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
"""What some models hand to their attention and ours has no answer to."""


class _Group(NamedTuple):
    """Segments of like length, one a row, each behind the prefixes that it goes on from."""

    rows: int
    queries: Tensor
    """Shape (rows * longest,): the pack's token at each place. Padding repeats the row's last token."""
    keys: Tensor
    """Shape (rows * longest with prefixes,)."""
    distance: Tensor
    """Shape (rows, longest, longest with prefixes): how far a key lies before a query in its document; below 0 where it
    lies after it, or is padding."""
    causal: bool
    """Whether queries and keys are the same tokens, so that no mask is needed."""


class _Pack:
    """How the tokens of a pack see each other, laid out for whoever computes it."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = segments
        self.device = device
        self.length = sum(segment.end - segment.start for segment in segments)
        self.paths = [_path(segments, index) for index in range(len(segments))]
        self.longest = max(map(len, self.paths), default=0)

    @cached_property
    def on_cpu(self) -> PathLayout | TreeLayout:
        """For `path_attention`, or where that does not pay for `tree_attention`."""
        return lay_out_paths(self.segments) or lay_out(self.segments)

    @cached_property
    def blocks(self) -> BlockLayout:
        """For `block_attention`."""
        return lay_out_blocks(self.segments, self.device)

    @cached_property
    def groups(self) -> tuple[tuple[_Group, ...], Tensor]:
        """For everything else; with, shape (tokens,), where each token stands in the groups laid end to end."""
        places = torch.empty(self.length, dtype=torch.int64)
        groups = []
        first = 0
        for members in self._alike():
            own = [self.segments[index].end - self.segments[index].start for index in members]
            paths = [self.paths[index] for index in members]
            longest, widest = max(own), max(map(len, paths))
            keys = torch.stack([_padded(path, widest) for path in paths])
            queries = torch.stack([_padded(path[-n:], longest) for path, n in zip(paths, own, strict=True)])
            lengths = torch.tensor([len(path) for path in paths])[:, None]
            ends = torch.arange(widest).expand(len(members), widest)
            positions = lengths - torch.tensor(own)[:, None] + torch.arange(longest)
            positions = torch.minimum(positions, lengths - 1)
            distance = positions[:, :, None] - ends[:, None, :]
            # Padding on the right lies behind all that counts, whichever query asks.
            distance.masked_fill_((ends >= lengths)[:, None, :], -1)
            for row, (index, n) in enumerate(zip(members, own, strict=True)):
                start = first + row * longest
                places[self.segments[index].start : self.segments[index].end] = torch.arange(start, start + n)
            causal = all(len(path) == n for path, n in zip(paths, own, strict=True))
            queries, keys, distance = (
                tensor.to(self.device) for tensor in (queries.flatten(), keys.flatten(), distance)
            )
            groups.append(_Group(len(members), queries, keys, distance, causal))
            first += queries.numel()
        return tuple(groups), places.to(self.device)

    def fits(self, window: int) -> bool:
        """Whether no token of a document lies outside of a sliding window of this size."""
        return self.longest <= window

    def _alike(self) -> list[list[int]]:
        """Segments in groups whose shortest is at least half as long as their longest, with prefixes and without."""
        groups: list[list[int]] = []

        def size(index: int) -> tuple[int, int]:
            return len(self.paths[index]), self.segments[index].end - self.segments[index].start

        for index in sorted(range(len(self.segments)), key=size, reverse=True):
            largest = [size(member) for member in groups[-1]] if groups else []
            if largest and all(
                2 * here >= max(there) for here, there in zip(size(index), zip(*largest, strict=True), strict=True)
            ):
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups


def _path(segments: Sequence[Segment], index: int) -> Tensor:
    """The tokens of a segment's document up to the segment's end."""
    parent = segments[index].parent
    own = torch.arange(segments[index].start, segments[index].end)
    return own if parent is None else torch.cat([_path(segments, parent), own])


def _padded(tokens: Tensor, length: int) -> Tensor:
    return torch.cat([tokens, tokens[-1:].expand(length - len(tokens))])


_active: _Pack | None = None
"""The pack that is being computed. A plain global: on a GPU the backward pass, and with activation
checkpointing the forward pass within it, runs in a thread of autograd's own, which sees no context variable."""


@contextmanager
def isolate(model: PreTrainedModel, segments: Sequence[Segment]) -> Iterator[None]:
    """While it lasts, `model` takes one row of tokens in which each segment sees only itself and its parents.

    It has to span the backward pass too, which computes the forward pass again under activation checkpointing. Outside
    of it the model has the attention it came with. The caller passes restarting `position_ids` and no `attention_mask`.
    """
    global _active
    own, before = model.config._attn_implementation, _active
    model.set_attn_implementation(NAME)
    _active = _Pack(segments, model.device)
    try:
        yield
    finally:
        _active = before
        model.set_attn_implementation(own)


def leave_uncompiled() -> None:
    """Has compilers pass over the attention of packs, whose kernels are chosen and compiled by themselves."""
    AttentionInterface.register(NAME, cast("Any", torch.compiler.disable(_attend)))


def backend(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """What computes the attention of packs in products of this type, in words."""
    if model.device.type == "cpu":
        return "products over the prefix tree"
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    reason = refusal(model.device, dtype, width)
    if reason is None:
        return "FlexAttention over the prefix tree"
    return f"segments of like length, in PyTorch's, since FlexAttention is not for it ({reason})"


def supports_isolation(model: PreTrainedModel) -> str | None:
    """None where packs of this model are exact, else the reason why they are not.

    The last word has a trial: short examples, packed and sharing what two of them begin with, must give the logits that
    each gives alone with the model's own attention.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    if not type(model)._can_set_attn_implementation():
        return f"{name} does not take its attention from transformers' AttentionInterface"
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - _SUPPORTED_LAYERS)
    if foreign:
        return f"{name} has layers of kind {', '.join(foreign)}; only full and sliding attention can be kept apart"
    ids = torch.arange(1, 11, device=model.device)[None] % config.vocab_size
    # One document alone; two more that share their first three tokens, which are there once.
    places = [[0, 1], [2, 3, 4, 5], [2, 3, 4, 6, 7, 8, 9]]
    segments = [
        Segment(documents=(0,), start=0, end=2),
        Segment(documents=(), start=2, end=5),
        Segment(documents=(1,), start=5, end=6, parent=1),
        Segment(documents=(2,), start=6, end=10, parent=1),
    ]
    positions = torch.tensor([[0, 1, 0, 1, 2, 3, 3, 4, 5, 6]], device=model.device)
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            alone = [model(input_ids=ids[:, document], use_cache=False).logits[0] for document in places]
            with isolate(model, segments):
                packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    except Exception as error:  # a stranger's model: whatever it raises, it cannot be packed
        return f"{name} cannot run on a pack: {type(error).__name__}: {error}"
    finally:
        model.train(training)
    expected = torch.cat(alone)
    packed = torch.cat([packed[document] for document in places])
    tolerance = 1e-4 * float(expected.nan_to_num().abs().max())
    if not torch.allclose(packed, expected, rtol=0, atol=tolerance, equal_nan=True):
        return f"{name} gives a pack other logits than its examples alone: something besides attention crosses examples"
    return None


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The attention function, as transformers calls it.

    `query` has shape (1, heads, tokens, width), `key` and `value` (1, key heads, tokens, width); the result has shape
    (1, tokens, heads, width).
    """
    refused = [name for name in _UNSUPPORTED_ARGUMENTS if more.get(name) is not None]
    if refused:
        raise RunError(f"{type(module).__name__} needs {', '.join(refused)} in its attention; use --no-packing")
    if attention_mask is not None or not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise RunError(f"{type(module).__name__} is not plainly causal; use --no-packing")
    pack = _active
    if pack is None or query.shape[0] != 1 or not query.shape[2] == key.shape[2] == pack.length:
        raise RunError(f"attention {NAME!r} computes packs only, within isolate(); got a query of {tuple(query.shape)}")
    window = getattr(module, "sliding_window", None) if sliding_window is None else sliding_window
    if window is not None and pack.fits(window):
        window = None
    plain, scale = not dropout and query.shape[3] == value.shape[3], _scale(query, scaling)
    if plain and refusal(query.device, _dtype(query), query.shape[3]) is None:
        return block_attention(query, key, value, pack.blocks, scale, window=window, softcap=softcap), None
    if plain and query.device.type == "cpu" and window is None and softcap is None:
        layout = pack.on_cpu
        if isinstance(layout, PathLayout):
            return path_attention(query, key, value, layout, scale), None
        return tree_attention(query, key, value, layout, scale), None
    output = _by_groups(query, key, value, pack, dropout, scaling, window=window, softcap=softcap)
    return output, None


def _by_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: _Pack,
    dropout: float,
    scaling: float | None,
    *,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Whatever a model asks for, on any device."""
    groups, places = pack.groups
    outputs = []
    for group in groups:
        q = _gather(query, group.queries, group.rows)
        k, v = (_gather(states, group.keys, group.rows) for states in (key, value))
        if softcap is not None:
            output = _capped(q, k, v, _visible(group, window), dropout, scaling, softcap)
        else:
            output = _fused(q, k, v, _visible(group, window), dropout, scaling)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, places)[None]


def _dtype(states: Tensor) -> torch.dtype:
    """What products of these states are computed in."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _scale(query: Tensor, scaling: float | None) -> float:
    return float(query.shape[-1]) ** -0.5 if scaling is None else scaling


def _gather(states: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """From (1, heads, tokens, width) to (rows, heads, longest, width)."""
    gathered = states[0].transpose(0, 1).index_select(0, tokens)
    return gathered.view(rows, -1, *gathered.shape[1:]).transpose(1, 2)


def _visible(group: _Group, window: int | None) -> Tensor | None:
    """Shape (rows, 1, queries, keys): true where a query sees a key; None where that is plainly causal."""
    if group.causal and window is None:
        return None
    seen = group.distance >= 0
    return (seen if window is None else seen & (group.distance < window))[:, None]


def _fused(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=visible,
        is_causal=visible is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Gemma 2's attention, whose scores pass through a tanh that no fused kernel on CPU knows."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * _scale(query, scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if visible is None:
        visible = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril_()
    scores = scores.masked_fill(~visible, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype)
    return torch.dropout(weights, dropout, train=dropout > 0) @ value


AttentionInterface.register(NAME, cast("Any", _attend))
