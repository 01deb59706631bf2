"""Signals that stop a run: the first SIGINT or SIGTERM lets the step finish, the second one acts at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets. The next signal goes to the previous handler again."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python can set handlers there only
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore_handlers()

    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore_handlers()
