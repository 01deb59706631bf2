"""Several processes that train together, forked from this one, so that nothing is imported twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from templatekit.training.distributed import TrainingGroup, join_process_group


class Outcome(NamedTuple):
    """The outcome of a process."""

    value: Any
    """The return value of the action."""
    error: str | None
    """The class and the message of the exception that the action raised."""
    exitcode: int | None


def together(count: int, action: Callable[[TrainingGroup], Any], *, timeout: float = 60.0) -> list[Outcome]:
    """Run `action` in `count` processes of one group; return what each returned, or how it failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(count):
        mine, theirs = context.Pipe()
        process = context.Process(target=_run, args=(action, rank, count, port, theirs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of forks beside threads
            process.start()
        theirs.close()
        started.append((process, mine))
    outcomes = []
    for process, pipe in started:
        try:
            value, error = pipe.recv() if pipe.poll(timeout) else (None, "timeout")
        except EOFError:
            value, error = None, None
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        outcomes.append(Outcome(value, error, process.exitcode))
    return outcomes


def _run(action: Callable[[TrainingGroup], Any], rank: int, count: int, port: int, pipe: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with join_process_group(torch.device("cpu")) as group:
                value = action(group)
        pipe.send((value, None))
    except BaseException as error:
        traceback.print_exc()
        pipe.send((None, f"{type(error).__name__}: {error}"))
    pipe.close()
    os._exit(0)
