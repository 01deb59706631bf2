"""Processes of a Ray cluster that work on chunks of records, by Ray Data.

One read task on this machine reads the records and cuts them into chunks, tasks anywhere in the cluster do them, and
this process takes what they give in the order of the chunks (`preserve_order`). To Ray a chunk is a row of bytes and a
block of its own: what is in it is ours, so that rows, ids, counts and errors are those of one process. Where a process
or a machine dies Ray has its chunk done again elsewhere; of the first one's work nothing was taken. These are tasks and
not actors, since the work of an actor whose machine is gone waits for another machine; a process sets up its pipeline
once, for all chunks that it gets.

The address is Ray's own matter: `RAY_ADDRESS` names a cluster that runs, without it one is started on this machine.
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
from templatekit.engines.jobs import Done, Engine, Setup, Worker, failed, failing
from templatekit.errors import ConfigError, RunError, TemplatekitError
from templatekit.pipeline.chunks import Chunk

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import DataContext, Dataset

_STORE = 512 << 20
"""Bytes of shared memory of a cluster that is started here: blocks lie there until they are taken."""
_RETRIES = 3
"""Of a chunk whose process or machine died. Ray Data's own way is without end, so that one that kills whoever does it
would never be an error."""
_VARIABLES = ("TEMPLATEKIT_", "HF_")
"""Beginnings of the names of environment variables that the workers get."""
_COLUMN = "pickled"


class _Place(NamedTuple):
    """What a process elsewhere needs to stand where this one does."""

    setup: Setup
    version: str
    machine: str
    folder: str
    """Paths are relative to it."""
    variables: dict[str, str]

    @classmethod
    def here(cls, setup: Setup) -> _Place:
        """Of this process."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
        return cls(setup, __version__, node(), str(Path.cwd()), variables)

    @contextmanager
    def stood(self) -> Iterator[Setup]:
        """Makes this process, one of Ray's, stand there; raises `RunError` that names the machine where that fails."""
        try:
            if self.version != __version__:
                raise RunError(f"found templatekit {__version__}; expected {self.version}, as where the command runs")
            os.environ.update(self.variables)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken, by the other workers
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


def on_ray(workers: int | None) -> Engine:
    """The engine that has so many cores, or all of the cluster; raises `ConfigError` without Ray."""
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs the package ray; found none; pip install 'templatekit[ray]'")
    return partial(_results, workers)


def _results(workers: int | None, setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    if setup.options.dataset == "-":
        raise ConfigError(
            "--engine ray has the data read by a process of the cluster; found standard input; expected a file"
        )
    with _ray_errors(), _cluster(workers), _context() as context:
        import ray

        context.execution_options.preserve_order = True
        # A row is a block of its own, whatever its size: with blocks of many rows few workers would have all the work.
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        resources: dict[str, float] = ray.cluster_resources()
        count = workers or max(1, int(resources.get("CPU", 1)))
        with closing(_blocks(_dataset(_Place.here(setup), count))) as blocks:
            for block in blocks:
                for row in block[_COLUMN]:
                    done: Done = pickle.loads(row.as_buffer())
                    yield done


def _dataset(place: _Place, workers: int) -> Dataset:
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Chunks(Datasource):
        """The records, read in their order by one task."""

        supports_distributed_reads = False  # the data may lie where the command runs

        def get_read_tasks(self, parallelism: int, *arguments: Any, **options: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(_read, place), unknown)]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    # Without a core of its own, as the reading process has none among `--workers`; so it is not fused with the work.
    reading: Any = Chunks
    read = ray.data.read_datasource(reading(), override_num_blocks=1, num_cpus=0)
    with warnings.catch_warnings():
        # Other ways to say how often a task is tried go from Ray 2.64 on, and it names no new one yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        done: Dataset = read.map_batches(
            _work,
            fn_args=(place,),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=workers),
            num_cpus=1,
            max_retries=_RETRIES,
        )
    return done


def _blocks(dataset: Dataset) -> Generator[pa.Table, None, None]:
    """The blocks in their order, each let go before the next is asked for."""
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _read(place: _Place) -> Iterator[pa.Table]:
    """In the read task: the chunks, or what became of it where it could not begin."""
    try:
        with place.stood() as setup:
            pipeline = setup.pipeline()
    except TemplatekitError as error:
        yield _block(failed(error))
        return
    for chunk in place.setup.work.read(pipeline):
        yield _block(chunk)


_worker: tuple[_Place, Callable[[Chunk], Done]] | None = None
"""In a process of the cluster, which may have run another command's tasks before."""


def _work(block: pa.Table, place: _Place) -> pa.Table:
    """In a task: what becomes of a chunk."""
    global _worker
    (row,) = block[_COLUMN]
    read: Chunk | Done = pickle.loads(row.as_buffer())
    if isinstance(read, Done):
        return _block(read)
    if _worker is None or _worker[0] != place:
        _worker = place, _set_up(place)
    return _block(_worker[1](read))


def _set_up(place: _Place) -> Callable[[Chunk], Done]:
    try:
        with place.stood() as setup:
            return Worker(setup)
    except TemplatekitError as error:
        return failing(error)


def _block(value: Chunk | Done) -> pa.Table:
    import pyarrow as pa

    return pa.table({_COLUMN: pa.array([pickle.dumps(value, protocol=5)], type=pa.large_binary())})


@contextmanager
def _ray_errors() -> Iterator[None]:
    """What Ray raises, as a `RunError` that says so."""
    try:
        yield
    except TemplatekitError:
        raise
    except Exception as error:
        raise RunError(f"Ray raised {type(error).__name__}: {error}") from error


@contextmanager
def _cluster(workers: int | None) -> Iterator[None]:
    """A cluster to work on: one that this process is connected to, the one that `RAY_ADDRESS` names, or one of ours."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # before Ray is imported
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=workers, object_store_memory=_STORE, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _context() -> Iterator[DataContext]:
    """Settings of Ray Data that hold in here alone."""
    from ray.data import DataContext

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    try:
        with DataContext.current(context):
            yield context
    finally:
        logger.setLevel(level)
