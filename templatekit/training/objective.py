"""What training minimises: the cross-entropy of examples, from which `dpo` derives the objective over pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from templatekit.training.collator import Batch
from templatekit.training.forward_pass import ForwardPass


@dataclass(frozen=True, slots=True)
class Objective:
    """The cross-entropy of the target tokens, each times its weight.

    Its items are examples, those of a derived class may be others. An item has the `row` of its record.
    """

    forward_pass: ForwardPass

    def micro_batches(self, items: Sequence[Any], indices: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """This process's micro-batches of `items[i]` for each i of `indices`, each with the indices it holds.

        Every process gets equally many micro-batches. A process with less to do gets empty ones.
        """
        return self.forward_pass.micro_batcher.of_examples(items, indices)

    @contextmanager
    def loss_and_metrics(self, batch: Batch) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """The sum of the batch's losses, and further sums by name. Run the backward pass inside.

        `train_step` divides these sums by the `total_weight` of the step's batches.
        """
        with self.forward_pass.loss(batch) as loss:
            yield loss, {}
