"""Help, mistakes, exit codes and locales of the command line. Every error is one line, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from testkit.command_line import Templatekit

HELP = """\
Usage: templatekit [OPTIONS] COMMAND [ARGS]...

  Turn data into training examples, and train on them.

  Adapters read records of any format, templates render them, and the loss covers exactly the text that you choose.

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Commands:
"""
COMMANDS = {
    "render": ["--dataset", "--adapter", "--columns", "--template", "--tokenizer", "--output", "--format", "--json"],
    "preview": ["--row", "--limit", "--train-on", "--plugin-dir"],
    "audit": ["--dataset", "--against", "--fail-on", "--html", "--json"],
    "check": ["--tokenizer", "--examples", "--seed", "--time-budget", "--json"],
    "finetune": ["--model", "--lora", "--config", "--set", "--resume"],
    "generate": ["--instruction", "--max-new-tokens"],
    "parse": ["--dataset", "--template", "--tokenizer", "--output", "--show-grammar", "--json"],
    "cache": ["list", "clear"],
    "new": ["{adapter|template|plugin}", "--directory"],
    "adapters": ["list", "show"],
    "templates": ["list", "show", "export"],
    "plugins": ["list", "show"],
}


# Help


def test_the_overview(templatekit: Templatekit) -> None:
    result = templatekit("--help", env={"COLUMNS": "120"})
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(HELP)
    assert [line.split()[0] for line in result.out.removeprefix(HELP).splitlines()] == list(COMMANDS)
    assert templatekit("-h", env={"COLUMNS": "120"}).out == result.out


def test_no_arguments_print_the_help_and_fail(templatekit: Templatekit) -> None:
    result = templatekit()
    assert (result.code, result.out) == (2, "")
    assert result.err == templatekit("--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, templatekit: Templatekit) -> None:
    result = templatekit(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: templatekit {command} ")
    for word in COMMANDS[command]:
        assert word in result.out, word
        if word in ("list", "show", "export"):
            below = templatekit(command, word, "--help")
            assert below.code == 0
            assert command == "cache" or "--plugin-dir" in below.out
            assert word == "export" or "--json" in below.out


def test_the_version(templatekit: Templatekit) -> None:
    from templatekit import __version__

    assert templatekit("--version").out == f"templatekit, version {__version__}\n"


def test_the_module_is_the_command(templatekit: Templatekit, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "templatekit", "--help"], cwd=tmp_path, env={**os.environ, "COLUMNS": "100"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == templatekit("--help").out


def test_help_is_fast_and_imports_little(tmp_path: Path, templatekit: Templatekit) -> None:
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        templatekit("--help")
        taken.append(time.perf_counter() - started)
    # It takes 0.08 s on an idle machine; 0.3 s is promised, and the rest is for busy machines.
    assert min(taken) < 1, taken
    code = """
import sys
from templatekit.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "transformers", "datasets", "tokenizers", "pyarrow", "numpy", "pydantic", "jinja2", "rich", "yaml"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(("command", "loaded"), [("listing", False), ("render", True)])
def test_lists_do_not_load_the_pipeline(command: str, loaded: bool) -> None:
    code = f"import sys, templatekit.cli.{command}; print('templatekit.pipeline.pipeline' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(loaded)]


# Mistakes


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("rendr", "no command named 'rendr'; did you mean 'render'?; see templatekit --help"),
        ("xyz", None),
        ("adapters sho", "no command named 'sho'; did you mean 'show'?; see templatekit adapters --help"),
        ("adapters show", "Missing argument 'NAME'; see templatekit adapters show --help"),
        ("adapters list more", "Got unexpected extra argument (more); see templatekit adapters list --help"),
        ("render more", "Got unexpected extra argument (more); see templatekit render --help"),
        ("render --datset x", "--dataset"),
        ("render --dataset", "Option '--dataset' requires an argument; see templatekit"),
        ("adapters --jsn", "--json"),
        ("adapters show alpcaa", "no adapter named 'alpcaa'; did you mean 'alpaca'?"),
        ("templates show chatnl", "no template named 'chatnl'; did you mean 'chatml'?"),
        ("plugins show alpcaa", "no plugin named 'alpcaa'; did you mean 'alpaca'?"),
        ("render --adapter dollie", "no adapter named 'dollie'; did you mean 'dolly'?"),
        ("render --template lama3", "no template named 'lama3'; did you mean 'llama3' or 'llama2'?"),
        ("render --format parqet", "no format named 'parqet'; did you mean 'parquet'?"),
        ("render --format xyz", "no format named 'xyz'; known: arrow, axolotl, datasets, jsonl, "),
        ("render --dataset startr", "starter"),
        ("render --template no/such.jinja", "no/such.jinja"),
        ("render --tokenizer no/such/folder", "no/such/folder"),
        ("render --plugin-dir no/such", "plugin folder 'no/such' cannot be read: No such file or directory"),
        ("preview --row 389", "--row 389: the data set ends before it; found 389 rows, 0 to 388"),
        ("preview --row 5000", "--row 5000: the data set ends before it; found 389 rows, 0 to 388"),
        ("preview --row -1", "Invalid value for '--row': -1 is not in the range x>=0; see templatekit preview --help"),
        ("finetune --set lr", "--set: expected key=value; found 'lr'"),
        ("finetune --config no.yaml", "recipe 'no.yaml' cannot be read"),
        ("generate", "Missing option '--instruction'; see templatekit generate --help"),
    ],
)
def test_mistakes_exit_2_with_one_line(command: str, message: str | None, templatekit: Templatekit) -> None:
    result = templatekit(*command.split())
    assert (result.code, result.out) == (2, "")
    (line,) = result.lines
    assert line.startswith("Error: ")
    assert message is None or message in line


