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
    counts: Counts
    lengths: Lengths | None = None
    error: BaseException | None = None
    """What was raised behind these parts."""


Engine: TypeAlias = Callable[[Setup, Iterator[Chunk]], Generator[Done, None, None]]
"""Gives what became of each chunk, in their order, few of them on the way at a time. Closing it ends its workers."""


class Worker:
    """In the process of a worker: does chunks, one after another."""

    def __init__(self, setup: Setup) -> None:
        self._made: tuple[Pipeline, Sink] | TemplatekitError
        self._lengths = setup.lengths
        try:
            with redirect_stdout(sys.stderr):
                registry = create_registry(plugin_dirs=setup.plugin_dirs)
                self._made = pipeline_of(setup.options, registry), registry.exporters[setup.sink]
        except TemplatekitError as error:
            self._made = error

    def __call__(self, chunk: Chunk) -> Done:
        """A chunk's parts, up to the first error."""
        if isinstance(self._made, TemplatekitError):
            return Done([], Counts(), error=sendable(self._made))
        pipeline, sink = self._made
        pipeline.take_counts()
        lengths = Lengths() if self._lengths else None
        parts: list[Part] = []
        error: BaseException | None = None
        with redirect_stdout(sys.stderr):
            try:
                parts.extend(some_parts(pipeline.of_chunk(chunk), sink, pipeline, lengths=lengths))
            except Exception as raised:  # sent on as it is, so that it is met in its turn
                error = sendable(raised)
        return Done(parts, pipeline.take_counts(), lengths, error)


def parts_by(
    engine: Engine,
    pipeline: Pipeline,
    sink: Sink,
    *,
    plugin_dirs: Iterable[Path] = (),
    lengths: Lengths | None = None,
) -> Iterator[Part]:
    """What becomes of the records of the options' data set; `pipeline` here reads them and counts.

    The adapters, templates and tokenizer, and the sink, are found again by the options' names, in `plugin_dirs` too.
    """
    name = next(name for name, offered in pipeline.registry.exporters.items() if offered is sink)
    setup = Setup(pipeline.options, tuple(plugin_dirs), name, lengths is not None)
    chunks = _Read(pipeline.chunks())
    with closing(engine(setup, chunks)) as results:
        for done in results:
            pipeline.counts.merge(done.counts)
            if lengths is not None and done.lengths is not None:
                lengths.merge(done.lengths)
            yield from done.parts
            if done.error is not None:
                raise done.error
    if chunks.error is not None:
        raise chunks.error
    pipeline.check_any_left()


class _Read(Iterator[Chunk]):
    """The chunks up to where reading them raises, which has its turn when all before it is done."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self.error: Exception | None = None

    def __next__(self) -> Chunk:
        if self.error is not None:
            raise StopIteration
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise StopIteration from None


def sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a plugin's error does when it is packed
        return RunError(f"{type(error).__name__}: {error}")
    return error
