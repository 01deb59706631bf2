"""`templatekit audit` as a process: output, files and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testkit.platforms import needs_dev_full

from templatekit import RunError

Command = Callable[..., Any]
WriteRows = Callable[..., Path]
GOOD = {"instruction": "Name one.", "input": "", "output": "Red."}
WARNS = {**GOOD, "instruction": "Name two.", "output": ""}
FAILS = {**GOOD, "output": None}

WHOLE = """\
data.jsonl: 4 rows, 1 of them unusable
adapter alpaca, template alpaca, tokenizer tokenizer, trained: response
tokens: 454, trained: 12 (2.6 %)
length in tokens: min 149, median 152, 95 % 153, 99 % 153, max 153 (row 0)
longer than 512: 0, 1,024: 0, 2,048: 0, 4,096: 0

error unusable: rows that cannot be used
  1 row (25.0 %): 2
  The adapter or the template refuses these rows, so that no one trains on them: mend the data, or drop them \
knowingly with --on-error skip.
        1 × missing_output (first in row 2)
  row 2: data.jsonl:2:output: missing; found null; expected text

warning empty-answer: empty answers
  1 row (25.0 %): 1
  The model learns to say nothing and stop: drop these rows, or fill in the answers.
  row 1
    │ …rite a response that appropriately completes the request.
    │
    │ ### Instruction:
    │ Name two.
    │
    │ ### Response:⟦▶<|im_end|>◀⟧

note unread-keys: keys that are not read
  1 row (25.0 %): 3
  The adapter does not look at these keys of the records: rename them with --columns where they hold text that should \
be trained.
        1 × id (first in row 3)
  row 3: id: 'x7'

"""


def test_the_whole_output(command: Command, write_rows: WriteRows, make_tokenizer: Callable[..., Path]) -> None:
    write_rows([GOOD, WARNS, FAILS, {**GOOD, "instruction": "Name 3.", "output": "Blue.", "id": "x7"}])
    make_tokenizer()
    result = command("--dataset", "data.jsonl", "--tokenizer", "tokenizer")
    assert (result.code, result.err) == (1, "")
    assert result.out.startswith(WHOLE)
    rest = result.out.removeprefix(WHOLE).splitlines()
    assert [line.partition(":")[0] for line in rest[:-1]] == ["nothing found", *["not checked"] * 3]
    assert rest[-1] == "1 error, 1 warning, 1 note"


@pytest.mark.parametrize(
    ("rows", "fail_on", "code"),
    [
        ([GOOD], None, 0),
        ([GOOD], "warning", 0),
        ([WARNS], None, 0),
        ([WARNS], "error", 0),
        ([WARNS], "warning", 1),
        ([WARNS], "never", 0),
        ([GOOD, FAILS], None, 1),
        ([GOOD, FAILS], "warning", 1),
        ([GOOD, FAILS], "never", 0),
    ],
)
def test_exit_codes(
    rows: list[dict[str, Any]], fail_on: str | None, code: int, command: Command, write_rows: WriteRows
) -> None:
    options = ["--fail-on", fail_on] if fail_on else []
    assert command("--dataset", write_rows(rows), *options).code == code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "missing.json"], "missing.json: no such file"),
        (["--template", "alpacca"], "did you mean 'alpaca'"),
        (["--ignore", "duplicate-row"], "no audit rule named 'duplicate-row'; did you mean 'duplicate-rows'"),
        (["--against", "missing.json"], "missing.json: no such file"),
        (["--html", "."], "is a folder; expected a file"),
        (["--html", "data.jsonl/report.html"], "cannot be written"),
        (["--max-length", "0"], "max_length"),
        (["--fail-on", "note"], "'note'"),
        (["--rows", "-1"], "-1"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    options: list[str], message: str, command: Command, write_rows: WriteRows
) -> None:
    write_rows([GOOD])
    result = command("--dataset", "data.jsonl", *options)
    assert result.code == 2, result
    assert message in result.err and len(result.err.splitlines()) == 1
    assert result.out == ""


def test_json_is_all_that_is_printed(command: Command, write_rows: WriteRows) -> None:
    result = command("--dataset", write_rows([GOOD, FAILS, GOOD]), "--json", "--rows", "1")
    assert (result.code, result.err) == (1, "")
    values = json.loads(result.out)
    assert (values["rows"], values["usable"], values["version"]) == (3, 2, 1)
    assert [(finding["code"], finding["rows"]) for finding in values["findings"]] == [
        ("unusable", [1]),
        ("duplicate-rows", [2]),
    ]


def test_a_page_is_written_in_addition_to_the_text(command: Command, write_rows: WriteRows, tmp_path: Path) -> None:
    write_rows([GOOD, {**GOOD, "output": "<script>alert(1)</script>\x00"}])
    result = command("--dataset", "data.jsonl", "--html", "out/page.html", "--fail-on", "warning")
    assert result.code == 1 and "encoding oddities" in result.out
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]


def test_a_path_that_is_no_text(command: Command, write_rows: WriteRows, tmp_path: Path) -> None:
    odd = write_rows([{**GOOD, "y" * 1000: 1}]).rename(tmp_path / "r\udcffws.jsonl")
    result = command("--dataset", odd, "--html", "page.html")
    assert result.code == 0 and f"1 × {'y' * 77}" in result.out and "y" * 100 not in result.out, result
    assert "r\\udcffws.jsonl" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert json.loads(command("--dataset", odd, "--json").out)["rows"] == 1


def test_a_page_can_go_to_a_pipe(command: Command, write_rows: WriteRows) -> None:
    result = command("--dataset", write_rows([GOOD]), "--html", "/dev/stderr")
    assert result.code == 0 and result.err.startswith("<!DOCTYPE html>")


@needs_dev_full
def test_a_page_that_cannot_be_written_is_a_failure(command: Command, write_rows: WriteRows) -> None:
    result = command("--dataset", write_rows([GOOD]), "--html", "/dev/full")
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("Error: --html '/dev/full' cannot be written: No space left on device\n")


def test_a_page_whose_reader_has_gone_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report was still to be printed: to end in silence, as when standard output is closed, would lose it."""
    from templatekit.audit import html_report
    from templatekit.cli.audit import _write_page

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def leave(report: object) -> str:
        os.close(reader)
        return "page"

    monkeypatch.setattr(html_report, "to_html", leave)
    report: Any = None
    with pytest.raises(RunError, match=r"--html '.*pipe' cannot be written: Broken pipe"):
        _write_page(report, pipe)