@pytest.mark.parametrize("shown", ["", "1"])
def test_python_s_traceback_comes_on_request(shown: str, templatekit: Templatekit) -> None:
    result = templatekit("render", "--adapter", "dollie", env={"TEMPLATEKIT_TRACEBACK": shown})
    assert result.code == 2
    assert result.lines[-1].startswith("Error: no adapter named 'dollie'")
    assert ("Traceback" in result.err) == bool(shown)


def test_an_error_of_ours_is_one_line_too(templatekit: Templatekit, tmp_path: Path) -> None:
    # Errors that no check expects: here a plugin's source breaks a rule of the interpreter.
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "odd.py").write_text("""
from templatekit import Adapter, hookimpl

class Odd(Adapter):
    name = "odd"

    @property
    def description(self):
        raise RuntimeError("first line\\nsecond line")

    def to_example(self, record):
        return None

@hookimpl
def templatekit_adapters():
    return [Odd()]
""")
    result = templatekit("adapters", "--plugin-dir", "plugins")
    assert (result.code, result.lines) == (
        1,
        [
            "Error: unexpected RuntimeError: first line second line; please report this; TEMPLATEKIT_TRACEBACK=1 shows "
            "where it happened"
        ],
    )


# Plugins that fail are reported once, and the rest works


def test_a_broken_plugin_is_reported_and_the_rest_works(templatekit: Templatekit, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "lacking.py").write_text("import no_such_thing")
    (tmp_path / "plugins" / "leaving.py").write_text("import sys; sys.exit(7)")
    (tmp_path / "plugins" / "later.py").write_text(
        "import templatekit\n@templatekit.hookimpl\ndef templatekit_sources(): 1 / 0\n"
    )
    warnings = [
        "Warning: plugin 'lacking' (plugins/lacking.py) was left out: importing it raised ModuleNotFoundError: "
        "No module named 'no_such_thing'",
        "Warning: plugin 'leaving' (plugins/leaving.py) was left out: importing it raised SystemExit: 7",
        "Warning: plugin 'later' (plugins/later.py) was left out: templatekit_sources raised ZeroDivisionError: "
        "division by zero",
    ]
    result = templatekit("render", "--limit", "1", "--plugin-dir", "plugins")
    assert result.code == 0
    assert json.loads(result.out)["row"] == 0
    assert [line for line in result.lines if line.startswith("Warning")] == warnings
    named = templatekit("render", "--adapter", "lacking", env={"TEMPLATEKIT_PLUGIN_DIR": str(tmp_path / "plugins")})
    assert named.code == 2
    assert "no adapter named 'lacking'" in named.lines[-1]
    assert "No module named 'no_such_thing'" in named.lines[-1]
    shown = templatekit("plugins", "show", "lacking", "--plugin-dir", "plugins")
    assert shown.code == 0
    assert "importing it raised ModuleNotFoundError" in shown.out


def test_environment_variables_are_read(templatekit: Templatekit, tmp_path: Path) -> None:
    result = templatekit("plugins", env={"TEMPLATEKIT_PLUGINS": "no-such"})
    assert result.code == 2
    assert "no installed plugin named 'no-such'" in result.err
    assert templatekit("plugins", env={"TEMPLATEKIT_PLUGINS": "none"}).code == 0


# Locales


@pytest.mark.parametrize(
    "env",
    [
        {"LANG": "C", "LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1:strict"},
    ],
)
def test_no_locale_breaks_text(env: dict[str, str], templatekit: Templatekit, tmp_path: Path) -> None:
    (tmp_path / "größe.jsonl").write_text(
        '{"instruction": "Grüß 👋", "output": "語"}\n{"instruction": "ß"}\n', encoding="utf-8"
    )
    (tmp_path / "vorlage.jinja").write_text("Ä {{ instruction }}{{ context }} → {{ response }}", encoding="utf-8")
    options = ["--template", "vorlage.jinja", "--on-error", "skip"]
    result = templatekit("render", "--dataset", "größe.jsonl", *options, env=env)
    assert result.code == 0
    assert json.loads(result.out)["text"] == "Ä Grüß 👋 → 語"
    assert "größe.jsonl:1:output: missing" in result.err or "gr\\udcc3\\udcb6\\udcc3\\udc9fe.jsonl:1" in result.err
    result = templatekit("preview", "--dataset", "größe.jsonl", *options, env=env)
    assert "Ä Grüß 👋 → ⟦語⟧" in result.out


def test_a_path_that_is_not_valid_text(templatekit: Templatekit) -> None:
    result = templatekit("render", "--dataset", os.fsdecode(b"caf\xe9.jsonl"))
    assert (result.code, len(result.lines)) == (2, 1)
    assert "caf\\udce9.jsonl" in result.err
