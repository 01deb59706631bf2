"""The command line. A command's module is imported when the command runs, so that `--help` is quick."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click

from templatekit import __version__
from templatekit.cli.groups import Group
from templatekit.errors import TemplatekitError

TRACEBACK_VARIABLE = "TEMPLATEKIT_TRACEBACK"
"""Set to have errors come with Python's traceback: for authors of plugins, and for reports of bugs."""


class _Command(NamedTuple):
    module: str
    help: str


_COMMANDS = {
    "render": _Command("render", "Render records to text, ids and labels."),
    "preview": _Command("preview", "Show records as a template renders them, with what is trained."),
    "audit": _Command("audit", "Report what is wrong with a whole data set."),
    "check": _Command("check", "Check an adapter, a template or a plugin against what formats promise."),
    "finetune": _Command("finetune", "Fine-tune a model; with no options the small built-in one."),
    "generate": _Command("generate", "Have a model answer, prompted by a template."),
    "cache": _Command("cache", "List or remove what is kept of prepared data, and of tokenizers."),
    "new": _Command("new", "Begin an adapter, a template, or a plugin of both."),
    "adapters": _Command("listing", "List the shapes of records that can be read."),
    "templates": _Command("listing", "List the prompt templates; show or export one."),
    "plugins": _Command("listing", "List the plugins and what each offers."),
}


class _LazyGroup(Group):
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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader has gone (`| head`): that is no failure. click would make it one.
            _discard_stdout()
            ctx.exit(0)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(__version__, package_name="templatekit")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Turn data into training examples, and train on them.

    Adapters read records of any shape, templates render them, and the loss falls on exactly what was asked.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that unfinished files are removed on the way out."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0 done, 1 findings or a failed run, 2 bad input, 130 interrupted."""
    if sys.stdout is None:  # closed by the caller (`>&-`)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        # LANG=C must not turn a text that holds more than ASCII into a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    code = _run(args)
    distributed = sys.modules.get("templatekit.training.distributed")
    if distributed is not None and distributed.joined():
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Ends this process, one of several, without taking Python apart.

    Threads of gloo's may still be about, which abort a process that is taken apart under them (torch 2.13): a run that
    had done all of its work would have failed.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed by whoever reads it
            stream.flush()
    os._exit(code)


def _run(args: Sequence[str] | None) -> Any:
    try:
        return cli.main(args, prog_name="templatekit", standalone_mode=False) or 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "templatekit"
        return _fail(f"{error.format_message().rstrip('.')}; see {where} --help", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except TemplatekitError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        # The training loop says what it has saved.
        click.echo(f"Interrupted{f': {error}' if str(error) else ''}.", err=True)
        return 130
    except _Terminated:
        return 128 + signal.SIGTERM
    except OSError as error:
        # What files can do is said where they are opened; what is left is mostly standard output on a full disk.
        _discard_stdout()
        return _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except Exception as error:
        hint = f"please report this; {TRACEBACK_VARIABLE}=1 shows where it happened"
        return _fail(f"unexpected {type(error).__name__}: {error}; {hint}", 1)


def _fail(message: str, code: int) -> int:
    """One line, whatever the message holds."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    click.echo(f"Error: {' '.join(line.strip() for line in message.splitlines())}", err=True)
    return code


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def _discard_stdout() -> None:
    """Sends what is still in the buffer nowhere, so that the interpreter does not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
