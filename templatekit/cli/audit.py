"""`templatekit audit`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from templatekit.cli.options import OVERWRITE, PLUGIN_DIR, add_options, given_options, load_registry
from templatekit.cli.output import atomic_file, file_target, may_replace
from templatekit.cli.progress import progress_bar
from templatekit.cli.terminal import print_json, say
from templatekit.config.data_options import CACHE_OPTIONS, DataOptions
from templatekit.errors import RunError
from templatekit.pipeline.inputs import read_paths

if TYPE_CHECKING:
    from templatekit.audit import Report


@click.command()
@add_options(DataOptions, only=[name for name in DataOptions.model_fields if name not in CACHE_OPTIONS])
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
    help="Which texts count as shared with --against: equal ones, or also similar ones, as in --dedup.  "
    "[default: exact]",
)
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 if there are findings of this level or above.",
)
@click.option("--ignore", "ignored", multiple=True, metavar="CODE", help="Skip a rule; may be given several times.")
@click.option(
    "--rows", type=click.IntRange(min=0), default=10, show_default=True, help="How many row numbers a finding shows."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write the report to an HTML page.")
@OVERWRITE
@PLUGIN_DIR
def audit(
    against: tuple[str, ...],
    shared: str,
    fail_on: str,
    ignored: tuple[str, ...],
    rows: int,
    as_json: bool,
    html: Path | None,
    overwrite: bool,
    plugin_dirs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Report what is wrong with a data set for an adapter, a template and a tokenizer.

    All rows are read: --on-error has no effect. No row is shortened: findings say what --truncation would do. Each
    finding has a code, a level, row numbers and one example, in which ⟦ ⟧ enclose trained text and ▶ ◀ the cause.
    """
    registry = load_registry(plugin_dirs)
    from templatekit.audit import audit as run_audit

    data_options = DataOptions.parse(given_options(options))
    replace = False
    if html is not None:
        read = read_paths(data_options, registry, against=against)
        replace = may_replace(html, read, overwrite=overwrite, option="--html")
        file_target(html, option="--html")  # before an audit that may take an hour
    # The output of plugins' print calls is not part of the report.
    with redirect_stdout(sys.stderr), progress_bar(data_options) as show_rows:
        report = run_audit(
            data_options,
            registry=registry,
            against=against,
            shared=shared,
            ignored=ignored,
            shown=rows,
            progress=show_rows,
        )
    if html is not None:
        _write_page(report, html, replace=replace)
    if as_json:
        print_json(report.as_dict())
    else:
        _print_report(report)
    if fail_on != "never" and report.at_or_above("error" if fail_on == "error" else "warning"):
        click.get_current_context().exit(1)


def _write_page(report: Report, path: Path, *, replace: bool = False) -> None:
    """Write the report as a page."""
    from templatekit.audit.html_report import to_html

    try:
        with atomic_file(path, option="--html", replace=replace) as file:
            file.write(to_html(report).encode(errors="backslashreplace"))  # a path may hold bytes that are not text
    except BrokenPipeError as error:  # the report is still to be printed: only the page has lost its reader
        raise RunError(f"--html {str(path)!r} cannot be written: {error.strerror}") from error


def _print_report(report: Report) -> None:
    from rich.console import Console

    from templatekit.audit.text_report import to_rich, to_text

    console = Console(soft_wrap=True, highlight=False)
    if console.is_terminal and console.color_system is not None and not console.no_color:
        console.print(to_rich(report), end="")
    else:
        say(to_text(report).removesuffix("\n"))
