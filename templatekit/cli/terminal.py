"""What the commands print. Foreign text, of records, templates, plugins and file names, has no power over a terminal.

`say` prints for people, `print_json` for programs. `print_data`, and `safe_on_terminal` for rows, print what is data in
a pipe and read by people on a terminal. No command calls `click.echo` itself; `tests/cli/test_terminal.py` checks that.
"""

from __future__ import annotations

import re
import sys
import warnings
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from templatekit.views import visible

if TYPE_CHECKING:
    from typing_extensions import Buffer


def say(text: str, *, err: bool = False) -> None:
    """Print text for people, each control character visible."""
    click.echo(visible(text), err=err)


def show_status(text: str) -> None:
    """Write the text in place of a terminal's current line on standard error; an empty text clears it."""
    click.echo(f"\r\x1b[K{visible(text)}", err=True, nl=False)


def print_json(value: Any, *, err: bool = False) -> None:
    """Print a value as one line of JSON. Characters that would act on a terminal are written as JSON's escapes."""
    import json  # not for `--help`

    click.echo(_with_json_escapes(json.dumps(value, ensure_ascii=False)), err=err)


def _with_json_escapes(text: str) -> str:
    """JSON text of the same value, in which no character acts on a terminal."""
    import json  # not for `--help`

    def escape(match: re.Match[str]) -> str:
        return match[0] if visible(match[0]) == match[0] else json.dumps(match[0])[1:-1]

    return re.sub(r"[^\x00-\x7e]", escape, text)


def print_data(text: str) -> None:
    """Print text byte for byte into a file or a pipe, and as `say` does on a terminal. A newline ends it."""
    end = "" if text.endswith("\n") else "\n"
    shown = visible(text) if sys.stdout.isatty() else text
    click.echo(f"{shown}{end}", nl=False, color=True)  # without `color` click takes escape sequences out of a pipe


@contextmanager
def safe_on_terminal(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself, which takes every byte; for a terminal, one in whose place nothing written acts on it.

    JSON keeps its value there: what would act is written as JSON's escapes.
    """
    if not file.isatty():
        yield file
        return
    with _TerminalOutput(file) as shown:
        yield cast("BinaryIO", shown)


class _TerminalOutput(BufferedIOBase):
    """Writes to a terminal, which stays open. Bytes that are not text become escapes, other controls pictures."""

    def __init__(self, terminal: BinaryIO) -> None:
        self._terminal = terminal
        self._decoder = getincrementaldecoder("utf-8")(errors="backslashreplace")

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self._show(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._terminal.flush()

    def close(self) -> None:
        """Show what is left of a character that did not end."""
        if not self.closed:
            self._show(b"", final=True)
            super().close()

    def _show(self, data: Buffer, *, final: bool = False) -> None:
        text = self._decoder.decode(bytes(data), final)
        self._terminal.write(visible(_with_json_escapes(text)).encode())


@contextmanager
def visible_warnings() -> Iterator[None]:
    """Print Python's warnings, which quote errors of other packages and paths, with visible control characters."""
    original = warnings.formatwarning

    def format_visibly(*args: Any, **kwargs: Any) -> str:
        return visible(original(*args, **kwargs))

    warnings.formatwarning = format_visibly
    try:
        yield
    finally:
        warnings.formatwarning = original
