"""Jobs on chunks of records, which this process or any worker can do with the same output in the same order.

An *engine* takes chunks and returns a `ChunkResult` for each, in order. `templatekit.engines.processes` runs workers on
this machine, `templatekit.engines.ray` on a cluster. Each worker creates the same pipeline by name. It returns the
output chunks and the counts of its chunk. An error is raised where a single process would have raised it first.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, redirect_stdout
from typing import NamedTuple, TypeAlias

from templatekit.config.data_options import DataOptions
from templatekit.errors import ConfigError, RunError, TemplatekitError
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import RegistryArguments
from templatekit.pipeline.chunks import Chunk
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.mixture import Mixture, create_pipeline
from templatekit.pipeline.outputs import Converter, Observer, OutputChunk
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.tokenizer import Tokenizer

ChunkReader: TypeAlias = Callable[[Pipeline], Iterator[Chunk]]
"""Reads the chunks of a job; it can be pickled."""


def read_all_chunks(pipeline: Pipeline) -> Iterator[Chunk]:
    """A `ChunkReader` of the whole data set."""
    return pipeline.chunks()


class Job(NamedTuple):
    """The work on each chunk, and how the chunks are read."""

    converter: Converter
    """Turns the batches of a chunk into output chunks."""
    observers: tuple[Callable[[], Observer], ...] = ()
    """Each is called once per chunk and makes an observer of the chunk's batches."""
    read_chunks: ChunkReader = read_all_chunks
    """Reads the chunks, where they are not given."""


class WorkerSetup(NamedTuple):
    """The arguments with which a worker creates its pipeline: names, since the objects of plugins cannot be pickled."""

    options: DataOptions
    registry: RegistryArguments
    job: Job
    pipeline_type: type[Pipeline] = Pipeline
    """The pipeline of each set."""
    tokenizer: Tokenizer | None = None
    """None if the options name the tokenizer."""

    @classmethod
    def of(cls, pipeline: Pipeline, job: Job) -> WorkerSetup:
        """The setup for workers with the same pipeline; raises `ConfigError` where it has plugins given as objects."""
        arguments = pipeline.registry.arguments
        if arguments is None:
            raise ConfigError(
                "workers find plugins anew; found a registry that was given objects; expected one made of installed "
                "plugins and plugin_dirs, or one worker"
            )
        pipeline_type = pipeline.pipeline_type if isinstance(pipeline, Mixture) else type(pipeline)
        return cls(pipeline.options, arguments, job, pipeline_type, pipeline.given_tokenizer)

    def pipeline(self) -> Pipeline:
        """Create the pipeline; raises `TemplatekitError` where a name is not found here, or is wrong."""
        registry = create_registry(**self.registry._asdict())
        return create_pipeline(self.options, registry, pipeline_type=self.pipeline_type, tokenizer=self.tokenizer)


class ChunkResult(NamedTuple):
    """What a worker returns for a chunk."""

    outputs: list[OutputChunk]
    counts: Counts | None
    """None where the worker could not be set up."""
    adapters: tuple[str | None, ...]
    """The adapters of the chunk, after its records were read."""
    record_count: int = 0
    ends_shard: bool = False
    """Whether the chunk did; see `Chunk.ends_shard`."""
    observers: tuple[Observer, ...] = ()
    error: BaseException | None = None
    """The error that came after these outputs."""

    def outputs_then_error(self) -> Iterator[OutputChunk]:
        """The outputs; then raises the error."""
        yield from self.outputs
        if self.error is not None:
            raise self.error


Engine: TypeAlias = Callable[[WorkerSetup, Iterator[Chunk]], Generator[ChunkResult, None, None]]
"""Returns the result of each chunk, in order, and works on a few of them ahead. Closing the generator ends the workers.

An engine that reads the chunks elsewhere, by `Job.read_chunks`, ignores the chunks that are passed to it.
"""


