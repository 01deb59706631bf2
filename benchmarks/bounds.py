"""Measures the cost of limiting an untrusted template: metering it, or rendering it in the worker.

usage: python -m benchmarks.bounds

The same texts by the same template, trusted and limited in turn, without compiled traces, which are not metered.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from unittest.mock import patch

from benchmarks.rows import bundled_rows
from templatekit.formats.sandbox.untrusted import UntrustedTemplate
from templatekit.formats.sandbox.worker import WORKER
from templatekit.formats.template import Template
from templatekit.formats.tracing.compiler import TracingCompiler
from templatekit.hooks.contracts import TemplateFile
from templatekit.hooks.loading import create_registry
from templatekit.types import Example

NAMES = ("chatml", "llama3", "qwen3")
ROUNDS = 15
UNMETERED = "{# an operation that is not metered #}{% set _ = 'ab' * 2 %}"


def bundled_examples(count: int) -> list[Example]:
    adapter = create_registry().adapters["alpaca"]
    return [adapter.to_example(row) for row in bundled_rows(count)]


def seconds(template: Template, inputs: Iterable[Example], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    for example in inputs:
        _ = template.render(example).text
    return clock() - start


def main() -> None:
    inputs = bundled_examples(300)
    offered = create_registry().templates
    print(f"{'template':12} {'trusted':>12} {'metered':>9} {'in a worker':>12}   (µs a text; the last by the clock)")
    for name in NAMES:
        source = offered[name].source
        trusted = Template(TemplateFile(name=name, source=source))
        metered = UntrustedTemplate(TemplateFile(name=name, source=source))
        in_worker = UntrustedTemplate(TemplateFile(name=name, source=source + UNMETERED))
        with patch.object(TracingCompiler, "enabled", False):
            pairs = [(seconds(trusted, inputs), seconds(metered, inputs)) for _ in range(ROUNDS)]
            seconds(in_worker, inputs[:1])
            worker_seconds = min(seconds(in_worker, inputs, time.perf_counter) for _ in range(3))
        ratio = statistics.median(metered_time / trusted_time for trusted_time, metered_time in pairs)
        plain = min(trusted_time for trusted_time, _ in pairs) / len(inputs)
        print(f"{name:12} {plain * 1e6:12.1f} {ratio:8.2f}× {worker_seconds / len(inputs) * 1e6:12.1f}")
    starts = []
    for _ in range(5):
        WORKER.stop()
        starts.append(seconds(in_worker, inputs[:1], time.perf_counter))
    print(f"start of a worker: {min(starts):.2f} s by the clock")


if __name__ == "__main__":
    main()
