"""The cost of caching examples, and what it saves: rendering them, reading them, and opening them for training.

usage: python -m benchmarks.cache [ROWS] [--opening]

Times are seconds of processor time, each of a separate process including its start-up. For opening, the wall-clock time
is shown too. The time of `--workers` is shown separately from that of the process that reads and writes. `--opening`
measures only the opening, and renders only what it needs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.render import save_smollm2
from benchmarks.rows import bundled_rows, write_numbered

MEASURE_PROGRAM = """
import resource, sys, time
sys.argv = {arguments!r}
from templatekit.cli import main
try:
    main()
finally:
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(time.process_time(), workers.ru_utime + workers.ru_stime)
"""
OPEN_PROGRAM = """
import sys, time
import templatekit.training.data as data
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.hooks.loading import create_registry
from templatekit.tokens.load import find_tokenizer
dataset, tokenizer, cache = sys.argv[1:]
registry = create_registry()
options = FinetuneOptions(dataset=dataset, tokenizer=tokenizer, cache=True, cache_dir=cache)
pipeline = data.training_pipeline(options, registry, tokenizer=find_tokenizer(tokenizer, registry))
clock, busy = time.perf_counter(), time.process_time()
splits = data.read_splits(options, pipeline)
read = time.perf_counter(), time.process_time()
len(splits.train[0].input_ids), len(splits.train[len(splits.train) - 1].input_ids)
data.data_fingerprints(pipeline, splits.train)
named = time.perf_counter(), time.process_time()
print(read[0] - clock, read[1] - busy, named[0] - read[0], named[1] - read[1], sum(splits.sizes.values()))
"""


def run_python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert not run.returncode, run.stderr
    return run.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", type=int, nargs="?", default=100_000)
    parser.add_argument("--opening", action="store_true", help="only the time to open cached examples")
    options = parser.parse_args()
    count = options.rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer, file, cache = save_smollm2(folder / "smollm2"), folder / "rows.jsonl", folder / "cache"
        write_numbered(file, bundled_rows(1000), count)
        command = ["templatekit", "render", "--dataset", str(file), "--tokenizer", tokenizer, "--json"]
        command += ["--output", str(folder / "rows.parquet"), "--overwrite"]
        cached = [*command, "--cache", "--cache-dir", str(cache)]
        print(f"{count:,} rows")
        workers = ["--workers", "2"]
        shared = [*command, "--cache", "--cache-dir", str(folder / "shared"), *workers]
        steps = {
            "rendered": command,
            "rendered by two": [*command, *workers],
            "rendered and cached": cached,
            "read": cached,
        }
        steps["rendered by two and cached"] = shared
        for label, arguments in steps.items():
            if options.opening and label != "rendered and cached":
                continue
            own, others = (float(number) for number in run_python(MEASURE_PROGRAM.format(arguments=arguments)).split())
            more = f"   and {others / count * 1e6:6.1f} in the workers" if others else ""
            print(f"  {label:28} {own:7.1f} s   {own / count * 1e6:6.1f} µs a row{more}", flush=True)
        found = [float(number) for number in run_python(OPEN_PROGRAM, str(file), tokenizer, str(cache)).split()]
        assert found[-1] == count
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        print(f"  cached: {size / count:,.0f} bytes a row, {file.stat().st_size / count:,.0f} of the data")
        print(f"  opened for training          {found[1]:7.2f} s   {found[0]:.2f} s by the clock")
        print(f"  ids and weights fingerprinted {found[3]:6.2f} s   {found[2]:.2f} s by the clock")


if __name__ == "__main__":
    main()
