"""The command line. A command's module is imported only when the command runs, so that `--help` is fast."""

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
from templatekit.cli.groups import SuggestingGroup
from templatekit.cli.terminal import say, visible_warnings
from templatekit.errors import TemplatekitError

TRACEBACK_VARIABLE = "TEMPLATEKIT_TRACEBACK"
"""An environment variable: if it is set, errors come with Python's traceback, for plugin authors and bug reports."""


class _Command(NamedTuple):
    module: str
    help: str


_COMMANDS = {
    "render": _Command("render", "Render records to text, ids and labels."),
    "preview": _Command("preview", "Show records as a template renders them, with trained text marked."),
    "audit": _Command("audit", "Report what is wrong with a data set."),
    "check": _Command("check", "Check an adapter, a template or a plugin against what formats promise."),
    "finetune": _Command("finetune", "Fine-tune a model; by default the small built-in one."),
    "generate": _Command("generate", "Have a model answer, prompted by a template."),
    "parse": _Command("parse", "Read what a model wrote as messages: reasoning, content, tool calls."),
    "cache": _Command("cache", "List or remove cached examples and tokenizers."),
    "new": _Command("new", "Create an adapter, a template, or a plugin with both."),
    "adapters": _Command("listing", "List the record formats that can be read."),
    "templates": _Command("listing", "List the prompt templates; show or export one."),
    "plugins": _Command("listing", "List the plugins and what each offers."),
}


class _LazyCommandGroup(SuggestingGroup):
    """Imports a command's module only to run the command or to show its help."""

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
            # The reader has closed the pipe (`| head`). click would report that as a failure.
            _discard_stdout()
            ctx.exit(0)


@click.group(
    cls=_LazyCommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(__version__, package_name="templatekit")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Turn data into training examples, and train on them.

    Adapters read records of any format, templates render them, and the loss covers exactly the text that you choose.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


class _Terminated(BaseException):
    """Raised on SIGTERM, so that unfinished files are removed before the process ends."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with 0 for success, 1 for findings or a failed run, 2 for bad input, 130 if
    interrupted."""
    if sys.stdout is None:  # closed by the caller (`>&-`)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        # Under LANG=C, text with more than ASCII must not cause a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    signal.signal(signal.SIGTERM, _raise_terminated)
    with visible_warnings():
        code = _run(args)
    distributed = sys.modules.get("templatekit.training.distributed")
    if distributed is not None and distributed.joined():
        _exit_without_teardown(code)
    sys.exit(code)


def _exit_without_teardown(code: int) -> NoReturn:
    """End this process, one of several, without the interpreter's teardown.

    Threads of gloo may still run. They abort a process whose interpreter is torn down (torch 2.13), so a run that had
    finished its work would fail.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader has closed it
            stream.flush()
    os._exit(code)


def _run(args: Sequence[str] | None) -> Any:
    try:
        return cli.main(args, prog_name="templatekit", standalone_mode=False) or 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "templatekit"
        return _print_error(f"{error.format_message().rstrip('.')}; see {command} --help", error.exit_code)
    except click.ClickException as error:
        return _print_error(error.format_message(), error.exit_code)
    except TemplatekitError as error:
        return _print_error(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        # The message of the training loop says what it has saved.
        say(f"Interrupted{f': {error}' if str(error) else ''}.", err=True)
        return 130
    except _Terminated:
        return 128 + signal.SIGTERM
    except OSError as error:
        # Errors of files are reported where they are opened. This is mostly standard output on a full disk.
        _discard_stdout()
        return _print_error(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except Exception as error:
        hint = f"please report this; {TRACEBACK_VARIABLE}=1 shows where it happened"
        return _print_error(f"unexpected {type(error).__name__}: {error}; {hint}", 1)


def _print_error(message: str, code: int) -> int:
    """Print the message as one line and return the exit code."""
    if os.environ.get(TRACEBACK_VARIABLE):
        say(traceback.format_exc(), err=True)
    line = " ".join(line.strip() for line in message.split("\n"))
    say(f"Error: {line}", err=True)
    return code


def _raise_terminated(signal_number: int, frame: object) -> NoReturn:
    raise _Terminated


def _discard_stdout() -> None:
    """Send the rest of the buffer to the null device, so that the interpreter reports no error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
