"""`templatekit adapters`, `templatekit templates`, `templatekit plugins`: `list` and `show`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from templatekit.cli.export import export_template
from templatekit.cli.groups import ListingGroup
from templatekit.cli.options import PLUGIN_DIR, load_registry
from templatekit.cli.terminal import print_json, say
from templatekit.errors import UnknownNameError
from templatekit.formats.lookup import find_template
from templatekit.hooks.offers import Offers
from templatekit.hooks.registry import Registry
from templatekit.types import Example, Message
from templatekit.views import to_marked, visible

_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_EXAMPLE = Example(
    messages=(
        Message(role="user", content="Name the capital.", context="Country: France"),
        Message(role="assistant", content="Paris."),
    )
)
_WITHOUT_CONTEXT = replace(
    _EXAMPLE, messages=(Message(role="user", content="Name the capital."), *_EXAMPLE.messages[1:])
)


def _print_table(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    cells = [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    """Return a value on one line. Descriptions come from plugins and may hold any text."""
    return visible(" ".join((", ".join(value) if isinstance(value, list) else str(value)).split()))


def _owner(offers: Offers[Any], name: str) -> str:
    plugin = offers.owner(name)
    return f"{plugin.name} ({plugin.origin})"


@click.group(cls=ListingGroup)
def adapters() -> None:
    """The record formats that can be read."""


@adapters.command("list")
@_JSON_OPTION
@PLUGIN_DIR
def list_adapters(as_json: bool, plugin_dirs: tuple[Path, ...]) -> None:
    """List the adapters."""
    offers = load_registry(plugin_dirs).adapters
    rows = [{"name": name, "description": offers[name].description, "plugin": _owner(offers, name)} for name in offers]
    _print_table(rows, as_json=as_json)


@adapters.command("show")
@click.argument("name")
@_JSON_OPTION
@PLUGIN_DIR
def show_adapter(name: str, as_json: bool, plugin_dirs: tuple[Path, ...]) -> None:
    """Show the keys that an adapter reads."""
    offers = load_registry(plugin_dirs).adapters
    adapter = offers[name]
    facts = {
        "name": name,
        "plugin": _owner(offers, name),
        "description": inspect.cleandoc(type(adapter).__doc__ or "") or adapter.description,
        "keys": list(adapter.keys),
        "known by": list(adapter.required),
    }
    _print_fields(facts, as_json=as_json)


@click.group(cls=ListingGroup)
def templates() -> None:
    """The prompt templates."""


@templates.command("list")
@_JSON_OPTION
@PLUGIN_DIR
def list_templates(as_json: bool, plugin_dirs: tuple[Path, ...]) -> None:
    """List the templates."""
    registry = load_registry(plugin_dirs)
    rows = [
        {"name": name, "description": _description(name, registry), "plugin": _owner(registry.templates, name)}
        for name in registry.templates
    ]
    _print_table(rows, as_json=as_json)


@templates.command("show")
@click.argument("name")
@_JSON_OPTION
@PLUGIN_DIR
def show_template(name: str, as_json: bool, plugin_dirs: tuple[Path, ...]) -> None:
    """Show a template's source and an example, with ⟦ ⟧ around trained text."""
    registry = load_registry(plugin_dirs)
    template = find_template(name, registry)
    example = template.render(_EXAMPLE if template.multi_turn or "context" in template.variables else _WITHOUT_CONTEXT)
    facts = {
        "name": template.name,
        "file": template.path,
        "plugin": _owner(registry.templates, name) if name in registry.templates else None,
        "description": template.metadata.description,
        "turns": "any number" if template.multi_turn else "one",
        "stop": list(template.metadata.stop),
        "variables": sorted(template.variables),
        "source": template.original,
        "example": to_marked(example.view()),
    }
    _print_fields(facts, as_json=as_json)


templates.add_command(export_template)


@click.group(cls=ListingGroup)
def plugins() -> None:
    """The plugins and what each offers."""


@plugins.command("list")
@_JSON_OPTION
@PLUGIN_DIR
def list_plugins(as_json: bool, plugin_dirs: tuple[Path, ...]) -> None:
    """List the plugins, including those that failed to load."""
    registry = load_registry(plugin_dirs)
    rows = _plugin_rows(registry)
    _print_table(rows if as_json else [_as_table_row(row) for row in rows], as_json=as_json)


@plugins.command("show")
@click.argument("name")
@_JSON_OPTION
@PLUGIN_DIR
def show_plugin(name: str, as_json: bool, plugin_dirs: tuple[Path, ...]) -> None:
    """Show what a plugin offers."""
    rows = {row["name"]: row for row in _plugin_rows(load_registry(plugin_dirs))}
    if name not in rows:
        raise UnknownNameError("plugin", name, rows)
    _print_fields(rows[name], as_json=as_json)


def _plugin_rows(registry: Registry) -> list[dict[str, Any]]:
    """Return one row for each plugin, with its offers and failures, including plugins that failed to import."""
    offers = (registry.adapters, registry.templates, registry.sources, registry.models, registry.exporters)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for plugin in registry.plugins:
        offered = [f"{o.kind} {name}" for o in offers for name in o if o.owner(name) is plugin]
        rows[plugin.name, plugin.origin] = {"name": plugin.name, "from": plugin.origin, "offers": offered, "failed": []}
    for failure in registry.failures:
        empty: dict[str, Any] = {"name": failure.name, "from": failure.origin, "offers": [], "failed": []}
        rows.setdefault((failure.name, failure.origin), empty)["failed"].append(failure.reason)
    return list(rows.values())


def _as_table_row(row: Mapping[str, Any]) -> dict[str, str]:
    facts = [*row["offers"], *(f"left out: {reason}" for reason in row["failed"])]
    return {"name": row["name"], "from": row["from"], "offers": ", ".join(facts) or "nothing"}


def _description(name: str, registry: Registry) -> str:
    try:
        return find_template(name, registry).metadata.description
    except Exception as error:  # a broken template is listed with its error
        return f"broken: {error}"


def _print_fields(facts: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        if shown in (None, ""):
            continue
        text = str(shown).rstrip("\n")
        say(f"{key}:\n{text}\n" if "\n" in text else f"{key}: {text}")
