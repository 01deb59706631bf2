"""Real files, with the row counts that their list states, and every value as the json module reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from templatekit.sources.json_records import JsonSource

SHARED = next(
    (
        parent / "shared" / "data"
        for parent in Path(__file__).resolve().parents
        if (parent / "shared" / "data").is_dir()
    ),
    None,
)
needs_data = pytest.mark.skipif(SHARED is None, reason="no folder shared/data beside the project")
FILES = sorted(path for path in (SHARED.rglob("*.json*") if SHARED else ()) if path.parent.name != "scores")


@needs_data
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_read_as_json_reads_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    rows = (
        [json.loads(line) for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else json.loads(text)
    )
    assert list(JsonSource().read(str(path))) == rows


@needs_data
def test_row_counts_are_those_of_the_list() -> None:
    assert SHARED is not None
    listed = re.findall(r"^\| (\S+\.jsonl?) \| ([\d,]+) \|", (SHARED / "SOURCES.md").read_text(), re.MULTILINE)
    assert len(listed) >= 13
    for name, rows in listed:
        assert sum(isinstance(item, dict) for item in JsonSource().read(str(SHARED / name))) == int(
            rows.replace(",", "")
        )
    assert sum(1 for _ in JsonSource().read(str(SHARED / "ch07" / "instruction-data.json"))) == 1100
