"""Examples as tensors on a device: one row without padding, or a padded rectangle. Training sees nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from templatekit.packing import pack_examples
from templatekit.types import PackedBatch, Segment, TokenizedExample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one forward pass computes, and what is asked of it."""

    input_ids: Tensor
    """Shape (rows, tokens), int64."""
    position_ids: Tensor | None
    """Shape (rows, tokens), int64; None where each row is one example, which any model counts by itself."""
    segments: tuple[Segment, ...] | None
    """How the only row is divided between examples; None where each row is one example."""
    target_positions: Tensor
    """Shape (targets,), int64, never falling: indices into the rows laid end to end."""
    targets: Tensor
    """Shape (targets,), int64: the ids to predict there."""
    weights: Tensor
    """Shape (targets,), float32, all above 0."""
    weight: float
    """Their sum, known without asking the device."""
    tokens: int
    """Inputs of the examples, those that several share counted for each."""
    target_tokens: int
    """Targets of the examples; equal ones of one position stand once in `targets`, with the sum of their weights."""

    @property
    def computed_tokens(self) -> int:
        """Inputs that the model computes, padding among them."""
        return self.input_ids.numel()


def collate_packed(packed: PackedBatch, device: torch.device) -> Batch:
    """A pack as one row."""
    positions, targets, weights = _merged(packed)
    return Batch(
        input_ids=torch.from_numpy(packed.input_ids)[None].to(device),
        position_ids=torch.from_numpy(packed.position_ids)[None].to(device),
        segments=packed.segments,
        target_positions=torch.from_numpy(positions).to(device),
        targets=torch.from_numpy(targets).to(device),
        weights=torch.from_numpy(weights).to(device),
        weight=float(packed.weights.sum(dtype="float64")),
        tokens=packed.tokens,
        target_tokens=len(packed.targets),
    )


def _merged(packed: PackedBatch) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Positions, targets and weights, where equal targets of one position are one, so that its logits are too."""
    if np.all(np.diff(packed.target_positions) > 0):
        return packed.target_positions, packed.targets, packed.weights
    pairs = np.stack([packed.target_positions, packed.targets])
    (positions, targets), place = np.unique(pairs, axis=1, return_inverse=True)
    weights = np.bincount(place, weights=packed.weights, minlength=len(positions))
    return positions, targets, weights.astype(np.float32)


def collate_padded(
    examples: Sequence[TokenizedExample], documents: Sequence[int], device: torch.device, *, pad_id: int = 0
) -> Batch:
    """One row an example, padded on the right to the longest.

    In a causal model no token sees the padding that follows it, so there is no attention mask, and `pad_id` may be any
    id: no target stands on it. The shift and the choice of targets are those of a pack, laid out anew.
    """
    packed = pack_examples(examples, documents)
    width = max((segment.end - segment.start for segment in packed.segments), default=0)
    input_ids = torch.full((len(packed.segments), width), pad_id, dtype=torch.int64)
    moved = torch.empty(len(packed.input_ids), dtype=torch.int64)
    for row, segment in enumerate(packed.segments):
        length = segment.end - segment.start
        input_ids[row, :length] = torch.from_numpy(packed.input_ids[segment.start : segment.end])
        moved[segment.start : segment.end] = torch.arange(row * width, row * width + length)
    return Batch(
        input_ids=input_ids.to(device),
        position_ids=None,
        segments=None,
        target_positions=moved[torch.from_numpy(packed.target_positions)].to(device),
        targets=torch.from_numpy(packed.targets).to(device),
        weights=torch.from_numpy(packed.weights).to(device),
        weight=float(packed.weights.sum(dtype="float64")),
        tokens=packed.tokens,
        target_tokens=len(packed.targets),
    )
