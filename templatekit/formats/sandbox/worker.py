"""A process for templates whose cost nobody can count: its limits are kept by the operating system.

The worker renders with the same `Template` and gives back what that gives. A rendering may take so much processor time
and memory; the process opens no file, starts no other, and ends with this one. A bound that is broken is named: `time`,
`memory` or `output`.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from templatekit.errors import RecordError, TemplateError, TemplatekitError
from templatekit.formats.accepted_forms import Variables
from templatekit.formats.provenance import Traced, plain_text
from templatekit.formats.sandbox.metering import allowance
from templatekit.formats.template import Template, template_line
from templatekit.formats.tracing.compiler import Plans
from templatekit.hooks.contracts import TemplateFile

if sys.platform != "win32":
    import resource

_GRACE = 1
"""Seconds until a worker is killed that does not stop by itself, since it is inside one long operation."""
_PROGRAM = "import sys; sys.path[:] = {path!r}; from templatekit.formats.sandbox.worker import serve; serve{limits}"


class Limits(NamedTuple):
    """What a rendering, or a compilation, may take."""

    seconds: int = 3
    """Of processor time; renderings take milliseconds."""
    megabytes: int = 1024
    """Of memory, the interpreter's own 60 included."""


class Request(NamedTuple):
    """A method of a template, to be called in the worker."""

    file: TemplateFile
    strict: bool
    kwargs: bytes
    """The template's kwargs, pickled."""
    end_marker: str | None
    """What ends an answer, where that is not the template's to say."""
    method: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default)
    line: int | None = None
    """Where what cannot be counted stands, if that is known."""


class Worker:
    """The parent's side: a process that is started when it is first asked, and anew when it has died."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008  (a constant)
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parent = 0
        atexit.register(self.stop)

    def ask(self, request: Request) -> Any:
        """What the method returns; raises its errors, and a `TemplateError` for a bound that it broke."""
        question = pickle.dumps(request)
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(question)
                process.stdin.flush()
                answer = _Answers(process.stdout).load()
            except (EOFError, OSError):
                self.stop()
                raise _died(process.returncode, self._limits).of(request) from None
            except pickle.UnpicklingError as error:
                self.stop()
                raise _Broken("process", f"an answer that may not be given, {error}").of(request) from None
            except BaseException:  # an answer that comes late must not be taken for the next one
                self.stop()
                raise
        if isinstance(answer, TemplatekitError):
            raise answer
        return answer

    def stop(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None and self._parent == os.getpid():
            with suppress(BrokenPipeError), process:  # waits for it; what it was not told yet is lost with it
                process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork the pipes are still the parent's.
        if self._process is None or self._process.poll() is not None or self._parent != os.getpid():
            self.stop()
            pipe = subprocess.PIPE
            program = _PROGRAM.format(path=sys.path, limits=(*self._limits,))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                raise TemplateError(
                    f"a template needs a process of its own, which cannot be started: {error}"
                ) from None
            self._parent = os.getpid()
        return self._process


WORKER = Worker()
"""One for all templates; it runs once it is asked."""


class _Answers(pickle.Unpickler):
    """Takes values and errors of this package alone: a template that broke out of its sandbox gets no further."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name."""
        if module not in ("templatekit.types", "templatekit.errors"):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


class _Broken(BaseException):
    """A bound is broken: no error of the template's own, so nothing that tries it may go on."""

    def __init__(self, bound: str, found: str, line: str = "") -> None:
        super().__init__(bound, found, line)
        self.bound, self.found, self.line = bound, found, line

    def of(self, request: Request) -> TemplateError:
        """The error, for the user."""
        line = self.line or (f", line {request.line}" if request.line else "")
        row = f"; row {request.options['row']}" if "row" in request.options else ""
        return TemplateError(
            f"template {request.file.name!r}{line} breaks the {self.bound} bound: found {self.found}{row}"
        )


def _out_of_time(limits: Limits, line: str = "") -> _Broken:
    return _Broken("time", f"no end after {limits.seconds} s of processor time", line)


def _out_of_memory(limits: Limits, line: str = "") -> _Broken:
    return _Broken("memory", f"more than {limits.megabytes} MB in use", line)


