"""Foreign text cannot act on a terminal, whichever command prints it; data in files and pipes stays as it is."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import warnings
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.command_line import SCRIPT, InProcess, Templatekit, clean_environment
from testkit.terminals import parts_shown

import templatekit.cli
from templatekit.cli import terminal
from templatekit.cli.finetune import _print_report
from templatekit.views import visible

HOSTILE = "\x1b[31m\x07\x9b2J\u202eevil\u2066\u061c\r\x7f"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
CLI = Path(templatekit.cli.__file__).parent
ROW = {"instruction": "Hi", "output": "Hello"}

Prepare = Callable[[Path], list[str]]


def rows(folder: Path, *records: Any, name: str = "rows.jsonl") -> list[str]:
    (folder / name).write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return ["--dataset", str(folder / name)]


def unread_key(folder: Path) -> list[str]:
    return ["render", *rows(folder, {**ROW, HOSTILE: 1})]


def bad_role(folder: Path) -> list[str]:
    return ["render", *rows(folder, {"messages": [{"role": HOSTILE, "content": "x"}]})]


def refusal(folder: Path) -> list[str]:
    (folder / "r.jinja").write_text(
        "{{ instruction }}{{ raise_exception(context) if 'evil' in context else context }}{{ response }}"
    )
    return ["render", *rows(folder, {**ROW, "input": HOSTILE}), "--template", str(folder / "r.jinja")]


def column(folder: Path) -> list[str]:
    return ["render", *rows(folder, {HOSTILE: 1}), "--columns", "instruction=x"]


def file_name(folder: Path) -> list[str]:
    return ["render", *rows(folder, {"instruction": 1}, name=f"{HOSTILE}.jsonl")]


def missing_file(folder: Path) -> list[str]:
    return ["render", "--dataset", str(folder / f"{HOSTILE}.jsonl")]


def option(folder: Path) -> list[str]:
    return ["render", "--workers", HOSTILE]


def template_name(folder: Path) -> list[str]:
    return ["render", *rows(folder, ROW), "--template", HOSTILE]


def preview(folder: Path) -> list[str]:
    return ["preview", *rows(folder, {**ROW, "output": HOSTILE})]


def audit(folder: Path) -> list[str]:
    return ["audit", *rows(folder, {**ROW, HOSTILE: HOSTILE}, name=f"{HOSTILE}.jsonl")]


def audit_json(folder: Path) -> list[str]:
    return [*audit(folder), "--json"]


def listed_template(folder: Path) -> list[str]:
    (folder / "t.jinja").write_text(f"{{{{ instruction }}}}{HOSTILE}{{{{ response }}}}")
    return ["templates", "show", "t", "--plugin-dir", str(folder)]


def broken_plugin(folder: Path) -> list[str]:
    (folder / "broken.py").write_text(f"raise ValueError({HOSTILE!r})")
    return ["plugins", "list", "--plugin-dir", str(folder)]


@pytest.mark.parametrize(
    "prepare",
    [
        unread_key, bad_role, refusal, column, file_name, missing_file, option, template_name, preview, audit,
        audit_json, listed_template, broken_plugin,
    ],
)  # fmt: skip
def test_what_people_read_cannot_act_on_a_terminal(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = prepare(tmp_path)
    shown = (result := InProcess(capsys)(*args)).err + (result.out if args[0] != "render" else "")
    assert not ACTS.search(shown), shown
    assert "evil" in shown
    raw = unquoted if prepare in QUOTED else str
    for place in ("cli.terminal", "audit.text_report", "audit.findings", "audit.excerpts", "cli.listing", "views"):
        monkeypatch.setattr(f"templatekit.{place}.visible", raw)
    without = (result := InProcess(capsys)(*args)).err + (result.out if args[0] != "render" else "")
    assert ACTS.search(without), "the same check fails where nothing makes the text visible"


QUOTED = (option, template_name, missing_file)
"""Texts that these errors quote by `repr`, which already shows what acts."""


def unquoted(text: str) -> str:
    """The text without what `repr` did to it."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


def test_rendered_data_stays_as_it_is(templatekit: Templatekit, tmp_path: Path) -> None:
    address = rows(tmp_path, {**ROW, "output": HOSTILE})
    done = templatekit("render", *address, "--template", "alpaca")
    assert json.loads(done.out)["text"].endswith(HOSTILE)
    (tmp_path / "t.jinja").write_text("{{ instruction }}\u202e{{ response }}{{ '\x1b' }}")
    assert "\u202e" in templatekit("templates", "export", "t.jinja").out


