"""Checkpoints: written completely or not at all, verified against a manifest before they are loaded.

```
RUN/checkpoints/step-00000040/
    weights.safetensors     the trainable parameters
    optimizer.safetensors   AdamW's state, by the names of the parameters
    random.safetensors      the states of torch's random generators
    state.json              steps done, and the identity that a resumed run must have
    manifest.json           size and sha256 of each file above
```

`save_checkpoint` writes to a staging folder, syncs it to the disk, and renames it. `newest_checkpoint` verifies every
file before one is loaded. Nothing is ever unpickled, and no file that is not listed here is opened. Of several
processes the main one writes the gathered weights: any count of processes writes the same checkpoint, and can resume
from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from templatekit.errors import ConfigError, RunError, shorten
from templatekit.training.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor, shard_like
from templatekit.training.model import trainable_parameters

CHECKPOINTS = "checkpoints"
_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"
_STATE = "state.json"
_FILES = (_WEIGHTS, _OPTIMIZER, _RANDOM, _STATE)
_MANIFEST = "manifest.json"
_STAGING = ".in-the-making"
_PREFIX = "step-"


class DamagedCheckpoint(Exception):
    """A checkpoint differs from its manifest; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    """Optimizer steps done."""
    identity: Mapping[str, Any]
    """A run must have the same to resume from here: options, fingerprints of data, template and tokenizer."""


def has_checkpoints(folder: Path) -> bool:
    """Whether a run folder holds a checkpoint, damaged or not."""
    return bool(_checkpoint_folders(folder))


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    keep: int,
    best: int | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Write the state after `step` steps, then remove all checkpoints but the `keep` newest and that of step `best`.

    Raises `RunError` where it cannot be written; the older checkpoints are then still there. Every process calls it.
    """
    weights = trainable_parameters(model)
    tensors = {
        _WEIGHTS: {name: full_tensor(weight.detach()).contiguous() for name, weight in weights.items()},
        _OPTIMIZER: _optimizer_state(optimizer, weights),
        _RANDOM: _random_state(group),
    }
    group.run_on_main(lambda: _write(folder, step, tensors, {"step": step, "identity": dict(identity)}))
    if not group.is_main:
        return
    for path in [path for path in _checkpoint_folders(folder) if _step(path) <= step][keep:]:
        if _step(path) != best:
            shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, step: int, tensors: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
    staging = folder / CHECKPOINTS / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, values in tensors.items():
            save_file(values, staging / name)
        _write_json(staging / _STATE, state)
        _write_json(staging / _MANIFEST, {name: _manifest_entry(staging / name) for name in _FILES})
        fsync_folder(staging)
        target = folder / CHECKPOINTS / f"{_PREFIX}{step:08d}"
        if target.exists():  # a damaged one: the run resumed from an earlier step
            shutil.rmtree(target)
        staging.rename(target)
        fsync_folder(folder / CHECKPOINTS, deep=False)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise RunError(
            f"checkpoint of step {step} cannot be written to {str(folder)!r}: {error}; "
            "make room there; --resume goes on from the checkpoint before"
        ) from error


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a run that passes its manifest, and a message for each newer one that does not."""
    damaged: list[str] = []
    for path in _checkpoint_folders(folder):
        try:
            return _verify(path), damaged
        except DamagedCheckpoint as error:
            damaged.append(f"checkpoint {str(path)!r} is damaged and left out: {error}")
    return None, damaged


