"""Checkpoints: written completely or not at all, verified before a run resumes from them.

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
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from templatekit.cache.atomic_files import sync_path
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.config.staging import remove_abandoned, staging_folder
from templatekit.errors import ConfigError, RunError, shorten
from templatekit.training.distributed import SINGLE_PROCESS, TrainingGroup, full_tensor, shard_like
from templatekit.training.model import trainable_parameters

CHECKPOINTS = "checkpoints"
_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"
_STATE = "state.json"
_FILES = (_WEIGHTS, _OPTIMIZER, _RANDOM, _STATE)
_MANIFEST = "manifest.json"
_PREFIX = "step-"
_CHANGEABLE_OPTIONS = {
    *("output", "resume", "report_to", "samples", "max_new_tokens"),
    *("device", "distributed", "workers", "cache", "cache_dir", "activation_checkpointing"),
    *("eval_every", "eval_limit", "save_every", "keep_checkpoints", "keep_best", "patience", "min_delta"),
}
"""Options that a resumed run may change, since no weight depends on them."""


class _Damaged(Exception):
    """A checkpoint differs from its manifest; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    """Optimizer steps done."""
    identity: Mapping[str, Any]
    """A run must have the same to resume from here: options, fingerprints of data, template, tokenizer and model."""


def run_identity(
    options: FinetuneOptions, *, bf16: bool, example_count: int, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that the weights of a run depend on. A run resumes only from a checkpoint with an equal identity."""
    return {
        **options.model_dump(mode="json", exclude=_CHANGEABLE_OPTIONS),
        "precision": "bf16" if bf16 else "fp32",
        "training examples": example_count,
        **fingerprints,
    }


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
    group: TrainingGroup = SINGLE_PROCESS,
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
    if group.is_main:
        for path in [path for path in _checkpoint_folders(folder) if _step(path) <= step][keep:]:
            if _step(path) != best:
                shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, step: int, tensors: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
    target = _folder_of(folder, step)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)  # also of other steps
        with staging_folder(target, remove_others=False) as staging:
            for name, values in tensors.items():
                save_file(values, staging / name)
            _write_json(staging / _STATE, state)
            _write_json(staging / _MANIFEST, {name: _manifest_entry(staging / name) for name in _FILES})
            fsync_folder(staging)
            if target.exists():  # a damaged checkpoint: the run resumed from an earlier step
                shutil.rmtree(target)
            staging.rename(target)
        sync_path(target.parent)
    except (OSError, SafetensorError) as error:
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
        except _Damaged as error:
            damaged.append(f"checkpoint {str(path)!r} is damaged and left out: {error}")
    return None, damaged


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


def checkpoint_to_resume(
    folder: Path, identity: Mapping[str, Any], *, resume: bool, warn: Callable[[str], None]
) -> Checkpoint | None:
    """The newest checkpoint that is not damaged, to be restored; None for a run that starts anew.

    Raises `ConfigError` for a checkpoint of another run, and without `resume` for any checkpoint in the folder;
    `RunError` where all checkpoints are damaged.
    """
    if not resume:
        if has_checkpoints(folder):
            raise ConfigError(f"output {str(folder)!r} holds checkpoints of a run; use --resume or another --output")
        return None
    checkpoint, damaged = newest_checkpoint(folder)
    for message in damaged:
        warn(message)
    if checkpoint is None:
        if damaged:
            raise RunError(f"no checkpoint in {str(folder)!r} is whole; begin anew in another --output")
        return None
    check_identity(checkpoint, identity)
    return checkpoint


def load_best(folder: Path, model: nn.Module, step: int, warn: Callable[[str], None]) -> int | None:
    """Load the weights of an earlier step. Returns the step, or None where its checkpoint is damaged."""
    path = _folder_of(folder, step)
    try:
        _restore_weights(_verify(path), model)
    except _Damaged as error:
        warn(
            f"the best step is {step}, but checkpoint {str(path)!r} is damaged: {error}; "
            "the model keeps the last step's weights"
        )
        return None
    return step


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, group: TrainingGroup = SINGLE_PROCESS
) -> None:
    """Load the weights, the optimizer's state and the random generators' states."""
    _restore_weights(checkpoint, model)
    weights = trainable_parameters(model)
    states: dict[int, dict[str, Any]] = {}
    names = {id(weight): name for name, weight in weights.items()}
    in_order = (weight for param_group in optimizer.param_groups for weight in param_group["params"])
    indices = {names[id(weight)]: index for index, weight in enumerate(in_order)}
    for key, value in load_file(checkpoint.path / _OPTIMIZER).items():
        kind, _, name = key.partition(":")
        like = weights[name]
        state = shard_like(value, like) if value.shape == like.shape else value
        is_count = value.dim() == 0 and not value.is_floating_point()
        states.setdefault(indices[name], {})[kind] = value.item() if is_count else state
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    generators = load_file(checkpoint.path / _RANDOM)
    if (own := generators.get(_cpu_generator(group.rank))) is not None:
        torch.set_rng_state(own)
    if group.size > 1:
        if (own := generators.get(f"cuda:{group.rank}")) is not None and group.device.type == "cuda":
            torch.cuda.set_rng_state(own, group.device)
    elif sum(name.startswith("cuda") for name in generators) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generators[f"cuda:{index}"] for index in range(torch.cuda.device_count())])


def _restore_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    weights = trainable_parameters(model)
    saved = load_file(checkpoint.path / _WEIGHTS)
    if {name: weight.shape for name, weight in weights.items()} != {name: w.shape for name, w in saved.items()}:
        raise ConfigError(f"checkpoint {str(checkpoint.path)!r} holds other weights than this model trains")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(shard_like(saved[name], weight))


def fsync_folder(folder: Path) -> None:
    """Sync a folder, with all files and folders in it, to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync_path(path)


def _folder_of(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / f"{_PREFIX}{step:08d}"


def _checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    return sorted((folder / CHECKPOINTS).glob(f"{_PREFIX}[0-9]*"), key=_step, reverse=True)


def _step(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdigit() else -1


def _verify(path: Path) -> Checkpoint:
    """Check every file against the manifest; nothing is loaded before all of them agree."""
    for name in (_MANIFEST, *_FILES):
        if not (path / name).is_file():
            raise _Damaged(f"{name} is missing")
    manifest = _read_object(path / _MANIFEST)
    for name in _FILES:
        size, expected = (path / name).stat().st_size, manifest.get(name)
        if not isinstance(expected, dict) or size != expected.get("size"):  # before gigabytes are hashed
            raise _Damaged(f"{name} has {size} bytes; the manifest says {shorten(expected)}")
        if _manifest_entry(path / name) != expected:
            raise _Damaged(f"{name} has another sha256 than the manifest says")
    state = _read_object(path / _STATE)
    step, identity = state.get("step"), state.get("identity")
    if step != _step(path):  # its hashes are right under any name
        raise _Damaged(f"{_STATE} is of step {shorten(step)}")
    if not isinstance(identity, dict):
        raise _Damaged(f"{_STATE} does not say of which run it is")
    return Checkpoint(path=path, step=_step(path), identity=identity)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _Damaged(f"{path.name} cannot be read: {error}") from error


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _manifest_entry(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


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


def _random_state(group: TrainingGroup) -> dict[str, Tensor]:
    """The states of the random generators of every process."""
    cpu = group.all_gather(torch.get_rng_state())
    cuda: list[Tensor] = []
    if group.size == 1:
        cuda = torch.cuda.get_rng_state_all()
    elif group.device.type == "cuda":
        cuda = group.all_gather(torch.cuda.get_rng_state(group.device))
    states = {_cpu_generator(rank): state for rank, state in enumerate(cpu)}
    return states | {f"cuda:{index}": state for index, state in enumerate(cuda)}


def _cpu_generator(rank: int) -> str:
    """The key of a process's generator; that of the main process is the same as in a run of one process."""
    return f"cpu:{rank}" if rank else "cpu"