@pytest.mark.parametrize("on_terminal", [False, True])
def test_data_is_made_visible_only_on_a_terminal(
    on_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `generate` prints its answer, and `templates export` its text."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: on_terminal)
    terminal.print_data(HOSTILE)
    out = capsys.readouterr().out
    assert out == (f"{visible(HOSTILE)}\n" if on_terminal else f"{HOSTILE}\n")
    assert bool(ACTS.search(out)) != on_terminal


def on_a_terminal(command: list[str], folder: Path) -> str:
    """What a command shows on a terminal that is its standard output, without the terminal's own line ends."""
    leader, follower = pytest.importorskip("pty").openpty()
    with subprocess.Popen(
        [str(SCRIPT), *command], cwd=folder, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=follower,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(follower)
        shown = b"".join(parts_shown(leader))
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("form", ["jsonl", "openai", "parquet"])
@pytest.mark.parametrize("output", [[], ["--output", "/dev/stdout"]])
def test_rows_on_a_terminal_are_safe_and_equal_when_parsed(
    form: str, output: list[str], templatekit: Templatekit, tmp_path: Path
) -> None:
    command = ["render", *rows(tmp_path, {**ROW, "output": HOSTILE + "é日本"}), "--template", "alpaca"]
    command += ["--format", form, *output]
    shown = on_a_terminal(command, tmp_path)
    assert not ACTS.search(shown)
    assert "evil" in shown
    if form == "parquet":  # nobody can read it, but it does no harm
        return
    piped = templatekit(*command).out
    assert json.loads(shown) == json.loads(piped)
    assert "é日本" in shown
    assert ACTS.search(piped), "in a pipe, the bytes stay as they are"


class Terminal(BytesIO):
    def isatty(self) -> bool:
        return True


@given(st.text(), st.lists(st.integers(0, 40)))
def test_what_a_terminal_gets_in_parts_is_the_same(text: str, cuts: list[int]) -> None:
    data = json.dumps(text, ensure_ascii=False).encode() + b"\n"
    edges = [0, *sorted(cuts), len(data)]
    shown = Terminal()
    with terminal.safe_on_terminal(shown) as file:
        for start, end in pairwise(edges):
            file.write(data[start:end])
    assert not ACTS.search(shown.getvalue().decode())
    assert json.loads(shown.getvalue()) == text
    plain = BytesIO()
    with terminal.safe_on_terminal(plain) as file:
        file.write(data)
    assert plain.getvalue() == data


def test_bytes_that_are_no_text_are_shown_as_escapes() -> None:
    shown = Terminal()
    with terminal.safe_on_terminal(shown) as file:
        file.write(b"\x1b[2J\xff\r\xe6\x97")
    assert shown.getvalue().decode() == "\u241b[2J\\xff\u240d\\xe6\\x97"


@given(st.text() | st.text(st.sampled_from(HOSTILE + '\U000e0041\ue000\u2028é👩\u200d👧 "\\')))
def test_json_keeps_its_value(text: str) -> None:
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.echo", lambda line, err: printed.append(line))
        terminal.print_json({text: text})
    assert json.loads(printed[0]) == {text: text}
    assert not ACTS.search(printed[0])


@given(st.text())
def test_visible_text_cannot_act_and_is_made_visible_once(text: str) -> None:
    shown = visible(text)
    assert not ACTS.search(shown)
    assert visible(shown) == shown
    assert shown.count("\n") == text.count("\n")


def test_ordinary_text_is_shown_as_it_is() -> None:
    for text in ("naïve 日本語 \t\n", "👩\u200d👩\u200d👧", "می\u200cخواهم", "שלום عليكم"):
        assert visible(text) == text
    assert visible("\U000e0041") == "\\U000e0041"


def test_the_samples_of_a_run_and_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    sample = SimpleNamespace(prompt=HOSTILE, reference=HOSTILE, before=HOSTILE, after=HOSTILE)
    run: Any = SimpleNamespace(
        samples=[sample], eval_before=None, eval_after=None, stopped_early=False, best_step=None, steps=1,
        cost=SimpleNamespace(line=lambda: "cost"), seconds=1.0, folder=HOSTILE,
    )  # fmt: skip
    _print_report(run)
    assert not ACTS.search(capsys.readouterr().out)
    with terminal.visible_warnings():
        assert not ACTS.search(warnings.formatwarning(HOSTILE, UserWarning, "x.py", 1, ""))
    assert ACTS.search(warnings.formatwarning(HOSTILE, UserWarning, "x.py", 1, ""))


def printing_calls(source: str) -> list[str]:
    """The calls in a module that print without `templatekit.cli.terminal`."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = map(ast.unparse, calls)
    return [name for name in names if name in ("print", "click.echo", "click.secho", "traceback.print_exc")]


def test_commands_print_in_one_way() -> None:
    found = {path.name: printing_calls(path.read_text(encoding="utf-8")) for path in CLI.glob("*.py")}
    assert {name: calls for name, calls in found.items() if calls and name != "terminal.py"} == {
        "__init__.py": ["click.echo"]  # the help of this package's own commands
    }
    assert printing_calls("import click\nclick.echo(f'{error}')") == ["click.echo"]
