"""Commands in forked processes: nothing is imported twice, so that a command may be killed a thousand times."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

LONGEST = 120.0
"""Seconds after which a command counts as one that does not end."""


class Ending(NamedTuple):
    """How a process ended."""

    code: int
    """The exit code; the negative number of a signal."""
    said: str
    """What it wrote to standard output, where that is no file, and to standard error."""


class Fork:
    """A process that runs `action`, of which no file may grow beyond `file_bytes`; `stdout` takes its output."""

    def __init__(
        self, action: Callable[[], object], *, file_bytes: int | None = None, stdout: Path | None = None
    ) -> None:
        self._reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks beside threads
            self._pid = os.fork()
        if not self._pid:
            _run(action, writing, file_bytes, stdout)
        os.close(writing)
        os.set_blocking(self._reading, False)
        self._said = b""

    def killed_after(self, seconds: float) -> Ending:
        """How it ended; it is killed if it has not ended by then."""
        return self._ended(time.monotonic() + seconds)

    def ended(self) -> Ending:
        """How it ended by itself."""
        ending = self._ended(time.monotonic() + LONGEST)
        assert ending.code != -signal.SIGKILL, f"no end after {LONGEST} seconds"
        return ending

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _ended(self, deadline: float) -> Ending:
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        while not pid and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.002))
            self._read()
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            os.kill(self._pid, signal.SIGKILL)
            _, status = os.waitpid(self._pid, 0)
        self._read()
        os.close(self._reading)
        return Ending(os.waitstatus_to_exitcode(status), self._said.decode(errors="replace"))

    def _read(self) -> None:
        with suppress(BlockingIOError):  # the process, or a worker of it, may write more
            while block := os.read(self._reading, 1 << 16):
                self._said += block


def _run(action: Callable[[], object], writing: int, file_bytes: int | None, stdout: Path | None) -> NoReturn:
    """In the forked process: the action, with both outputs into the pipe or one into a file, then the end."""
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writing if stdout is None else os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(writing, 2)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        _free_locks()
        if file_bytes is not None:
            import resource  # Windows has none

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _free_locks() -> None:
    """Give the process its own lock of tqdm: a fork that is killed while it holds a shared one would block the rest."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())
