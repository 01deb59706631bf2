"""Command-line options generated from the options of `templatekit.config`, so that names and checks are the same."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from templatekit.cli.terminal import say
from templatekit.config.options import Options
from templatekit.errors import ConfigError, shorten
from templatekit.hooks.loading import create_registry
from templatekit.hooks.offers import PluginFailure
from templatekit.hooks.registry import Registry

Command = TypeVar("Command", bound=Callable[..., Any])

PLUGIN_DIR = click.option(
    "--plugin-dir",
    "plugin_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A folder of single-file plugins and .jinja templates; may be given several times.",
)
OVERWRITE = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a file that exists; without this option it is an error or, on a terminal, a question. A file that "
    "the command reads is never replaced.",
)


def add_options(options: type[Options], *, only: Iterable[str] | None = None) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each field. Options that are not given have the value None or ()."""
    names = list(only) if only is not None else list(options.model_fields)

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _click_option(name, options.model_fields[name])(command)
        return command

    return decorate


def given_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options given on the command line, with `--columns` and `--chat-template-kwargs` parsed."""
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    if "columns" in given:
        from templatekit.sources.columns import parse_columns

        given["columns"] = parse_columns(given["columns"])
    if "chat_template_kwargs" in given:
        from templatekit.formats.kwargs import parse_kwargs

        given["chat_template_kwargs"] = parse_kwargs(given["chat_template_kwargs"])
    return given


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse `key=value`, with the value read as YAML as in a recipe."""
    from templatekit.config.strict_yaml import parse_yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set: expected key=value; found {text!r}")
    try:
        return name.strip(), parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"--set {name}: {error}") from None


def by_name(settings: Iterable[tuple[object, Any]], origin: str) -> dict[str, Any]:
    """Return the values of a recipe or of `--set` by option, spelt with `_` or `-`; each option may be there once."""
    values: dict[str, Any] = {}
    for written, value in settings:
        name = str(written).replace("-", "_")
        if name in values:
            raise ConfigError(f"{origin}: {name!r} twice, as {shorten(values[name])} and {shorten(value)}; keep one")
        values[name] = value
    return values


def load_registry(plugin_dirs: Iterable[Path]) -> Registry:
    """Create the registry, and print a line to stderr for each plugin that fails, now or when the command ends."""
    registry = create_registry(plugin_dirs=plugin_dirs)
    reported = len(registry.failures)
    _warn(registry.failures)
    # A hook is called when it is first needed, so some fail only later.
    click.get_current_context().call_on_close(lambda: _warn(registry.failures[reported:]))
    return registry


def _warn(failures: Iterable[PluginFailure]) -> None:
    for failure in failures:
        say(f"Warning: plugin {failure.name!r} ({failure.origin}) was left out: {failure.reason}", err=True)


def _click_option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    flag = f"--{name.replace('_', '-')}"
    help_text = field.description or ""
    default = field.get_default(call_default_factory=True)
    if default is not None and default not in ((), {}, ""):
        shown = f"{flag if default else flag.replace('--', '--no-')}" if isinstance(default, bool) else default
        help_text = f"{help_text}  [default: {shown}]"
    type_ = _without_none(field.annotation)
    if type_ is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
    if get_origin(type_) is Literal:
        return click.option(flag, name, type=click.Choice(get_args(type_)), default=None, help=help_text)
    if get_origin(type_) is tuple:
        return click.option(flag, name, multiple=True, help=help_text)
    if get_origin(type_) is dict:
        metavar = "FIELD=COLUMN,…" if name == "columns" else "NAME=VALUE,…"
        return click.option(flag, name, metavar=metavar, default=None, help=help_text)
    return click.option(flag, name, type=_CLICK_TYPES.get(type_, click.STRING), default=None, help=help_text)


_CLICK_TYPES: dict[Any, click.ParamType[Any]] = {
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


def _without_none(annotation: Any) -> Any:
    """Return the bare type: `int` for `Annotated[int, …] | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(member for member in get_args(annotation) if member is not type(None))
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
