"""Lines of a file, good and bad; and engines in this process: all that another would be sent is packed and unpacked."""

from __future__ import annotations

import json
import pickle
from collections.abc import Generator, Iterator
from typing import Any

from templatekit.engines.jobs import ChunkResult, Worker, WorkerSetup
from templatekit.pipeline.chunks import Chunk

KINDS = ("plain", "long", "empty", "half", "system", "tool", "two turns", "wrong", "no record", "other key")


def line(kind: str, number: int) -> str:
    """A line of a file of conversations, of one of the kinds."""
    user, answer = {"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number} 1 2"}
    messages: Any = [user, answer]
    if kind == "long":
        answer["content"] *= 30
    if kind == "empty":
        answer["content"] = ""
    if kind == "half":
        messages = [user, {**answer, "weight": 0.5}]
    if kind == "system":  # other roles and origins than those before
        messages = [{"role": kind, "content": "be"}, user, answer]
    if kind == "tool":
        messages = [user, answer, {"role": kind, "content": "7"}, user, answer]
    if kind == "two turns":  # two samples, in a template that drops earlier thoughts
        messages = [user, {**answer, "reasoning_content": "hm"}] * 2
    if kind == "wrong":
        messages = 3
    if kind == "no record":
        return "[1]" if number % 3 else "{"
    return json.dumps({"messages": messages, **({"more": 1} if kind == "other key" else {})})


def in_pieces(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """Chunk by chunk, as they are asked for."""
    worker = Worker(pickle.loads(pickle.dumps(setup)))
    for chunk in chunks:
        yield pickle.loads(pickle.dumps(worker(pickle.loads(pickle.dumps(chunk)))))


def read_first(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """All chunks are read before any is done, as far ahead as an engine can be."""
    return in_pieces(setup, iter(list(chunks)))


def read_there(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """Chunks are read by the worker, as on Ray."""
    del chunks
    sent: WorkerSetup = pickle.loads(pickle.dumps(setup))
    return in_pieces(setup, sent.job.read_chunks(sent.pipeline()))


def swapped(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """Wrong: the first two the other way round."""
    first, second, *others = in_pieces(setup, chunks)
    yield from (second, first, *others)


def lost(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """Wrong: without the first."""
    _, *others = in_pieces(setup, chunks)
    yield from others


def twice(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """Wrong: the first once more."""
    first, *others = in_pieces(setup, chunks)
    yield from (first, first, *others)
