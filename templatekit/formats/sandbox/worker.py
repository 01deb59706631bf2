"""A worker process for templates whose cost cannot be metered; the operating system enforces its limits.

The worker renders with the same `Template` and returns the same values. A rendering may take limited processor time and
memory. The process opens no file, starts no other process and ends with its parent. The error for an exceeded limit
names the limit: `time`, `memory`, `output`, or `process` for a worker that died of something else. A worker that is
killed from outside, as by a system that runs out of memory, says nothing about the template: the request is sent again,
once, to a new worker.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import jinja2

from templatekit.errors import RecordError, RunError, TemplateError, TemplatekitError
from templatekit.formats.accepted_forms import Variables
from templatekit.formats.prefixes import PrefixTexts
from templatekit.formats.provenance import TrackedText
from templatekit.formats.sandbox.metering import allowance
from templatekit.formats.template import Template
from templatekit.formats.template_errors import template_line
from templatekit.formats.tracing.compiler import TracingCompiler
from templatekit.hooks.contracts import TemplateFile
from templatekit.types import EmptyThought

if sys.platform != "win32":
    import resource

Text = TypeVar("Text", bound=str)

_GRACE = 1
"""Seconds after the time limit at which the system kills a worker that is inside one long operation."""
_EXIT_SECONDS = 5
"""Seconds that a worker may take to end after it has closed its output."""
_SIGNALS_FROM_OUTSIDE = {
    getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
}
"""Signals that no limit of this package sends, and that no template can send."""
_PROGRAM = "import sys; sys.path[:] = {path!r}; from templatekit.formats.sandbox.worker import serve; serve{limits}"


class Limits(NamedTuple):
    """The most that one rendering, or one compilation, may take."""

    seconds: int = 3
    """Seconds of processor time; a rendering takes milliseconds."""
    megabytes: int = 1024
    """Megabytes of memory, including the 60 of the interpreter itself."""


class Request(NamedTuple):
    """A call of a template's method in the worker."""

    file: TemplateFile
    strict: bool
    kwargs: bytes
    """The template's kwargs, pickled."""
    end_marker: str | None
    """The end marker that the user named; None if the template decides."""
    empty_thought: EmptyThought
    method: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default)
    unmetered_line: int | None = None
    """The line of the expression that cannot be metered, if known."""


class Worker:
    """The parent's side of the worker process, which starts at the first call and again after it died."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008  (a constant)
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parent = 0
        atexit.register(self.stop)

    def call(self, request: Request) -> Any:
        """Return what the method returns; raise what it raises, and a `TemplateError` for a limit that it exceeded.

        Raises `RunError` if the worker is killed from outside, and so is the next one.
        """
        with self._lock:
            try:
                response = self._response(request)
            except _Killed:
                try:
                    response = self._response(request)
                except _Killed as error:
                    raise error.to_error(request) from None
        if isinstance(response, TemplatekitError):
            raise response
        return response

    def _response(self, request: Request) -> Any:
        """Send a request and return the response; raises `_Killed` if the process is killed from outside meanwhile."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(pickle.dumps(request))
            process.stdin.flush()
            return _ResponseUnpickler(process.stdout).load()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_SECONDS)  # its own end, not the one that `stop` gives it, shows the cause
            status = process.returncode
            self.stop()
            if status is not None and -status in _SIGNALS_FROM_OUTSIDE:
                raise _Killed(signal.Signals(-status).name) from None
            if isinstance(error, pickle.UnpicklingError):
                raise _BrokenBound("process", f"a response that is not allowed, {error}").to_error(request) from None
            raise _bound_broken_by_exit(status, self._limits).to_error(request) from None
        except BaseException:  # a late response must not be read as the response to the next request
            self.stop()
            raise

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._parent == os.getpid():
            with suppress(BrokenPipeError), process:  # waits for its end; requests not yet written are lost
                process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork, the pipes belong to the parent process.
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
"""The worker of all templates; it starts at the first call."""


class _ResponseUnpickler(pickle.Unpickler):
    """Loads only values and errors of this package, so that a template that escapes its sandbox gets no further."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of this name."""
        if module not in ("templatekit.types", "templatekit.errors"):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


class _Killed(Exception):
    """Someone else has ended the worker, by the signal of this name."""

    def to_error(self, request: Request) -> RunError:
        """The error to show to the user; it does not blame the template."""
        row = f" renders row {request.options['row']} with" if "row" in request.options else " renders"
        return RunError(
            f"the process that{row} template {request.file.name!r} was killed twice, by {self.args[0]}, which nothing "
            "here sends: most often it is the system, when its memory is full; free some, and run it again"
        )


class _BrokenBound(BaseException):
    """An exceeded limit. It is not an `Exception`, so that no code handles it as an error of the template."""

    def __init__(self, bound: str, found: str, line: str = "") -> None:
        super().__init__(bound, found, line)
        self.bound, self.found, self.line = bound, found, line

    def to_error(self, request: Request) -> TemplateError:
        """The error to show to the user."""
        line = self.line or (f", line {request.unmetered_line}" if request.unmetered_line else "")
        row = f"; row {request.options['row']}" if "row" in request.options else ""
        return TemplateError(
            f"template {request.file.name!r}{line} breaks the {self.bound} bound: found {self.found}{row}"
        )


