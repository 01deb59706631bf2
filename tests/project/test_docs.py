"""Every code block of README and docs is run, in order, with one folder for each page.

- `python` blocks run in one namespace a page.
- `console` blocks: each line after `$ ` runs in a shell; what stands below it is all its output, with `…` for any text.
  A command without output lines only has to succeed.
- A block under `<!-- file: PATH -->` is written to that file.
- A block under `<!-- not run: REASON -->` is left alone; so are `text` blocks, which hold no code.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    line: int
    language: str
    note: str
    body: str


def blocks_of(page: str) -> Iterator[Block]:
    for match in BLOCK.finditer(page):
        line = page.count("\n", 0, match.start("body")) + 1
        yield Block(line, match["language"], match["note"] or "", match["body"])


def run_page(text: str, folder: Path) -> None:
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks_of(text):
        if block.note.startswith("not run: "):
            continue
        if block.note.startswith("file: "):
            path = folder / block.note.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, encoding="utf-8")
        elif block.language == "python":
            here = Path.cwd()
            os.chdir(folder)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile("\n" * block.line + block.body, "docs", "exec"), namespace)
            finally:
                os.chdir(here)
        elif block.language == "console":
            run_console(block, folder)
        elif block.language != "text":
            raise AssertionError(f"line {block.line}: a {block.language} block that nothing runs; name its file")


def run_console(block: Block, folder: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "80",
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }
    commands = re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]
    assert commands, f"line {block.line}: a console block without a $ line"
    for command in commands:
        match = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n(.*)", command, re.DOTALL)
        assert match is not None
        line, expected = match[1], match[2]
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=540, check=False
        )
        assert done.returncode == 0, f"line {block.line}: {line}\n{done.stderr}"
        if expected.strip():
            pattern = re.escape(expected.rstrip()).replace("…", ".*")
            both = (done.stdout + done.stderr).rstrip()
            assert re.fullmatch(pattern, both, re.DOTALL), f"line {block.line}: {line}\nfound:\n{both}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs(page: Path, tmp_path: Path) -> None:
    run_page(page.read_text(encoding="utf-8"), tmp_path)


@pytest.mark.parametrize(
    "page",
    [
        "```python\nraise ValueError\n```\n",
        "```console\n$ false\n```\n",
        "```console\n$ echo found\nexpected\n```\n",
        "```ruby\nputs 1\n```\n",
    ],
)
def test_a_wrong_page_fails(page: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ValueError)):
        run_page(page, tmp_path)


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
