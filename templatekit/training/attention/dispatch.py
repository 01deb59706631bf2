"""Attention in which no example of a pack sees another, without a mask over the pack.

transformers lets a model's attention be replaced by name (`AttentionInterface`). This one computes each segment of a
pack separately, together with the shared prefixes before it. The cost therefore grows with the lengths of the
documents, not with the length of the pack.

- On the CPU, `path_attention` computes it, or `tree_attention` where long prefixes are shared.
- On a GPU, `packed_flex_attention` computes it.
- Elsewhere, and for features that these functions lack (dropout; on the CPU also softcapped scores and sliding windows
  shorter than a document), segments of similar length are padded on the right to one length, each after its prefixes,
  and go through one `scaled_dot_product_attention`.

`python -m benchmarks.attention` compares these ways. transformers builds no mask for an attention name without a mask
function. This is intended, because no mask over the whole pack is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from templatekit.errors import RunError
from templatekit.packing import segment_paths
from templatekit.training.attention.flex import (
    FlexLayout,
    create_flex_layout,
    flex_unsupported_reason,
    packed_flex_attention,
)
from templatekit.training.attention.paths import PathLayout, RunGroup, create_path_layout, pad_groups, path_attention
from templatekit.training.attention.tree import TreeLayout, create_tree_layout, group_by_length, tree_attention
from templatekit.training.kernels.autograd import autocast_dtype
from templatekit.types import Segment

ATTENTION_NAME = "templatekit_segments"
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_LEAK_TOLERANCE = 1e-5
"""How far a document's logits may move when the other documents of its pack change, as a share of the largest logit.

The products keep their shapes, so most models give equal bits. A mixture of experts groups its tokens by expert, and
rounds products of other shapes otherwise."""
_ALONE_TOLERANCE = 1e-3
"""How far a document's logits in a pack may be from those it has alone, as a share of the largest logit.

Both differ from the exact ones by fp32's rounding. That came to 5e-4 in a trained SmolLM2-135M, measured in fp64."""
_UNSUPPORTED_ARGUMENTS = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Arguments that some models pass to their attention and that this attention does not support."""


class _Pack:
    """Which tokens of a pack see each other, and the layout of the pack for each kernel."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = segments
        self.device = device
        self.length = sum(segment.end - segment.start for segment in segments)

    @cached_property
    def paths(self) -> list[Tensor]:
        """The path of each segment, as `segment_paths` says: long, and not needed by most kernels."""
        return [*map(torch.from_numpy, segment_paths(self.segments))]

    @cached_property
    def cpu_layout(self) -> PathLayout | TreeLayout:
        """The layout for `path_attention`, or for `tree_attention` where paths would copy too many keys."""
        return create_path_layout(self.segments) or create_tree_layout(self.segments)

    @cached_property
    def flex_layout(self) -> FlexLayout:
        """The layout for `packed_flex_attention`."""
        return create_flex_layout(self.segments, self.device)

    @cached_property
    def padded_layout(self) -> tuple[list[RunGroup], Tensor]:
        """The groups for `_padded_attention`, and each token's index in the concatenated groups, shape (tokens,)."""
        lengths = [segment.end - segment.start for segment in self.segments]
        sizes = list(zip(map(len, self.paths), lengths, strict=True))
        groups, output_index = pad_groups(group_by_length(sizes, 1 / 2), self.paths, lengths)
        on_device = [
            group._replace(
                queries=group.queries.to(self.device),
                keys=group.keys.to(self.device),
                last_visible=group.last_visible.to(self.device),
            )
            for group in groups
        ]
        return on_device, output_index.to(self.device)

    def fits_window(self, window: int) -> bool:
        """Whether a sliding window of this size covers every document."""
        return max(map(len, self.paths), default=0) <= window


_active: _Pack | None = None
"""The pack that is being computed. It is a plain global because on a GPU autograd runs the backward pass in a thread of
its own, which sees no context variable. With activation checkpointing, that pass runs the forward pass again."""


@contextmanager
def isolate(model: PreTrainedModel, segments: Sequence[Segment]) -> Iterator[None]:
    """Have `model` take one row of tokens in which each segment sees only itself and its parents.

    Run the backward pass inside too: with activation checkpointing it computes the forward pass again. Outside, the
    model has its own attention. The caller passes `position_ids` that start again for each document, and no
    `attention_mask`.
    """
    global _active
    own, outer = model.config._attn_implementation, _active
    model.set_attn_implementation(ATTENTION_NAME)
    _active = _Pack(segments, model.device)
    try:
        yield
    finally:
        _active = outer
        model.set_attn_implementation(own)


def disable_attention_compilation() -> None:
    """Have `torch.compile` skip the attention of packs: it chooses kernels, and compiles its own."""
    AttentionInterface.register(ATTENTION_NAME, cast("Any", torch.compiler.disable(_attend)))


