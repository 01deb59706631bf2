"""Rendering in several processes: the same bytes and counts, the same errors, and no process left over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from testkit.at_hand import Tokenizers
from testkit.numbers import Render

import templatekit
from templatekit import ConfigError, Registry, Template, create_registry
from templatekit.errors import RecordError
from templatekit.pipeline.counts import Counts


@pytest.fixture
def render(tmp_path: Path, tokenizer_of: Tokenizers) -> Render:
    return Render(tmp_path, tokenizer_of.folder("bytes"))


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_any_number_gives_the_same_bytes_and_counts(render: Render, format: str) -> None:
    numbers: list[Any] = [n % 50 for n in range(1700)]
    numbers[700] = numbers[1650] = "bad"
    options = ("--on-error", "skip", "--max-length", "90", "--json")
    one = render(numbers, "--workers", "1", *options, output=f"out.{format}")
    two = render(numbers, "--workers", "2", *options, output=f"out.{format}")
    assert one == two
    assert one.code == 0
    (line,) = one.said
    counts = json.loads(line)
    assert counts["adapter"] == "numbers"
    assert counts["dropped"]["odd"] == 2
    assert counts["dropped"]["too_long"] > 100
    assert len(one.file) > 10_000


def test_sets_and_single_samples_too(render: Render) -> None:
    """An exporter of single samples works for several sets, and lengths are counted."""
    numbers: list[Any] = [n % 50 for n in range(1500)]
    numbers[700] = "bad"
    render.write(numbers)
    sets = ["rows.jsonl,name=a,weight=2", "rows.jsonl,name=b,limit=9"]
    options = ["--on-error", "skip", "--stats", *(word for one in sets for word in ("--mix", one))]
    one = render(None, "--workers", "1", "--format", "axolotl", *options, output="axolotl")
    two = render(None, "--workers", "2", "--format", "axolotl", *options, output="axolotl")
    assert one == two
    assert one.code == 0
    assert one.file.count(b"\n") > 1500
    said = "\n".join(one.said)
    assert "tokens of an example" in said
    assert "gone through" in said, "what mixing did is told"


def test_the_first_error_is_the_one_that_is_met(render: Render) -> None:
    numbers: list[Any] = [1] * 1200
    numbers[600] = numbers[1100] = "bad"
    one = render(numbers, "--workers", "1")
    two = render(numbers, "--workers", "2")
    assert one == two
    assert one.file == b""
    assert "600:n: bad" in one.said[-1]
    assert one.code == 2


def test_a_worker_that_is_killed_is_an_error(render: Render) -> None:
    ran = render([1, "deadly", 1], "--workers", "2")
    assert "one of 2 worker processes ended before its work was done" in ran.said[-1]
    assert "--workers 1" in ran.said[-1]
    assert (ran.file, ran.code) == (b"", 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_command(render: Render, number: signal.Signals) -> None:
    command = render.command(["slow"] * 20_000, "--workers", "2")
    process = subprocess.Popen(
        command, cwd=render.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    assert b"said by" in process.stderr.readline()  # a worker is at work
    assert len(group(process.pid)) >= 3
    process.send_signal(number)
    code = process.wait(timeout=60)
    process.stderr.close()
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    deadline = time.monotonic() + 30
    while group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group(process.pid) == []
    assert not list(render.folder.glob("*out.jsonl*")) or number == signal.SIGKILL


def group(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry.name.isdigit() and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


PREPARING = """
import json, sys
import templatekit
from templatekit.tokens.load import find_tokenizer

def main(data, tokenizer, cache):
    registry = templatekit.create_registry(select=[])
    given = find_tokenizer(tokenizer, registry)
    rows = [json.loads(line) for line in open(data)]
    ways = {
        "file": (data, {"tokenizer": tokenizer}),
        "cached": (data, {"tokenizer": tokenizer, "cache": True, "cache_dir": cache}),
        "packs": (data, {"tokenizer": tokenizer, "pack_tokens": 300, "train_on": "response=0.5"}),
        "several": (None, {"tokenizer": tokenizer, "mix": [{"dataset": data}, {"dataset": "starter", "limit": 9}]}),
        "rows": (rows, {"tokenizer": given, "registry": registry}),
    }
    found = {}
    for name, (records, options) in ways.items():
        two = templatekit.prepare(records, workers=2, template="chatml", **options)
        one = templatekit.prepare(records, template="chatml", **options)
        found[name] = [one.to_dict() == two.to_dict(), len(one), one.column_names]
    print(json.dumps(found))

GUARD
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("guard", ["if __name__ == '__main__':", "if True:"])
def test_prepare_gives_the_same_rows(tmp_path: Path, tokenizer_of: Tokenizers, guard: str) -> None:
    """A program prepares every kind of data; a program that would start itself endlessly stops with advice."""
    data, program = tmp_path / "rows.jsonl", tmp_path / "program.py"
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"{n} " * (n % 40)} for n in range(1300)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    program.write_text(PREPARING.replace("GUARD", guard), encoding="utf-8")
    arguments = [str(path) for path in (data, tokenizer_of.folder("bytes"), tmp_path / "cache")]
    command = [sys.executable, str(program), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if guard == "if True:":
        assert "under `if __name__ == '__main__':`" in run.stderr
        assert run.returncode == 1
        return
    assert not run.returncode, run.stderr
    found = json.loads(run.stdout)
    same = {name: one for name, (one, _, _) in found.items()}
    assert same == dict.fromkeys(same, True)
    assert found["rows"][1] == found["file"][1] == 1300
    assert found["several"][1] == 1309
    assert {"seq_lengths", "loss_weights"} <= set(found["packs"][2])


def test_what_workers_cannot_find_is_refused(tokenizer_of: Tokenizers, builtin: Registry) -> None:
    given: dict[str, Any] = {"tokenizer": tokenizer_of("bytes"), "workers": 2}

    class Mine(type(builtin.adapters["alpaca"])):  # type: ignore[misc]
        name = "mine"

    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"template": Template(builtin.templates["chatml"])},
            "found a Template object; expected its name, or",
        ),
        ({"adapter": Mine()}, "found an Adapter object named 'mine'; expected the name of one that a plugin offers"),
        ({"registry": create_registry(plugins=[object()])}, "found a registry that was given objects; expected one"),
    ]
    for more, said in cases:
        with pytest.raises(ConfigError, match=said):
            templatekit.prepare("starter", **given, **more)
    with pytest.raises(ConfigError, match="workers"):
        templatekit.prepare("starter", tokenizer=tokenizer_of("bytes"), workers=0)
    rows = templatekit.prepare("starter", tokenizer=tokenizer_of("bytes"), workers=1, adapter=Mine(), limit=2)
    assert len(rows) == 2, "one worker is this process, which has the objects"


def test_counts_merge_as_if_counted_at_once() -> None:
    def error(row: int, reason: str) -> RecordError:
        return RecordError("x", reason=reason).at("s", row)

    whole, first, second = Counts(), Counts(), Counts()
    for counts, rows in ((first, (1, 2)), (second, (3, 4, 4))):
        for row in rows:
            for one in (counts, whole):
                one.rows_in += 1
                one.drop(error(row, "odd" if row % 2 else "even"))
                one.unread_keys.setdefault("k", row)
                one.left_out.update({"image": row})
    first.merge(second)
    assert first == whole
    assert first.dropped_rows == {"odd": [1, 3], "even": [2, 4]}
    assert list(first.dropped) == list(whole.dropped)
