"""Progress is shown only on a terminal; --stats counts every example in one bin."""

from __future__ import annotations

import itertools
import json
import os
import pty
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.terminals import parts_shown

from templatekit.cli.histograms import LengthHistograms, histogram_bins
from templatekit.cli.progress import known_row_count
from templatekit.config.data_options import DataOptions

COMMAND = [sys.executable, "-m", "templatekit", "render", "--template", "alpaca"]


@given(st.lists(st.integers(0, 100_000) | st.integers(0, 30), min_size=1, max_size=60))
def test_every_value_is_in_one_bin(values: list[int]) -> None:
    bins = histogram_bins(Counter(values))
    assert sum(one.examples for one in bins) == len(values)
    assert all(one.examples == sum(one.start <= value < one.end for value in values) for one in bins)
    assert len(bins) <= 16
    assert all(one.end == other.start for one, other in itertools.pairwise(bins))


def test_bar_lengths_are_proportional_to_counts() -> None:
    shown = LengthHistograms(lengths=Counter({3: 10, 4: 5, 9: 1}), trained=Counter({2: 16}), unit="tokens")
    assert list(shown.lines()) == [
        "tokens of an example: 3 to 9, mean 3.7",
        f"  3 {'█' * 40} 10",
        f"  4 {'█' * 20} 5",
        "  5  0",
        "  6  0",
        "  7  0",
        "  8  0",
        f"  9 {'█' * 4} 1",
        "trained tokens of an example: 2 to 2, mean 2.0",
        f"  2 {'█' * 40} 16",
    ]


def test_known_row_count(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(pa.table({"a": [1, 2, 3]}), path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    cases: list[tuple[dict[str, Any], int | None]] = [
        ({"dataset": str(path)}, 3),
        ({"dataset": str(path), "limit": 2}, 2),
        ({"dataset": str(path), "limit": 9}, 3),
        ({"limit": 9}, 9),
        ({}, None),
        ({"dataset": str(tmp_path / "broken.parquet")}, None),
    ]
    for options, rows in cases:
        assert known_row_count(DataOptions.parse(options)) == rows


def test_stats_on_stderr_and_as_a_picture(tmp_path: Path) -> None:
    output, picture = str(tmp_path / "x.jsonl"), tmp_path / "x.png"
    done = subprocess.run([*COMMAND, "--output", output, "--stats"], capture_output=True, text=True, check=True)
    assert "characters of an example: " in done.stderr
    rows = len(Path(output).read_bytes().splitlines())
    bars = [int(line.split()[-1]) for line in done.stderr.splitlines() if "–" in line]
    assert sum(bars) == rows
    subprocess.run([*COMMAND, "--stats", str(picture)], capture_output=True, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = subprocess.run([*COMMAND, "--stats", "x.txt"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split(": ")[1]) == (2, "--stats 'x.txt'")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(tmp_path: Path, terminal: bool) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "i", "output": "o"}) * 1 + "\n")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--dataset", str(rows), "--output", str(tmp_path / "out.jsonl")],
        stderr=follower if terminal else subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(follower)
    on_terminal = b"".join(parts_shown(leader))
    said = on_terminal if terminal else process.communicate()[1]
    assert process.wait() == 0
    assert b"rows in: 1" in said
    assert (b"\x1b[" in said) == terminal
