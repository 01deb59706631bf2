"""Rendering in several processes: the same bytes and counts, the same errors, and nobody left behind."""

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

from templatekit.counts import Counts
from templatekit.errors import RecordError

PLUGIN = """
import os, signal, time
from multiprocessing import parent_process
from templatekit import Adapter, Example, Message, RecordError, hookimpl

class Numbers(Adapter):
    name = "numbers"
    description = "n"
    keys = ("n",)
    required = ("n",)

    def to_example(self, record):
        n = record["n"]
        if n == "die" and parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if n == "slow":
            time.sleep(0.02)
        if n == "bad":
            raise RecordError("bad", field="n", reason="odd")
        print("said by a plugin")
        answer = "1 2 " * (n if isinstance(n, int) else 1)
        asked = Message(role="user", content=f"Count to {n}")
        return Example(messages=(asked, Message(role="assistant", content=f"so {answer}")))

@hookimpl
def templatekit_adapters():
    return [Numbers()]
"""


class Render:
    """`templatekit render` as a process, on records of a plugin's own adapter."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder = folder
        (folder / "plugins").mkdir()
        (folder / "plugins" / "numbers_plugin.py").write_text(PLUGIN, encoding="utf-8")
        self._tokenizer = tokenizer

    def command(self, numbers: list[object] | None, workers: int, format: str, *arguments: str) -> list[str]:
        """Of these numbers, or of what the arguments name."""
        options = {"tokenizer": self._tokenizer, "plugin-dir": self.folder / "plugins"}
        if numbers is not None:
            options["dataset"] = self.folder / "rows.jsonl"
            options["dataset"].write_text("".join(json.dumps({"n": n}) + "\n" for n in numbers), encoding="utf-8")
        named = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        output = str(self.folder / f"{workers}.{format}")
        given = ["--template", "chatml", "--workers", str(workers), "--output", output, *arguments]
        return [sys.executable, "-m", "templatekit", "render", *named, *given]

    def __call__(
        self, numbers: list[object] | None, workers: int, format: str, *arguments: str
    ) -> tuple[bytes, str, int]:
        """What the file holds, what stands on stderr, and the exit code."""
        command = self.command(numbers, workers, format, *arguments)
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert not run.stdout
        file = self.folder / f"{workers}.{format}"
        file = file / "train.jsonl" if file.is_dir() else file
        # Two workers print at once, and one may be ended within a line: ours may then stand behind what it said.
        said = "\n".join(filter(None, run.stderr.replace("said by a plugin", "").splitlines()))
        return file.read_bytes() if file.exists() else b"", said, run.returncode


@pytest.fixture
def render(tmp_path: Path, tokenizer_of: Tokenizers) -> Render:
    return Render(tmp_path, tokenizer_of.folder("bytes"))


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_any_number_gives_the_same_bytes_and_counts(render: Render, format: str) -> None:
    numbers: list[Any] = [n % 50 for n in range(1700)]
    numbers[700] = numbers[1650] = "bad"
    options = ("--on-error", "skip", "--max-length", "90", "--json")
    one = render(numbers, 1, format, *options)
    two = render(numbers, 2, format, *options)
    assert one == two
    assert one[2] == 0
    counts = json.loads(one[1])
    assert counts["adapter"] == "numbers"
    assert counts["dropped"]["odd"] == 2
    assert counts["dropped"]["too_long"] > 100
    assert len(one[0]) > 10_000


def test_sets_and_single_samples_too(render: Render) -> None:
    """What looks at single samples, of several sets, and how long they are."""
    numbers: list[Any] = [n % 50 for n in range(1500)]
    numbers[700] = "bad"
    render.command(numbers, 1, "jsonl")
    rows = render.folder / "rows.jsonl"
    sets = [f"{rows},name=a,weight=2", f"{rows},name=b,limit=9"]
    options = ["--on-error", "skip", "--stats", *(word for one in sets for word in ("--mix", one))]
    one = render(None, 1, "axolotl", "--format", "axolotl", *options)
    two = render(None, 2, "axolotl", "--format", "axolotl", *options)
    assert one == two
    assert one[2] == 0
    assert one[0].count(b"\n") > 1500
    assert "tokens of an example" in one[1]
    assert "gone through" in one[1], "what mixing did is told"


def test_the_first_error_is_the_one_that_is_met(render: Render) -> None:
    numbers: list[Any] = [1] * 1200
    numbers[600] = numbers[1100] = "bad"
    one = render(numbers, 1, "jsonl")
    two = render(numbers, 2, "jsonl")
    assert one == two
    assert one[0] == b""
    assert "600:n: bad" in one[1]
    assert one[2] == 2


def test_a_worker_that_is_killed_is_an_error(render: Render) -> None:
    file, said, code = render([1, "die", 1], 2, "jsonl")
    assert "one of 2 worker processes ended before its work was done" in said
    assert "--workers 1" in said
    assert (file, code) == (b"", 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_command(render: Render, number: signal.Signals) -> None:
    command = render.command(["slow"] * 20_000, 2, "jsonl")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
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
    assert not list(render.folder.glob("*2.jsonl")) or number == signal.SIGKILL


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
