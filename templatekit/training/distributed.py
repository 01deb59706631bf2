"""Several processes that train one model: who they are, what they say to each other, how the model is divided.

`torchrun` starts them. Each prepares the same data, so that all know every step's packs without asking; each computes
its share of them, and PyTorch's DDP or FSDP2 adds up the gradients. The first process alone writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from templatekit.errors import RunError, TemplatekitError
from templatekit.training.model import layers_of

Division: TypeAlias = Literal["ddp", "fsdp"]
Value = TypeVar("Value")
_CPU = torch.device("cpu")
_groups: list[Any] = []


class OtherProcessFailed(RunError):
    """This process is sound, but another one of the run is not; that one says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    """Where tensors have to be for the processes to exchange them."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value, added up over the processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def any(self, flag: bool) -> bool:
        """Whether any process says yes; each gets the same answer."""
        return self.sum([float(flag)])[0] > 0

    def agree(self, failure: RunError | None) -> None:
        """Raises in every process where one of them has failed, so that none waits for another in vain."""
        if self.any(failure is not None):
            raise failure or OtherProcessFailed("another process of this run failed; its own message says why")

    def first(self, action: Callable[[], Value]) -> Value:
        """What the first process's `action` returns, in every process; the others wait. Its failure is everyone's."""
        if self.size == 1:
            return action()
        box: list[Any] = [None, None]
        failure: TemplatekitError | None = None
        if self.is_first:
            try:
                box[0] = action()
            except TemplatekitError as error:
                failure, box[1] = error, str(error)
        dist.broadcast_object_list(box, src=0, device=self.device)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise OtherProcessFailed(f"the first process failed: {box[1]}")
        value: Value = box[0]
        return value

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor, all of one shape and on the CPU, in the order of the processes."""
        if self.size == 1:
            return [tensor]
        own = tensor.to(self.device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return [each.cpu() for each in found]


ALONE = World()
"""A run of one process."""


def local_device(name: str) -> str:
    """The device of this process: under `torchrun`, with several GPUs, each process has its own."""
    rank = os.environ.get("LOCAL_RANK")
    own = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return f"cuda:{rank}" if rank is not None and own and launched() else name


def joined() -> bool:
    """Whether this process was one of several; threads of what they exchanged by may outlast it."""
    return bool(_groups)


def launched() -> bool:
    """Whether `torchrun` started this process among others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Joins the processes that `torchrun` started, if it did; leaves them at the end.

    Where one of them is gone, the others' exchange fails: that becomes an `OtherProcessFailed`.
    """
    if not launched():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # Kept until Python ends: were DDP's reducer the last to hold the group, it would join gloo's threads with the
    # interpreter's lock in its hands, for which they may be waiting (torch 2.13): the process would never end.
    _groups.append(dist.group.WORLD)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
    except dist.DistError as error:
        raise _gone(error) from error
    except RuntimeError as error:
        if isinstance(error, TemplatekitError) or not _is_about_peers(error):
            raise
        raise _gone(error) from error
    finally:
        dist.destroy_process_group()


def _gone(error: Exception) -> OtherProcessFailed:
    reason = " ".join(str(error).split())[:200]
    return OtherProcessFailed(f"another process of this run is gone; its own message says why ({reason})")


def _is_about_peers(error: RuntimeError) -> bool:
    """gloo knows no error of its own: a peer that is gone is a `RuntimeError` that names gloo or its connection."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection closed", "connection reset", "broken pipe", "timed out"))


def divide(losses: nn.Module, world: World, division: Division) -> nn.Module:
    """Wraps what computes a loss so that gradients are averaged over the processes.

    `ddp`: every process holds the whole model. `fsdp`: each holds its share of every weight, of its gradient and of its
    optimizer state, and the layers are put together one at a time. Weights are those of the first process.
    """
    if world.size == 1:
        return losses
    if division == "ddp":
        return nn.parallel.DistributedDataParallel(losses)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model: Any = losses.model
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    # By default the outermost weights stay whole after a forward pass, and would be so when a checkpoint asks for them.
    fully_shard(losses, mesh=mesh, reshard_after_forward=True)
    return losses


def holding_back(losses: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Within it, DDP leaves gradients unshared, until the last micro-batch of a step."""
    if isinstance(losses, nn.parallel.DistributedDataParallel) and not last:
        held: AbstractContextManager[Any] = losses.no_sync()
        return held
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided between processes; every process has to ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, divided as another one is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
