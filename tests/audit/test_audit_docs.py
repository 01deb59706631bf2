"""docs/audit.md lists all rules, and shows the output of the command."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

from templatekit.audit import RULES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (error|warning|note) \| (.*) \| (.*) \|$", re.MULTILINE)
FILE = re.compile(r"<!-- file: (\S+) -->\n```jsonl\n(.*?)```", re.DOTALL)
SHOWN = re.compile(r"```console\n\$ templatekit audit ([^\n]*)\n```\n\n```text\n(.*?)```", re.DOTALL)


def test_the_table_lists_every_rule() -> None:
    assert ROW.findall(unescape(PAGE)) == [(rule.code, rule.level, rule.title, rule.help) for rule in RULES]


def test_the_table_is_read() -> None:
    assert ROW.findall("| `a-b` | note | c | d |\n| `a` | fatal | c | d |") == [("a-b", "note", "c", "d")]


def test_the_report_is_as_shown(tmp_path: Path, command: Callable[..., Any]) -> None:
    files = FILE.findall(PAGE)
    assert files
    for name, content in files:
        (tmp_path / name).write_text(content, encoding="utf-8")
    [(options, shown)] = SHOWN.findall(PAGE)
    result = command(*options.split())
    pattern = re.escape(shown.rstrip()).replace("…", ".*")
    assert result.code == 0 and re.fullmatch(pattern, result.out.rstrip(), re.DOTALL), result.out
