"""One process, two of this machine and two of a Ray cluster: the same bytes, and how long each takes.

usage: python -m benchmarks.engines [--rows N] [--shared FOLDER] [--format parquet] [--engines one two ray]

The set is Alpaca's where a folder of real data lies beside the project, else the bundled one, so many times over, each
row with its number, so that no two are the same. Times are of the whole command: starting Python, workers and, with
Ray, a cluster on this machine, reading, writing. Memory is the most that each process held, without the pages of shared
memory that several see. `travels` is what goes to a worker and what comes back.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.render import SHARED, save_smollm2
from benchmarks.rows import starter, write_numbered
from templatekit.config.data_options import DataOptions
from templatekit.engines.jobs import Job, Worker, WorkerSetup
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.outputs import ExporterConverter
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Record

ENGINES = {
    "one": [],
    "two": ["--workers", "2"],
    "ray": ["--engine", "ray", "--workers", "2"],
}


class Process(NamedTuple):
    """A process of the run, as last seen."""

    kind: str
    peak: float
    """MiB held at most, but for shared memory."""
    seconds: float
    """Of a core."""


class Watch(threading.Thread):
    """Looks at all processes of a run, by a variable in their environment, four times a second."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark = mark.encode()
        self.seen: dict[int, Process] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.25):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    self.look(entry)

    def look(self, entry: Path) -> None:
        try:
            if self.mark not in (entry / "environ").read_bytes():
                return
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().split()
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            times = (entry / "stat").read_text().rpartition(")")[2].split()[11:13]
        except (OSError, ValueError):
            return
        if "RssAnon" not in status or not words:
            return
        held = int(status["RssAnon"].split()[0]) / 1024
        before = self.seen.get(int(entry.name))
        seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        kind = kind_of(words)
        if before is not None:
            held = max(held, before.peak)
            kind = before.kind if before.kind.startswith("ray::") else kind  # between two tasks it is called otherwise
        self.seen[int(entry.name)] = Process(kind, held, seconds)


def kind_of(words: list[str]) -> str:
    line = " ".join(words)
    if words[0].startswith("ray::"):
        return words[0].partition("(")[0] if "MapBatches" in words[0] else "Ray's own"
    if "multiprocessing.resource_tracker" in line:
        return "Python's own"
    if "multiprocessing.spawn" in line:
        return "worker"
    return "the command" if "render" in words else "Ray's own"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--shared", type=Path, default=SHARED, help="a folder of real data and tokenizers")
    parser.add_argument("--format", default="parquet")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_smollm2(Path(folder) / "smollm2")
        for count in options.rows:
            data = Path(folder) / "rows.jsonl"
            write_numbered(data, rows(options.shared), count)
            print(f"{count:,} rows, {data.stat().st_size / 1e6:,.0f} MB")
            print(f"  travels: {travels(data, tokenizer, options.format)}")
            for name in options.engines:
                measure(name, data, tokenizer, options.format)


def rows(shared: Path) -> list[Record]:
    alpaca = shared / "data" / "alpaca" / "alpaca_cleaned_short_12k.json"
    return json.loads(alpaca.read_text(encoding="utf-8")) if alpaca.is_file() else starter(1000)


def travels(data: Path, tokenizer: str, format: str, chunks: int = 20) -> str:
    """Bytes a row to a worker and back, of the first chunks."""
    options = DataOptions(dataset=str(data), template="alpaca", tokenizer=tokenizer)
    pipeline = Pipeline(options, create_registry())
    worker = Worker(WorkerSetup.of(pipeline, Job(ExporterConverter(format))))
    there = back = count = 0
    for chunk in itertools.islice(pipeline.chunks(), chunks):
        there += len(pickle.dumps(chunk, protocol=5))
        back += len(pickle.dumps(worker(chunk), protocol=5))
        count += len(chunk.records)
    return f"{there / count:,.0f} bytes a row to a worker, {back / count:,.0f} back"


def measure(engine: str, data: Path, tokenizer: str, format: str) -> None:
    """Prints a line a run, and one a kind of process."""
    output = data.with_name(f"rendered.{format}")
    options = ["--dataset", data, "--template", "alpaca", "--tokenizer", tokenizer, "--output", output]
    command = [sys.executable, "-m", "templatekit", "render", *map(str, options), *ENGINES[engine]]
    mark = f"BENCHMARK_RUN={os.getpid()}.{time.monotonic_ns()}"
    name, _, value = mark.partition("=")
    watch = Watch(mark)
    watch.start()
    began = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, name: value}, stderr=subprocess.DEVNULL)
    took = time.monotonic() - began
    watch.ended.set()
    watch.join()
    busy = sum(process.seconds for process in watch.seen.values())
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    size = output.stat().st_size / 1e6
    print(f"  {engine}: {took:.1f} s, {busy:.1f} s of all cores; {size:,.0f} MB, sha256 {digest[:16]}", flush=True)
    kinds = sorted({process.kind for process in watch.seen.values()})
    for kind in kinds:
        of = [process for process in watch.seen.values() if process.kind == kind]
        most, cores = max(process.peak for process in of), sum(process.seconds for process in of)
        print(f"    {kind} ({len(of)}): {most:,.0f} MiB at most, {cores:.1f} s")


if __name__ == "__main__":
    main()
