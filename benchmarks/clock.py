"""Measure runs, and print the figures of contenders as a table."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks.results import SetResult


def shortest_seconds(times: int, work: Callable[[], object]) -> float:
    """The time of the shortest of several runs, in seconds: the one least affected by other work on the machine."""
    return min(measure_cost(work).seconds for _ in range(times))


class Cost(NamedTuple):
    """The time of a run."""

    seconds: float
    cpu: float
    """Seconds of all cores, worker processes included."""


def measure_cost(work: Callable[[], object]) -> Cost:
    start, busy = time.perf_counter(), cpu_seconds()
    work()
    return Cost(time.perf_counter() - start, cpu_seconds() - busy)


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Report:
    """The figures of one data set, each printed when it is measured."""

    def __init__(self, name: str, rows: int, tokens: int, bare: Cost) -> None:
        self._name, self._rows, self._tokens, self._bare = name, rows, tokens, bare
        self._costs: dict[str, float] = {}
        title = f"{name}: {rows:,} rows, {tokens} tokens a text"
        self._lines = [f"## {title}", "", "| | rows/s | × bare | µs of all cores a row |", "| --- |" + " ---: |" * 3]
        print(title)
        self.add("bare encode_batch_fast", bare)

    def add(self, contender: str, cost: Cost) -> None:
        """Add a contender's figures."""
        speed, ratio = self._rows / cost.seconds, self._bare.seconds / cost.seconds
        each = cost.cpu / self._rows * 1e6
        print(
            f"  {contender:34} {speed:10,.0f} rows/s   {ratio:5.2f} × bare   {each:7.1f} µs of all cores a row",
            flush=True,
        )
        self._costs[contender] = round(each, 2)
        self._lines.append(f"| {contender} | {speed:,.0f} | {ratio:.2f} | {each:.1f} |")

    def add_stages(self, stages: Mapping[str, float]) -> None:
        """Add the time of each stage in one process, in seconds."""
        times = ", ".join(f"{name} {seconds / self._rows * 1e6:.1f}" for name, seconds in stages.items())
        self.say(f"one process, µs a row: {times}")

    def say(self, line: str) -> None:
        """Add a line of text."""
        print(f"  {line}", flush=True)
        self._lines += ["", line]

    @property
    def result(self) -> SetResult:
        """The figures for README, without `--workers`, which saves wall-clock time but costs processor time."""
        costs = {name: cost for name, cost in self._costs.items() if "--workers" not in name}
        return SetResult(self._name, self._rows, self._tokens, costs)

    @property
    def markdown(self) -> str:
        """The table and the lines of text."""
        return "\n".join(self._lines) + "\n"