class Worker:
    """Works on chunks in a worker process, one after another."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Raises `TemplatekitError` where a name is not found here, or is wrong."""
        with redirect_stdout(sys.stderr):
            self._pipeline = setup.pipeline()
        self._job = setup.job

    def __call__(self, chunk: Chunk) -> ChunkResult:
        """The chunk's outputs up to the first error, and that error."""
        pipeline = self._pipeline
        pipeline.take_counts()
        outputs: list[OutputChunk] = []
        error: BaseException | None = None
        running = _run_chunk(chunk, pipeline, self._job)
        with redirect_stdout(sys.stderr):
            try:
                outputs.extend(running.outputs)
            except Exception as raised:  # returned, so that the caller raises it after the earlier outputs
                error = picklable(raised)
        return ChunkResult(
            outputs,
            pipeline.take_counts(),
            running.adapters,
            running.record_count,
            running.ends_shard,
            running.observers,
            error,
        )


class RunningChunk(NamedTuple):
    """A chunk that is being worked on. Observers have seen all of it once `outputs` is exhausted."""

    outputs: Iterator[OutputChunk]
    observers: tuple[Observer, ...]
    adapters: tuple[str | None, ...]
    record_count: int
    ends_shard: bool = False
    """Whether the chunk did; see `Chunk.ends_shard`."""


def _run_chunk(chunk: Chunk, pipeline: Pipeline, job: Job) -> RunningChunk:
    observers = tuple(create() for create in job.observers)
    batches = pipeline.process_chunk(chunk)
    for observer in observers:
        batches = observer.observe(batches, pipeline)
    outputs = job.converter(batches, pipeline)
    return RunningChunk(outputs, observers, chunk.adapters, len(chunk.records), chunk.ends_shard)


def run_chunks(
    pipeline: Pipeline, job: Job, *, engine: Engine | None = None, chunks: Iterable[Chunk] | None = None
) -> Generator[RunningChunk, None, None]:
    """Do a job for the given chunks, or the chunks that the job reads, one by one; `pipeline.counts` has their counts.

    Without an engine, this process does the job, also chunk by chunk, so that dropped rows are counted in the same
    order. An engine's workers find adapters, templates and the rest by the names in the options.
    """
    chunks = iter(job.read_chunks(pipeline) if chunks is None else chunks)
    if engine is None:
        for chunk in chunks:
            yield _run_chunk(chunk, pipeline, job)
        return
    with closing(engine(WorkerSetup.of(pipeline, job), chunks)) as results:
        for result in results:
            if result.counts is not None:
                pipeline.take_adapters(result.adapters)
                pipeline.counts.merge(result.counts)
            outputs = result.outputs_then_error()
            yield RunningChunk(outputs, result.observers, result.adapters, result.record_count, result.ends_shard)


def output_chunks(
    pipeline: Pipeline,
    converter: Converter,
    *,
    engine: Engine | None = None,
    chunks: Iterable[Chunk] | None = None,
    observer: Observer | None = None,
) -> Iterator[OutputChunk]:
    """The output chunks of the options' data set, or of all given `chunks`, made here or by an engine's workers.

    New observers of the type of `observer` see the batches of each chunk, and are merged into it. Raises `ConfigError`
    at the end where no sample came out.
    """
    job = Job(converter, () if observer is None else (type(observer),))
    with closing(run_chunks(pipeline, job, engine=engine, chunks=chunks)) as running_chunks:
        for running in running_chunks:
            yield from running.outputs
            if observer is not None:
                observer.merge(*running.observers)
    pipeline.check_any_left()


def failed_result(error: TemplatekitError) -> ChunkResult:
    """The result of a worker that could not be set up."""
    return ChunkResult([], None, (), error=picklable(error))


def failing_worker(error: TemplatekitError) -> Callable[[Chunk], ChunkResult]:
    """A stand-in for a worker that could not be set up: it returns the error for each chunk."""
    result = failed_result(error)
    return lambda chunk: result


def picklable(error: Exception) -> Exception:
    """The error, or where it cannot be pickled, a `RunError` with its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a plugin's error may raise anything when it is pickled
        return RunError(f"{type(error).__name__}: {error}")
    return error
