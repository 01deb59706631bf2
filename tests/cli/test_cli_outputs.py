"""No command writes over what it reads, and an existing file is replaced only where somebody says so."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from testkit.command_line import InProcess, Templatekit, clean_environment
from testkit.terminals import parts_shown

from templatekit.cli import output as outputs
from templatekit.errors import ConfigError, RunError

ROWS = '{"instruction": "a", "output": "b"}\n'
TEMPLATE = "{{ instruction }}\n{{ response }}"
RENDER = ("render", "--dataset", "x.jsonl", "--format", "jsonl")


@pytest.fixture
def run(in_process: InProcess, tokenizer_folder: Path, tmp_path: Path) -> InProcess:
    """The command line, in a folder with rows under several names, a template and a tokenizer."""
    (tmp_path / "x.jsonl").write_text(ROWS)
    (tmp_path / "held-out.jsonl").write_text(ROWS.replace("a", "c"))
    os.link("x.jsonl", "hard.jsonl")
    (tmp_path / "link.jsonl").symlink_to("x.jsonl")
    (tmp_path / "picture.png").symlink_to("x.jsonl")
    (tmp_path / "qa.jinja").write_text(TEMPLATE)
    (tmp_path / "tok").mkdir()
    for path in tokenizer_folder.iterdir():
        (tmp_path / "tok" / path.name).write_bytes(path.read_bytes())
    return in_process


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "output", "option"),
    [
        ([*RENDER, "--output", "x.jsonl"], "--output 'x.jsonl'", "--dataset 'x.jsonl'"),
        ([*RENDER, "--output", "./tok/../x.jsonl"], "--output 'tok/../x.jsonl'", "--dataset 'x.jsonl'"),
        ([*RENDER, "--output", "link.jsonl"], "--output 'link.jsonl'", "--dataset 'x.jsonl'"),
        ([*RENDER, "--output", "hard.jsonl"], "--output 'hard.jsonl'", "--dataset 'x.jsonl'"),
        ([*RENDER, "--stats", "picture.png"], "--stats 'picture.png'", "--dataset 'x.jsonl'"),
        ([*RENDER, "--tokenizer", "tok", "--output", "tok/tokenizer.json"], "--output", "--tokenizer 'tok'"),
        ([*RENDER, "--template", "qa.jinja", "--output", "qa.jinja"], "--output", "--template 'qa.jinja'"),
        (["render", "--mix", "x.jsonl", "--mix", "starter", "--output", "x.jsonl"], "--output", "--mix 'x.jsonl'"),
        (["render", "--dataset", "x*.jsonl", "--output", "x.jsonl"], "--output", "--dataset 'x*.jsonl'"),
        (["audit", "--dataset", "x.jsonl", "--html", "x.jsonl"], "--html 'x.jsonl'", "--dataset 'x.jsonl'"),
        (
            ["audit", "--dataset", "x.jsonl", "--against", "held-out.jsonl", "--html", "held-out.jsonl"],
            "--html 'held-out.jsonl'",
            "--against 'held-out.jsonl'",
        ),
        (["templates", "export", "./qa.jinja", "--output", "qa.jinja"], "--output 'qa.jinja'", "NAME './qa.jinja'"),
        (
            ["templates", "export", "alpaca", "--tokenizer", "tok", "--output", "tok/tokenizer.json"],
            "--output 'tok/tokenizer.json'",
            "--tokenizer 'tok'",
        ),
    ],
)
def test_what_is_read_is_not_written_over(
    command: list[str], output: str, option: str, run: InProcess, tmp_path: Path
) -> None:
    before = content(tmp_path)
    for more in [], ["--overwrite"]:
        result = run(*command, *more)
        assert (result.code, result.out, len(result.lines)) == (2, "", 1), result
        assert result.err.startswith(f"Error: {output}")
        assert f" of {option}, which is read here" in result.err
        assert "name another file" in result.err
        assert content(tmp_path) == before


def test_outputs_beside_what_is_read_are_written(run: InProcess, tmp_path: Path) -> None:
    """The control: new files in the same folders, also beside a tokenizer's files."""
    before = content(tmp_path)
    options = ("--tokenizer", "tok")
    for output in ("y.jsonl", "deep/x.jsonl", "tok/rows.jsonl"):
        assert run(*RENDER, *options, "--output", output).code == 0
    assert run("audit", "--dataset", "x.jsonl", "--html", "x.html", "--fail-on", "never").code == 0
    assert run("templates", "export", "./qa.jinja", "--output", "qa-chat.jinja").code == 0
    after = content(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 5


@pytest.mark.parametrize("command", [RENDER, (*RENDER, "--stats")])
def test_the_file_behind_standard_input_or_output(
    command: tuple[str, ...], templatekit: Templatekit, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text(ROWS * 3)
    piped = [word if word != "x.jsonl" else "-" for word in command]
    script = str(Path(sys.executable).with_name("templatekit"))
    with (tmp_path / "x.jsonl").open() as rows:
        done = subprocess.run(
            [script, *piped, "--output", "x.jsonl"], cwd=tmp_path, stdin=rows, capture_output=True, check=False
        )
    assert done.returncode == 2
    assert b"--output 'x.jsonl' is the file of --dataset '-'" in done.stderr
    for more in "", "--output /dev/stdout", "--output /dev/fd/1":  # such a command would read what it writes, for ever
        result = templatekit(*command, prefix=f"COMMAND {more} >> x.jsonl")
        assert result.code == 2
        assert "is the file of --dataset 'x.jsonl'" in result.err
    assert (tmp_path / "x.jsonl").read_text() == ROWS * 3
    assert templatekit(*command, prefix="COMMAND > y.jsonl").code == 0


def test_a_redirected_output_is_continued(templatekit: Templatekit, tmp_path: Path) -> None:
    """The shell has opened the file, so that it is neither asked about nor replaced."""
    (tmp_path / "x.jsonl").write_text(ROWS)
    (tmp_path / "y.jsonl").write_text("before\n")
    names = 0
    for name in "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1":
        if Path(name).exists():
            assert templatekit(*RENDER, "--output", name, prefix="COMMAND >> y.jsonl").code == 0
            names += 1
    before, *rows = (tmp_path / "y.jsonl").read_text().splitlines()
    assert (before, len(rows), len(set(rows))) == ("before", names, 1)
    for name in "/dev/fd/77", "/dev/fd/99999999999999999999":
        result = templatekit(*RENDER, "--output", name)
        assert (result.code, len(result.lines)) == (2, 1)
        assert f"--output {name!r} cannot be written" in result.err


# Existing files


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ([*RENDER, "--output"], "--output", "y.jsonl"),
        ([*RENDER, "--stats"], "--stats", "y.png"),
        (["audit", "--dataset", "x.jsonl", "--html"], "--html", "y.html"),
        (["templates", "export", "alpaca", "--output"], "--output", "y.jinja"),
    ],
)
def test_an_existing_file_is_replaced_only_with_overwrite(
    command: list[str], option: str, name: str, run: InProcess, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text("mine")
    (tmp_path / "link").symlink_to(name)
    result = run(*command, name)
    assert (result.code, result.out, len(result.lines)) == (2, "", 1)
    assert result.err == f"Error: {option} {name!r} exists; replace it with --overwrite, or name another file\n"
    if option != "--stats":  # the ending of a picture's name decides its format
        assert run(*command, "link").code == 2
    assert path.read_text() == "mine"
    assert run(*command, name, "--overwrite").code == 0
    assert path.read_bytes() != b"mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_outputs_are_two_files(run: InProcess, tmp_path: Path) -> None:
    (tmp_path / "s.png").symlink_to("t.png")
    result = run(*RENDER, "--output", "t.png", "--stats", "s.png")
    assert result.code == 2
    assert result.err.startswith("Error: --stats 's.png' is the file of --output 't.png' too; name two files")


def test_folders_are_never_replaced(run: InProcess, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    options = ("render", "--dataset", "x.jsonl", "--format", "axolotl", "--tokenizer", "tok", "--output")
    result = run(*options, "folder", "--overwrite")
    assert (result.code, result.lines[-1]) == (
        2,
        "Error: --output 'folder' is there already; expected a new folder, or an empty one",
    )
    assert "lies in the folder of --tokenizer 'tok'" in run(*options, "tok/new").err
    assert "is or holds the data of --dataset" in run(*options, ".").err
    assert run(*options, "new").code == 0


# A terminal


def answer(words: str, *command: str, cwd: Path) -> tuple[int, str]:
    """The exit code and what a terminal showed, when somebody answers the question with `words`."""
    leader, follower = pty.openpty()
    script = str(Path(sys.executable).with_name("templatekit"))
    process = subprocess.Popen(
        [script, *command], cwd=cwd, stdin=follower, stderr=follower, stdout=subprocess.DEVNULL,
        env=clean_environment(), start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    limit = threading.Timer(60, process.kill)
    limit.start()
    said = b""
    answered = False
    for part in parts_shown(leader):
        said += part
        if b"[y/N]" in said and not answered:
            os.write(leader, words.encode())
            answered = True
    limit.cancel()
    return process.wait(30), said.decode()


def test_a_terminal_is_asked(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(ROWS)
    output = tmp_path / "y.jsonl"
    output.write_text("mine")
    command = (*RENDER, "--output", "y.jsonl")
    for words in "n\n", "\n":
        code, said = answer(words, *command, cwd=tmp_path)
        assert (code, output.read_text()) == (2, "mine"), said
        assert "--output 'y.jsonl' exists; replace it? [y/N]" in said
        assert "Error: --output 'y.jsonl' exists; replace it with --overwrite" in said
    assert answer("y\n", *command, cwd=tmp_path)[0] == 0
    assert output.read_text() != "mine"
    code, said = answer("y\n", *command, "--overwrite", cwd=tmp_path)
    assert (code, "[y/N]" in said) == (0, False)
    code, said = answer("y\n", *RENDER, "--output", "x.jsonl", cwd=tmp_path)
    assert (code, "[y/N]" in said) == (2, False), "no answer allows to write over the data"


def test_nobody_is_asked_about_devices(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(ROWS)
    code, said = answer("", *RENDER, "--output", "/dev/null", cwd=tmp_path)
    assert (code, "[y/N]" in said) == (0, False)


# Somebody else's file


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "y.jsonl"
    if not links:

        def refuse(*paths: Any, **options: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    with outputs.atomic_file(output) as file:
        file.write(b"ours")
    assert (output.read_bytes(), output.stat().st_nlink) == (b"ours", 1)
    with pytest.raises(ConfigError, match="exists; replace it with --overwrite"), outputs.atomic_file(output):
        raise AssertionError("opened")
    output.unlink()
    with (
        pytest.raises(RunError, match="was made by somebody else meanwhile, and is left as it is; run again"),
        outputs.atomic_file(output) as file,
    ):
        file.write(b"ours")
        output.write_bytes(b"theirs")
    assert output.read_bytes() == b"theirs"
    with outputs.atomic_file(output, replace=True) as file:
        file.write(b"ours")
    assert output.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [output]
