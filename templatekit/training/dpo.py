"""Direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).

A pair's loss is -log sigmoid(reward(chosen) - reward(rejected)), where an answer's reward is beta times how much its
log-probability behind the prompt has risen above that under the starting weights. The answers of a pair lie in one pack
and share their prompt. The starting weights are asked once, before training, and what they say is kept in the run's
folder: no second model is in memory, and a resumed run has the same reference to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from templatekit.config.options import FinetuneOptions
from templatekit.errors import RunError
from templatekit.training.collator import Batch, PairBatch, collate_pairs, idle
from templatekit.training.step import Computation
from templatekit.types import TokenizedExample, TokenizedPair

REFERENCE = "reference.safetensors"
HELD_OUT_REFERENCE = "reference-held-out.safetensors"
"""The starting weights' log-probabilities of training pairs and of held-out ones, in the run's folder."""
_LOGPS = "logps"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A pair with what the starting weights say of it."""

    pair: TokenizedPair
    reference: tuple[float, float]
    """Log-probabilities of the chosen and the rejected answer, in nats."""

    @property
    def row(self) -> int:
        """The record's number in its source, counted from 0."""
        return self.pair.row


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """The objective of direct preference optimization: an `Objective` over `JudgedPair`s."""

    computation: Computation
    beta: float
    label_smoothing: float
    """The share of labels taken to be wrong: conservative DPO."""
    mean: bool
    """Whether an answer's log-probability is the mean of its tokens', by weight, and not their sum."""

    @classmethod
    def of(cls, computation: Computation, options: FinetuneOptions) -> Preferences:
        """With the options' numbers."""
        return cls(
            computation=computation,
            beta=options.dpo_beta,
            label_smoothing=options.dpo_label_smoothing,
            mean=options.dpo_logps == "mean",
        )

    def micro_batches(self, items: Sequence[JudgedPair], numbers: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """Whole pairs in packs, as `Objective` says."""
        computation = self.computation
        answers = [
            (items[number].pair.chosen.input_ids[:-1], items[number].pair.rejected.input_ids[:-1]) for number in numbers
        ]
        for part, is_idle in computation.parts(answers):
            own = [items[numbers[place]] for place in part]
            examples: list[TokenizedExample] = [a for item in own for a in (item.pair.chosen, item.pair.rejected)]
            batch = collate_pairs(
                examples,
                range(len(examples)),
                [item.reference for item in own],
                computation.model.device,
                packing=computation.packing,
                share=computation.share,
            )
            yield ([], idle(batch)) if is_idle else ([numbers[place] for place in part], batch)

    @contextmanager
    def logps(self, batch: PairBatch) -> Iterator[Tensor]:
        """Log-probabilities of the answers, shape (pairs, 2): chosen, rejected. The backward pass belongs inside."""
        with self.computation.target_losses(batch) as losses:
            each = -losses.index_select(0, batch.places) * batch.answer_weights
            empty = each.new_zeros(2 * len(batch.reference))
            sums = empty.index_add(0, batch.answers, each)
            if self.mean:
                counts = empty.index_add(0, batch.answers, batch.answer_weights.to(each.dtype))
                sums = sums / counts.clamp_min(torch.finfo(counts.dtype).tiny)
            yield sums.view(-1, 2)

    @contextmanager
    def measured(self, batch: Batch) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """Sums over pairs: of the loss, of the rewards, of their margin, of how often the chosen one's is higher."""
        assert isinstance(batch, PairBatch)
        with self.logps(batch) as logps:
            rewards = self.beta * (logps - batch.reference.to(logps.dtype))
            margins = rewards[:, 0] - rewards[:, 1]
            losses = -logsigmoid(margins)
            if self.label_smoothing:
                losses = torch.lerp(losses, -logsigmoid(-margins), self.label_smoothing)
            chosen, rejected = rewards.detach().sum(dim=0)
            yield (
                losses.sum(),
                {
                    "reward_chosen": chosen,
                    "reward_rejected": rejected,
                    "reward_margin": margins.detach().sum(),
                    "reward_accuracy": (margins.detach() > 0).sum(),
                },
            )


def judge(
    objective: Preferences,
    pairs: Sequence[TokenizedPair],
    *,
    path: Path,
    identity: Mapping[str, Any],
    warn: Callable[[str], None],
    steps: Iterable[Sequence[int]] = (),
) -> list[JudgedPair]:
    """The pairs with the log-probabilities that the model gives them now, or gave them when the run began.

    `steps` are the pairs of each of the run's first steps, as numbers; no pair twice. Those of a step are judged in the
    packs in which they will be trained: bf16 rounds the same then, and a model that has not moved has no reward.

    The log-probabilities are kept at `path`, with a fingerprint of the pairs and of what a run must agree with. A file
    that is damaged or of other pairs is said and made anew. Raises `RunError` where it cannot be written.
    """
    fingerprint = _fingerprint(pairs, identity)
    known: Tensor | None = None
    if path.is_file():
        known, wrong = _read(path, fingerprint, len(pairs))
        if wrong:
            warn(f"{str(path)!r} {wrong}: the reference is computed anew, from the starting weights")
    world = objective.computation.world
    if world.any(known is None):
        known = _reference(objective, pairs, steps)
        found = known
        world.first(lambda: _write(path, found, fingerprint))
    assert known is not None
    return [
        JudgedPair(pair=pair, reference=(chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, known.tolist(), strict=True)
    ]


def _reference(objective: Preferences, pairs: Sequence[TokenizedPair], steps: Iterable[Sequence[int]]) -> Tensor:
    """Shape (pairs, 2), float64, on the CPU."""
    computation = objective.computation
    computation.model.train(False)
    unjudged = [JudgedPair(pair=pair, reference=(0.0, 0.0)) for pair in pairs]
    found = torch.zeros(len(pairs), 2, dtype=torch.float64)
    with torch.no_grad():
        for numbers in _together(objective, len(pairs), steps):
            for part, batch in objective.micro_batches(unjudged, numbers):
                assert isinstance(batch, PairBatch)
                with objective.logps(batch) as logps:
                    found[part] = logps.double().cpu()
    sums = computation.world.sum(found.flatten().tolist())
    found = torch.tensor(sums, dtype=torch.float64).view(-1, 2)
    wrong = [pairs[place].row for place in (~found.isfinite()).any(dim=1).nonzero().flatten().tolist()]
    if wrong:
        raise RunError(f"the starting weights give rows {wrong[:16]} no finite log-probability; look at these rows")
    return found


def _together(objective: Preferences, count: int, steps: Iterable[Sequence[int]]) -> list[Sequence[int]]:
    """The numbers of all pairs: step by step, then those of no step, as an evaluation takes them."""
    found = list(steps)
    known = {number for step in found for number in step}
    rest = [number for number in range(count) if number not in known]
    at_once = objective.computation.evaluated_at_once
    return found + [rest[start : start + at_once] for start in range(0, len(rest), at_once)]


def _fingerprint(pairs: Sequence[TokenizedPair], identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode())
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            digest.update(repr((answer.input_ids, answer.loss_weights)).encode())
    return digest.hexdigest()


def _read(path: Path, fingerprint: str, count: int) -> tuple[Tensor | None, str]:
    """The file's numbers, or what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            said, tensor = file.metadata() or {}, file.get_tensor(_LOGPS)
    except (OSError, SafetensorError) as error:
        return None, f"cannot be read ({error})"
    if tensor.shape != (count, 2) or said.get("sha256") != _sha256(tensor):
        return None, "is damaged"
    if said.get("fingerprint") != fingerprint:
        return None, "is of other pairs"
    return tensor, ""


def _write(path: Path, tensor: Tensor, fingerprint: str) -> None:
    staging = path.with_name(f".{path.name}")
    try:
        save_file({_LOGPS: tensor}, staging, metadata={"fingerprint": fingerprint, "sha256": _sha256(tensor)})
        with staging.open("rb") as handle:
            os.fsync(handle.fileno())
        staging.replace(path)
    except (OSError, SafetensorError) as error:
        staging.unlink(missing_ok=True)
        raise RunError(f"{str(path)!r} cannot be written: {error}") from error


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
