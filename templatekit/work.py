"""The work on chunks of records, which any process can do: the same output in the same order, wherever it is done.

An *engine* takes chunks and gives what became of each, in their order: `templatekit.workers` by processes of this
machine, `templatekit.on_ray` by those of a cluster. Each of their workers sets up the same pipeline anew, by names, and
gives back what the sink is to write, with its counts. An error is the one that a single process would have met first.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import NamedTuple, TypeAlias

from templatekit.chunks import Chunk
from templatekit.config import DataOptions
from templatekit.counts import Counts
from templatekit.errors import RunError, TemplatekitError
from templatekit.mixture import pipeline_of
from templatekit.parts import Lengths, Part, some_parts
from templatekit.pipeline import Pipeline
from templatekit.registry import create_registry
from templatekit.sinks import Sink


class Setup(NamedTuple):
    """What a worker makes its pipeline of: names, since plugins' objects cannot be sent."""

    options: DataOptions
    plugin_dirs: tuple[Path, ...]
    sink: str
    lengths: bool
    """Whether to count how long samples are."""


class Done(NamedTuple):
    """What became of a chunk."""

    parts: list[Part]
    counts: Counts | None
    """None where the worker could not be set up."""
    adapters: tuple[str | None, ...]
    """Of the chunk."""
    lengths: Lengths | None = None
    error: BaseException | None = None
    """What was raised behind these parts."""


Engine: TypeAlias = Callable[[Setup, Iterator[Chunk]], Generator[Done, None, None]]
"""Gives what became of each chunk, in their order, few of them on the way at a time. Closing it ends its workers.

The chunks are read here where the engine takes them; one that has them read elsewhere leaves them alone.
"""


class Worker:
    """In the process of a worker: does chunks, one after another."""

    def __init__(self, setup: Setup) -> None:
        """Raises `TemplatekitError` for what is not found here, or is wrong."""
        with redirect_stdout(sys.stderr):
            registry = create_registry(plugin_dirs=setup.plugin_dirs)
            self._pipeline = pipeline_of(setup.options, registry)
            self._sink = registry.exporters[setup.sink]
        self._lengths = setup.lengths

    def __call__(self, chunk: Chunk) -> Done:
        """A chunk's parts, up to the first error."""
        pipeline = self._pipeline
        pipeline.take_counts()
        lengths = Lengths() if self._lengths else None
        parts: list[Part] = []
        error: BaseException | None = None
        with redirect_stdout(sys.stderr):
            try:
                parts.extend(some_parts(pipeline.of_chunk(chunk), self._sink, pipeline, lengths=lengths))
            except Exception as raised:  # sent on as it is, so that it is met in its turn
                error = sendable(raised)
        return Done(parts, pipeline.take_counts(), chunk.adapters, lengths, error)


def parts_here(pipeline: Pipeline, sink: Sink, *, lengths: Lengths | None = None) -> Iterator[Part]:
    """What becomes of the records of the options' data set, in this process: chunk by chunk too, so that the order in
    which refusals are counted is the same.
    """
    for chunk in pipeline.chunks():
        yield from some_parts(pipeline.of_chunk(chunk), sink, pipeline, lengths=lengths)
    pipeline.check_any_left()


def parts_by(
    engine: Engine,
    pipeline: Pipeline,
    sink: Sink,
    *,
    plugin_dirs: Iterable[Path] = (),
    lengths: Lengths | None = None,
) -> Iterator[Part]:
    """The same by an engine's workers; `pipeline` counts.

    Adapters, templates, the tokenizer and the sink are found again by their names in the options, in `plugin_dirs` too.
    """
    name = next(name for name, offered in pipeline.registry.exporters.items() if offered is sink)
    setup = Setup(pipeline.options, tuple(plugin_dirs), name, lengths is not None)
    with closing(engine(setup, pipeline.chunks())) as results:
        for done in results:
            if done.counts is not None:
                pipeline.take_adapters(done.adapters)
                pipeline.counts.merge(done.counts)
            if lengths is not None and done.lengths is not None:
                lengths.merge(done.lengths)
            yield from done.parts
            if done.error is not None:
                raise done.error
    pipeline.check_any_left()


def failed(error: TemplatekitError) -> Done:
    """What a worker gives that could not be set up."""
    return Done([], None, (), error=sendable(error))


def failing(error: TemplatekitError) -> Callable[[Chunk], Done]:
    """What stands in for a worker that could not be set up."""
    done = failed(error)
    return lambda chunk: done


def sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a plugin's error does when it is packed
        return RunError(f"{type(error).__name__}: {error}")
    return error
