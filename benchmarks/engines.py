"""The same data with one process, two processes, and two on a Ray cluster: equal bytes, and the time of each.

usage: python -m benchmarks.engines [--rows N] [--shared FOLDER] [--format parquet] [--engines one two ray]

The data set is Alpaca's if a folder of real data is next to the project, else the bundled one. It is repeated, with a
number in each row, so that no two rows are equal. Times are of the whole command: starting Python, workers and, with
Ray, a cluster on this machine; reading and writing. Memory is the peak of each process, without shared memory.
`travels` is the size of the data sent to a worker and received from it.
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
from benchmarks.rows import bundled_rows, write_numbered
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
    """A process of the run, when last inspected."""

    kind: str
    peak: float
    """Peak memory in MiB, without shared memory."""
    seconds: float
    """Seconds of processor time."""


class ProcessMonitor(threading.Thread):
    """Inspects all processes of a run four times a second. It finds them by a variable in their environment."""

    def __init__(self, marker: str) -> None:
        super().__init__(daemon=True)
        self.marker = marker.encode()
        self.processes: dict[int, Process] = {}
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.25):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    self.inspect_process(entry)

    def inspect_process(self, entry: Path) -> None:
        try:
            if self.marker not in (entry / "environ").read_bytes():
                return
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().split()
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            times = (entry / "stat").read_text().rpartition(")")[2].split()[11:13]
        except (OSError, ValueError):
            return
        if "RssAnon" not in status or not words:
            return
        anonymous = int(status["RssAnon"].split()[0]) / 1024
        before = self.processes.get(int(entry.name))
        seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        kind = process_kind(words)
        if before is not None:
            anonymous = max(anonymous, before.peak)
            kind = before.kind if before.kind.startswith("ray::") else kind  # between two tasks it has another name
        self.processes[int(entry.name)] = Process(kind, anonymous, seconds)


def process_kind(words: list[str]) -> str:
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
            print(f"  travels: {transfer_sizes(data, tokenizer, options.format)}")
            for name in options.engines:
                measure(name, data, tokenizer, options.format)


def rows(shared: Path) -> list[Record]:
    alpaca = shared / "data" / "alpaca" / "alpaca_cleaned_short_12k.json"
    return json.loads(alpaca.read_text(encoding="utf-8")) if alpaca.is_file() else bundled_rows(1000)


def transfer_sizes(data: Path, tokenizer: str, format: str, chunks: int = 20) -> str:
    """Bytes for each row sent to a worker and back, over the first chunks."""
    options = DataOptions(dataset=str(data), template="alpaca", tokenizer=tokenizer)
    pipeline = Pipeline(options, create_registry())
    worker = Worker(WorkerSetup.of(pipeline, Job(ExporterConverter(format))))
    sent = received = count = 0
    for chunk in itertools.islice(pipeline.chunks(), chunks):
        sent += len(pickle.dumps(chunk, protocol=5))
        received += len(pickle.dumps(worker(chunk), protocol=5))
        count += len(chunk.records)
    return f"{sent / count:,.0f} bytes a row to a worker, {received / count:,.0f} back"


def measure(engine: str, data: Path, tokenizer: str, format: str) -> None:
    """Print a line for the run, and one for each kind of process."""
    output = data.with_name(f"rendered.{format}")
    options = ["--dataset", data, "--template", "alpaca", "--tokenizer", tokenizer]
    options += ["--output", output, "--overwrite"]
    command = [sys.executable, "-m", "templatekit", "render", *map(str, options), *ENGINES[engine]]
    marker = f"BENCHMARK_RUN={os.getpid()}.{time.monotonic_ns()}"
    name, _, value = marker.partition("=")
    watch = ProcessMonitor(marker)
    watch.start()
    started = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, name: value}, stderr=subprocess.DEVNULL)
    duration = time.monotonic() - started
    watch.stopped.set()
    watch.join()
    busy = sum(process.seconds for process in watch.processes.values())
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    size = output.stat().st_size / 1e6
    print(f"  {engine}: {duration:.1f} s, {busy:.1f} s of all cores; {size:,.0f} MB, sha256 {digest[:16]}", flush=True)
    kinds = sorted({process.kind for process in watch.processes.values()})
    for kind in kinds:
        members = [process for process in watch.processes.values() if process.kind == kind]
        peak, core_seconds = max(process.peak for process in members), sum(process.seconds for process in members)
        print(f"    {kind} ({len(members)}): {peak:,.0f} MiB at most, {core_seconds:.1f} s")


if __name__ == "__main__":
    main()
