"""Distributed training: several processes that train one model.

`torchrun` starts them. Each prepares the same data, so that all know the packs of every step without communication.
Each process computes its share of the packs, and PyTorch's DDP or FSDP2 adds up the gradients. The main process alone
writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from templatekit.errors import RunError, TemplatekitError
from templatekit.training.model import decoder_layers

Value = TypeVar("Value")
_CPU = torch.device("cpu")
_joined_groups: list[Any] = []


class OtherProcessFailed(RunError):
    """Another process of the run failed, not this one; the message of that process says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingGroup:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    """The device on which tensors have to be for the processes to exchange them."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value, summed over the processes (all-reduce)."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; every process gets the same answer."""
        return self.sum([float(flag)])[0] > 0

    def raise_if_any_failed(self, failure: RunError | None) -> None:
        """Raise in every process if one of them has a failure, so that no process waits for it forever."""
        if self.any(failure is not None):
            raise failure or OtherProcessFailed("another process of this run failed; its own message says why")

    def run_on_main(self, action: Callable[[], Value]) -> Value:
        """Run `action` in the main process while the others wait, and return its result in every process.

        Where it raises, every process raises.
        """
        if self.size == 1:
            return action()
        message: list[Any] = [None, None]  # the result, and the text of the error
        failure: TemplatekitError | None = None
        if self.is_main:
            try:
                message[0] = action()
            except TemplatekitError as error:
                failure, message[1] = error, str(error)
        dist.broadcast_object_list(message, src=0, device=self.device)
        value, reason = message
        if reason is not None:
            raise failure or OtherProcessFailed(f"the first process failed: {reason}")
        return cast("Value", value)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every process, all of one shape and on the CPU, in the order of the ranks."""
        if self.size == 1:
            return [tensor]
        own = tensor.to(self.device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return [each.cpu() for each in found]


SINGLE_PROCESS = TrainingGroup()
"""A run of one process."""


def local_device(name: str) -> str:
    """The device of this process. Under `torchrun` on a machine with GPUs each process has its own."""
    rank = os.environ.get("LOCAL_RANK")
    own = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return f"cuda:{rank}" if rank is not None and own and launched_by_torchrun() else name


def joined() -> bool:
    """Whether this process has joined a group. The group's communication threads may outlast it."""
    return bool(_joined_groups)


def launched_by_torchrun() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join_process_group(device: torch.device) -> Iterator[TrainingGroup]:
    """Join the processes that `torchrun` started, if it did, and leave them at the end.

    Where one of them has died, communication fails in the others with `OtherProcessFailed`.
    """
    if not launched_by_torchrun():
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # Referenced until Python ends. If DDP's reducer held the last reference, it would join gloo's threads while holding
    # the interpreter's lock, for which they may be waiting (torch 2.13): the process would never end.
    _joined_groups.append(dist.group.WORLD)
    try:
        yield TrainingGroup(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
    except RuntimeError as error:
        # gloo has no error class for a process that has died: it raises `RuntimeError` and names the connection.
        words = ("gloo", "connection closed", "connection reset", "broken pipe", "timed out")
        about_peers = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
        if isinstance(error, TemplatekitError) or not about_peers:
            raise
        reason = " ".join(str(error).split())[:200]
        raise OtherProcessFailed(f"another process of this run is gone; its own message says why ({reason})") from error
    finally:
        dist.destroy_process_group()


def distribute(losses: nn.Module, group: TrainingGroup, strategy: Literal["ddp", "fsdp"]) -> nn.Module:
    """Wrap the module that computes losses so that gradients are averaged over the processes.

    `ddp`: every process holds the whole model. `fsdp`: each holds its shard of every weight, of its gradient and of its
    optimizer state, and the layers are gathered one at a time. All start with the weights of the main process.
    """
    if group.size == 1:
        return losses
    if strategy == "ddp":
        return nn.parallel.DistributedDataParallel(losses)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model: Any = losses.model
    mesh = init_device_mesh(group.device.type, (group.size,))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    # By default the outermost weights stay gathered after a forward pass, also when a checkpoint reads them.
    fully_shard(losses, mesh=mesh, reshard_after_forward=True)
    return losses


def gradient_sync(losses: nn.Module, *, enabled: bool) -> AbstractContextManager[Any]:
    """A context in which DDP exchanges gradients only if `enabled`: once a step, with its last micro-batch."""
    if isinstance(losses, nn.parallel.DistributedDataParallel) and not enabled:
        return cast("AbstractContextManager[Any]", losses.no_sync())
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded over the processes. Every process has to call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, sharded as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
