"""Checkpoints that are whole or absent.

```
RUN/checkpoints/step-00000040/
    weights.safetensors     what is trained
    optimizer.safetensors   AdamW's state, by the weights' names
    random.safetensors      the states of torch's generators
    state.json              steps done, and what the run must agree with
    manifest.json           size and sha256 of each file above
```

A checkpoint is written elsewhere, brought to the disk, and renamed. Nothing is ever unpickled, and no file that is not
listed here is opened. A run of several processes gathers its weights for them, and the first writes: a checkpoint is
the same whatever number wrote it, any number resumes from it, and plain safetensors need no PyTorch to be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from templatekit.errors import ConfigError, RunError, shorten
from templatekit.training.distributed import ALONE, World, share_of, whole

FOLDER = "checkpoints"
_WEIGHTS, _OPTIMIZER, _RANDOM, _STATE = (
    "weights.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "state.json",
)
_FILES = (_WEIGHTS, _OPTIMIZER, _RANDOM, _STATE)
_MANIFEST = "manifest.json"
_STAGING = ".in-the-making"
_PREFIX = "step-"


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written; the message says in what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    """Optimizer steps done."""
    identity: Mapping[str, Any]
    """What a run must agree with to go on from here: options, and the fingerprints of data, template and tokenizer."""


def has_checkpoints(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint, whole or not."""
    return bool(_list(folder))


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    keep: int,
    best: int | None = None,
    world: World = ALONE,
) -> None:
    """Writes the state after `step` steps, then removes all but the `keep` newest and that of step `best`.

    Raises `RunError` if it cannot; what was there before is then still there. Every process of a `world` calls it.
    """
    weights = trainable(model)
    tensors = {
        _WEIGHTS: {name: whole(weight.detach()).contiguous() for name, weight in weights.items()},
        _OPTIMIZER: _optimizer_state(optimizer, weights),
        _RANDOM: _random_state(world),
    }
    world.first(lambda: _write(folder, step, tensors, {"step": step, "identity": dict(identity)}))
    if not world.is_first:
        return
    for path in [path for path in _list(folder) if _step(path) <= step][keep:]:
        if _step(path) != best:
            shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, step: int, tensors: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
    staging = folder / FOLDER / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, values in tensors.items():
            save_file(values, staging / name)
        _write_json(staging / _STATE, state)
        _write_json(staging / _MANIFEST, {name: _fingerprint(staging / name) for name in _FILES})
        sync(staging)
        target = folder / FOLDER / f"{_PREFIX}{step:08d}"
        if target.exists():  # a damaged one, which the run went back behind
            shutil.rmtree(target)
        staging.rename(target)
        sync(folder / FOLDER, deep=False)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise RunError(
            f"checkpoint of step {step} cannot be written to {str(folder)!r}: {error}; "
            "make room there; --resume goes on from the checkpoint before"
        ) from error


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, and for each newer one that is damaged, what is wrong with it."""
    damaged: list[str] = []
    for path in _list(folder):
        try:
            return _open(path), damaged
        except DamagedCheckpoint as error:
            damaged.append(f"checkpoint {str(path)!r} is damaged and left out: {error}")
    return None, damaged


def checkpoint_of(folder: Path, step: int) -> tuple[Checkpoint | None, str]:
    """A run's checkpoint of this step, or what is wrong with it."""
    path = folder / FOLDER / f"{_PREFIX}{step:08d}"
    try:
        return _open(path), ""
    except DamagedCheckpoint as error:
        return None, f"checkpoint {str(path)!r} is damaged: {error}"


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raises `ConfigError`, with the names of what differs, where a run is not the one that wrote the checkpoint."""
    now = json.loads(json.dumps(dict(identity)))
    then = checkpoint.identity
    changed = [
        f"{name} was {shorten(then.get(name))}, is {shorten(now.get(name))}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"checkpoint {str(checkpoint.path)!r} is of another run: {'; '.join(changed)}; "
            "give the same options to go on, or another --output to begin anew"
        )


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, world: World = ALONE) -> None:
    """Puts weights, optimizer and generators into the state of the checkpoint."""
    restore_weights(checkpoint, model)
    weights = trainable(model)
    states: dict[int, dict[str, Any]] = {}
    numbers = {name: number for number, name in enumerate(_names(optimizer, weights))}
    for key, value in load_file(checkpoint.path / _OPTIMIZER).items():
        kind, _, name = key.partition(":")
        like = weights[name]
        found = share_of(value, like) if value.shape == like.shape else value
        is_number = value.dim() == 0 and not value.is_floating_point()
        states.setdefault(numbers[name], {})[kind] = value.item() if is_number else found
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    generators = load_file(checkpoint.path / _RANDOM)
    if (own := generators.get(_generator("cpu", world.rank))) is not None:
        torch.set_rng_state(own)
    if world.size > 1:
        if (own := generators.get(_generator("cuda", world.rank))) is not None and world.device.type == "cuda":
            torch.cuda.set_rng_state(own, world.device)
    elif sum(name.startswith("cuda") for name in generators) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generators[f"cuda:{index}"] for index in range(torch.cuda.device_count())])


def restore_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Gives what is trained of the model the weights of the checkpoint."""
    weights = trainable(model)
    saved = load_file(checkpoint.path / _WEIGHTS)
    if {name: weight.shape for name, weight in weights.items()} != {name: w.shape for name, w in saved.items()}:
        raise ConfigError(f"checkpoint {str(checkpoint.path)!r} holds other weights than this model trains")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(share_of(saved[name], weight))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name; tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder for this process; raises `RunError` where another one has it. Ends with the process."""
    if sys.platform == "win32":  # no flock there
        yield
        return
    import fcntl

    try:
        handle = (folder / ".lock").open("a+")
    except OSError as error:
        raise ConfigError(f"output {str(folder)!r} cannot be written: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise RunError(f"output {str(folder)!r} is in use by another process (pid {holder})") from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def sync(folder: Path, *, deep: bool = True) -> None:
    """Brings a folder's list of names to the disk, and with `deep` the files and folders in it too."""
    for path in folder.iterdir() if deep else ():
        if path.is_dir():
            sync(path)
        else:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    if sys.platform != "win32":  # which cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _list(folder: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    return sorted((folder / FOLDER).glob(f"{_PREFIX}[0-9]*"), key=_step, reverse=True)


