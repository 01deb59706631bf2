"""Peak memory and processor time of `templatekit render` on the worst inputs: how large they are must not matter.

usage: python -m benchmarks.worst_inputs [NAME …]

Each input is written to a temporary folder, 4 GB at most, rendered to nowhere by a process of its own, and removed.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

MEGABYTE = 1_000_000
GIGABYTE = 1000 * MEGABYTE
TEXT = ("The quick brown fox jumps over the lazy dog. " * 400_000)[: 15 * MEGABYTE]
"""The text of a record of nearly the largest size."""
RECORD = {"instruction": "say", "output": TEXT}
ROWS = 200
GOOD = b'{"instruction": "say", "output": "x"}\n'


def _repeat(file: BinaryIO, part: bytes, size: int) -> None:
    block = part * max(1, MEGABYTE // len(part))
    for _ in range(size // len(block)):
        file.write(block)


def _long_value(start: bytes, end: bytes, part: bytes, size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            _repeat(file, part, size)
            file.write(end)

    return write


def _bomb(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with bz2.open(path, "wb") if path.suffix == ".bz2" else gzip.open(path, "wb") as file:
            _repeat(cast("BinaryIO", file), b"0", size)

    return write


def _many_rows(path: Path) -> None:
    with path.open("wb") as file:
        for part in _rows_as(path.suffix):
            file.write(part)


def _rows_as(suffix: str) -> Iterator[bytes]:
    row = json.dumps(RECORD).encode()
    if suffix == ".csv":
        yield b"instruction,output\n"
        row = f'say,"{TEXT}"'.encode()
    for number in range(ROWS):
        if suffix == ".json":
            yield b"," if number else b"["
        yield row + b"\n"
    if suffix == ".json":
        yield b"]"


def _table(rows: int, *, shared: bool = False, codec: str | None = None, size: int = 0) -> Callable[[Path], None]:
    """Row groups or record batches of 10 rows; with `shared`, all rows have one text of a dictionary."""

    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = "y" * size or TEXT
        if shared:
            output = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
            pq.write_table(pa.table({"instruction": ["say"] * rows, "output": output}), path)
            return
        count = min(10, rows) if codec != "zstd, one batch" else rows
        batch = pa.table({"instruction": ["say"] * count, "output": [text] * count})
        options = pa.ipc.IpcWriteOptions(compression=codec and codec.partition(",")[0])
        with (
            pq.ParquetWriter(path, batch.schema, use_dictionary=False, compression="zstd")
            if path.suffix == ".parquet"
            else pa.ipc.new_file(path, batch.schema, options=options)
        ) as writer:
            for _ in range(rows // count):
                writer.write_table(batch)

    return write


def _tiny_objects(path: Path) -> None:
    path.write_text(json.dumps({"instruction": "say", "output": "x", "more": [{}] * 990_000}) + "\n")


INPUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "one line of 2 GB": ("x.jsonl", _long_value(GOOD + b'{"instruction": "', b'"}\n' + GOOD, b"y", 2 * GIGABYTE)),
    "a list with an element of 2 GB": ("x.json", _long_value(b'[{"instruction": "', b'"}]', b"y", 2 * GIGABYTE)),
    "a CSV field of 2 GB": ("x.csv", _long_value(b'instruction,output\na,"', b'"\nb,c\n', b"y", 2 * GIGABYTE)),
    "an open CSV quote, 1.6 GB": ("x.csv", _long_value(b'instruction,output\na,"', b"", b"yyyyyyy\n", 1600 * MEGABYTE)),
    "5 GB in a .bz2": ("x.jsonl.bz2", _bomb(5 * GIGABYTE)),
    "8 GB in a .gz": ("x.jsonl.gz", _bomb(8 * GIGABYTE)),
    "2 GB of blank lines": ("x.jsonl", _long_value(b"", b"", b"\n", 2 * GIGABYTE)),
    "990,000 tiny objects in a row": ("x.jsonl", _tiny_objects),
    "a text of 1 GB in Parquet": ("x.parquet", _table(1, size=GIGABYTE)),
    "200 rows of 15 MB, .jsonl": ("x.jsonl", _many_rows),
    "200 rows of 15 MB, .json": ("x.json", _many_rows),
    "200 rows of 15 MB, .csv": ("x.csv", _many_rows),
    "200 rows of 15 MB, .parquet": ("x.parquet", _table(ROWS)),
    "200 rows of 15 MB, .arrow": ("x.arrow", _table(ROWS)),
    "200 rows of 15 MB, .arrow with zstd": ("x.arrow", _table(ROWS, codec="zstd")),
    "500 rows that share a text of 15 MB": ("x.parquet", _table(500, shared=True)),
    "2 GB in a compressed batch, .arrow": ("x.arrow", _table(130, codec="zstd, one batch")),
}


def measure(path: Path, *options: str) -> tuple[float, float, str]:
    """Peak memory in MB, seconds of processor time, and the first line that the command says."""
    command = [sys.executable, "-m", "templatekit", "render", "--dataset", str(path), "--adapter", "alpaca"]
    with tempfile.TemporaryFile() as said:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [*command, "--on-error", "skip", *options], stdout=subprocess.DEVNULL, stderr=said, env=environment
        )
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # it was waited for
        said.seek(0)
        lines = said.read().decode().splitlines()
    return usage.ru_maxrss * 1024 / MEGABYTE, usage.ru_utime + usage.ru_stime, lines[0] if lines else ""


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        _, write = INPUTS[sys.argv[2]]
        write(Path(sys.argv[3]))
        return
    for name in sys.argv[1:] or INPUTS:
        file, _ = INPUTS[name]
        with tempfile.TemporaryDirectory(prefix="worst-") as folder:
            # By a process of its own: the peak memory of a process is also that of the one that starts it.
            command = [sys.executable, "-m", "benchmarks.worst_inputs", "--write", name, str(Path(folder, file))]
            subprocess.run(command, check=True)
            memory, seconds, said = measure(Path(folder, file))
        said = said.replace(folder + os.sep, "")
        print(f"{name:40} {memory:6,.0f} MB {seconds:6.1f} s   {said[:100]}", flush=True)


if __name__ == "__main__":
    main()
