"""One optimizer step, and one evaluation: examples in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.packing import pack, pack_examples, pack_groups
from templatekit.training.attention.dispatch import backend, isolate, leave_uncompiled, supports_isolation
from templatekit.training.collator import Batch, collate_packed, collate_padded, idle
from templatekit.training.distributed import ALONE, World, divide, holding_back, whole
from templatekit.training.kernels.compiled import compile_layers, fuse_outside
from templatekit.training.kernels.fused import Fusion, fuse
from templatekit.training.loss import Head, TargetLosses, head_of
from templatekit.training.model import checkpoint_activations, computes_in_bf16, drops_out, layers_of, unwrap
from templatekit.types import RenderedText, TokenizedExample

EVALUATED_AT_ONCE = 512
"""Examples that are packed together in an evaluation: enough to fill packs well, and cheap to pack."""
TRIAL_LENGTH = 128
"""Tokens of each example in the trial of compiled layers: fewer than any model has positions."""


class Numbered(Protocol):
    """What a step is made of: it knows the row that it came from."""

    @property
    def row(self) -> int:
        """The record's number in its source, counted from 0."""
        ...


Item = TypeVar("Item", bound=Numbered, contravariant=True)


class Objective(Protocol[Item]):
    """What is minimised: how items become batches, and batches a loss."""

    @property
    def computation(self) -> Computation:
        """How the model's losses are computed."""
        ...

    def micro_batches(self, items: Sequence[Item], numbers: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """`items[n]` for each n of `numbers`, as this process's batches, each with the numbers that it holds.

        Every process gets equally many; one that has less to do gets idle ones, which hold nothing.
        """
        ...

    def measured(self, batch: Batch) -> AbstractContextManager[tuple[Tensor, Mapping[str, Tensor]]]:
        """The batch's sum of losses, over what its `weight` counts, and other sums over the same.

        The backward pass belongs inside.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers:
    """What a step tells about itself, over all processes."""

    loss: float
    """Mean over the step's targets, by weight, in nats; over its pairs with DPO."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Inputs of the examples, those that several share counted for each."""
    computed_tokens: int
    """Inputs that the model computed: shared ones once, padding among them."""
    padded_tokens: int
    """Inputs that it would have computed in padded rectangles, one a micro-batch."""
    target_tokens: int
    more: Mapping[str, float]
    """Other means of the objective, by name."""

    def line(self) -> dict[str, float]:
        """As the metrics have it."""
        names = ("loss", "grad_norm", "tokens", "computed_tokens", "padded_tokens", "target_tokens")
        return {**{name: getattr(self, name) for name in names}, **self.more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model makes of held-out examples."""

    loss: float
    """Mean over the targets, by weight, in nats; over the pairs with DPO."""
    more: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """How a model's loss is computed: what does not change from step to step. The objective of supervised training."""

    model: PreTrainedModel
    """The causal language model itself; adapters are in it."""
    head: Head | None
    losses: nn.Module
    """Takes a batch, gives its targets' losses: `TargetLosses`, perhaps wrapped for several processes."""
    packing: bool
    share: bool
    """Whether what several examples of a pack begin with is computed once."""
    pack_tokens: int
    batch_size: int
    bf16: bool
    world: World = ALONE
    fusion: Fusion = field(default_factory=Fusion)
    """What of the model is computed in fewer passes, to the same result."""
    checkpointing: bool = False
    """Whether layers are computed again in the backward pass."""

    @classmethod
    def of(cls, model: PreTrainedModel, options: FinetuneOptions, world: World = ALONE) -> Computation:
        """Looks at what the model can do; raises `ConfigError` where it cannot take packs.

        With several processes the model is divided between them, as the options say.
        """
        causal = unwrap(model)
        reason = supports_isolation(causal) if options.packing else None
        if reason is not None:
            raise ConfigError(f"packing: {reason}; use --no-packing")
        head = head_of(causal)
        # While its weights are whole. Several processes listen for the gradients of the weights themselves.
        takes_gradients = world.size == 1
        fusion = (
            fuse_outside(causal, layers_of(causal), takes_gradients=takes_gradients)
            if options.compile
            else fuse(causal, takes_gradients=takes_gradients)
        )
        if options.activation_checkpointing:
            checkpoint_activations(causal)
        computation = cls(
            model=causal,
            head=head,
            losses=divide(TargetLosses(causal, head, fusion), world, options.distributed),
            packing=options.packing,
            share=options.share and not drops_out(causal),
            pack_tokens=options.pack_tokens,
            batch_size=options.batch_size,
            bf16=computes_in_bf16(options.precision, causal.device),
            world=world,
            fusion=fusion,
            checkpointing=options.activation_checkpointing,
        )
        if options.compile:
            leave_uncompiled()
            compile_layers(
                causal,
                layers_of(causal),
                fusion,
                computation.trial,
                tolerance=0.03 if computation.bf16 else 1e-3,
                has_dropout=drops_out(causal),
            )
        return computation

    @property
    def computation(self) -> Computation:
        """Itself."""
        return self

    def line(self) -> str:
        """In words: what a step does."""
        model = self.model
        packs = f"packs of up to {self.pack_tokens:,} tokens" if self.packing else "padded batches"
        attention = backend(model, torch.bfloat16 if self.bf16 else model.dtype)
        shared = "computed once" if self.share else "computed for each"
        head = "the model's own" if self.head is None else "a product" if self.head.is_plain else "more than a product"
        parts = [
            f"{'bf16' if self.bf16 else 'fp32'} products on {model.device}",
            packs + (f", what examples begin with {shared}" if self.packing else ""),
            f"attention: {attention if self.packing else model.config._attn_implementation}",
            f"in fewer passes: {self.fusion}",
            f"head: {head}",
            *(["layers computed again in the backward pass"] if self.checkpointing else []),
        ]
        return "step: " + "; ".join(parts)

    @property
    def evaluated_at_once(self) -> int:
        """How many examples or pairs an evaluation takes together, to be cut into micro-batches."""
        return EVALUATED_AT_ONCE if self.packing else self.batch_size

    def micro_batches(
        self, items: Sequence[TokenizedExample], numbers: Sequence[int]
    ) -> Iterator[tuple[list[int], Batch]]:
        """As `Objective` says."""
        for part, is_idle in self.parts([(items[number].input_ids[:-1],) for number in numbers]):
            documents = [numbers[place] for place in part]
            if self.packing:
                batch = collate_packed(pack_examples(items, documents, share=self.share), self.model.device)
            else:
                batch = collate_padded(items, documents, self.model.device)
            if is_idle:
                yield [], idle(batch)
            elif batch.tokens:
                yield documents, batch

    def parts(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[tuple[list[int], bool]]:
        """This process's share of the groups of inputs, cut into micro-batches; true for those it is to idle through.

        Packs within the budget, or padded batches. Every process makes the same cut and takes its part of it.
        """
        world = self.world
        if not self.packing:
            parts = [list(range(len(groups)))[start :: world.size] for start in range(world.size)]
            parts = [part for part in parts if part]
        else:
            budget = self.pack_tokens
            parts = self._packs(groups, budget)
            while len(parts) < min(world.size, len(groups)) and budget > 1:  # or some would have nothing to do
                budget //= 2
                parts = self._packs(groups, budget)
        if world.size == 1 or not parts:
            return [(part, False) for part in parts]
        heaviest_first = sorted(parts, key=lambda part: -sum(len(item) for place in part for item in groups[place]))
        own = heaviest_first[world.rank :: world.size]
        missing = math.ceil(len(parts) / world.size) - len(own)
        return [(part, False) for part in own] + [(parts[0], True)] * missing

    def _packs(self, groups: Sequence[Sequence[Sequence[int]]], budget: int) -> list[list[int]]:
        if self.share:
            return pack_groups(groups, budget)
        return pack([sum(map(len, group)) for group in groups], budget)

    @contextmanager
    def target_losses(self, batch: Batch) -> Iterator[Tensor]:
        """Shape (targets,). The backward pass belongs inside, where examples are kept apart."""
        apart = isolate(self.model, batch.segments) if batch.segments is not None else nullcontext()
        with apart, self.fusion.active():
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
                losses = cast("Tensor", self.losses(batch))
            yield losses

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[Tensor]:
        """The batch's weighted sum of losses. The backward pass belongs inside."""
        with self.target_losses(batch) as losses:
            yield (losses * batch.weights).sum()

    def trial(self) -> tuple[float, float]:
        """The mean loss of a micro-batch of full size, and in training mode its gradient norm; keeps no gradient."""
        model = self.model
        count = max(1, self.pack_tokens // TRIAL_LENGTH) if self.packing else self.batch_size
        vocabulary = model.config.get_text_config().vocab_size
        # Random ids: examples with equal prefixes would be computed once.
        ids = torch.randint(vocabulary, (count, TRIAL_LENGTH), generator=torch.Generator().manual_seed(0))
        rendered = RenderedText(text="", spans=())
        weights = (1.0,) * TRIAL_LENGTH
        examples = [
            TokenizedExample(input_ids=tuple(row), loss_weights=weights, rendered=rendered) for row in ids.tolist()
        ]
        (_, batch), *_ = self.micro_batches(examples, range(count))
        norm = 0.0
        with torch.set_grad_enabled(model.training), self.loss(batch) as loss:
            loss = loss / (batch.weight or 1.0)  # an idle process has a batch without weight
            if model.training:
                torch.autograd.backward([loss])
                gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
                norm = float(whole(torch.nn.utils.get_total_norm(gradients)))
                model.zero_grad(set_to_none=True)
        self.fusion.forget_trained()
        return float(loss.detach()), norm

    @contextmanager
    def measured(self, batch: Batch) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """As `Objective` says."""
        with self.loss(batch) as loss:
            yield loss, {}


def train_step(
    objective: Objective[Item],
    optimizer: torch.optim.Optimizer,
    items: Sequence[Item],
    numbers: Sequence[int],
    *,
    clip_norm: float | None,
) -> StepNumbers:
    """Makes one step on `items[n]` for each n of `numbers`, however many micro-batches and processes they take.

    Raises `RunError`, before any weight is changed, where the loss or the gradient is not finite.
    """
    world = objective.computation.world
    batches = list(objective.micro_batches(items, numbers))
    weight = world.sum([sum(batch.weight for _, batch in batches)])[0] or 1.0
    sums = _Sums()
    failure: RunError | None = None
    for number, (part, batch) in enumerate(batches, 1):
        with (
            holding_back(objective.computation.losses, last=number == len(batches)),
            objective.measured(batch) as (loss, more),
        ):
            failure = failure or _not_finite(loss, "the loss", items, part)
            if failure is not None and world.size == 1:
                break
            sums.add(batch, loss, more)
            # DDP and FSDP average over the processes; what is wanted is the sum.
            torch.autograd.backward([loss * world.size / weight])
    world.agree(failure)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    total_norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    norm = whole(total_norm)
    failure = _not_finite(norm, "the gradient", items, numbers)
    if failure is not None:
        raise failure
    if clip_norm is not None and norm > clip_norm:  # else PyTorch would multiply by 1, in a pass over all gradients
        torch.nn.utils.clip_grads_with_norm_(weights, clip_norm, total_norm)
    objective.computation.fusion.forget_trained()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    total, counts, means = sums.over(world, weight)
    return StepNumbers(
        loss=total,
        grad_norm=float(norm),
        tokens=counts[0],
        computed_tokens=counts[1],
        padded_tokens=counts[2],
        target_tokens=counts[3],
        more=means,
    )


def evaluate(objective: Objective[Item], items: Sequence[Item]) -> Evaluation:
    """The mean loss over all targets or pairs of the items, by weight; the model is in evaluation mode after it."""
    computation = objective.computation
    computation.model.train(False)
    sums = _Sums()
    failure: RunError | None = None
    at_once = computation.evaluated_at_once
    with torch.no_grad():
        for start in range(0, len(items), at_once):
            numbers = range(start, min(start + at_once, len(items)))
            for part, batch in objective.micro_batches(items, numbers):
                with objective.measured(batch) as (loss, more):
                    failure = failure or _not_finite(loss, "the held-out loss", items, part)
                    sums.add(batch, loss, more)
    computation.world.agree(failure)
    weight = computation.world.sum([sums.weight])[0] or 1.0
    total, _, means = sums.over(computation.world, weight)
    return Evaluation(loss=total, more=means)


class _Sums:
    """What the micro-batches of this process add up to."""

    def __init__(self) -> None:
        self.loss = self.weight = 0.0
        self.counts = [0, 0, 0, 0]
        self.more: dict[str, float] = {}

    def add(self, batch: Batch, loss: Tensor, more: Mapping[str, Tensor]) -> None:
        self.loss += float(loss.detach())
        self.weight += batch.weight
        counts = (batch.tokens, batch.computed_tokens, batch.padded_tokens, batch.target_tokens)
        for place, count in enumerate(counts):
            self.counts[place] += count
        for name, value in more.items():
            self.more[name] = self.more.get(name, 0.0) + float(value)

    def over(self, world: World, weight: float) -> tuple[float, list[int], dict[str, float]]:
        """The mean loss, the counts and the other means, over all processes."""
        loss, *rest = world.sum([self.loss, *self.counts, *self.more.values()])
        size = len(self.counts)
        counts = [int(count) for count in rest[:size]]
        return loss / weight, counts, {name: v / weight for name, v in zip(self.more, rest[size:], strict=True)}


def _not_finite(value: Tensor, what: str, items: Sequence[Numbered], numbers: Sequence[int]) -> RunError | None:
    """The error for a number that is not finite, None for one that is."""
    number = float(value.detach())
    if math.isfinite(number):
        return None
    rows = sorted(items[place].row for place in numbers)
    shown = ", ".join(map(str, rows[:16])) + (f" and {len(rows) - 16} more" if len(rows) > 16 else "")
    return RunError(
        f"{what} is {number}; rows {shown}; look at these rows, lower --learning-rate, or use --precision fp32"
    )