def _step(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdigit() else -1


def _open(path: Path) -> Checkpoint:
    """Checks every file against the manifest; nothing is loaded before all of them agree."""
    manifest = _read_json(path / _MANIFEST)
    for name in _FILES:
        expected = manifest.get(name)
        if not (path / name).is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        size = (path / name).stat().st_size
        if not isinstance(expected, dict) or size != expected.get("size"):
            raise DamagedCheckpoint(f"{name} has {size} bytes; the manifest says {shorten(expected)}")
        if _fingerprint(path / name) != expected:
            raise DamagedCheckpoint(f"{name} has another sha256 than the manifest says")
    state = _read_json(path / _STATE)
    return Checkpoint(path=path, step=state["step"], identity=state["identity"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DamagedCheckpoint(f"{path.name} holds no object")
    return value


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _names(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> list[str]:
    """The weights' names in the order in which the optimizer numbers them."""
    names = {id(weight): name for name, weight in weights.items()}
    return [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]


def _optimizer_state(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What it keeps of each weight; counts that are numbers of Python become tensors without dimensions."""
    found: dict[str, Tensor] = {}
    addresses = set()
    for name, weight in weights.items():
        for kind, value in optimizer.state.get(weight, {}).items():
            tensor = whole(value).contiguous() if isinstance(value, Tensor) else torch.tensor(value)
            # Tables that all weights look up are one tensor, which safetensors would not write twice.
            found[f"{kind}:{name}"] = tensor.clone() if tensor.data_ptr() in addresses else tensor
            addresses.add(tensor.data_ptr())
    return found


def _random_state(world: World) -> dict[str, Tensor]:
    """The generators of every process."""
    states = {_generator("cpu", rank): state for rank, state in enumerate(world.gather(torch.get_rng_state()))}
    if world.size > 1 and world.device.type == "cuda":
        own = torch.cuda.get_rng_state(world.device)
        states |= {_generator("cuda", rank): state for rank, state in enumerate(world.gather(own))}
    elif torch.cuda.is_available() and world.size == 1:
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _generator(kind: str, rank: int) -> str:
    """The name of a process's generator; the first one's is that of a run of one process."""
    return f"{kind}:{rank}" if rank or kind == "cuda" else kind
