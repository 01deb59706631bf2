"""Rows a second from records to ids and loss weights, beside the limit: bare tokenization of the finished texts.

And rendering alone, by plans and without them.

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
from templatekit.formats.plans import without_plans
from templatekit.pipeline import Pipeline
from templatekit.registry import create_registry
from templatekit.types import Example, Record

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


def render_all(pipeline: Pipeline, examples: list[Example]) -> None:
    """Texts, origins and targets, without a tokenizer's work."""
    for example in examples:
        for sample in pipeline.template.samples(example, pipeline.special_tokens):
            _ = sample.rendered.text, sample.rendered.spans, sample.rendered.target_spans


def compare_rendering(pipeline: Pipeline, examples: list[Example]) -> None:
    """Rendering alone: by plans, and each example as if it were the first."""
    planned = best_of(3, partial(render_all, pipeline, examples))
    few = examples[: len(examples) // 10]
    with without_plans():
        anew = best_of(3, partial(render_all, pipeline, few)) * len(examples) / len(few)
    count = len(examples)
    print(
        f"{'':8} rendering alone {count / planned:12,.0f} rows/s ({planned / count * 1e6:.1f} µs a row)   "
        f"without plans {count / anew:8,.0f} rows/s   ratio {anew / planned:.1f}"
    )


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
        prepared = [*pipeline.run(records)]
        texts = [item.rendered.text for item in prepared]
        backend = pipeline.tokenizer.backend(control=True, prefix=True)
        bare = best_of(3, partial(backend.encode_batch_fast, texts, add_special_tokens=False))
        ours = best_of(3, partial(run_through, pipeline, records))
        print(
            f"{template:8} bare encode_batch_fast {len(records) / bare:8,.0f} rows/s   "
            f"templatekit {len(records) / ours:8,.0f} rows/s   ratio {bare / ours:.2f}"
        )
        compare_rendering(pipeline, [item.example for item in prepared])


if __name__ == "__main__":
    main()