def _died(status: int | None, limits: Limits) -> _Broken:
    if sys.platform == "win32" or status == -signal.SIGXCPU:
        return _out_of_time(limits)
    if status == -signal.SIGKILL:
        return _Broken("memory", "its process killed, as a system does that runs out of memory")
    return _Broken("process", f"the end of the process that renders it, with status {status}")


class _Overtime(BaseException):
    """Passes by all that catches `Exception`."""


class _Judged(Template):
    """A template in the worker."""

    limits = Limits()

    def _run(self, variables: Variables) -> Traced:
        try:
            with _time_limit(self.limits.seconds):
                text = super()._run(variables)
        except _Overtime as error:
            raise _out_of_time(self.limits, template_line(error, self._traced)) from None
        except RecordError as error:
            if isinstance(error.__cause__, MemoryError):
                raise _out_of_memory(self.limits, template_line(error.__cause__, self._traced)) from None
            raise
        if len(text) > (allowed := allowance(variables)):
            raise _Broken("output", f"{len(text):,} characters; expected at most {allowed:,} for data of this size")
        return text

    def state(self) -> dict[str, Any]:
        """What can be told of it without its code."""
        told = (str, bool, tuple, frozenset, type(None))
        return {name: value for name, value in vars(self).items() if isinstance(value, told)}

    def text(self, variables: Variables) -> str:
        """A rendering of these variables."""
        return plain_text(self._run(variables))


@lru_cache(maxsize=8)
def _judged(file: TemplateFile, strict: bool, kwargs: bytes) -> _Judged:
    with _time_limit(_Judged.limits.seconds):
        return _Judged(file, strict=strict, kwargs=pickle.loads(kwargs))


def serve(*limits: int) -> None:
    """The worker's main program: answers requests until its input ends."""
    _Judged.limits = Limits(*limits)
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    # What is loaded when it is first needed is needed now, while files can be opened.
    time.localtime()
    import_module("jinja2.debug")
    Plans.on = False  # recording takes longer than rendering, and the limits are for that
    _judged(TemplateFile(name="first", source="{{ instruction ~ '\n' }}{{ response }}"), True, pickle.dumps(None))
    confine(_Judged.limits.megabytes)
    while True:
        try:
            request: Request = pickle.load(questions)
        except EOFError:
            return
        pickle.dump(_answer(request), answers)
        answers.flush()


def _answer(request: Request) -> Any:
    try:
        template: Template = _judged(request.file, request.strict, request.kwargs)
        template = template if request.end_marker is None else template.ended_by(request.end_marker)
        return getattr(template, request.method)(*request.arguments, **request.options)
    except _Overtime:
        return _out_of_time(_Judged.limits).of(request)
    except _Broken as error:
        return error.of(request)
    except TemplatekitError as error:
        # Compiling raises its own error in the place of Python's.
        return _out_of_memory(_Judged.limits).of(request) if isinstance(error.__context__, MemoryError) else error
    except MemoryError:
        return _out_of_memory(_Judged.limits).of(request)
    except Exception as error:
        return TemplateError(f"template {request.file.name!r}: {type(error).__name__}: {error}")


if sys.platform == "win32":
    import faulthandler

    def confine(megabytes: int) -> None:
        """Nothing: there are no such limits."""

    @contextmanager
    def _time_limit(seconds: int) -> Iterator[None]:
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

else:

    def confine(megabytes: int) -> None:
        """Takes from this process, for good, what a template has no use for."""
        limits = {
            resource.RLIMIT_AS: megabytes << 20,
            resource.RLIMIT_NOFILE: 3,  # those that are open
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_CORE: 0,
        }
        for limit, value in limits.items():
            try:
                resource.setrlimit(limit, (value, value))
            except (OSError, ValueError):  # macOS knows no bound of memory
                continue
        signal.signal(signal.SIGPROF, _overtime)

    def _overtime(*_: object) -> None:
        raise _Overtime

    @contextmanager
    def _time_limit(seconds: int) -> Iterator[None]:
        """Two limits: of the first the interpreter learns between two steps, of the second from the system."""
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + _GRACE, most))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
