"""The reference is complete: commands are generated from the code, the rest is compared with the code.

`--update-golden` writes docs/commands.md anew.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from templatekit import Adapter, Exporter, FolderExporter, ModelResolver, RecordExporter, Source, create_registry
from templatekit.cli import cli
from templatekit.formats.metadata import TemplateMetadata
from templatekit.formats.source import CHAT_VARIABLES, COMMON_VARIABLES, INSTRUCTION_VARIABLES
from templatekit.hooks import specs as hookspecs

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMANDS = DOCS / "commands.md"
REFERENCE = (DOCS / "reference.md").read_text(encoding="utf-8")


def commands_page() -> str:
    lines = ["# Commands", "", "What `--help` says, of every command.", ""]
    for context in sorted(_commands(cli, None, "templatekit"), key=lambda context: context.command_path):
        lines += [f"## `{context.command_path}`", "", "```text", context.get_help(), "```", ""]
    return "\n".join(lines)


def _commands(command: click.Command, parent: click.Context | None, name: str) -> Iterator[click.Context]:
    settings = {**command.context_settings, "max_content_width": 100, "terminal_width": 100}
    context = click.Context(command, parent, name, **settings)  # as a run makes it, so that `-h` is inherited
    yield context
    if isinstance(command, click.Group):
        for inner_name in command.list_commands(context):
            inner = command.get_command(context, inner_name)
            assert inner is not None
            yield from _commands(inner, context, inner_name)


def section(heading: str, page: str = REFERENCE) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no heading {heading!r}"
    return found[1]


def test_every_command_stands_in_the_reference(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        COMMANDS.write_text(commands_page(), encoding="utf-8")
    assert COMMANDS.read_text(encoding="utf-8") == commands_page(), "pytest --update-golden writes it anew"


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        ("templatekit_adapters", Adapter),
        ("templatekit_templates", None),
        ("templatekit_sources", Source),
        ("templatekit_models", ModelResolver),
        ("templatekit_exporters", Exporter),
        ("templatekit_exporters", FolderExporter),
        ("templatekit_exporters", RecordExporter),
    ],
)
def test_every_hook_has_a_heading_with_its_own_arguments(hook: str, kind: type | None) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    text = section(f"### `{hook}({arguments})`")
    for name, member in vars(kind or object).items():
        if kind is not None and inspect.isfunction(member) and not name.startswith("_"):
            parameters = [parameter for parameter in inspect.signature(member).parameters if parameter != "self"]
            assert f"`{name}({', '.join(parameters)})`" in text, name


def test_no_hook_is_left_out() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("templatekit_")}
    assert set(re.findall(r"^### `(templatekit_\w+)\(", REFERENCE, re.MULTILINE)) == hooks


@pytest.mark.parametrize("name", [*INSTRUCTION_VARIABLES, *CHAT_VARIABLES, *COMMON_VARIABLES])
def test_every_template_variable_is_documented(name: str) -> None:
    assert f"`{name}`" in section("## Template variables")


@pytest.mark.parametrize("name", TemplateMetadata.model_fields)
def test_every_key_of_the_metadata_is_documented(name: str) -> None:
    assert f"| `{name}` |" in section("## The metadata comment")


def test_every_adapter_is_documented() -> None:
    registry = create_registry(select=())
    table = section("## Adapters")
    for name, adapter in registry.adapters.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert "the same" in row or all(f"`{key}`" in row for key in adapter.required), name


def test_a_section_that_is_missing_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no heading '## Nothing'"):
        section("## Nothing")
    assert "one" in section("## A", "## A\none\n### B\ntwo\n## C\nthree\n")
    assert "three" not in section("## A", "## A\none\n### B\ntwo\n## C\nthree\n")
