"""What a killed process had begun to write is removed by the next that writes the same; what lives stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from testkit.command_line import Templatekit, clean_environment
from testkit.platforms import not_on_windows

from templatekit.config import staging as module
from templatekit.config.staging import open_regular, remove_abandoned, replace_file, staging_file, staging_folder

pytestmark = not_on_windows
Stage = Callable[[Path], AbstractContextManager[Any]]
WRITER = """
import sys, time
from pathlib import Path
from templatekit.config import staging
with getattr(staging, sys.argv[1])(Path(sys.argv[2])) as made:
    if sys.argv[1] == "staging_folder":
        (made / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""
STAGES: dict[str, Stage] = {"staging_file": staging_file, "staging_folder": staging_folder}


class Writer:
    """A process that has begun to write."""

    def __init__(self, stage: str, target: Path) -> None:
        command = [sys.executable, "-c", WRITER, stage, str(target)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment())
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "writing\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)


def begun(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(module.PREFIX))


@pytest.mark.parametrize("stage", STAGES)
def test_the_next_writer_removes_what_was_killed_and_nothing_else(stage: str, tmp_path: Path) -> None:
    target = tmp_path / "rows[1].jsonl"
    writer = Writer(stage, target)
    (alive,) = begun(tmp_path)
    try:
        with STAGES[stage](target):
            assert alive in begun(tmp_path)
            assert len(begun(tmp_path)) == 2
        assert begun(tmp_path) == [alive]
    finally:
        writer.kill()
    mine = [f".making-{name}" for name in ("rows[1].jsonl-notes", "rows1.jsonl-0123abcd", "rows[1].jsonl-0123abcd.txt")]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".making-rows[1].jsonl-01234567").symlink_to(mine[0])
    mine.append(".making-rows[1].jsonl-01234567")
    assert begun(tmp_path) == sorted([alive, *mine])
    with STAGES[stage](tmp_path / "others.jsonl"):
        assert alive in begun(tmp_path)
    with STAGES[stage](target):
        assert alive not in begun(tmp_path)
    assert begun(tmp_path) == sorted(mine)


def test_without_the_lock_a_live_writer_would_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with staging_file(tmp_path / "rows.jsonl") as first:
        monkeypatch.setattr(module, "_lock", lambda _: "held")
        remove_abandoned(tmp_path, "rows.jsonl")
        assert not first.path.exists()


@pytest.mark.parametrize(("platform", "left_open"), [("win32", 0), ("linux", 1)])
def test_windows_can_rename_a_file_that_its_writer_has_closed(
    platform: str, left_open: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows renames no open file; elsewhere the lock keeps one descriptor."""
    monkeypatch.setattr(sys, "platform", platform)
    with staging_file(tmp_path / "rows.jsonl") as made:
        made.file.close()
        found = 0
        for each in Path("/dev/fd").iterdir():
            with suppress(OSError):  # that of the listing itself
                found += os.path.samestat(os.fstat(int(each.name)), made.path.stat())
        assert found == left_open


@pytest.mark.parametrize("stage", STAGES)
def test_where_locks_do_not_work_age_decides(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_lock", lambda _: "unknown")
    target = tmp_path / "rows.jsonl"
    for name, seconds in {"01234567": 60, "89abcdef": 7200}.items():
        path = tmp_path / f".making-rows.jsonl-{name}"
        path.write_text("half") if stage == "staging_file" else path.mkdir()
        os.utime(path, (time.time() - seconds,) * 2)
    with STAGES[stage](target):
        assert ".making-rows.jsonl-01234567" in begun(tmp_path)
        assert ".making-rows.jsonl-89abcdef" not in begun(tmp_path)
    assert begun(tmp_path) == [".making-rows.jsonl-01234567"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_name_that_is_taken_for_abandoned_at_once_is_given_up(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the file and locking it, another process may lock and remove it."""
    lock = module._lock
    removed: list[str] = []

    def late(descriptor: int) -> Any:
        if not removed:
            removed.append(begun(tmp_path)[0])
            path = tmp_path / removed[0]
            path.unlink() if path.is_file() else path.rmdir()
        return lock(descriptor)

    monkeypatch.setattr(module, "_lock", late)
    with STAGES[stage](tmp_path / "rows.jsonl"):
        assert len(begun(tmp_path)) == 1
        assert begun(tmp_path) != removed


def test_an_error_leaves_nothing_and_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("n" * 255)
    replace_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new", sync=True)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    replace_file(path, b"new", sync=True)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_only_a_regular_file_of_one_name_is_opened(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("for years")
    (tmp_path / "second").hardlink_to(tmp_path / "precious")
    (tmp_path / "link").symlink_to("precious")
    (tmp_path / "nowhere").symlink_to("missing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("precious", "second", "link", "nowhere", "pipe", "folder"):
        with pytest.raises(OSError):
            open_regular(tmp_path / name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    assert (tmp_path / "precious").read_text() == "for years"
    assert not (tmp_path / "missing").exists()
    os.close(open_regular(tmp_path / "new", os.O_RDWR | os.O_CREAT))
    assert (tmp_path / "new").read_bytes() == b""


@pytest.mark.parametrize("format", ["jsonl", "datasets"])
def test_a_killed_rendering_is_swept_by_the_next(format: str, templatekit: Templatekit, tmp_path: Path) -> None:
    row = json.dumps({"instruction": "Say it.", "input": "", "output": "It."}) + "\n"
    output = tmp_path / ("out.jsonl" if format == "jsonl" else "out")
    tokenizer = ("--tokenizer", "smollm2-135m-instruct") if format == "datasets" else ()
    command = ["render", "--format", format, "--output", str(output), *tokenizer]
    script = Path(sys.executable).with_name("templatekit")
    process = subprocess.Popen([script, *command, "--dataset", "-"], stdin=subprocess.PIPE, env=clean_environment())
    assert process.stdin is not None
    process.stdin.write(row.encode() * 10)
    process.stdin.flush()
    waited = time.monotonic() + 60
    while not begun(tmp_path) and time.monotonic() < waited:
        time.sleep(0.05)
    (alive,) = begun(tmp_path)
    try:
        (tmp_path / "few.jsonl").write_text(row)
        beside = templatekit(*command, "--dataset", tmp_path / "few.jsonl")
        assert (beside.code, begun(tmp_path)) == (0, [alive]), beside.err
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert begun(tmp_path) == [alive]
    shutil.rmtree(output) if output.is_dir() else output.unlink()
    after = templatekit(*command, "--dataset", tmp_path / "few.jsonl")
    assert (after.code, begun(tmp_path)) == (0, []), after.err