def describe_attention(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """Say in words how the attention of packs is computed, for matrix products of this type."""
    if model.device.type == "cpu":
        return "products over the prefix tree"
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    reason = flex_unsupported_reason(model.device, dtype, head_dim)
    if reason is None:
        return "FlexAttention over the prefix tree"
    return f"segments of like length, in PyTorch's, since FlexAttention is not for it ({reason})"


def packing_unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return why a pack would give other results than its examples; None where packs of this model are exact.

    In the end a trial decides. Short examples, two of which share a prefix, go through the model as a pack. Their
    logits must stay when the other examples change, and be those of each example alone with the model's own attention.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    if not type(model)._can_set_attn_implementation():
        return f"{name} does not take its attention from transformers' AttentionInterface"
    unsupported = sorted(set(getattr(config, "layer_types", None) or ()) - _SUPPORTED_LAYERS)
    if unsupported:
        return f"{name} has layers of kind {', '.join(unsupported)}; only full and sliding attention can be kept apart"
    ids = torch.arange(1, 11, device=model.device)[None] % config.vocab_size
    other_ids = (ids + 10) % config.vocab_size
    # One separate document, and two whose first three tokens are shared and computed once.
    documents = [[0, 1], [2, 3, 4, 5], [2, 3, 4, 6, 7, 8, 9]]
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
            alone = [model(input_ids=ids[:, document], use_cache=False).logits[0] for document in documents]
            with isolate(model, segments):
                packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
                beside_others = []
                for document in documents:
                    changed = other_ids.clone()
                    changed[:, document] = ids[:, document]
                    logits = model(input_ids=changed, position_ids=positions, use_cache=False).logits[0]
                    beside_others.append(logits[document])
    except Exception as error:  # a model can raise anything; whatever it is, the model cannot be packed
        return f"{name} cannot run on a pack: {type(error).__name__}: {error}"
    finally:
        model.train(training)
    in_pack = torch.cat([packed[document] for document in documents])
    leak = _relative_difference(torch.cat(beside_others), in_pack)
    if not leak <= _LEAK_TOLERANCE:
        return (
            f"{name} lets examples of a pack see each other: with other examples beside it, an example's logits change "
            f"by {leak:.2g} of the largest one"
        )
    difference = _relative_difference(torch.cat(alone), in_pack)
    if not difference <= _ALONE_TOLERANCE:
        return (
            f"{name} gives an example in a pack other logits than alone (they differ by {difference:.2g} of the "
            "largest one)"
        )
    return None


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest finite value that is expected.

    Infinite where only one of them is NaN, and for any difference where there is no such value but 0. A model may give
    tokens that it never predicts the least value of its type, so the upper half of the type's range does not count as a
    scale.
    """
    if not torch.equal(found.isnan(), expected.isnan()):
        return float("inf")
    found, expected = found.nan_to_num(), expected.nan_to_num()
    difference = (found - expected).abs().max()
    magnitude = expected.abs()
    scale = magnitude.where(magnitude < torch.finfo(expected.dtype).max / 2, 0).max()
    return float(difference / scale) if difference else 0.0


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
    """Compute the attention of the active pack. transformers calls this function.

    `query` has shape (1, heads, tokens, head_dim), `key` and `value` have (1, key heads, tokens, head_dim). The result
    has shape (1, tokens, heads, head_dim).
    """
    unsupported = [name for name in _UNSUPPORTED_ARGUMENTS if more.get(name) is not None]
    if unsupported:
        raise RunError(f"{type(module).__name__} needs {', '.join(unsupported)} in its attention; use --no-packing")
    if attention_mask is not None or not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise RunError(f"{type(module).__name__} is not plainly causal; use --no-packing")
    pack = _active
    if pack is None or query.shape[0] != 1 or not query.shape[2] == key.shape[2] == pack.length:
        shape = tuple(query.shape)
        raise RunError(f"attention {ATTENTION_NAME!r} computes packs only, within isolate(); got a query of {shape}")
    window = getattr(module, "sliding_window", None) if sliding_window is None else sliding_window
    if window is not None and pack.fits_window(window):
        window = None
    plain = not dropout and query.shape[3] == value.shape[3]
    scale = float(query.shape[3]) ** -0.5 if scaling is None else scaling
    if plain and flex_unsupported_reason(query.device, autocast_dtype(query) or query.dtype, query.shape[3]) is None:
        return packed_flex_attention(query, key, value, pack.flex_layout, scale, window=window, softcap=softcap), None
    if plain and query.device.type == "cpu" and window is None and softcap is None:
        layout = pack.cpu_layout
        if isinstance(layout, PathLayout):
            return path_attention(query, key, value, layout, scale), None
        return tree_attention(query, key, value, layout, scale), None
    output = _padded_attention(query, key, value, pack, dropout, scale, window=window, softcap=softcap)
    return output, None


def _padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: _Pack,
    dropout: float,
    scale: float,
    *,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute attention with every feature that models use, on any device, over segments padded to one length."""
    groups, output_index = pack.padded_layout
    outputs = []
    for group in groups:
        q = _gather(query, group.queries, group.rows)
        k, v = (_gather(states, group.keys, group.rows) for states in (key, value))
        mask = _attention_mask(group, window)
        if softcap is not None:
            output = _softcapped_attention(q, k, v, mask, dropout, scale, softcap)
        else:
            output = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, output_index)[None]


def _gather(states: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """From (1, heads, tokens, head_dim) to (rows, heads, row length, head_dim)."""
    gathered = states[0].transpose(0, 1).index_select(0, tokens)
    return gathered.view(rows, -1, *gathered.shape[1:]).transpose(1, 2)


def _attention_mask(group: RunGroup, window: int | None) -> Tensor | None:
    """Shape (rows, 1, queries, keys): true where a query sees a key. None stands for the causal mask."""
    if not group.has_prefix and window is None:
        return None
    keys, last_visible = torch.arange(group.key_length, device=group.keys.device), group.last_visible[:, :, None]
    visible = keys <= last_visible
    return (visible if window is None else visible & (keys > last_visible - window))[:, None]


def _softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float, softcap: float
) -> Tensor:
    """Gemma 2's attention, whose scores pass through a tanh. No fused kernel on the CPU computes it."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril_()
    scores = scores.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype)
    return torch.dropout(weights, dropout, train=dropout > 0) @ value


AttentionInterface.register(ATTENTION_NAME, cast("Any", _attend))
