"""The forward pass: from a batch to the loss of each of its targets, by a model that was prepared for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.training.attention.dispatch import (
    describe_attention,
    disable_attention_compilation,
    isolate,
    packing_unsupported_reason,
)
from templatekit.training.collator import Batch
from templatekit.training.distributed import SINGLE_PROCESS, TrainingGroup, distribute, full_tensor
from templatekit.training.kernels.compiled import compile_layers
from templatekit.training.kernels.fusion import Fusion, fuse
from templatekit.training.loss import Head, ModelWithLoss, detect_head
from templatekit.training.micro_batches import MicroBatcher
from templatekit.training.model import decoder_layers, enable_activation_checkpointing, has_dropout, unwrap, uses_bf16
from templatekit.types import RenderedText, TokenizedExample

TRIAL_LENGTH = 128
"""Tokens of each example in the trial of compiled layers: fewer than any model has positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPass:
    """A model in training, and all settings of how its losses are computed, which stay the same from step to step."""

    model: PreTrainedModel
    """The causal language model itself; adapters are inside it."""
    head: Head | None
    losses: nn.Module
    """Maps a batch to the losses of its targets: a `ModelWithLoss`, wrapped by DDP or FSDP where there are several
    processes."""
    micro_batcher: MicroBatcher
    bf16: bool
    """Whether matrix products run in bf16."""
    group: TrainingGroup
    fusion: Fusion
    """The parts of the model that run in fewer passes over memory, with the same result."""
    checkpointing: bool
    """Whether the backward pass computes each layer's activations again."""

    @classmethod
    def of(cls, model: PreTrainedModel, options: FinetuneOptions, group: TrainingGroup = SINGLE_PROCESS) -> ForwardPass:
        """Prepare a model for training: fuse, checkpoint, distribute and compile its layers as the options say.

        Raises `ConfigError` where the model cannot be packed or compiled.
        """
        causal = unwrap(model)
        reason = packing_unsupported_reason(causal) if options.packing else None
        if reason is not None:
            raise ConfigError(f"packing: {reason}; use --no-packing")
        head = detect_head(causal)
        dropout = has_dropout(causal)
        # Fusion comes before the weights are sharded. DDP and FSDP wait for autograd to add the gradients of the
        # weights themselves.
        accumulates_gradients = group.size == 1
        layers = decoder_layers(causal)  # FSDP gives them other classes, by which they would not be found
        fusion = fuse(causal, accumulates_gradients=accumulates_gradients, compiled=layers if options.compile else ())
        if options.activation_checkpointing:
            enable_activation_checkpointing(causal)
        forward_pass = cls(
            model=causal,
            head=head,
            losses=distribute(ModelWithLoss(causal, head, fusion), group, options.distributed),
            micro_batcher=MicroBatcher(
                packing=options.packing,
                share=options.share and not dropout,  # examples with a shared prefix would share its dropout mask
                pack_tokens=options.pack_tokens,
                batch_size=options.batch_size,
                device=causal.device,
                group=group,
            ),
            bf16=uses_bf16(options.precision, causal.device),
            group=group,
            fusion=fusion,
            checkpointing=options.activation_checkpointing,
        )
        if options.compile:
            disable_attention_compilation()
            tolerance = 0.03 if forward_pass.bf16 else 1e-3
            compile_layers(causal, layers, fusion, forward_pass.trial, tolerance=tolerance, has_dropout=dropout)
        return forward_pass

    def describe(self) -> str:
        """One line on how a step is computed."""
        model, batcher = self.model, self.micro_batcher
        packs = f"packs of up to {batcher.pack_tokens:,} tokens" if batcher.packing else "padded batches"
        attention = describe_attention(model, torch.bfloat16 if self.bf16 else model.dtype)
        shared = "computed once" if batcher.share else "computed for each"
        head = "the model's own" if self.head is None else "a product" if self.head.is_plain else "more than a product"
        parts = [
            f"{'bf16' if self.bf16 else 'fp32'} products on {model.device}",
            packs + (f", what examples begin with {shared}" if batcher.packing else ""),
            f"attention: {attention if batcher.packing else model.config._attn_implementation}",
            f"in fewer passes: {self.fusion}",
            f"head: {head}",
            *(["layers computed again in the backward pass"] if self.checkpointing else []),
        ]
        return "step: " + "; ".join(parts)

    @contextmanager
    def target_losses(self, batch: Batch) -> Iterator[Tensor]:
        """The loss of each target, shape (targets,). Run the backward pass inside: attention stays isolated there."""
        isolated = isolate(self.model, batch.segments) if batch.segments is not None else nullcontext()
        with isolated, self.fusion.active():
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
                losses = cast("Tensor", self.losses(batch))
            yield losses

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[Tensor]:
        """The weighted sum of the batch's losses. Run the backward pass inside."""
        with self.target_losses(batch) as losses:
            yield (losses * batch.weights).sum()

    def trial(self) -> tuple[float, float]:
        """The mean loss of a random micro-batch of full size and, in training mode, its gradient norm.

        It leaves no gradient behind. In evaluation mode the norm is 0.
        """
        model, batcher = self.model, self.micro_batcher
        count = max(1, batcher.pack_tokens // TRIAL_LENGTH) if batcher.packing else batcher.batch_size
        vocabulary = model.config.get_text_config().vocab_size
        # Random ids, since examples with equal prefixes would share them and make a smaller micro-batch.
        ids = torch.randint(vocabulary, (count, TRIAL_LENGTH), generator=torch.Generator().manual_seed(0))
        rendered = RenderedText(text="", spans=())
        weights = (1.0,) * TRIAL_LENGTH
        examples = [
            TokenizedExample(input_ids=tuple(row), loss_weights=weights, rendered=rendered) for row in ids.tolist()
        ]
        (_, batch), *_ = batcher.of_examples(examples, range(count))
        norm = 0.0
        with torch.set_grad_enabled(model.training), self.loss(batch) as loss:
            loss = loss / (batch.total_weight or 1.0)  # the weight of an empty micro-batch is 0
            if model.training:
                torch.autograd.backward([loss])
                gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
                norm = float(full_tensor(torch.nn.utils.get_total_norm(gradients)))
                model.zero_grad(set_to_none=True)
        self.fusion.invalidate_trained_copies()
        return float(loss.detach()), norm
