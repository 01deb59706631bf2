"""One optimizer step, and one evaluation: examples in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from templatekit.config import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.packing import pack, pack_examples, pack_sharing
from templatekit.training.attention import isolate, supports_isolation
from templatekit.training.collate import Batch, collate_packed, collate_padded
from templatekit.training.fused import Fusion, fuse
from templatekit.training.loss import Head, head_of, weighted_loss
from templatekit.training.model import computes_in_bf16, drops_out, unwrap
from templatekit.types import TokenizedExample


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers:
    """What a step tells about itself."""

    loss: float
    """Mean over the step's targets, by weight, in nats."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Inputs of the examples, those that several share counted for each."""
    computed_tokens: int
    """Inputs that the model computed: shared ones once, padding among them."""
    target_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """How a model's loss is computed: what does not change from step to step."""

    model: PreTrainedModel
    """The causal language model itself; adapters are in it."""
    head: Head | None
    packing: bool
    share: bool
    """Whether what several examples of a pack begin with is computed once."""
    pack_tokens: int
    batch_size: int
    bf16: bool
    fusion: Fusion
    """What of the model is computed in fewer passes, to the same result."""

    @classmethod
    def of(cls, model: PreTrainedModel, options: FinetuneOptions) -> Computation:
        """Looks at what the model can do; raises `ConfigError` where it cannot take packs."""
        causal = unwrap(model)
        reason = supports_isolation(causal) if options.packing else None
        if reason is not None:
            raise ConfigError(f"packing: {reason}; use --no-packing")
        return cls(
            model=causal,
            head=head_of(causal),
            packing=options.packing,
            share=options.share and not drops_out(causal),
            pack_tokens=options.pack_tokens,
            batch_size=options.batch_size,
            bf16=computes_in_bf16(options.precision, causal.device),
            fusion=fuse(causal),
        )

    def micro_batches(
        self, examples: Sequence[TokenizedExample], documents: Sequence[int]
    ) -> Iterator[tuple[list[int], Batch]]:
        """`examples[d]` for each d of `documents`, as batches, each with the indices that it holds."""
        for part in self._cut(examples, documents):
            if self.packing:
                batch = collate_packed(pack_examples(examples, part, share=self.share), self.model.device)
            else:
                batch = collate_padded(examples, part, self.model.device)
            if batch.tokens:
                yield part, batch

    def _cut(self, examples: Sequence[TokenizedExample], documents: Sequence[int]) -> list[list[int]]:
        """One step's examples as micro-batches: packs within the budget, or all of them in one padded batch."""
        if not self.packing:
            return [list(documents)]
        inputs = [examples[document].input_ids[:-1] for document in documents]
        packs = pack_sharing(inputs, self.pack_tokens) if self.share else pack([*map(len, inputs)], self.pack_tokens)
        return [[documents[item] for item in items] for items in packs]

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[Tensor]:
        """The batch's weighted sum of losses. The backward pass belongs inside, where examples are kept apart."""
        apart = isolate(self.model, batch.segments) if batch.segments is not None else nullcontext()
        with apart, self.fusion.active():
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
                loss = weighted_loss(self.model, self.head, batch)
            yield loss


def train_step(
    computation: Computation,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[TokenizedExample],
    documents: Sequence[int],
    *,
    clip_norm: float | None,
) -> StepNumbers:
    """Makes one step on `examples[d]` for each d of `documents`, however many micro-batches they take.

    Raises `RunError`, before any weight is changed, where the loss or the gradient is not finite.
    """
    batches = list(computation.micro_batches(examples, documents))
    weight = sum(batch.weight for _, batch in batches) or 1.0
    total = 0.0
    for part, batch in batches:
        with computation.loss(batch) as loss:
            total += _finite(loss, "the loss", examples, part)
            torch.autograd.backward([loss / weight])
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(weights, math.inf if clip_norm is None else clip_norm)
    grad_norm = _finite(norm, "the gradient", examples, documents)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepNumbers(
        loss=total / weight,
        grad_norm=grad_norm,
        tokens=sum(batch.tokens for _, batch in batches),
        computed_tokens=sum(batch.computed_tokens for _, batch in batches),
        target_tokens=sum(batch.target_tokens for _, batch in batches),
    )


def evaluate(computation: Computation, examples: Sequence[TokenizedExample]) -> float:
    """The mean loss over all targets of the examples, by weight, in nats; the model is in evaluation mode after it."""
    computation.model.train(False)
    total = weight = 0.0
    # By the hundred: enough to fill packs well, and cheap to pack.
    at_once = 512 if computation.packing else computation.batch_size
    with torch.no_grad():
        for start in range(0, len(examples), at_once):
            documents = range(start, min(start + at_once, len(examples)))
            for part, batch in computation.micro_batches(examples, documents):
                with computation.loss(batch) as loss:
                    total += _finite(loss, "the held-out loss", examples, part)
                weight += batch.weight
    return total / (weight or 1.0)


def _finite(value: Tensor, what: str, examples: Sequence[TokenizedExample], documents: Sequence[int]) -> float:
    number = float(value.detach())
    if math.isfinite(number):
        return number
    rows = sorted(examples[document].row for document in documents)
    shown = ", ".join(map(str, rows[:16])) + (f" and {len(rows) - 16} more" if len(rows) > 16 else "")
    raise RunError(
        f"{what} is {number}; rows {shown}; look at these rows, lower --learning-rate, or use --precision fp32"
    )
