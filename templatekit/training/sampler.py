"""The sampler: which examples each optimizer step trains on.

Only the options and the index of the step decide it, so a resumed run continues with the right examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The shuffled indices of `count` examples in an epoch; epochs count from 0.

    The order is that of torch's `DataLoader(shuffle=True)` after `torch.manual_seed(seed)`, where nothing else draws
    from the generator: each epoch draws the workers' base seed, then the sampler's seed, and permutes with the latter.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [int(torch.empty((), dtype=torch.int64).random_(generator=generator)) for _ in range(2 * (epoch + 1))]
    return tuple(torch.randperm(count, generator=torch.Generator().manual_seed(draws[-1])).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSampler:
    """Gives the indices of the examples of each optimizer step, `batch_size` of them, epoch after epoch."""

    count: int
    """How many examples there are to train on."""
    batch_size: int
    seed: int
    drop_last: bool
    """Whether the last batch of an epoch is skipped if it is not full."""

    def __post_init__(self) -> None:
        if not self.count:
            raise ConfigError("there are no examples to train on")
        if not self.steps_per_epoch:
            raise ConfigError(
                f"batch_size={self.batch_size} with drop_last leaves no full batch of {self.count} examples; "
                "use a smaller batch, or keep the last one"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return self.count // self.batch_size if self.drop_last else math.ceil(self.count / self.batch_size)

    def indices(self, step: int) -> list[int]:
        """The indices of the examples of a step; steps count from 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.count, self.seed, epoch)
        return list(order[batch * self.batch_size : (batch + 1) * self.batch_size])


def total_steps(options: FinetuneOptions, steps_per_epoch: int) -> int:
    """The optimizer steps of a run: `epochs` epochs, which may end with a part of one, but at most `max_steps`."""
    steps = max(1, math.ceil(round(options.epochs * steps_per_epoch, 6)))
    return steps if options.max_steps is None else min(steps, options.max_steps)
