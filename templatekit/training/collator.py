"""Examples as tensors on a device: one row without padding, or a padded rectangle. Training sees nothing else."""

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
    """What the loss is a mean over: the sum of the weights, known without asking the device; of pairs their number."""
    tokens: int
    """Inputs of the examples, those that several share counted for each."""
    padded_tokens: int
    """Inputs that the model would compute for these examples in a padded rectangle."""
    target_tokens: int
    """Targets of the examples; equal ones of one position stand once in `targets`, with the sum of their weights."""

    @property
    def computed_tokens(self) -> int:
        """Inputs that the model computes, padding among them."""
        return self.input_ids.numel()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairBatch(Batch):
    """Pairs of answers: which targets are whose. `targets` holds what several answers predict at one place once."""

    places: Tensor
    """Shape (targets of all answers,), int64: indices into `targets`."""
    answers: Tensor
    """Shape (targets of all answers,), int64: whose it is; of pair i the chosen answer is 2 * i, else 2 * i + 1."""
    answer_weights: Tensor
    """Shape (targets of all answers,), float32: how much it counts in the log-probability of its answer."""
    reference: Tensor
    """Shape (pairs, 2), float64: log-probabilities of chosen and rejected under the starting weights."""


def collate_packed(packed: PackedBatch, device: torch.device) -> Batch:
    """A pack as one row."""
    positions, targets, weights, _ = _merged(packed)
    return Batch(
        input_ids=torch.from_numpy(packed.input_ids)[None].to(device),
        position_ids=torch.from_numpy(packed.position_ids)[None].to(device),
        segments=packed.segments,
        target_positions=torch.from_numpy(positions).to(device),
        targets=torch.from_numpy(targets).to(device),
        weights=torch.from_numpy(weights).to(device),
        weight=float(packed.weights.sum(dtype="float64")),
        tokens=packed.tokens,
        padded_tokens=_examples(packed) * (int(packed.position_ids.max(initial=-1)) + 1),
        target_tokens=len(packed.targets),
    )


def _examples(packed: PackedBatch) -> int:
    return sum(len(segment.documents) for segment in packed.segments)


def _merged(
    packed: PackedBatch,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Positions, targets and weights, where equal targets of one position are one, so that its logits are too.

    With the place of each of the pack's targets among them.
    """
    if np.all(np.diff(packed.target_positions) > 0):
        return packed.target_positions, packed.targets, packed.weights, np.arange(len(packed.targets))
    pairs = np.stack([packed.target_positions, packed.targets])
    (positions, targets), place = np.unique(pairs, axis=1, return_inverse=True)
    weights = np.bincount(place, weights=packed.weights, minlength=len(positions))
    return positions, targets, weights.astype(np.float32), place


def collate_pairs(
    examples: Sequence[TokenizedExample],
    documents: Sequence[int],
    reference: Sequence[tuple[float, float]],
    device: torch.device,
    *,
    packing: bool,
    share: bool,
) -> PairBatch:
    """The answers `examples[d]` for each d of `documents`: chosen and rejected in turn, with their references."""
    packed = pack_examples(examples, documents, share=packing and share)
    batch = collate_packed(packed, device) if packing else collate_padded(examples, documents, device)
    places = _merged(packed)[-1] if packing else np.arange(len(packed.targets))
    numbers = {document: number for number, document in enumerate(documents)}
    answers = np.fromiter((numbers[d] for d in packed.target_documents.tolist()), np.int64, len(packed.targets))
    own = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    return PairBatch(
        **own | {"weight": float(len(documents) // 2)},
        places=torch.from_numpy(places).to(device),
        answers=torch.from_numpy(answers).to(device),
        answer_weights=torch.from_numpy(packed.weights).to(device),
        reference=torch.tensor(reference, dtype=torch.float64).reshape(-1, 2).to(device),
    )


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
        padded_tokens=input_ids.numel(),
        target_tokens=len(packed.targets),
    )


def idle(batch: Batch) -> Batch:
    """A batch of one token that asks for nothing: for a process that has to keep step with others.

    Its loss is 0, and so are all its gradients.
    """
    none = batch.targets[:0]
    empty: dict[str, Any] = {
        "input_ids": batch.input_ids[:1, :1],
        "position_ids": None if batch.position_ids is None else batch.position_ids[:1, :1],
        "segments": None if batch.segments is None else (Segment(documents=(), start=0, end=1),),
        "target_positions": none,
        "targets": none,
        "weights": batch.weights[:0],
        "weight": 0.0,
        "tokens": 0,
        "padded_tokens": 0,
        "target_tokens": 0,
    }
    if isinstance(batch, PairBatch):
        empty |= {
            "places": none,
            "answers": none,
            "answer_weights": batch.weights[:0],
            "reference": batch.reference[:0],
        }
    return replace(batch, **empty)
