"""The work on chunks of records, which any process can do: the same output in the same order, wherever it is done.

An *engine* takes chunks and gives what became of each, in their order: `templatekit.engines.processes` by processes of this
machine, `templatekit.engines.ray` by those of a cluster. Each of their workers sets up the same pipeline anew, by names, and
gives back the parts that were asked for, with its counts. An error is the one that a single process would have met
first.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from templatekit.config.options import DataOptions
from templatekit.errors import ConfigError, RunError, TemplatekitError
from templatekit.hooks.registry import Loading
from templatekit.pipeline.chunks import Chunk
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.mixture import Mixture, pipeline_of
from templatekit.pipeline.outputs import Lengths, Make, Part, Watcher, watched
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.tokenizer import Tokenizer

Read: TypeAlias = Callable[[Pipeline], Iterator[Chunk]]
"""Reads the chunks to work on; it can be sent."""


def every_chunk(pipeline: Pipeline) -> Iterator[Chunk]:
    """A `Read`: all of the options' data set."""
    return pipeline.chunks()


class Work(NamedTuple):
    """What is to be done with chunks."""

    make: Make
    watchers: tuple[Callable[[], Watcher], ...] = ()
    """Each makes one for a chunk."""
    read: Read = every_chunk


class Setup(NamedTuple):
    """What a worker makes its pipeline of: names, since plugins' objects cannot be sent."""

    options: DataOptions
    loading: Loading
    work: Work
    kind: type[Pipeline] = Pipeline
    """Of each set."""
    tokenizer: Tokenizer | None = None
    """None where the options name it."""

    @classmethod
    def of(cls, pipeline: Pipeline, work: Work) -> Setup:
        """How workers make this pipeline; raises `ConfigError` where it has plugins that were given as objects."""
        loading = pipeline.registry.loading
        if loading is None:
            raise ConfigError(
                "workers find plugins anew; found a registry that was given objects; expected one made of installed "
                "plugins and plugin_dirs, or one worker"
            )
        kind = pipeline.kind if isinstance(pipeline, Mixture) else type(pipeline)
        return cls(pipeline.options, loading, work, kind, pipeline.given_tokenizer)

    def pipeline(self) -> Pipeline:
        """The pipeline; raises `TemplatekitError` for what is not found here, or is wrong."""
        return pipeline_of(self.options, self.loading.again(), kind=self.kind, tokenizer=self.tokenizer)


class Done(NamedTuple):
    """What became of a chunk."""

    parts: list[Part]
    counts: Counts | None
    """None where the worker could not be set up."""
    adapters: tuple[str | None, ...]
    """Of the chunk."""
    records: int = 0
    watchers: tuple[Watcher, ...] = ()
    error: BaseException | None = None
    """What was raised behind these parts."""

    def met(self) -> Iterator[Part]:
        """The parts, and then the error."""
        yield from self.parts
        if self.error is not None:
            raise self.error


Engine: TypeAlias = Callable[[Setup, Iterator[Chunk]], Generator[Done, None, None]]
"""Gives what became of each chunk, in their order, few of them on the way at a time. Closing it ends its workers.

The chunks are read here where the engine takes them; one that has them read elsewhere leaves them alone.
"""


class Worker:
    """In the process of a worker: does chunks, one after another."""

    def __init__(self, setup: Setup) -> None:
        """Raises `TemplatekitError` for what is not found here, or is wrong."""
        with redirect_stdout(sys.stderr):
            self._pipeline = setup.pipeline()
        self._work = setup.work

    def __call__(self, chunk: Chunk) -> Done:
        """A chunk's parts, up to the first error."""
        pipeline = self._pipeline
        pipeline.take_counts()
        parts: list[Part] = []
        error: BaseException | None = None
        begun = _begun(chunk, pipeline, self._work)
        with redirect_stdout(sys.stderr):
            try:
                parts.extend(begun.parts)
            except Exception as raised:  # sent on as it is, so that it is met in its turn
                error = sendable(raised)
        return Done(parts, pipeline.take_counts(), begun.adapters, begun.records, begun.watchers, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A chunk that is worked on. Its parts come first: what watchers have seen is all there behind the last."""

    parts: Iterator[Part]
    watchers: tuple[Watcher, ...]
    adapters: tuple[str | None, ...]
    records: int


def _begun(chunk: Chunk, pipeline: Pipeline, work: Work) -> Begun:
    watchers = tuple(make() for make in work.watchers)
    batches = watched(pipeline.of_chunk(chunk), watchers, pipeline)
    return Begun(
        parts=work.make(batches, pipeline), watchers=watchers, adapters=chunk.adapters, records=len(chunk.records)
    )


def worked(
    pipeline: Pipeline, work: Work, *, engine: Engine | None = None, chunks: Iterable[Chunk] | None = None
) -> Generator[Begun, None, None]:
    """What becomes of the chunks that `work` reads, or of those given, one by one; `pipeline` counts.

    Without an engine in this process: chunk by chunk too, so that the order in which refusals are counted is the same.
    An engine's workers find adapters, templates and all others again by their names in the options.
    """
    chunks = iter(work.read(pipeline) if chunks is None else chunks)
    if engine is None:
        for chunk in chunks:
            yield _begun(chunk, pipeline, work)
        return
    with closing(engine(Setup.of(pipeline, work), chunks)) as results:
        for done in results:
            if done.counts is not None:
                pipeline.take_adapters(done.adapters)
                pipeline.counts.merge(done.counts)
            yield Begun(parts=done.met(), watchers=done.watchers, adapters=done.adapters, records=done.records)


def parts_of(
    pipeline: Pipeline,
    make: Make,
    *,
    engine: Engine | None = None,
    chunks: Iterable[Chunk] | None = None,
    lengths: Lengths | None = None,
) -> Iterator[Part]:
    """What becomes of the records of the options' data set, or of all these chunks, here or by an engine's workers.

    `ConfigError` at the end where records came in and none came out.
    """
    seen: list[Any] = [] if lengths is None else [lengths]
    work = Work(make, (Lengths,) * len(seen))
    with closing(worked(pipeline, work, engine=engine, chunks=chunks)) as all_of_it:
        for begun in all_of_it:
            yield from begun.parts
            for total, watcher in zip(seen, begun.watchers, strict=True):
                total.merge(watcher)
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
