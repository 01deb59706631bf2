"""An engine of workers on a Ray cluster, by Ray Data.

One read task reads the records and splits them into chunks. Tasks anywhere in the cluster work on the chunks. This
process receives their results in the order of the chunks (`preserve_order`). Ray sees a chunk as one row of pickled
bytes in a block of its own, so rows, ids, counts and errors are the same as in one process.

If a process or a machine dies, Ray repeats the chunk elsewhere; nothing of the first attempt is used. Workers are
tasks, not actors: if an actor's machine is gone, its work waits for another machine. A process creates its pipeline
once, for all chunks that it gets.

Ray itself reads the address: `RAY_ADDRESS` names a running cluster; without it, one is started on this machine.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from platform import node
from typing import TYPE_CHECKING, Any, NamedTuple

from templatekit import __version__
from templatekit.engines.jobs import ChunkResult, Engine, Worker, WorkerSetup, failed_result, failing_worker
from templatekit.errors import ConfigError, RunError, TemplatekitError
from templatekit.pipeline.chunks import Chunk

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import DataContext, Dataset

_STORE_BYTES = 512 << 20
"""Shared memory of a cluster that is started here: it holds blocks until they are taken."""
_RETRIES = 3
"""Retries of a chunk whose process or machine died. Ray Data by default retries without end, so a chunk that kills
every worker would never be an error."""
_VARIABLES = ("TEMPLATEKIT_", "HF_")
"""Prefixes of the environment variables that the workers get."""
_COLUMN = "pickled"


class _Environment(NamedTuple):
    """What a worker on any machine needs to work as this process would."""

    setup: WorkerSetup
    version: str
    machine: str
    folder: str
    """The working directory, for relative paths."""
    variables: dict[str, str]

    @classmethod
    def current(cls, setup: WorkerSetup) -> _Environment:
        """The environment of this process."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
        return cls(setup, __version__, node(), str(Path.cwd()), variables)

    @contextmanager
    def entered(self) -> Iterator[WorkerSetup]:
        """Set up the process of a Ray task; an error on another machine becomes a `RunError` that names it."""
        try:
            if self.version != __version__:
                raise RunError(f"found templatekit {__version__}; expected {self.version}, as where the command runs")
            os.environ.update(self.variables)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other workers use the cores
            if Path(self.folder).is_dir():
                os.chdir(self.folder)
            with redirect_stdout(sys.stderr):
                yield self.setup
        except TemplatekitError as error:
            if self.machine == node():
                raise
            raise RunError(
                f"on {node()}, a machine of the Ray cluster: {error}; data options name what all of its machines have"
            ) from error


def ray_engine(workers: int | None) -> Engine:
    """The engine with this many workers, by default one a core of the cluster; raises `ConfigError` without Ray."""
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs the package ray; found none; pip install 'templatekit[ray]'")
    return partial(_results, workers)


def _results(workers: int | None, setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    if setup.options.dataset == "-":
        raise ConfigError(
            "--engine ray has the data read by a process of the cluster; found standard input; expected a file"
        )
    with _ray_errors(), _cluster(workers), _context() as context:
        import ray

        context.execution_options.preserve_order = True
        # Each row is a block of its own: with blocks of many rows, few workers would get all chunks.
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        resources: dict[str, float] = ray.cluster_resources()
        count = workers or max(1, int(resources.get("CPU", 1)))
        with closing(_blocks(_dataset(_Environment.current(setup), count))) as blocks:
            for block in blocks:
                for row in block[_COLUMN]:
                    result: ChunkResult = pickle.loads(row.as_buffer())
                    yield result


def _dataset(environment: _Environment, workers: int) -> Dataset:
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Chunks(Datasource):
        """The records in chunks, read in order by one task."""

        supports_distributed_reads = False  # the data may lie where the command runs

        def get_read_tasks(self, parallelism: int, *arguments: Any, **options: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(_read, environment), unknown)]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    # `num_cpus=0`, because the reading process is not one of the `--workers`. It also keeps Ray from fusing the read
    # task with the workers' tasks.
    datasource: Any = Chunks
    read = ray.data.read_datasource(datasource(), override_num_blocks=1, num_cpus=0)
    with warnings.catch_warnings():
        # Ray 2.64 deprecates `max_retries` here, and names no replacement yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        results: Dataset = read.map_batches(
            _run_chunk,
            fn_args=(environment,),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=workers),
            num_cpus=1,
            max_retries=_RETRIES,
        )
    return results


def _blocks(dataset: Dataset) -> Generator[pa.Table, None, None]:
    """The blocks in order, each released before the next is requested."""
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _read(environment: _Environment) -> Iterator[pa.Table]:
    """In the read task: the chunks, or a `ChunkResult` with the error where the pipeline cannot be created."""
    try:
        with environment.entered() as setup:
            pipeline = setup.pipeline()
    except TemplatekitError as error:
        yield _to_block(failed_result(error))
        return
    for chunk in environment.setup.job.read_chunks(pipeline):
        yield _to_block(chunk)


_worker: tuple[_Environment, Callable[[Chunk], ChunkResult]] | None = None
"""In a process of the cluster: its worker, and the environment of the worker, as a process may serve many commands."""


def _run_chunk(block: pa.Table, environment: _Environment) -> pa.Table:
    """In a task: the result of a chunk."""
    global _worker
    (row,) = block[_COLUMN]
    read: Chunk | ChunkResult = pickle.loads(row.as_buffer())
    if isinstance(read, ChunkResult):
        return _to_block(read)
    if _worker is None or _worker[0] != environment:
        _worker = environment, _create_worker(environment)
    return _to_block(_worker[1](read))


def _create_worker(environment: _Environment) -> Callable[[Chunk], ChunkResult]:
    try:
        with environment.entered() as setup:
            return Worker(setup)
    except TemplatekitError as error:
        return failing_worker(error)


def _to_block(value: Chunk | ChunkResult) -> pa.Table:
    import pyarrow as pa

    return pa.table({_COLUMN: pa.array([pickle.dumps(value, protocol=5)], type=pa.large_binary())})


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Turn the errors that Ray raises into a `RunError`."""
    try:
        yield
    except TemplatekitError:
        raise
    except Exception as error:
        raise RunError(f"Ray raised {type(error).__name__}: {error}") from error


@contextmanager
def _cluster(workers: int | None) -> Iterator[None]:
    """Connect to a cluster: the one that this process uses already, the one of `RAY_ADDRESS`, or a new one."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # before Ray is imported
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=workers, object_store_memory=_STORE_BYTES, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _context() -> Iterator[DataContext]:
    """Settings of Ray Data that end with this context."""
    from ray.data import DataContext

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # Ray raises what it logs as an error with a traceback
    context = DataContext.get_current().copy()
    try:
        with DataContext.current(context):
            yield context
    finally:
        logger.setLevel(level)
