"""Micro-batches: the examples of an optimizer step, cut to fit into memory and divided between the processes.

The sampler chooses the examples of a step, this module cuts them, and the collator makes tensors of each micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from templatekit.packing import pack, pack_examples, pack_groups
from templatekit.training.collator import Batch, collate_packed, collate_padded, empty_batch
from templatekit.training.distributed import SINGLE_PROCESS, TrainingGroup
from templatekit.types import TokenizedExample

EVALUATION_BATCH_SIZE = 512
"""Examples that are packed together in an evaluation: enough to fill packs well, and cheap to pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatcher:
    """Cuts examples into packs within a token budget, or into padded batches."""

    packing: bool
    share: bool
    """Whether a pack computes a prefix that several of its examples have in common once."""
    pack_tokens: int
    """The token budget of a pack."""
    batch_size: int
    """Examples of an optimizer step."""
    device: torch.device
    group: TrainingGroup = SINGLE_PROCESS

    @property
    def evaluation_batch_size(self) -> int:
        """How many examples or pairs an evaluation cuts into micro-batches at a time."""
        return EVALUATION_BATCH_SIZE if self.packing else self.batch_size

    def of_examples(
        self, examples: Sequence[TokenizedExample], indices: Sequence[int]
    ) -> Iterator[tuple[list[int], Batch]]:
        """This process's micro-batches of `examples[i]` for each i of `indices`, each with the indices it holds.

        Every process gets equally many micro-batches. A process with less to do gets empty ones.
        """
        for members, is_empty in self.cut([(examples[index].input_ids[:-1],) for index in indices]):
            own = [indices[member] for member in members]
            packed = pack_examples(examples, own, share=self.packing and self.share)
            batch = collate_packed(packed, self.device) if self.packing else collate_padded(packed, self.device)
            if is_empty:
                yield [], empty_batch(batch)
            elif batch.tokens:
                yield own, batch

    def cut(self, inputs: Sequence[Sequence[Sequence[int]]]) -> list[tuple[list[int], bool]]:
        """This process's micro-batches, as positions in `inputs`; True marks one that has to be computed empty.

        Each element of `inputs` holds the input ids of texts that stay together: one example, or the answers of a pair.
        Every process cuts alike, and takes its share of the micro-batches.
        """
        size = self.group.size
        if not self.packing:
            cuts = [list(range(start, len(inputs), size)) for start in range(min(size, len(inputs)))]
        else:
            budget = self.pack_tokens
            # With fewer packs than processes, some processes would have nothing to do.
            while len(cuts := self._packs(inputs, budget)) < min(size, len(inputs)) and budget > 1:
                budget //= 2
        if size == 1 or not cuts:
            return [(members, False) for members in cuts]
        heaviest_first = sorted(cuts, key=lambda cut: -sum(len(ids) for member in cut for ids in inputs[member]))
        own = heaviest_first[self.group.rank :: size]
        missing = math.ceil(len(cuts) / size) - len(own)
        return [(members, False) for members in own] + [(cuts[0], True)] * missing

    def _packs(self, inputs: Sequence[Sequence[Sequence[int]]], budget: int) -> list[list[int]]:
        if self.share:
            return pack_groups(inputs, budget)
        return pack([sum(map(len, texts)) for texts in inputs], budget)
