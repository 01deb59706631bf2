"""Attention in which no example of a pack sees another, without a mask.

transformers lets a model's attention be replaced by name (`AttentionInterface`). Ours computes each segment by itself:
segments of like length are laid side by side, padded on the right, and go through one causal
`scaled_dot_product_attention`, so the cost follows the segments' lengths, not the pack's. transformers builds no mask
for a name that it has no mask function for, which is what we want.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from templatekit.errors import RunError
from templatekit.types import Segment

NAME = "templatekit_segments"
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_UNSUPPORTED_ARGUMENTS = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
"""What some models hand to their attention and ours has no answer to."""


class _Group(NamedTuple):
    """Segments of like length, one a row."""

    rows: int
    longest: int
    tokens: Tensor
    """Shape (rows * longest,): the pack's token at each place. Padding repeats the row's last token."""


class _Layout(NamedTuple):
    """How a pack of `length` tokens is laid out in groups."""

    length: int
    groups: tuple[_Group, ...]
    places: Tensor
    """Shape (length,): where each token of the pack stands in the groups laid end to end."""


_active: _Layout | None = None
"""The layout of the pack that is being computed. A plain global: on a GPU the backward pass, and with activation
checkpointing the forward pass within it, runs in a thread of autograd's own, which sees no context variable."""


@contextmanager
def isolate(model: PreTrainedModel, segments: Sequence[Segment]) -> Iterator[None]:
    """While it lasts, `model` takes one row of tokens in which each segment sees only itself.

    It has to span the backward pass too, which computes the forward pass again under activation checkpointing. Outside
    of it the model has the attention it came with. The caller passes restarting `position_ids` and no `attention_mask`.
    """
    global _active
    own, before = model.config._attn_implementation, _active
    model.set_attn_implementation(NAME)
    _active = _lay_out(segments, model.device)
    try:
        yield
    finally:
        _active = before
        model.set_attn_implementation(own)


def supports_isolation(model: PreTrainedModel) -> str | None:
    """None where packs of this model are exact, else the reason why they are not.

    The last word has a trial: two short examples, packed, must give the logits that each gives alone with the model's
    own attention.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    if not type(model)._can_set_attn_implementation():
        return f"{name} does not take its attention from transformers' AttentionInterface"
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - _SUPPORTED_LAYERS)
    if foreign:
        return f"{name} has layers of kind {', '.join(foreign)}; only full and sliding attention can be kept apart"
    lengths = (3, 5)
    ids = torch.arange(1, 1 + sum(lengths), device=model.device)[None] % config.vocab_size
    positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    segments = [Segment(document=0, start=0, end=3), Segment(document=1, start=3, end=8)]
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            alone = [model(input_ids=part, use_cache=False).logits[0] for part in ids.split(lengths, dim=1)]
            with isolate(model, segments):
                packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    except Exception as error:  # a stranger's model: whatever it raises, it cannot be packed
        return f"{name} cannot run on a pack: {type(error).__name__}: {error}"
    finally:
        model.train(training)
    expected = torch.cat(alone)
    tolerance = 1e-4 * float(expected.nan_to_num().abs().max())
    if not torch.allclose(packed, expected, rtol=0, atol=tolerance, equal_nan=True):
        return f"{name} gives a pack other logits than its examples alone: something besides attention crosses examples"
    return None


def _lay_out(segments: Sequence[Segment], device: torch.device) -> _Layout:
    if any(segment.parent is not None for segment in segments):
        raise RunError("a pack with shared prefixes came to the attention of plain packs")
    length = sum(segment.end - segment.start for segment in segments)
    places = torch.empty(length, dtype=torch.int64)
    groups = []
    first = 0
    for members in _alike(segments):
        longest = members[0].end - members[0].start
        tokens = torch.empty(len(members), longest, dtype=torch.int64)
        for row, segment in enumerate(members):
            own = segment.end - segment.start
            tokens[row] = torch.arange(segment.start, segment.start + longest).clamp_(max=segment.end - 1)
            places[segment.start : segment.end] = torch.arange(own) + first + row * longest
        groups.append(_Group(len(members), longest, tokens.flatten().to(device)))
        first += tokens.numel()
    return _Layout(length, tuple(groups), places.to(device))


def _alike(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments by falling length, in groups whose shortest is at least half as long as their longest."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: segment.start - segment.end):
        if groups and 2 * (segment.end - segment.start) >= groups[-1][0].end - groups[-1][0].start:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


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
    if _active is None or query.shape[0] != 1 or query.shape[2] != key.shape[2] or query.shape[2] != _active.length:
        raise RunError(f"attention {NAME!r} computes packs only, within isolate(); got a query of {tuple(query.shape)}")
    window = getattr(module, "sliding_window", None) if sliding_window is None else sliding_window
    outputs = []
    for group in _active.groups:
        q, k, v = _gather(query, group), _gather(key, group), _gather(value, group)
        if softcap is None:
            output = _fused(q, k, v, dropout, scaling, window)
        else:
            output = _capped(q, k, v, dropout, scaling, window, softcap)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    laid = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return laid.index_select(0, _active.places)[None], None


def _gather(states: Tensor, group: _Group) -> Tensor:
    """From (1, heads, tokens, width) to (rows, heads, longest, width)."""
    tokens = states[0].transpose(0, 1).index_select(0, group.tokens)
    return tokens.view(group.rows, group.longest, *tokens.shape[1:]).transpose(1, 2)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    sliding = window is not None and query.shape[2] > window
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_visible(query, window) if sliding else None,
        is_causal=not sliding,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None, softcap: float
) -> Tensor:
    """Gemma 2's attention, whose scores pass through a tanh that no fused kernel on CPU knows."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_visible(query, window), float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.dropout(weights, dropout, train=dropout > 0) @ value


def _visible(query: Tensor, window: int | None) -> Tensor:
    """Shape (longest, longest): true where a key is not after the query, nor `window` or more before it."""
    length = query.shape[2]
    causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril_()
    return causal if window is None else causal.triu_(1 - window)


AttentionInterface.register(NAME, cast("Any", _attend))
