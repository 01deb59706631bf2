"""What training minimises. `SupervisedObjective` is fine-tuning on examples; `dpo` has the objective over pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from templatekit.training.collator import Batch
from templatekit.training.forward_pass import ForwardPass
from templatekit.types import TokenizedExample


class HasRow(Protocol):
    """An example or a pair to train on, which knows the row of its record."""

    @property
    def row(self) -> int:
        """The record's index in its source, counted from 0."""
        ...


Item = TypeVar("Item", bound=HasRow, contravariant=True)


class Objective(Protocol[Item]):
    """Turns examples or pairs into micro-batches, and a micro-batch into a loss."""

    @property
    def forward_pass(self) -> ForwardPass:
        """Computes the losses of targets."""
        ...

    def micro_batches(self, items: Sequence[Item], indices: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """This process's micro-batches of `items[i]` for each i of `indices`, each with the indices it holds.

        Every process gets equally many micro-batches. A process with less to do gets empty ones.
        """
        ...

    def loss_and_metrics(self, batch: Batch) -> AbstractContextManager[tuple[Tensor, Mapping[str, Tensor]]]:
        """The sum of the batch's losses, and further sums by name. Run the backward pass inside.

        `train_step` divides these sums by the `total_weight` of the step's batches.
        """
        ...


@dataclass(frozen=True, slots=True)
class SupervisedObjective:
    """The cross-entropy of the target tokens, each times its weight."""

    forward_pass: ForwardPass

    def micro_batches(
        self, items: Sequence[TokenizedExample], indices: Sequence[int]
    ) -> Iterator[tuple[list[int], Batch]]:
        """See `Objective`."""
        return self.forward_pass.micro_batcher.of_examples(items, indices)

    @contextmanager
    def loss_and_metrics(self, batch: Batch) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """See `Objective`."""
        with self.forward_pass.loss(batch) as loss:
            yield loss, {}
