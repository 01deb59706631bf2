"""A checkpoint is complete or absent, and a damaged one is named and skipped."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from templatekit.config.staging import PREFIX
from templatekit.errors import ConfigError, RunError
from templatekit.training import checkpoint as checkpoints
from templatekit.training.checkpoint import (
    Checkpoint,
    check_identity,
    has_checkpoints,
    load_best,
    newest_checkpoint,
    restore,
    save_checkpoint,
)
from templatekit.training.run_folder import lock_run

FILES = ["manifest.json", "optimizer.safetensors", "random.safetensors", "state.json", "weights.safetensors"]
IDENTITY = {"learning_rate": 0.1, "data": "abc"}


def _trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model.get_parameter("0.bias").requires_grad_(False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def _save(folder: Path, step: int, *, keep: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, optimizer = _trained(step)
    save_checkpoint(folder, step=step, model=model, optimizer=optimizer, identity=IDENTITY, keep=keep)
    return model, optimizer


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _whole(folder: Path) -> Checkpoint:
    found, damaged = newest_checkpoint(folder)
    assert found is not None
    assert not damaged
    return found


def test_a_checkpoint_gives_back_weights_optimizer_and_generators(tmp_path: Path) -> None:
    model, optimizer = _save(tmp_path, 3)
    expected = torch.randn(4)
    found = _whole(tmp_path)
    assert (found.step, found.identity) == (3, IDENTITY)
    assert sorted(path.name for path in found.path.iterdir()) == FILES
    other, others = _trained(1, seed=9)
    other.load_state_dict({"0.bias": model.state_dict()["0.bias"]}, strict=False)  # frozen: from the model's files
    restore(found, other, others)
    assert torch.equal(torch.randn(4), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for number, state in optimizer.state_dict()["state"].items():
        for kind, value in state.items():
            assert torch.equal(value, others.state_dict()["state"][number][kind])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    assert not has_checkpoints(tmp_path)
    for step in (1, 2, 30):
        _save(tmp_path, step, keep=2)
    assert has_checkpoints(tmp_path)
    assert _names(tmp_path) == ["step-00000002", "step-00000030"]
    assert _whole(tmp_path).step == 30


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (_flip, "another sha256|cannot be read|manifest says"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 1), "the manifest says|cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "the manifest says|cannot be read"),
    "missing": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path: Path, name: str, how: str) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    damage, reason = DAMAGE[how]
    damage(tmp_path / "checkpoints" / "step-00000002" / name)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert "step-00000002" in damaged[0]
    assert any(part in damaged[0] for part in reason.split("|")), damaged[0]


def test_a_checkpoint_under_the_name_of_another_is_not_taken(tmp_path: Path) -> None:
    """Every file of it has the hash of its manifest; the best step's weights would be those of another step."""
    for step in (1, 2, 3):
        _save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000003").rename(folder / "aside")
    (folder / "step-00000002").rename(folder / "step-00000003")
    (folder / "aside").rename(folder / "step-00000002")
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert ["step-00000003" in damaged[0], "step-00000002" in damaged[1]] == [True, True]
    assert damaged[0].endswith("state.json is of step 2")
    said: list[str] = []
    assert load_best(tmp_path, _trained(0)[0], 2, said.append) is None
    assert "state.json is of step 3" in said[0]
    assert load_best(tmp_path, _trained(0)[0], 1, said.append) == 1


@pytest.mark.parametrize("state", [{}, [], {"step": 2}, {"step": 2, "identity": []}, {"step": [2], "identity": {}}])
def test_a_state_that_says_too_little_is_not_taken(state: Any, tmp_path: Path) -> None:
    """Also where its hash is that of the manifest."""
    for step in (1, 2):
        _save(tmp_path, step)
    folder = tmp_path / "checkpoints" / "step-00000002"
    text = json.dumps(state).encode()
    (folder / "state.json").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found, (damaged,) = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert "state.json " in damaged


def test_what_a_killed_run_began_to_write_is_removed(tmp_path: Path) -> None:
    """Also of a step that does not come again."""
    left = tmp_path / "checkpoints" / f"{PREFIX}step-00000009-0123abcd"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    _save(tmp_path, 1)
    assert _names(tmp_path) == ["step-00000001"]


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    _save(tmp_path, 1, keep=1)
    _save(tmp_path, 3, keep=2)
    _flip(tmp_path / "checkpoints" / "step-00000003" / "weights.safetensors")
    _save(tmp_path, 2, keep=1)
    assert _names(tmp_path) == ["step-00000002", "step-00000003"]
    _save(tmp_path, 3, keep=1)
    assert _names(tmp_path) == ["step-00000003"]
    assert _whole(tmp_path).step == 3


class _Trap:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.mkdir, ("sprung",))


def test_a_pickle_in_the_folder_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = _save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "step-00000001"
    for name in ("optimizer.pt", "pytorch_model.bin", "rng_state.pth", "weights.pkl"):
        (folder / name).write_bytes(pickle.dumps(_Trap()))
    restore(_whole(tmp_path), model, optimizer)
    # Even where it stands in a listed file's place and the manifest agrees.
    (folder / "weights.safetensors").write_bytes(pickle.dumps(_Trap()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["weights.safetensors"] = checkpoints._manifest_entry(folder / "weights.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="header"):
        restore(_whole(tmp_path), model, optimizer)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("call", ["save_file", "fsync_folder", "_write_json"])
def test_a_save_that_fails_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    _save(tmp_path, 1, keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, call, full)
    with pytest.raises(RunError, match=r"checkpoint of step 2 cannot be written.*No space left"):
        _save(tmp_path, 2, keep=1)
    assert _names(tmp_path) == ["step-00000001"]
    assert _whole(tmp_path).step == 1


def test_another_run_is_refused_by_the_names_of_what_changed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    found = _whole(tmp_path)
    check_identity(found, IDENTITY)
    with pytest.raises(ConfigError) as caught:
        check_identity(found, {"learning_rate": 0.2, "data": "abc", "template": "t"})
    assert "learning_rate was 0.1, is 0.2; template was None, is 't'" in str(caught.value)
    assert "data" not in str(caught.value).replace("another", "").split(":")[-1].split("; give")[0]


def test_other_weights_are_refused(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    model = nn.Linear(3, 4)
    with pytest.raises(ConfigError, match="other weights than this model trains"):
        restore(_whole(tmp_path), model, torch.optim.AdamW(model.parameters()))


def test_one_process_holds_a_run(tmp_path: Path) -> None:
    with lock_run(tmp_path):  # a lock belongs to an open file, so a second one of this process is as foreign as any
        with pytest.raises(RunError, match=rf"in use by another process \(pid {os.getpid()}\)"), lock_run(tmp_path):
            pass
        with pytest.raises(RunError, match=rf"pid {os.getpid()}"), lock_run(tmp_path):
            pass
    with lock_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"), lock_run(tmp_path):
        pass
