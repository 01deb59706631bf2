"""Good and bad lines of a file; and engines in this process that pickle everything, as if for another process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Generator, Iterator
from typing import Any

from templatekit.engines.jobs import ChunkResult, Worker, WorkerSetup
from templatekit.pipeline.chunks import Chunk

KINDS = ("plain", "long", "empty", "half", "system", "tool", "two turns", "wrong", "no record", "other key")


def line(kind: str, number: int) -> str:
    """A line of one of these kinds, for a file of conversations."""
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
    """An engine that processes one chunk at a time, when its result is requested."""
    worker = Worker(pickle.loads(pickle.dumps(setup)))
    for chunk in chunks:
        yield pickle.loads(pickle.dumps(worker(pickle.loads(pickle.dumps(chunk)))))


def read_first(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """An engine that reads all chunks before it processes the first, as far ahead as an engine can read."""
    return in_pieces(setup, iter(list(chunks)))


def read_there(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """An engine whose worker reads the chunks, as on Ray."""
    del chunks
    sent: WorkerSetup = pickle.loads(pickle.dumps(setup))
    return in_pieces(setup, sent.job.read_chunks(sent.pipeline()))


def swapped(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """A wrong engine that swaps the first two results."""
    first, second, *others = in_pieces(setup, chunks)
    yield from (second, first, *others)


def lost(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """A wrong engine that loses the first result."""
    _, *others = in_pieces(setup, chunks)
    yield from others


def twice(setup: WorkerSetup, chunks: Iterator[Chunk]) -> Generator[ChunkResult, None, None]:
    """A wrong engine that returns the first result twice."""
    first, *others = in_pieces(setup, chunks)
    yield from (first, first, *others)
