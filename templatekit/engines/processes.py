"""An engine of worker processes on this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import connection, current_process, get_context, parent_process

from templatekit.engines.jobs import ChunkResult, Engine, Worker, WorkerSetup, failing_worker
from templatekit.errors import RunError, TemplatekitError
from templatekit.pipeline.chunks import Chunk

_CHUNKS_AHEAD = 2
"""Chunks submitted ahead for each worker."""


def process_engine(workers: int | None) -> Engine | None:
    """The engine with this many workers, or None for one worker. The engine raises `RunError` if a worker dies."""
    return None if workers in (None, 1) else partial(_results, workers)


def _results(workers: int, setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    if getattr(current_process(), "_inheriting", False):  # Python's own message is about frozen Windows programs
        raise RunError(
            "a worker process starts by running this program again, up to this call; expected the program's work "
            "under `if __name__ == '__main__':`"
        )
    # "spawn", since a forked process would inherit locks that threads of this one hold.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(setup,))
    waiting: deque[Future[ChunkResult]] = deque()
    try:
        while True:
            waiting += (pool.submit(_run, chunk) for chunk in islice(chunks, _CHUNKS_AHEAD * workers - len(waiting)))
            if not waiting:
                break
            yield _result(waiting.popleft(), workers)
    except BaseException:
        # Nobody waits for the results, and a worker may hang in a plugin. Python 3.14 has `terminate_workers` for this.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[ChunkResult], workers: int) -> ChunkResult:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RunError(
            f"one of {workers} worker processes ended before its work was done (killed, out of memory, or as it says "
            "above); expected all to last; to use fewer: --workers 1"
        ) from None


_worker: Callable[[Chunk], ChunkResult] | None = None
"""In a worker process: the worker, or a stand-in that returns its error."""


def _start(setup: WorkerSetup) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other workers use the cores
    try:
        _worker = Worker(setup)
    except TemplatekitError as error:
        _worker = failing_worker(error)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run(chunk: Chunk) -> ChunkResult:
    assert _worker is not None
    return _worker(chunk)
