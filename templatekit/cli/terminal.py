"""What the commands print. Foreign text, of records, templates, plugins and file names, has no power over a terminal.

`say` prints for people, `print_json` for programs, and `print_data` what is data in a pipe and read by people on a
terminal. No command calls `click.echo` itself; `tests/cli/test_terminal.py` checks that.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from templatekit.views import visible


def say(text: str, *, err: bool = False) -> None:
    """Print text for people, each control character visible."""
    click.echo(visible(text), err=err)


def show_status(text: str) -> None:
    """Write the text in place of a terminal's current line on standard error; an empty text clears it."""
    click.echo(f"\r\x1b[K{visible(text)}", err=True, nl=False)


def print_json(value: Any, *, err: bool = False) -> None:
    """Print a value as one line of JSON. Characters that would act on a terminal are written as JSON's escapes."""
    import json  # not for `--help`

    def escape(match: re.Match[str]) -> str:
        return match[0] if visible(match[0]) == match[0] else json.dumps(match[0])[1:-1]

    click.echo(re.sub(r"[^\x00-\x7e]", escape, json.dumps(value, ensure_ascii=False)), err=err)


def print_data(text: str) -> None:
    """Print text byte for byte into a file or a pipe, and as `say` does on a terminal. A newline ends it."""
    end = "" if text.endswith("\n") else "\n"
    shown = visible(text) if sys.stdout.isatty() else text
    click.echo(f"{shown}{end}", nl=False, color=True)  # without `color` click takes escape sequences out of a pipe


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
