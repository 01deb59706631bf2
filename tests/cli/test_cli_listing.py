"""`templatekit adapters|templates|plugins`, with `list` and `show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testkit.command_line import Templatekit

import templatekit as package

BUILT_IN = f"templatekit {package.__version__}"

QA = """\
{#- templatekit
description: Questions and answers.
stop: ["###"]
#}
Q: {{ instruction }}{% if context %} ({{ context }}){% endif %}

A:{{ response }}###
"""
SHOWN = """\
name: qa
file: plugins/qa.jinja
plugin: plugins/*.jinja (plugins)
description: Questions and answers.
turns: one
stop: ###
variables: context, instruction, response
source:
{#- templatekit
description: Questions and answers.
stop: ["###"]
#}
Q: {{ instruction }}{% if context %} ({{ context }}){% endif %}

A:{{ response }}###

example:
Q: Name the capital. (Country: France)
A:⟦Paris.###⟧

"""


@pytest.fixture
def plugins(tmp_path: Path) -> list[str]:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "qa.jinja").write_text(QA)
    return ["--plugin-dir", "plugins"]


def test_adapters_are_listed(templatekit: Templatekit) -> None:
    result = templatekit("adapters", "list")
    assert (result.code, result.err) == (0, "")
    rows = [line.split("  ")[0] for line in result.out.splitlines()]
    assert rows == sorted(rows)
    assert {"alpaca", "dolly", "messages", "prompt-completion", "sharegpt"} <= set(rows)
    assert all(line.endswith(f"({BUILT_IN})") for line in result.out.splitlines())
    alpaca = result.out.splitlines()[0]
    assert " ".join(alpaca.split()) == (
        f"alpaca instruction, optional input, output (or response, or instances[0]) alpaca ({BUILT_IN})"
    )


@pytest.mark.parametrize("group", ["adapters", "templates", "plugins"])
def test_a_group_without_a_command_lists(group: str, templatekit: Templatekit, plugins: list[str]) -> None:
    listed = templatekit(group, "list")
    assert listed.out.count("\n") > 4
    assert templatekit(group).out == listed.out
    assert templatekit(group, "--json").out == templatekit(group, "list", "--json").out
    assert templatekit(group, *plugins).out == templatekit(group, "list", *plugins).out
    names = [row["name"] for row in json.loads(templatekit(group, "--json").out)]
    assert names == [line.split("  ")[0].strip() for line in listed.out.splitlines()]


def test_an_adapter_is_shown(templatekit: Templatekit) -> None:
    result = templatekit("adapters", "show", "dolly")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "name: dolly\n"
        f"plugin: dolly ({BUILT_IN})\n"
        "description: Reads `instruction`, `context` (may be missing, null or empty) and `response`; "
        "`category` becomes metadata.\n"
        "keys: instruction, context, response, category\n"
        "known by: instruction, response\n"
    )
    facts = json.loads(templatekit("adapters", "show", "dolly", "--json").out)
    assert facts["keys"] == ["instruction", "context", "response", "category"]


def test_a_template_is_shown_with_an_example(templatekit: Templatekit, plugins: list[str]) -> None:
    result = templatekit("templates", "show", "qa", *plugins)
    assert (result.code, result.err) == (0, "")
    assert result.out == SHOWN
    by_path = templatekit("templates", "show", "plugins/qa.jinja")
    assert by_path.out == SHOWN.replace("plugin: plugins/*.jinja (plugins)\n", "")
    facts = json.loads(templatekit("templates", "show", "qa", "--json", *plugins).out)
    assert facts["source"] == QA
    assert facts["stop"] == ["###"]


def test_every_template_can_be_shown(templatekit: Templatekit) -> None:
    for row in json.loads(templatekit("templates", "--json").out):
        result = templatekit("templates", "show", row["name"])
        assert result.code == 0
        assert "Paris.⟧" in result.out or "Paris." in result.out.split("⟦")[1]
        assert row["description"] in result.out


def test_a_broken_template_is_listed_with_its_error(
    templatekit: Templatekit, plugins: list[str], tmp_path: Path
) -> None:
    (tmp_path / "plugins" / "bad.jinja").write_text("{{ instruction }\n{{ response }}")
    result = templatekit("templates", *plugins)
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if line.startswith("bad ")]
    assert "broken: " in line
    shown = templatekit("templates", "show", "bad", *plugins)
    assert (shown.code, shown.out, len(shown.lines)) == (2, "", 1)


def test_plugins_list_their_offers(templatekit: Templatekit, plugins: list[str], tmp_path: Path) -> None:
    (tmp_path / "plugins" / "broken.py").write_text("import no_such_thing")
    (tmp_path / "plugins" / "half.py").write_text("""
import templatekit

@templatekit.hookimpl
def templatekit_templates():
    return [templatekit.TemplateFile(name="half", source="{{ instruction }}{{ context }}: {{ response }}")]

@templatekit.hookimpl
def templatekit_models():
    raise ValueError("no\\n models")
""")
    rows = {row["name"]: row for row in json.loads(templatekit("plugins", "--json", *plugins).out)}
    assert rows["alpaca"] == {"name": "alpaca", "from": BUILT_IN, "offers": ["adapter alpaca"], "failed": []}
    reason = "importing it raised ModuleNotFoundError: No module named 'no_such_thing'"
    assert rows["broken"] == {"name": "broken", "from": "plugins/broken.py", "offers": [], "failed": [reason]}
    assert rows["half"]["offers"] == ["template half"]
    assert rows["half"]["failed"] == ["templatekit_models raised ValueError: no models"]
    assert rows["plugins/*.jinja"]["offers"] == ["template qa"]

    result = templatekit("plugins", *plugins)
    assert result.code == 0
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert f"alpaca {BUILT_IN} adapter alpaca" in lines
    assert f"broken plugins/broken.py left out: {reason}" in lines
    assert "half plugins/half.py template half, left out: templatekit_models raised ValueError: no models" in lines
    assert result.lines == [
        f"Warning: plugin 'broken' (plugins/broken.py) was left out: {reason}",
        "Warning: plugin 'half' (plugins/half.py) was left out: templatekit_models raised ValueError: no models",
    ]
    assert templatekit("plugins", "show", "half", *plugins).out == (
        "name: half\nfrom: plugins/half.py\noffers: template half\n"
        "failed: templatekit_models raised ValueError: no models\n"
    )
