"""Problems with a run's folder, disk or environment end in a clear error, and damage no existing file."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from testkit.processes import together
from testkit.tiny_model import tiny_folder

import templatekit
from templatekit.errors import ConfigError, RunError
from templatekit.training.checkpoint import newest_checkpoint
from templatekit.training.distributed import TrainingGroup

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(12)]
Finetune = Callable[..., templatekit.Run]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    folder = tmp_path_factory.mktemp("place")
    tiny_folder(folder / "model")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return folder


@pytest.fixture
def finetune(place: Path, tmp_path: Path) -> Finetune:
    """Run a few steps; the output is `tmp_path / "run"` by default."""

    def finetune(**options: Any) -> templatekit.Run:
        given = {
            "dataset": str(place / "rows.json"), "model": str(place / "model"), "template": "chatml",
            "output": tmp_path / "run", "batch_size": 2, "epochs": 1, "samples": 0, "lora": False, "precision": "fp32",
            "save_every": 2, **options,
        }  # fmt: skip
        return templatekit.finetune(given)

    return finetune


def test_an_output_that_is_a_file_or_cannot_be_made(finetune: Finetune, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        finetune()
    with pytest.raises(ConfigError, match="cannot be made: "):
        finetune(output=tmp_path / "run" / "deeper")
    with pytest.raises(ConfigError, match="cannot be made: "):
        finetune(output=Path("/proc/no/such/place"))
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(finetune: Finetune, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        finetune()


def test_a_run_in_another_process_is_left_alone(finetune: Finetune, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("4711\n")
        handle.flush()
        with pytest.raises(RunError, match=r"is in use by another process \(pid 4711\)"):
            finetune()
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(finetune: Finetune, tmp_path: Path) -> None:
    """From some step on, no file may grow past a few bytes: a real error of the system, not a simulated one."""
    whole = finetune(output=tmp_path / "whole")

    def action(world: TrainingGroup) -> None:
        loop: Any = import_module("templatekit.training.loop")

        step = loop.train_step
        done = [0]

        def filling(*arguments: Any, **more: Any) -> Any:
            done[0] += 1
            if done[0] == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            return step(*arguments, **more)

        loop.train_step = filling
        finetune()

    (outcome,) = together(1, action)
    assert "RunError: checkpoint of step 4 cannot be written to" in str(outcome.error)
    assert "make room there; --resume goes on from the checkpoint before" in str(outcome.error)
    found, damaged = newest_checkpoint(tmp_path / "run")
    assert found is not None
    assert (found.step, damaged) == (2, [])
    again = finetune(resume=True)
    assert again.eval_after == whole.eval_after
    assert _losses(again.folder) == _losses(whole.folder)


def _losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line.get("loss", line.get("eval_loss")) for line in lines]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_leaves(finetune: Finetune, tmp_path: Path, number: int) -> None:
    def action(world: TrainingGroup) -> None:
        loop: Any = import_module("templatekit.training.loop")

        step = loop.train_step

        def signalled(*arguments: Any, **more: Any) -> Any:
            os.kill(os.getpid(), number)
            return step(*arguments, **more)

        loop.train_step = signalled
        finetune(save_every=None)

    (outcome,) = together(1, action)
    assert "stopped and saved after step 1 of 6; --resume goes on from it" in str(outcome.error)
    found, _ = newest_checkpoint(tmp_path / "run")
    assert found is not None
    assert found.step == 1
    finetune(resume=True, save_every=None)


def test_files_of_a_run_that_are_damaged(finetune: Finetune, tmp_path: Path) -> None:
    """The files that a resumed run reads besides its checkpoints."""
    whole = finetune(samples=1, max_new_tokens=2)
    folder = tmp_path / "run"
    expected = _losses(folder)
    (folder / "samples.json").write_text('[{"prompt": "W', encoding="utf-8")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "lo')
    (folder / "recipe.yaml").write_text("{", encoding="utf-8")
    again = finetune(samples=1, max_new_tokens=2, resume=True)
    assert again.eval_after == whole.eval_after
    assert _losses(folder) == expected
    assert json.loads((folder / "samples.json").read_text(encoding="utf-8"))[0]["prompt"]


@pytest.mark.slow
def test_no_terminal_no_locale_and_a_long_foreign_path(place: Path, tmp_path: Path) -> None:
    """As a process: paths may hold what LANG=C cannot print."""
    folder = tmp_path / ("Läufe-实验-" + "x" * 150) / ("y" * 200)
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable, "-m", "templatekit", "finetune", "--dataset", str(place / "rows.json"), "--template", "chatml",
        "--model", str(place / "model"), "--output", str(folder), "--max-steps", "1", "--samples", "1",
        "--max-new-tokens", "2", "--precision", "fp32",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "model.safetensors").is_file()
    assert b"Traceback" not in done.stderr


def test_a_second_signal_leaves_at_once(finetune: Finetune, tmp_path: Path) -> None:
    def action(world: TrainingGroup) -> None:
        loop: Any = import_module("templatekit.training.loop")

        def stuck(*arguments: Any, **more: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

        loop.train_step = stuck
        finetune()

    began = time.monotonic()
    (outcome,) = together(1, action)
    assert outcome.exitcode == -signal.SIGTERM
    assert time.monotonic() - began < 25
    assert not (tmp_path / "run" / "checkpoints").exists()
