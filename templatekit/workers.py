"""The pipeline in several processes: the same output in the same order, whatever their number.

This process reads the records and deals them out in chunks; each worker sets up the same pipeline anew, by name, and
gives back what the exporter is to write, with its counts. Results are taken in the order of the chunks, and few chunks
are on the way at a time, so memory stays flat. An error is the one that a single process would have met first.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from templatekit.config import DataOptions, RenderOptions
from templatekit.counts import Counts
from templatekit.errors import RecordError, RunError, TemplatekitError
from templatekit.packing import Sequences
from templatekit.pipeline import Pipeline
from templatekit.prepared import Batch
from templatekit.registry import create_registry
from templatekit.sinks import Exporter
from templatekit.types import Record

CHUNK = 512
"""Records that a worker gets at a time."""
_AHEAD = 2
"""Chunks on the way for each worker."""


class Part(NamedTuple):
    """Some samples as an exporter writes them."""

    samples: int
    content: Any
    """What `Exporter.convert` made of them; with the option `pack_tokens` their `Sequences`, to be packed."""


class _Setup(NamedTuple):
    """What a worker makes its pipeline of: names, since plugins' objects cannot be sent."""

    options: DataOptions
    plugin_dirs: tuple[Path, ...]
    exporter: str


class _Chunk(NamedTuple):
    first_row: int
    source: str | None
    adapter: str | None
    """Told by the first record's keys, where no option names it."""
    records: list[Record | RecordError]


class _Done(NamedTuple):
    parts: list[Part]
    counts: Counts
    error: BaseException | None
    """What was raised behind these parts."""


def converted(batches: Iterable[Batch], exporter: Exporter) -> Iterator[Part]:
    """What becomes of tokenized samples, as the exporter writes it, in this process."""
    for batch in batches:
        assert batch.columns is not None
        yield Part(len(batch), exporter.convert(batch.columns))


def converted_by_workers(
    pipeline: Pipeline,
    records: Iterable[Record | RecordError],
    exporter: Exporter,
    *,
    workers: int,
    source: str | None = None,
    plugin_dirs: Iterable[Path] = (),
) -> Iterator[Part]:
    """What becomes of the records, by so many worker processes; `pipeline` here reads and counts.

    Its adapter, template and tokenizer, and the exporter, are found again by the options' names, in `plugin_dirs` too.
    Raises `RunError` where a worker dies.
    """
    name = _name_of(exporter, pipeline.registry.exporters)
    assert name is not None
    setup = _Setup(pipeline.options, tuple(plugin_dirs), name)
    # A process that is started anew has no threads and no locks of this one's.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(setup,))
    chunks = _chunks(pipeline, records, source)
    waiting: deque[Future[_Done]] = deque()
    try:
        while True:
            waiting += (pool.submit(_run, chunk) for chunk in islice(chunks, _AHEAD * workers - len(waiting)))
            if not waiting:
                break
            done = _result(waiting.popleft(), workers)
            pipeline.counts.merge(done.counts)
            yield from done.parts
            if done.error is not None:
                raise done.error
    except BaseException:
        # What is on the way is of no use, and a worker may be held up in a plugin. In public from Python 3.14 on.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    pipeline.check_any_left()


def _result(future: Future[_Done], workers: int) -> _Done:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RunError(
            f"one of {workers} worker processes ended before its work was done (killed, or out of memory); "
            "expected all to last; to use fewer: --workers 1"
        ) from None


def _chunks(pipeline: Pipeline, records: Iterable[Record | RecordError], source: str | None) -> Iterator[_Chunk]:
    given = iter(records)
    first_row = 0
    while chunk := list(islice(given, CHUNK)):
        yield _Chunk(first_row, source, _name_of(pipeline.adapter, pipeline.registry.adapters), chunk)
        first_row += len(chunk)


def _name_of(item: object, offers: Mapping[str, object]) -> str | None:
    """The name under which a worker finds it, `plugin:name` where two plugins offer one."""
    return next((name for name, offered in offers.items() if offered is item), None)


_worker: tuple[Pipeline, Exporter] | TemplatekitError | None = None
"""In a worker: what it was set up with, or why it could not be."""


def _start(setup: _Setup) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started the workers hears it, and ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken, by the other workers
    try:
        with redirect_stdout(sys.stderr):
            registry = create_registry(plugin_dirs=setup.plugin_dirs)
            exporter = registry.exporters[setup.exporter]
            assert isinstance(exporter, Exporter)
            _worker = Pipeline(setup.options, registry), exporter
    except TemplatekitError as error:
        _worker = error


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run(chunk: _Chunk) -> _Done:
    """One chunk's parts, up to the first error."""
    assert _worker is not None
    if isinstance(_worker, TemplatekitError):
        return _Done([], Counts(), _sendable(_worker))
    pipeline, exporter = _worker
    if chunk.adapter is not None:
        pipeline.adapter = pipeline.registry.adapters[chunk.adapter]
    pipeline.counts = Counts()
    packs = isinstance(pipeline.options, RenderOptions) and pipeline.options.pack_tokens is not None
    convert = Sequences.of if packs else exporter.convert
    parts: list[Part] = []
    error: BaseException | None = None
    with redirect_stdout(sys.stderr):
        try:
            for batch in pipeline.some_batches(chunk.records, source=chunk.source, first_row=chunk.first_row):
                assert batch.columns is not None
                parts.append(Part(len(batch), convert(batch.columns)))
        except Exception as raised:  # sent on as it is, so that it is met in its turn
            error = _sendable(raised)
    return _Done(parts, pipeline.counts, error)


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a plugin's error does when it is packed
        return RunError(f"{type(error).__name__}: {error}")
    return error
