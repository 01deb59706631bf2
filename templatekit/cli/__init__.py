"""The command line. A command's module is imported when the command runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

from templatekit import __version__
from templatekit.errors import TemplatekitError


class _Command(NamedTuple):
    module: str
    help: str


_COMMANDS = {
    "render": _Command("render", "Render records to text, ids and labels."),
    "preview": _Command("preview", "Show records as a template renders them, with what is trained."),
    "finetune": _Command("finetune", "Fine-tune a model; with no options the small built-in one."),
    "generate": _Command("generate", "Have a model answer, prompted by a template."),
    "adapters": _Command("listing", "List the shapes of records that can be read."),
    "templates": _Command("listing", "List the prompt templates, or show one."),
    "plugins": _Command("listing", "List the plugins and what each offers."),
}


class _LazyGroup(click.Group):
    """Imports a command's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"templatekit.cli.{_COMMANDS[cmd_name].module}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, package_name="templatekit")
def cli() -> None:
    """Turn data into training examples, and train on them.

    Adapters read records of any shape, templates render them, and the loss falls on exactly what was asked.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0 done, 1 findings or a failed run, 2 bad input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # LANG=C must not turn a text that holds more than ASCII into a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> Any:
    try:
        return cli.main(args, prog_name="templatekit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TemplatekitError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader has gone (`| head`): that is no failure; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return 130
