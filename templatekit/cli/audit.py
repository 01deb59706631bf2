"""`templatekit audit`."""

from __future__ import annotations

import json
import secrets
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from templatekit.cli.options import PLUGIN_DIR, given, load_registry, option_set
from templatekit.cli.progress import progress
from templatekit.config.data_options import CACHE_OPTIONS, DataOptions
from templatekit.errors import ConfigError

if TYPE_CHECKING:
    from templatekit.audit import Report


@click.command()
@option_set(DataOptions, only=[name for name in DataOptions.model_fields if name not in CACHE_OPTIONS])
@click.option(
    "--against",
    multiple=True,
    metavar="DATASET",
    help="Another data set, such as held-out rows, that must share no row; may be given several times.",
)
@click.option(
    "--shared",
    metavar="exact|near[=0.8]",
    default="exact",
    help="What is told of as shared with --against: equal texts, or also similar ones, as --dedup has them.  "
    "[default: exact]",
)
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 where there are findings of this level or above.",
)
@click.option(
    "--ignore", "ignored", multiple=True, metavar="CODE", help="Leave a rule out; may be given several times."
)
@click.option("--rows", type=click.IntRange(min=0), default=10, show_default=True, help="Row numbers a finding shows.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as a page of its own, too.")
@PLUGIN_DIR
def audit(
    against: tuple[str, ...],
    shared: str,
    fail_on: str,
    ignored: tuple[str, ...],
    rows: int,
    as_json: bool,
    html: Path | None,
    plugin_dirs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Report what is wrong with a data set, as an adapter, a template and a tokenizer see it.

    Every row is read to its end: --on-error changes nothing here, and --truncation is only tried. Each finding has a
    code, a level, row numbers and one example, in which ⟦ ⟧ stand around what is trained and ▶ ◀ around the place that
    is meant.
    """
    registry = load_registry(plugin_dirs)
    from templatekit.audit import audit as run_it

    checked = DataOptions.parse(given(options))
    if html is not None:
        _check_page(html)
    # What a plugin prints is no part of the report.
    with redirect_stdout(sys.stderr), progress(checked) as shown:
        report = run_it(
            checked,
            registry=registry,
            against=against,
            shared=shared,
            ignored=ignored,
            shown=rows,
            progress=shown,
        )
    if html is not None:
        _write_page(report, html)
    if as_json:
        click.echo(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        _show(report)
    if fail_on != "never" and report.at_or_above("error" if fail_on == "error" else "warning"):
        click.get_current_context().exit(1)


def _check_page(path: Path) -> None:
    """Says at once, and not after an hour, that a page cannot be written."""
    try:
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ConfigError(f"--html {str(path)!r} is a folder; expected a file")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise _unwritable(path, error) from None


def _write_page(report: Report, path: Path) -> None:
    """Whole or not at all; a device or a pipe is written as it is."""
    from templatekit.audit.html_report import to_html

    page = to_html(report).encode(errors="backslashreplace")  # a path may hold bytes that are no text
    target = path if path.exists() and not path.is_file() else path.resolve()
    beside = target if target.exists() and not target.is_file() else target.with_name(f".{secrets.token_hex(4)}.html")
    try:
        beside.write_bytes(page)
        if beside is not target:
            beside.replace(target)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if beside is not target:
            beside.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"--html {str(path)!r} cannot be written: {getattr(error, 'strerror', None) or error}")


def _show(report: Report) -> None:
    from rich.console import Console

    from templatekit.audit.text_report import to_rich, to_text

    console = Console(soft_wrap=True, highlight=False)
    if console.is_terminal and console.color_system is not None and not console.no_color:
        console.print(to_rich(report), end="")
    else:
        click.echo(to_text(report), nl=False)
