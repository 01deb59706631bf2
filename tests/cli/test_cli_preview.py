"""`templatekit preview`, and `render` on a terminal: coloured text on a terminal, marks elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import pytest
from testkit.command_line import Templatekit
from testkit.terminals import parts_shown

TEMPLATE = "Q: {{ instruction }}{{ context }}\nA:{{ response }}{{ eos_token }}"


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    rows = [{"instruction": f"say {row}", "output": f"it is {row}"} for row in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "qa.jinja").write_text(TEMPLATE)
    return ["--dataset", "rows.json", "--template", "qa.jinja"]


def on_terminal(*args: str, cwd: Path, env: Mapping[str, str] = {}) -> str:
    """Return the output of a command on a terminal of 60 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    script = Path(sys.executable).with_name("templatekit")
    process = subprocess.Popen(
        [script, *args], cwd=cwd, env={**kept, "TERM": "xterm-256color", **env}, stdin=follower, stdout=follower,
        stderr=subprocess.PIPE, close_fds=True,
    )  # fmt: skip
    os.close(follower)
    output = b"".join(parts_shown(leader))
    process.communicate(timeout=30)
    assert process.returncode == 0
    return output.decode().replace("\r\n", "\n")


DIM, CYAN, GREEN = "\x1b[2m", "\x1b[36m", "\x1b[1;32m"
END = "\x1b[0m"
LEGEND = f"{DIM}template{END}  {CYAN}data{END}  {GREEN}trained{END}\n"


def test_without_a_terminal_trained_text_is_marked(templatekit: Templatekit, data: list[str]) -> None:
    result = templatekit("preview", *data, env={"COLUMNS": "40"})
    assert result.code == 0
    assert result.out == "row 0 " + "─" * 34 + "\nQ: say 0\nA:⟦it is 0⟧\n"
    assert result.err == "adapter: alpaca (inferred from the records' keys)\nrows in: 1, rows out: 1, dropped: 0\n"


def test_rows_are_chosen_and_counted(templatekit: Templatekit, data: list[str], tokenizer_folder: Path) -> None:
    options = ["--tokenizer", tokenizer_folder, "--row", "3", "--limit", "2"]
    result = templatekit("preview", *data, *options, env={"COLUMNS": "40"})
    rows = ["row 3, 19 tokens, 8 trained ────────────", "row 4, 19 tokens, 8 trained ────────────"]
    assert [line for line in result.out.splitlines() if line.startswith("row")] == rows
    assert "A:⟦it is 4<|end|>⟧" in result.out
    assert result.lines[-1] == "rows in: 2, rows out: 2, dropped: 0, tokens: 38, trained tokens: 16"


def test_rows_before_the_first_one_may_be_broken(templatekit: Templatekit, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a"}\n{"broken\n{"instruction": "a", "output": "b"}\n')
    assert templatekit("preview", "--dataset", "rows.jsonl", "--row", "2").code == 0
    result = templatekit("preview", "--dataset", "rows.jsonl", "--row", "1")
    assert result.code == 2
    assert result.err.startswith("Error: rows.jsonl:1:")


@pytest.mark.parametrize("train_on", ["response", "content", "last", "all"])
def test_the_marks_follow_train_on(
    train_on: str, templatekit: Templatekit, data: list[str], tmp_path: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "qa.jinja").write_text(
        "{#- templatekit\nstop: ['!']\n#}\nQ: {{ instruction }}{{ context }}\nA:{{ response }}!"
    )
    marked = {"all": "⟦Q: say 0\nA:it is 0!⟧"}.get(train_on, "Q: say 0\nA:⟦it is 0!⟧")
    for options in [], ["--tokenizer", tokenizer_folder]:
        result = templatekit("preview", *data, *options, "--train-on", train_on)
        assert result.code == 0
        assert result.out.split("\n", 1)[1].strip() == marked


def test_a_terminal_shows_colours_and_a_legend(data: list[str], tmp_path: Path) -> None:
    shown = on_terminal("preview", *data, cwd=tmp_path)
    assert shown == (
        f"{LEGEND}row 0 {DIM}{'─' * 54}{END}\n"
        f"{DIM}Q: {END}{CYAN}say 0{END}\n{DIM}A:{END}{GREEN}it is 0{END}\n"
    )  # fmt: skip


def test_render_shows_a_few_rows_on_a_terminal(data: list[str], tmp_path: Path) -> None:
    shown = on_terminal("render", *data, cwd=tmp_path)
    assert shown.startswith(LEGEND)
    assert re.findall(r"row \d", shown) == [f"row {row}" for row in range(5)]
    assert len(re.findall(r"row \d", on_terminal("render", *data, "--limit", "7", cwd=tmp_path))) == 7
    lines = on_terminal("render", *data, "--format", "jsonl", cwd=tmp_path).splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(8)), "a format that is asked for is given"
    assert on_terminal("render", *data, "--output", "out.jsonl", cwd=tmp_path) == ""


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_there_are_marks(env: dict[str, str], data: list[str], tmp_path: Path) -> None:
    shown = on_terminal("preview", *data, cwd=tmp_path, env=env)
    assert "A:⟦it is 0⟧\n" in shown
    assert "\x1b[3" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_do_not_reach_the_terminal(
    terminal: bool, templatekit: Templatekit, data: list[str], tmp_path: Path
) -> None:
    nasty = "\x1b[2J\x1b]0;title\x07\r\x08\x7f\x9b31m[bold]x[/bold]\ttab"
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": nasty, "output": "ok\x1b[31m"}]))
    shown = on_terminal("preview", *data, cwd=tmp_path) if terminal else templatekit("preview", *data).out
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown) if terminal else shown
    assert "Q: ␛[2J␛]0;title␇␍␈␡\\x9b31m[bold]x[/bold]" in plain
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", plain)