def open_checkpoint(folder: Path, step: int) -> tuple[Checkpoint | None, str]:
    """The verified checkpoint of a step, or None with a message on what is wrong with it."""
    path = folder / CHECKPOINTS / f"{_PREFIX}{step:08d}"
    try:
        return _verify(path), ""
    except DamagedCheckpoint as error:
        return None, f"checkpoint {str(path)!r} is damaged: {error}"


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raise `ConfigError`, naming each difference, where a run is not the one that wrote the checkpoint."""
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


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, group: ProcessGroup = SINGLE_PROCESS
) -> None:
    """Load weights, optimizer state and random generators from the checkpoint."""
    restore_weights(checkpoint, model)
    weights = trainable_parameters(model)
    states: dict[int, dict[str, Any]] = {}
    indices = {name: index for index, name in enumerate(_names_in_order(optimizer, weights))}
    for key, value in load_file(checkpoint.path / _OPTIMIZER).items():
        kind, _, name = key.partition(":")
        like = weights[name]
        state = shard_like(value, like) if value.shape == like.shape else value
        is_count = value.dim() == 0 and not value.is_floating_point()
        states.setdefault(indices[name], {})[kind] = value.item() if is_count else state
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    generators = load_file(checkpoint.path / _RANDOM)
    if (own := generators.get(_generator_key("cpu", group.rank))) is not None:
        torch.set_rng_state(own)
    if group.size > 1:
        if (own := generators.get(_generator_key("cuda", group.rank))) is not None and group.device.type == "cuda":
            torch.cuda.set_rng_state(own, group.device)
    elif sum(name.startswith("cuda") for name in generators) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generators[f"cuda:{index}"] for index in range(torch.cuda.device_count())])


def restore_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load the weights of the checkpoint into the trainable parameters of the model."""
    weights = trainable_parameters(model)
    saved = load_file(checkpoint.path / _WEIGHTS)
    if {name: weight.shape for name, weight in weights.items()} != {name: w.shape for name, w in saved.items()}:
        raise ConfigError(f"checkpoint {str(checkpoint.path)!r} holds other weights than this model trains")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(shard_like(saved[name], weight))


def fsync_folder(folder: Path, *, deep: bool = True) -> None:
    """Sync a folder's directory entries to the disk, and with `deep` also the files and folders in it."""
    for path in folder.iterdir() if deep else ():
        if path.is_dir():
            fsync_folder(path)
        else:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    if sys.platform != "win32":  # which cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    return sorted((folder / CHECKPOINTS).glob(f"{_PREFIX}[0-9]*"), key=_step, reverse=True)


def _step(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdigit() else -1


def _verify(path: Path) -> Checkpoint:
    """Check every file against the manifest; nothing is loaded before all of them agree."""
    manifest = _read_json(path / _MANIFEST)
    for name in _FILES:
        expected = manifest.get(name)
        if not (path / name).is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        size = (path / name).stat().st_size
        if not isinstance(expected, dict) or size != expected.get("size"):
            raise DamagedCheckpoint(f"{name} has {size} bytes; the manifest says {shorten(expected)}")
        if _manifest_entry(path / name) != expected:
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


def _manifest_entry(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _names_in_order(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> list[str]:
    """The names of the weights in the order in which the optimizer counts them."""
    names = {id(weight): name for name, weight in weights.items()}
    return [names[id(weight)] for param_group in optimizer.param_groups for weight in param_group["params"]]


def _optimizer_state(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state of each weight, by `kind:name`. Counts that are Python numbers become 0-d tensors."""
    found: dict[str, Tensor] = {}
    addresses = set()
    for name, weight in weights.items():
        for kind, value in optimizer.state.get(weight, {}).items():
            tensor = full_tensor(value).contiguous() if isinstance(value, Tensor) else torch.tensor(value)
            # bitsandbytes has lookup tables that all weights share; safetensors refuses to write one tensor twice.
            found[f"{kind}:{name}"] = tensor.clone() if tensor.data_ptr() in addresses else tensor
            addresses.add(tensor.data_ptr())
    return found


def _random_state(group: ProcessGroup) -> dict[str, Tensor]:
    """The states of the random generators of every process."""
    states = {_generator_key("cpu", rank): state for rank, state in enumerate(group.all_gather(torch.get_rng_state()))}
    if group.size > 1 and group.device.type == "cuda":
        own = torch.cuda.get_rng_state(group.device)
        states |= {_generator_key("cuda", rank): state for rank, state in enumerate(group.all_gather(own))}
    elif torch.cuda.is_available() and group.size == 1:
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _generator_key(kind: str, rank: int) -> str:
    """The key of a process's generator; the main process has the key of a run of one process."""
    return f"{kind}:{rank}" if rank or kind == "cuda" else kind
