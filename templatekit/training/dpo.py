"""Direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).

The loss of a pair is -log sigmoid(reward(chosen) - reward(rejected)). The reward of an answer is beta times the
increase of its log-probability, given the prompt, compared to its log-probability under the starting weights (the
reference). The answers of a pair lie in one pack and share their prompt. The reference is computed once, before
training, and stored in the run folder: no second model is in memory, and a resumed run has the same reference to the
last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import logsigmoid

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.config.staging import replace_file
from templatekit.errors import RunError
from templatekit.training.collator import Batch, PairBatch, collate_pairs, empty_batch
from templatekit.training.objective import Objective
from templatekit.types import TokenizedPair

REFERENCE = "reference.safetensors"
HELD_OUT_REFERENCE = "reference-held-out.safetensors"
"""Files of the run folder: the reference log-probabilities of the training pairs and of the held-out pairs."""
_LOGPS = "logps"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair:
    """A pair with its log-probabilities under the starting weights."""

    pair: TokenizedPair
    reference: tuple[float, float]
    """Log-probabilities of the chosen and the rejected answer, in nats."""

    @property
    def row(self) -> int:
        """The record's index in its source, counted from 0."""
        return self.pair.row


@dataclass(frozen=True, slots=True)
class DPOObjective(Objective):
    """The objective of direct preference optimization, over `ScoredPair`s."""

    options: FinetuneOptions

    def micro_batches(self, items: Sequence[ScoredPair], indices: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """See `Objective`. A pair is never divided."""
        batcher = self.forward_pass.micro_batcher
        answers = [
            (items[index].pair.chosen.input_ids[:-1], items[index].pair.rejected.input_ids[:-1]) for index in indices
        ]
        for members, is_empty in batcher.cut(answers):
            own = [indices[member] for member in members]
            examples = [answer for i in own for answer in (items[i].pair.chosen, items[i].pair.rejected)]
            reference = [items[i].reference for i in own]
            batch = collate_pairs(examples, reference, batcher.device, packing=batcher.packing, share=batcher.share)
            yield ([], empty_batch(batch)) if is_empty else (own, batch)

    @contextmanager
    def logps(self, batch: PairBatch) -> Iterator[Tensor]:
        """Log-probabilities of the answers, shape (pairs, 2): chosen, rejected. Run the backward pass inside."""
        with self.forward_pass.target_losses(batch) as losses:
            each = -losses.index_select(0, batch.target_indices) * batch.answer_weights
            empty = each.new_zeros(2 * len(batch.reference))
            sums = empty.index_add(0, batch.answer_indices, each)
            if self.options.dpo_logps == "mean":
                weights = empty.index_add(0, batch.answer_indices, batch.answer_weights.to(each.dtype))
                sums = sums / weights.clamp_min(torch.finfo(weights.dtype).tiny)
            yield sums.view(-1, 2)

    @contextmanager
    def loss_and_metrics(self, batch: Batch) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """See `Objective`. Sums over pairs: loss, rewards, margin of the rewards, pairs with a margin above 0."""
        assert isinstance(batch, PairBatch)
        with self.logps(batch) as logps:
            rewards = self.options.dpo_beta * (logps - batch.reference.to(logps.dtype))
            margins = rewards[:, 0] - rewards[:, 1]
            losses = -logsigmoid(margins)
            if smoothing := self.options.dpo_label_smoothing:
                losses = torch.lerp(losses, -logsigmoid(-margins), smoothing)
            chosen, rejected = rewards.detach().sum(dim=0)
            metrics = {
                "reward_chosen": chosen,
                "reward_rejected": rejected,
                "reward_margin": margins.detach().sum(),
                "reward_accuracy": (margins.detach() > 0).sum(),
            }
            yield losses.sum(), metrics


def precompute_reference(
    objective: DPOObjective,
    pairs: Sequence[TokenizedPair],
    *,
    path: Path,
    identity: Mapping[str, Any],
    warn: Callable[[str], None],
    steps: Iterable[Sequence[int]] = (),
) -> list[ScoredPair]:
    """Add to each pair its log-probabilities under the model as it is now, or as it was when the run started.

    `steps` holds the indices of the pairs of each of the run's first steps, no pair twice. The pairs of a step are
    scored in the packs in which they will be trained: bf16 then rounds the same, and an unchanged model has no reward.

    The log-probabilities are stored at `path` with a fingerprint of the pairs and of `identity`. A file that is damaged
    or belongs to other pairs is reported to `warn` and computed again. Raises `RunError` where it cannot be written.
    """
    fingerprint = _fingerprint(pairs, identity)
    logps: Tensor | None = None
    if path.is_file():
        logps, problem = _read(path, fingerprint, len(pairs))
        if problem:
            warn(f"{str(path)!r} {problem}: the reference is computed anew, from the starting weights")
    group = objective.forward_pass.group
    if group.any(logps is None):
        logps = _score(objective, pairs, steps)
        computed = logps
        group.run_on_main(lambda: _write(path, computed, fingerprint))
    assert logps is not None
    return [
        ScoredPair(pair=pair, reference=(chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, logps.tolist(), strict=True)
    ]


def _score(objective: DPOObjective, pairs: Sequence[TokenizedPair], steps: Iterable[Sequence[int]]) -> Tensor:
    """The log-probabilities of all pairs, shape (pairs, 2), float64, on the CPU.

    The pairs of `steps` are scored first, step by step, then the other pairs in the packs of an evaluation.
    """
    forward_pass = objective.forward_pass
    forward_pass.model.train(False)
    unscored = [ScoredPair(pair=pair, reference=(0.0, 0.0)) for pair in pairs]
    found = torch.zeros(len(pairs), 2, dtype=torch.float64)
    order = list(steps)
    rest = sorted(set(range(len(pairs))).difference(*order))
    size = forward_pass.micro_batcher.evaluation_batch_size
    order += [rest[start : start + size] for start in range(0, len(rest), size)]
    with torch.no_grad():
        for indices in order:
            for members, batch in objective.micro_batches(unscored, indices):
                assert isinstance(batch, PairBatch)
                with objective.logps(batch) as logps:
                    found[members] = logps.double().cpu()
    sums = forward_pass.group.sum(found.flatten().tolist())
    found = torch.tensor(sums, dtype=torch.float64).view(-1, 2)
    rows = [pairs[index].row for index in (~found.isfinite()).any(dim=1).nonzero().flatten().tolist()]
    if rows:
        raise RunError(f"the starting weights give rows {rows[:16]} no finite log-probability; look at these rows")
    return found


def _fingerprint(pairs: Sequence[TokenizedPair], identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode())
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            digest.update(repr((answer.input_ids, answer.loss_weights)).encode())
    return digest.hexdigest()


def _read(path: Path, fingerprint: str, count: int) -> tuple[Tensor | None, str]:
    """The log-probabilities in the file, or a message that says what is wrong with the file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensor = file.metadata() or {}, file.get_tensor(_LOGPS)
    except (OSError, SafetensorError) as error:
        return None, f"cannot be read ({error})"
    if tensor.shape != (count, 2) or metadata.get("sha256") != _sha256(tensor):
        return None, "is damaged"
    if metadata.get("fingerprint") != fingerprint:
        return None, "is of other pairs"
    return tensor, ""


def _write(path: Path, tensor: Tensor, fingerprint: str) -> None:
    content = save({_LOGPS: tensor}, metadata={"fingerprint": fingerprint, "sha256": _sha256(tensor)})
    try:
        replace_file(path, content, sync=True)
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be written: {error}") from error


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
