"""A process of a distributed run exits without the interpreter's teardown once its work is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = """
import atexit, os, sys
from types import SimpleNamespace

import templatekit.cli

# A stand-in for the real module, which takes a second to import with torch.
joined = sys.argv.pop(1) == "joined"
sys.modules["templatekit.training.distributed"] = SimpleNamespace(joined=lambda: joined)

class Teardown:
    def __del__(self):
        os.write(int(os.environ["NOTES"]), b"torn down\\n")

teardown = Teardown()
atexit.register(print, "handled", file=sys.stderr)
atexit.register(print, "handled")
templatekit.cli.main()
"""
RIGHT, WRONG = ("--version",), ("--nonsense",)


class Exit(NamedTuple):
    """The exit code, the output and the notes of a process."""

    code: int
    out: list[str]
    err: list[str]
    notes: str


def run_and_exit(folder: Path, kind: str, *arguments: str, stdout: int = subprocess.PIPE) -> Exit:
    """Run `templatekit ARGUMENTS` in a process that notes its teardown; `joined`: it is one of several processes."""
    notes = folder / "notes"
    with notes.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, kind, *arguments],
            env={**os.environ, "NOTES": str(file.fileno()), "PYTHONUNBUFFERED": ""},
            pass_fds=[file.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    return Exit(done.returncode, (done.stdout or "").splitlines(), done.stderr.splitlines(), notes.read_text())


@pytest.mark.parametrize(("arguments", "code"), [(RIGHT, 0), (WRONG, 2)])
def test_one_of_several_processes_skips_the_teardown(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    joined = run_and_exit(tmp_path, "joined", *arguments)
    assert joined.code == code
    assert joined.out[-1] == joined.err[-1] == "handled", "the exit handlers have run, and what they wrote is out"
    assert joined.notes == ""
    alone = run_and_exit(tmp_path, "alone", *arguments)  # the negative control, which otherwise does the same
    assert alone == joined._replace(notes="torn down\n")


def test_the_exit_code_stays_if_the_pipe_is_closed(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        joined = run_and_exit(tmp_path, "joined", *WRONG, stdout=writer)
        alone = run_and_exit(tmp_path, "alone", *WRONG, stdout=writer)
    finally:
        os.close(writer)
    assert (joined.code, joined.err[-1]) == (2, "handled")
    assert alone.code == 120, "Python's own exit code is about the output, not about the command"
