"""A trace tree: all compiled traces of one shape, in one generated Python function.

Traces of one template and shape agree up to a guard with another outcome, so that together they are a tree. Two traces
of the template `Q: {{ instruction }}{% if 'b' in instruction %}!{% endif %} A: {{ response }}` give this function:

    def run(messages):
     content0 = messages[0].content
     content1 = messages[1].content
     if not ('b' in content0):
      return traces[0], (('Q: ', content0, ' A: ', content1, ), )
     if ('b' in content0):
      return traces[1], (('Q: ', content0, '! A: ', content1, ), )
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from templatekit.formats.environment import fixed_clock
from templatekit.formats.tracing.compiled_trace import CompiledTrace
from templatekit.formats.tracing.recorder import Recording
from templatekit.formats.tracing.trace import TraceAborted, TraceStep
from templatekit.types import Message

RECORD_EVERY = 8
"""One in this many examples that leave the tree is recorded; that costs about as much as interpreting all of them."""
MAX_ABORTS = 3
"""After this many aborted recordings a shape is interpreted for good."""
MAX_TRACES = 16
"""Most traces of one tree."""

TraceRun: TypeAlias = tuple[CompiledTrace, tuple[tuple[str, ...], ...]]
"""The trace whose guards an example passes, and the pieces of each sample's text."""


class TraceTree:
    """The compiled traces of one shape."""

    def __init__(self) -> None:
        self.traces: tuple[CompiledTrace, ...] = ()
        self.run: Callable[[tuple[Message, ...]], TraceRun | None] = _side_exit
        """Gives the result of the trace whose guards the messages pass; None at a side exit."""
        self.aborts = 0
        """How many recordings were aborted."""
        self._side_exits = 0

    def should_record(self) -> bool:
        """Count a side exit; return whether its example is to be recorded."""
        self._side_exits += 1
        return self._side_exits % RECORD_EVERY == 0 and self.aborts < MAX_ABORTS and len(self.traces) < MAX_TRACES

    def add(self, recording: Recording) -> CompiledTrace:
        """Compile a recording into the tree; raises `TraceAborted` if it leaves the tree at a step that is no guard."""
        trace = CompiledTrace(recording)
        traces = (*self.traces, trace)
        names: dict[str, Any] = {
            "traces": traces,
            "clock": lambda: fixed_clock(datetime.now()),
            "__builtins__": {"len": len},
        }
        exec(compile(_source(recording.fields, traces), "<trace tree>", "exec"), names)
        self.traces = traces
        self.run = names["run"]
        return trace

    def disable(self) -> None:
        """Drop the traces; from now on every example of the shape is interpreted."""
        self.traces = ()
        self.run = _side_exit
        self.aborts = MAX_ABORTS


def _side_exit(_: tuple[Message, ...]) -> None:
    """The function of a tree without traces."""


def _source(fields: dict[tuple[int, str], str], traces: Sequence[CompiledTrace]) -> str:
    """The source of the tree's function."""
    lines = ["def run(messages):"]
    lines += [f" {variable} = messages[{index}].{field}" for (index, field), variable in fields.items()]
    if any(step.expression.startswith("strftime_now(") for trace in traces for step in trace.steps):
        lines.append(" strftime_now = clock()")
    lines += _branch([*enumerate(traces)], 0, " ")
    return "\n".join(lines)


def _branch(traces: Sequence[tuple[int, CompiledTrace]], depth: int, indent: str) -> Iterator[str]:
    """The lines of the steps from `depth` on: the steps that all traces share, then a branch for each continuation.

    A trace returns only after all of its own steps, so its result is right whatever the order of the branches.
    """
    while True:
        branches: dict[TraceStep | None, list[tuple[int, CompiledTrace]]] = {}
        for index, trace in traces:
            branches.setdefault(trace.steps[depth] if depth < len(trace.steps) else None, []).append((index, trace))
        if len(branches) > 1:
            break
        (step,) = branches
        if step is None:
            index, trace = traces[0]
            texts = "".join(f"({''.join(f'{piece}, ' for piece in layout.expressions)}), " for layout in trace.layouts)
            yield f"{indent}return traces[{index}], ({texts})"
            return
        if step.variable:
            yield f"{indent}{step.variable} = {step.expression}"
        else:
            yield f"{indent}if {'not ' if step.outcome else ''}({step.expression}): return None"
        depth += 1
    for step, sharing in branches.items():
        if step is None or step.variable:
            raise TraceAborted("a rendering that depends on more than its guards")
        yield f"{indent}if {'' if step.outcome else 'not '}({step.expression}):"
        yield from _branch(sharing, depth + 1, indent + " ")