def test_splits_are_compared(command: Command, write_rows: WriteRows) -> None:
    train = write_rows([{**GOOD, "instruction": f"Name {n}."} for n in range(5)], "train.jsonl")
    test = write_rows([{**GOOD, "instruction": "Name 3."}], "test.jsonl")
    other = write_rows([{**GOOD, "instruction": "Name 9."}], "other.jsonl")
    both = command("--dataset", train, "--against", other, "--against", test)
    assert both.code == 1
    assert f"against {test}: 1 row" in both.out and "row 3: the same text as row 0 there" in both.out
    assert command("--dataset", train, "--against", other).code == 0


def test_help_names_the_options(command: Command) -> None:
    result = command("--help")
    assert result.code == 0
    for option in ("--dataset", "--against", "--shared", "--fail-on", "--html", "--json", "--ignore", "--plugin-dir"):
        assert option in result.out


def test_nothing_heavy_is_imported(write_rows: WriteRows, make_tokenizer: Callable[..., Path]) -> None:
    arguments = ["audit", "--dataset", str(write_rows([GOOD])), "--tokenizer", str(make_tokenizer())]
    code = f"""
import sys
from templatekit.cli import cli
cli.main({arguments!r}, standalone_mode=False)
print(sorted({{"torch", "transformers", "datasets", "templatekit.training"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_output_of_a_plugin_is_not_part_of_the_report(command: Command, write_rows: WriteRows, tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "loud.py").write_text(
        "from templatekit import Adapter, Example, Message, hookimpl\n"
        "class Loud(Adapter):\n"
        "    name, keys, required = 'loud', ('q', 'a'), ('q', 'a')\n"
        "    def to_example(self, record):\n"
        "        print('reading')\n"
        "        return Example(messages=(Message(role='user', content=record['q']),"
        " Message(role='assistant', content=record['a'])))\n"
        "@hookimpl\n"
        "def templatekit_adapters():\n"
        "    return [Loud()]\n"
    )
    result = command("--dataset", write_rows([{"q": "Hi", "a": "Hello"}]), "--plugin-dir", folder, "--json")
    assert result.code == 0 and json.loads(result.out)["adapter"] == "loud"
    assert "reading" in result.err
