"""Processes of this machine that work on chunks of records."""

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

from templatekit.engines.jobs import Done, Engine, Setup, Worker, failing
from templatekit.errors import RunError, TemplatekitError
from templatekit.pipeline.chunks import Chunk

_AHEAD = 2
"""Chunks on the way for each worker."""


def local_workers(workers: int | None) -> Engine | None:
    """The engine that has so many processes; raises `RunError` where one of them dies. For one it takes none."""
    return None if workers in (None, 1) else partial(_results, workers)


def _results(workers: int, setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    if getattr(current_process(), "_inheriting", False):  # where Python would say how to build a Windows program
        raise RunError(
            "a worker process begins by running this program anew, up to here; expected what it does behind "
            "`if __name__ == '__main__':`"
        )
    # A process that is started anew has no threads and no locks of this one's.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(setup,))
    waiting: deque[Future[Done]] = deque()
    try:
        while True:
            waiting += (pool.submit(_run, chunk) for chunk in islice(chunks, _AHEAD * workers - len(waiting)))
            if not waiting:
                break
            yield _result(waiting.popleft(), workers)
    except BaseException:
        # What is on the way is of no use, and a worker may be held up in a plugin. In public from Python 3.14 on.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[Done], workers: int) -> Done:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RunError(
            f"one of {workers} worker processes ended before its work was done (killed, out of memory, or what it says "
            "above); expected all to last; to use fewer: --workers 1"
        ) from None


_worker: Callable[[Chunk], Done] | None = None
"""In a worker: what does chunks, or says of each why it cannot be done."""


def _start(setup: Setup) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started the workers hears it, and ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken, by the other workers
    try:
        _worker = Worker(setup)
    except TemplatekitError as error:
        _worker = failing(error)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run(chunk: Chunk) -> Done:
    assert _worker is not None
    return _worker(chunk)
