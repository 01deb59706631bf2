"""The command line, called in this process."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from templatekit.cli import main


class Said(NamedTuple):
    """What a command returned, and what it wrote."""

    code: object
    out: str
    err: list[str]
    """Its lines."""


class Command:
    """`command("render", "--limit", 1)` is what `templatekit render --limit 1` does."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: object) -> Said:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        captured = self._capsys.readouterr()
        return Said(ended.value.code, captured.out, captured.err.splitlines())
