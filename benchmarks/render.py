"""Rows a second from records to ids and loss weights, beside the limit: bare tokenization of the finished texts.

usage: python -m benchmarks.render [TOKENIZER_DIR] [ROWS.json ...]

Without arguments: the bundled set, many times over, and the tokenizer of the small built-in model.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from templatekit.config import DataOptions
from templatekit.pipeline import Pipeline
from templatekit.registry import create_registry
from templatekit.types import Record

ROWS = 4000


def best_of(times: int, work: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds: what the machine's noise lengthened least."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def run_through(pipeline: Pipeline, records: list[Record]) -> None:
    for _ in pipeline.run(records):
        pass


def main() -> None:
    registry = create_registry()
    tokenizer, *files = sys.argv[1:] or ["smollm2-135m-instruct"]
    records: list[Record] = []
    for file in files:
        records += json.loads(Path(file).read_text(encoding="utf-8"))
    if not files:
        pipeline = Pipeline(DataOptions(dataset="starter"), registry)
        starter = [record for record in pipeline.open() if not isinstance(record, Exception)]
        records = (starter * (ROWS // len(starter) + 1))[:ROWS]
    print(f"{len(records):,} rows, tokenizer {tokenizer}")
    for template in ("alpaca", "chatml"):
        pipeline = Pipeline(DataOptions(template=template, tokenizer=tokenizer), registry)
        assert pipeline.tokenizer is not None
        texts = [item.rendered.text for item in pipeline.run(records)]
        backend = pipeline.tokenizer.backend(control=True, prefix=True)
        bare = best_of(3, partial(backend.encode_batch_fast, texts, add_special_tokens=False))
        ours = best_of(3, partial(run_through, pipeline, records))
        print(
            f"{template:8} bare encode_batch_fast {len(records) / bare:8,.0f} rows/s   "
            f"templatekit {len(records) / ours:8,.0f} rows/s   ratio {bare / ours:.2f}"
        )


if __name__ == "__main__":
    main()
