"""The collator: examples as tensors on a device, in one packed row without padding or in padded rows.

The training step sees these batches only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from templatekit.packing import pack_examples
from templatekit.types import PackedBatch, Segment, TokenizedExample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """The inputs of one forward pass and the targets that its loss is computed on."""

    input_ids: Tensor
    """Shape (rows, tokens), int64."""
    position_ids: Tensor | None
    """Shape (rows, tokens), int64; None where each row is one example: a model then counts from 0 itself."""
    segments: tuple[Segment, ...] | None
    """How the one packed row is divided between examples; None where each row is one example."""
    target_positions: Tensor
    """Shape (targets,), int64: indices into the concatenated rows, in ascending order, with repeats."""
    targets: Tensor
    """Shape (targets,), int64: the token ids to predict at these positions."""
    weights: Tensor
    """Shape (targets,), float32, all above 0."""
    total_weight: float
    """The divisor of the mean loss: the sum of the weights, or the count of pairs. It is a Python number, so that
    reading it does not wait for the device.
    """
    tokens: int
    """Input tokens of the examples; a shared prefix counts for each example that has it."""
    padded_tokens: int
    """Input tokens that the model would compute for these examples in padded rows."""
    target_tokens: int
    """Targets of the examples. Equal targets at one position are one entry in `targets`, with the summed weight."""

    @property
    def computed_tokens(self) -> int:
        """Input tokens that the model computes, padding included."""
        return self.input_ids.numel()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairBatch(Batch):
    """A batch of pairs: chosen and rejected answers, and which target belongs to which answer.

    An equal target of several answers at one position is one entry in `targets`, and one entry for each answer below.
    """

    target_indices: Tensor
    """Shape (targets of all answers,), int64: indices into `targets`."""
    answer_indices: Tensor
    """Shape (targets of all answers,), int64: the target's answer. Pair i has the answers 2 * i (chosen), 2 * i + 1."""
    answer_weights: Tensor
    """Shape (targets of all answers,), float32: the target's weight in the log-probability of its answer."""
    reference: Tensor
    """Shape (pairs, 2), float64: log-probabilities of chosen and rejected answer under the starting weights."""


def collate_packed(packed: PackedBatch, device: torch.device) -> Batch:
    """The batch of a pack: one row."""
    positions, targets, weights, _ = _merge_equal_targets(packed)
    examples = sum(len(segment.documents) for segment in packed.segments)
    return Batch(
        input_ids=torch.from_numpy(packed.input_ids)[None].to(device),
        position_ids=torch.from_numpy(packed.position_ids)[None].to(device),
        segments=packed.segments,
        target_positions=torch.from_numpy(positions).to(device),
        targets=torch.from_numpy(targets).to(device),
        weights=torch.from_numpy(weights).to(device),
        total_weight=float(packed.weights.sum(dtype="float64")),
        tokens=packed.tokens,
        padded_tokens=examples * (int(packed.position_ids.max(initial=-1)) + 1),
        target_tokens=len(packed.targets),
    )


def _merge_equal_targets(
    packed: PackedBatch,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Positions, targets and weights, with equal targets at one position merged: their logits are computed once.

    Also returns the index of each target of the pack among the merged targets.
    """
    if np.all(np.diff(packed.target_positions) > 0):
        return packed.target_positions, packed.targets, packed.weights, np.arange(len(packed.targets))
    pairs = np.stack([packed.target_positions, packed.targets])
    (positions, targets), index = np.unique(pairs, axis=1, return_inverse=True)
    weights = np.bincount(index, weights=packed.weights, minlength=len(positions))
    return positions, targets, weights.astype(np.float32), index


def collate_pairs(
    examples: Sequence[TokenizedExample],
    reference: Sequence[tuple[float, float]],
    device: torch.device,
    *,
    packing: bool,
    share: bool,
) -> PairBatch:
    """The batch of these answers, chosen and rejected in turn.

    `reference` holds the log-probabilities of chosen and rejected answer for each pair.
    """
    packed = pack_examples(examples, range(len(examples)), share=packing and share)
    batch = collate_packed(packed, device) if packing else collate_padded(packed, device)
    own = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    return PairBatch(
        **own | {"total_weight": float(len(reference))},
        target_indices=torch.from_numpy(_merge_equal_targets(packed)[-1]).to(device),
        answer_indices=torch.from_numpy(packed.target_documents).to(device),
        answer_weights=torch.from_numpy(packed.weights).to(device),
        reference=torch.tensor(reference, dtype=torch.float64).reshape(-1, 2).to(device),
    )


def collate_padded(packed: PackedBatch, device: torch.device, *, pad_id: int = 0) -> Batch:
    """The batch of a pack without shared prefixes: one row an example, padded on the right to the longest.

    In a causal model no token sees the padding that follows it. So there is no attention mask, and `pad_id` may be any
    id: padding has no target.
    """
    lengths = [segment.end - segment.start for segment in packed.segments]
    rows = np.repeat(np.arange(len(lengths)), lengths)  # the row of each token
    input_ids = np.full((len(lengths), max(lengths, default=0)), pad_id, dtype=np.int64)
    input_ids[rows, packed.position_ids] = packed.input_ids
    new_positions = rows * input_ids.shape[1] + packed.position_ids
    return replace(
        collate_packed(packed, device),
        input_ids=torch.from_numpy(input_ids).to(device),
        position_ids=None,
        segments=None,
        target_positions=torch.from_numpy(new_positions[packed.target_positions]).to(device),
    )


def empty_batch(batch: Batch) -> Batch:
    """A batch of one token without targets, for a process that has to take part in the others' forward pass.

    Its loss is 0, and so are all its gradients.
    """
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    empty: dict[str, Any] = {name: value[:0] for name, value in values.items() if isinstance(value, Tensor)}
    empty |= {"input_ids": batch.input_ids[:1, :1], "total_weight": 0.0}
    empty |= {"tokens": 0, "padded_tokens": 0, "target_tokens": 0}
    if batch.position_ids is not None:
        empty |= {"position_ids": batch.position_ids[:1, :1], "segments": (Segment(documents=(), start=0, end=1),)}
    return replace(batch, **empty)
