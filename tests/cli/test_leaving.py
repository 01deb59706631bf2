"""A process that was one of several ends at once, when all that it had to do is done."""

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

# In the place of the module that knows, which takes torch a second to import.
joined = sys.argv.pop(1) == "joined"
sys.modules["templatekit.training.distributed"] = SimpleNamespace(joined=lambda: joined)

class Taken:
    def __del__(self):
        os.write(int(os.environ["NOTES"]), b"taken apart\\n")

taken = Taken()
atexit.register(print, "handled", file=sys.stderr)
atexit.register(print, "handled")
templatekit.cli.main()
"""
RIGHT, WRONG = ("--version",), ("--nonsense",)


class Left(NamedTuple):
    """How a process has left."""

    code: int
    out: list[str]
    err: list[str]
    notes: str


def leave(folder: Path, kind: str, *arguments: str, stdout: int = subprocess.PIPE) -> Left:
    """`templatekit ARGUMENTS`, in a process that holds an object to its end; `joined`: it was one of several."""
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
    return Left(done.returncode, (done.stdout or "").splitlines(), done.stderr.splitlines(), notes.read_text())


@pytest.mark.parametrize(("arguments", "code"), [(RIGHT, 0), (WRONG, 2)])
def test_one_of_several_processes_is_not_taken_apart(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    left = leave(tmp_path, "joined", *arguments)
    assert left.code == code
    assert left.out[-1] == left.err[-1] == "handled", "the exit handlers have run, and what they wrote is out"
    assert left.notes == ""
    alone = leave(tmp_path, "alone", *arguments)  # the negative control, which otherwise does the same
    assert alone == left._replace(notes="taken apart\n")


def test_the_code_stays_where_the_reader_has_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        left = leave(tmp_path, "joined", *WRONG, stdout=writer)
        alone = leave(tmp_path, "alone", *WRONG, stdout=writer)
    finally:
        os.close(writer)
    assert (left.code, left.err[-1]) == (2, "handled")
    assert alone.code == 120, "Python's own way tells of the output, not of the command"
