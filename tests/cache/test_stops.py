"""A run that is stopped at any moment continues from there; two simultaneous runs do no harm."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from testkit.at_hand import Tokenizers

PROGRAM = """
import sys
from templatekit.pipeline import pipeline
from templatekit.cache import preparation as run
from templatekit.cli import main
run.SHARD_RECORDS, pipeline.CHUNK_SIZE = 32, 20
main()
"""
"""The command, with shards so small that a run makes many, and chunks whose size does not divide theirs."""
KILLS = 50 if settings().max_examples > 100 else 5
ROWS = 400
PARTS = ROWS // 32 + 1
FILES = ["examples.arrow", "part.json", "texts.arrow", "tokens.arrow"]


class Job(NamedTuple):
    """A rendering, run as a process."""

    folder: Path
    tokenizer: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def start(self, output: str, *, cached: bool = True, workers: int = 1) -> subprocess.Popen[str]:
        arguments = ["render", "--dataset", str(self.folder / "data.jsonl"), "--tokenizer", str(self.tokenizer)]
        arguments += ["--on-error", "skip", "--json", "--template", "chatml"]
        arguments += ["--output", str(self.folder / output), "--overwrite"]
        if cached:
            arguments += ["--cache", "--cache-dir", str(self.cache)]
        if workers > 1:
            arguments += ["--workers", str(workers)]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ}
        )

    def finish(self, output: str, *, cached: bool = True, workers: int = 1) -> tuple[str, dict[str, object]]:
        """Bytes' hash and counts."""
        process = self.start(output, cached=cached, workers=workers)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
        return hashlib.sha256((self.folder / output).read_bytes()).hexdigest(), json.loads(said.splitlines()[-1])

    def whole_parts(self) -> int:
        return len(list(self.cache.glob("prepared-*/*/[0-9]*")))

    def kept(self) -> dict[str, bytes]:
        """Every byte of every shard."""
        paths = self.cache.glob("prepared-*/*/[0-9]*/*")
        return {str(path.relative_to(self.cache)): path.read_bytes() for path in paths}


@pytest.fixture
def job(tmp_path: Path, tokenizer_of: Tokenizers) -> Job:
    rows = []
    for n in range(ROWS):
        turns = [{"role": ("user", "assistant")[t % 2], "content": f"{n} {t} " * (n % 13 + 1)} for t in range(n % 6)]
        rows.append({"messages": turns} if n % 11 else {"messages": 3})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Job(tmp_path, tokenizer_of.folder("nfc"))


def test_after_sigkill_the_finished_parts_stay(job: Job) -> None:
    """A run killed at random moments keeps its complete shards, and ends as an uninterrupted run does."""
    unbroken = job.finish("plain.jsonl", cached=False)
    moments = random.Random(KILLS)
    kills = resumed = 0
    while kills < KILLS:
        before = job.whole_parts()
        if before == PARTS:
            assert job.finish("resumed.jsonl") == unbroken
            shutil.rmtree(job.cache)
            before = 0
        process = job.start("killed.jsonl")
        aim = moments.randint(before, PARTS)
        while process.poll() is None and job.whole_parts() < aim:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
        resumed += before > 0
        assert job.whole_parts() >= before
        for path in job.cache.glob("prepared-*/*/[0-9]*"):
            assert sorted(file.name for file in path.iterdir()) == FILES
    assert resumed, "at least one kill met a run that went on behind parts of an earlier one"
    assert job.finish("again.jsonl") == unbroken
    assert job.whole_parts() == PARTS
    if output := [path for path in job.folder.glob("killed.jsonl") if path.exists()]:  # killed on its way out
        assert hashlib.sha256(output[0].read_bytes()).hexdigest() == unbroken[0]


def test_another_number_of_workers_goes_on_where_one_was_killed(job: Job) -> None:
    """Runs of one and two processes are killed; runs of three and one continue to the bytes of an uninterrupted run."""
    unbroken = job.finish("plain.jsonl", cached=False)
    assert job.finish("whole.jsonl") == unbroken
    kept = job.kept()
    moments = random.Random(KILLS)
    for number, last in enumerate([3, 1] * (KILLS // 5)):
        shutil.rmtree(job.cache)
        for workers in (1, 2) if number % 2 else (2, 1):
            before = job.whole_parts()
            process = job.start("killed.jsonl", workers=workers)
            aim = before + moments.randint(1, PARTS // 3)
            while process.poll() is None and job.whole_parts() < aim:
                time.sleep(0.002)
            process.kill()
            process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL
            assert all(kept[name] == content for name, content in job.kept().items())
        assert 0 < job.whole_parts() < PARTS
        assert job.finish("resumed.jsonl", workers=last) == unbroken
        assert job.kept() == kept


def test_two_at_once_are_both_right(job: Job) -> None:
    unbroken = job.finish("plain.jsonl", cached=False)
    both = [job.start(f"{name}.jsonl") for name in "ab"]
    for name, process in zip("ab", both, strict=True):
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
        assert hashlib.sha256((job.folder / f"{name}.jsonl").read_bytes()).hexdigest() == unbroken[0]
    assert not list(job.cache.glob("prepared-*/*/.making-*"))
    assert job.finish("c.jsonl") == unbroken


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on processes there")
def test_a_full_disk_is_told_and_leaves_no_half(job: Job) -> None:
    """A limit on the size of files simulates a full disk: the same call raises the error."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + PROGRAM
    arguments = ["--dataset", str(job.folder / "data.jsonl"), "--tokenizer", str(job.tokenizer), "--on-error", "skip"]
    arguments += ["--template", "chatml", "--output", os.devnull, "--format", "jsonl"]
    arguments += ["--cache", "--cache-dir", str(job.cache)]
    done = subprocess.run(
        [sys.executable, "-c", limited, "render", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: cache '{job.cache}/prepared-3/")
    said = "' cannot be written: File too large; make room there, name another folder (--cache-dir), or go without"
    assert last.endswith(f"{said} (--no-cache)")
    assert job.whole_parts() == 0
    assert not list(job.cache.glob("prepared-*/*/.making-*"))
