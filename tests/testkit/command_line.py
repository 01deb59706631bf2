"""The command line: the installed command as a user runs it, and called in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from templatekit.cli import main

SCRIPT = Path(sys.executable).with_name("templatekit")


class Result(NamedTuple):
    """The result of a command."""

    code: object
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


class Templatekit:
    """`templatekit("render", "--limit", "1")` runs the installed script in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *args: object, env: Mapping[str, str] = {}, cwd: Path | None = None, prefix: str = "") -> Result:
        command = [str(SCRIPT), *map(str, args)]
        if prefix:  # what a shell does around the command, such as closing streams
            command = ["bash", "-c", f"{prefix.replace('COMMAND', chr(34) + '$@' + chr(34))}", "bash", *command]
        done = subprocess.run(
            command,
            cwd=cwd or self._folder,
            env=clean_environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)


def clean_environment(changes: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment of this process with `changes`, but without variables that change the output."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if (not key.startswith(("TEMPLATEKIT_", "PYTHON", "COV_", "LC_")) or key == "TEMPLATEKIT_CACHE")
        and key not in ("LANG", "NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES")
    }
    return {**kept, "COLUMNS": "100", "LANG": "C.UTF-8", "TERM": "xterm-256color", **changes}


class InProcess:
    """Runs the command line in this process, without the time to start one: for the many tests of errors."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        captured = self._capsys.readouterr()
        return Result(ended.value.code, captured.out, captured.err)
