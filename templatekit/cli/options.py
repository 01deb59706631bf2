"""Command-line options made from the option sets of `templatekit.config`, so that names and checks are the same."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from templatekit.config.options import Options
from templatekit.errors import ConfigError
from templatekit.hooks.offers import PluginFailure
from templatekit.hooks.registry import Registry, create_registry

Command = TypeVar("Command", bound=Callable[..., Any])

PLUGIN_DIR = click.option(
    "--plugin-dir",
    "plugin_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A folder of single-file plugins and .jinja templates; may be given several times.",
)


def option_set(options: type[Options], *, only: Iterable[str] | None = None) -> Callable[[Command], Command]:
    """A decorator that adds an option for each field; values that are not given arrive as None or ()."""
    names = list(only) if only is not None else list(options.model_fields)

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _option(name, options.model_fields[name])(command)
        return command

    return decorate


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given on the command line, with `--columns` and `--chat-template-kwargs` parsed."""
    kept = {name: value for name, value in values.items() if value is not None and value != ()}
    if "columns" in kept:
        from templatekit.sources.columns import parse_columns

        kept["columns"] = parse_columns(kept["columns"])
    if "chat_template_kwargs" in kept:
        from templatekit.formats.kwargs import parse_kwargs

        kept["chat_template_kwargs"] = parse_kwargs(kept["chat_template_kwargs"])
    return kept


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` with the value read as YAML, as in a recipe."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set: expected key=value; found {text!r}")
    try:
        return name.strip().replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: {error}") from None


def load_registry(plugin_dirs: Iterable[Path]) -> Registry:
    """The registry, with a line on stderr for each plugin that is left out: now, or when the command ends."""
    registry = create_registry(plugin_dirs=plugin_dirs)
    known = len(registry.failures)
    _warn(registry.failures)
    # Hooks are called when something of their kind is first needed, so some fail only later.
    click.get_current_context().call_on_close(lambda: _warn(registry.failures[known:]))
    return registry


def _warn(failures: Iterable[PluginFailure]) -> None:
    for failure in failures:
        click.echo(f"Warning: plugin {failure.name!r} ({failure.origin}) was left out: {failure.reason}", err=True)


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    flag = f"--{name.replace('_', '-')}"
    help_text = field.description or ""
    default = field.get_default(call_default_factory=True)
    if default is not None and default not in ((), {}, ""):
        shown = f"{flag if default else flag.replace('--', '--no-')}" if isinstance(default, bool) else default
        help_text = f"{help_text}  [default: {shown}]"
    kind = _without_none(field.annotation)
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
    if get_origin(kind) is Literal:
        return click.option(flag, name, type=click.Choice(get_args(kind)), default=None, help=help_text)
    if get_origin(kind) is tuple:
        return click.option(flag, name, multiple=True, help=help_text)
    if get_origin(kind) is dict:
        pairs = "FIELD=COLUMN,…" if name == "columns" else "NAME=VALUE,…"
        return click.option(flag, name, metavar=pairs, default=None, help=help_text)
    return click.option(flag, name, type=_CLICK_TYPES.get(kind, click.STRING), default=None, help=help_text)


_CLICK_TYPES: dict[Any, click.ParamType[Any]] = {
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


def _without_none(annotation: Any) -> Any:
    """`int` for `Annotated[int, …] | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