def _time_bound_broken(limits: Limits, line: str = "") -> _BrokenBound:
    return _BrokenBound("time", f"no end after {limits.seconds} s of processor time", line)


def _memory_bound_broken(limits: Limits, line: str = "") -> _BrokenBound:
    return _BrokenBound("memory", f"more than {limits.megabytes} MB in use", line)


def _bound_broken_by_exit(status: int | None, limits: Limits) -> _BrokenBound:
    if sys.platform == "win32" or status == -signal.SIGXCPU:
        return _time_bound_broken(limits)
    return _BrokenBound("process", f"the end of the process that renders it, with status {status}")


class _OutOfTime(BaseException):
    """The time limit is reached. Code that catches `Exception` does not catch it."""


class _WorkerTemplate(Template):
    """A template in the worker, whose renderings are limited."""

    limits = Limits()

    def _render_variables(self, variables: Variables) -> TrackedText:
        return self._limited(super()._render_variables, variables)

    def _render_text(self, template: jinja2.Template, variables: Variables) -> str:
        return self._limited(partial(super()._render_text, template), variables)

    def _print_parts(self, variables: Variables) -> PrefixTexts | None:
        return None  # the limits are those of one text

    def _limited(self, render: Callable[[Variables], Text], variables: Variables) -> Text:
        """Render variables within the limits."""
        try:
            with _time_limit(self.limits.seconds):
                text = render(variables)
        except _OutOfTime as error:
            raise _time_bound_broken(self.limits, template_line(error, self._tracked_template)) from None
        except RecordError as error:
            if isinstance(error.__cause__, MemoryError):
                raise _memory_bound_broken(
                    self.limits, template_line(error.__cause__, self._tracked_template)
                ) from None
            raise
        if len(text) > (allowed := allowance(variables)):
            raise _BrokenBound(
                "output", f"{len(text):,} characters; expected at most {allowed:,} for data of this size"
            )
        return text

    def state(self) -> dict[str, Any]:
        """The template's attributes, except those that hold code."""
        plain_types = (str, bool, tuple, frozenset, type(None))
        return {name: value for name, value in vars(self).items() if isinstance(value, plain_types)}


@lru_cache(maxsize=8)
def _load(file: TemplateFile, strict: bool, kwargs: bytes) -> _WorkerTemplate:
    with _time_limit(_WorkerTemplate.limits.seconds):
        return _WorkerTemplate(file, strict=strict, kwargs=pickle.loads(kwargs))


def serve(*limits: int) -> None:
    """Run the worker: answer requests until the input ends."""
    _WorkerTemplate.limits = Limits(*limits)
    requests, responses = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    # Python otherwise loads these on first use, when no file can be opened any more.
    time.localtime()
    for name in ("html", "jinja2.debug", "pprint", "textwrap"):
        import_module(name)
    TracingCompiler.enabled = False  # recording takes longer than the rendering that the limits are for
    _load(TemplateFile(name="first", source="{{ instruction ~ '\n' }}{{ response }}"), True, pickle.dumps(None))
    confine(_WorkerTemplate.limits.megabytes)
    while True:
        try:
            request: Request = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(_respond(request), responses)
        responses.flush()


def _respond(request: Request) -> Any:
    limits = _WorkerTemplate.limits
    try:
        template: Template = _load(request.file, request.strict, request.kwargs)
        template = template if request.end_marker is None else template.ended_by(request.end_marker)
        template = template.with_empty_thought(request.empty_thought)
        return getattr(template, request.method)(*request.arguments, **request.options)
    except _OutOfTime:
        return _time_bound_broken(limits).to_error(request)
    except _BrokenBound as error:
        return error.to_error(request)
    except TemplatekitError as error:
        # Compiling replaces Python's error with one of this package.
        return _memory_bound_broken(limits).to_error(request) if isinstance(error.__context__, MemoryError) else error
    except MemoryError:
        return _memory_bound_broken(limits).to_error(request)
    except Exception as error:
        return TemplateError(f"template {request.file.name!r}: {type(error).__name__}: {error}")


if sys.platform == "win32":
    import faulthandler

    def confine(megabytes: int) -> None:
        """Do nothing: Windows has no such limits."""

    @contextmanager
    def _time_limit(seconds: int) -> Iterator[None]:
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

else:

    def confine(megabytes: int) -> None:
        """Remove from this process, for good, whatever a template does not need."""
        limits = {
            resource.RLIMIT_AS: megabytes << 20,
            resource.RLIMIT_NOFILE: 3,  # the three that are open
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_CORE: 0,
        }
        for limit, value in limits.items():
            try:
                resource.setrlimit(limit, (value, value))
            except (OSError, ValueError):  # macOS has no memory limit
                continue
        signal.signal(signal.SIGPROF, _raise_out_of_time)

    def _raise_out_of_time(*_: object) -> None:
        raise _OutOfTime

    @contextmanager
    def _time_limit(seconds: int) -> Iterator[None]:
        """Limit processor time twice: by a signal that the interpreter handles between two steps, and by the system."""
        _, hard_limit = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + _GRACE, hard_limit))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (hard_limit, hard_limit))
