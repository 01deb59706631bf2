"""`render --pack-tokens` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from testkit.command_line import Templatekit

import templatekit as package
from templatekit.errors import ConfigError

ROWS = [
    {"messages": [{"role": "user", "content": f"n{row}"}, {"role": "assistant", "content": "yes " * (row % 7 + 1)}]}
    for row in range(700)
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def command(rows: Path, tokenizer_folder: Path) -> list[str]:
    return ["render", "--dataset", str(rows), "--template", "chatml", "--tokenizer", str(tokenizer_folder)]


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_any_number_of_workers_and_the_cache_give_the_same_bytes(
    templatekit: Templatekit, command: list[str], tmp_path: Path, format: str
) -> None:
    cache = ["--cache", "--cache-dir", str(tmp_path / "kept")]
    runs = {"one": [], "two": ["--workers", "2"], "made": cache, "taken": cache}
    found = []
    for name, options in runs.items():
        file = tmp_path / f"{name}.{format}"
        run = templatekit(*command, "--pack-tokens", "256", "--output", file, *options)
        assert run.code == 0, run.err
        assert run.lines[-1].startswith("packs: ")
        assert ("taken" in run.err) == (name == "taken")
        found.append((file.read_bytes(), run.lines[-1]))
    assert found == [found[0]] * 4


def test_longer_examples_are_counted_shortened_or_an_error(
    templatekit: Templatekit, command: list[str], tmp_path: Path
) -> None:
    run = templatekit(*command, "--pack-tokens", "70", "--output", tmp_path / "a.parquet", "--json")
    counts = json.loads(run.err)
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    lengths = [length for row in table for length in row["seq_lengths"]]
    assert counts["dropped"]["too_long"] == 700 - len(lengths) > 100
    assert counts["packs"] == len(table)
    assert counts["fill"] == round(sum(lengths) / 70 / len(table), 4)
    assert max(sum(row["seq_lengths"]) for row in table) <= 70
    dropped = counts["dropped_rows"]["too_long"]
    assert sorted([*dropped, *(number for row in table for number in row["rows"])]) == list(range(700))

    run = templatekit(*command, "--pack-tokens", "70", "--truncation", "response", "--output", tmp_path / "b.parquet")
    assert run.code == 0
    assert "shortened" in run.err and "dropped: 0" in run.err
    run = templatekit(*command, "--pack-tokens", "70", "--truncation", "error", "--output", tmp_path / "c.parquet")
    assert run.code == 2
    assert "expected at most 70; to drop: --truncation drop" in run.err
    assert not (tmp_path / "c.parquet").exists()


def test_options_that_contradict_each_other_are_errors(
    templatekit: Templatekit, command: list[str], tmp_path: Path
) -> None:
    run = templatekit(*command, "--pack-tokens", "70", "--max-length", "71", "--output", tmp_path / "a.jsonl")
    assert run.err == (
        "Error: max_length=71 beside pack_tokens=70: no pack has room for such an example; expected a max_length of "
        "at most that, or none\n"
    )
    run = templatekit(*command, "--pack-tokens", "70", "--format", "axolotl", "--output", tmp_path / "a")
    assert run.err == (
        "Error: --pack-tokens: format 'axolotl' has no place for packs; expected one of: jsonl, parquet, arrow, "
        "datasets\n"
    )
    run = templatekit(*command[:-2], "--pack-tokens", "70", "--output", tmp_path / "a.jsonl")
    assert run.err == "Error: --pack-tokens packs token ids; found no tokenizer; expected --tokenizer too\n"
    with pytest.raises(ConfigError, match="unknown option 'pack_tokens'"):
        package.render(ROWS, template="chatml", pack_tokens=70)
    with pytest.raises(ConfigError, match="pack_tokens: found 0"):
        package.prepare(ROWS, template="chatml", tokenizer=command[-1], pack_tokens=0)


def test_a_mixture_and_lengths(templatekit: Templatekit, command: list[str], rows: Path, tmp_path: Path) -> None:
    mixed = ["--mix", f"{rows},name=a", "--mix", f"{rows},name=b,limit=10", *command[3:]]
    file = tmp_path / "mixed.jsonl"
    run = templatekit("render", *mixed, "--pack-tokens", "300", "--stats", "--output", file)
    assert run.code == 0, run.err
    assert "tokens of an example: " in run.err
    found = [json.loads(line) for line in file.read_text().splitlines()]
    inside = [pair for row in found for pair in zip(row["sources"], row["rows"], strict=True)]
    assert sorted(inside) == sorted([("a", n) for n in range(700)] + [("b", n) for n in range(10)])


def test_a_datasets_folder_cannot_hold_weights(
    templatekit: Templatekit, command: list[str], rows: Path, tmp_path: Path
) -> None:
    weighted: list[dict[str, Any]] = json.loads(json.dumps(ROWS[:20]))
    weighted[3]["messages"][1]["weight"] = 0.5
    rows.write_text("".join(json.dumps(row) + "\n" for row in weighted), encoding="utf-8")
    folder = ["--format", "datasets", "--pack-tokens", "200", "--output", tmp_path / "folder"]
    run = templatekit(*command, *folder)
    assert run.code == 2
    assert f"{rows}:3: format 'datasets' has no place for a loss weight of 0.5" in run.err
    run = templatekit(*command, *folder, "--on-error", "skip")
    assert run.code == 0
    assert "dropped 1 × not_expressible (rows 3)" in run.err

    from datasets import load_from_disk

    found = load_from_disk(str(tmp_path / "folder"))
    assert found.column_names == ["input_ids", "labels", "position_ids", "seq_lengths"]
    assert sum(map(len, found["seq_lengths"])) == 19


def test_python_gives_the_same_packs(templatekit: Templatekit, command: list[str], tmp_path: Path) -> None:
    templatekit(*command, "--pack-tokens", "256", "--output", tmp_path / "a.parquet")
    written = pq.read_table(tmp_path / "a.parquet").to_pylist()
    made = package.prepare(ROWS, template="chatml", tokenizer=command[-1], pack_tokens=256)
    assert made.column_names == ["input_ids", "labels", "position_ids", "seq_lengths"]
    assert made.to_list() == [{name: row[name] for name in made.column_names} for row in written]
