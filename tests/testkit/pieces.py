"""Engines in this process: all that other processes would be sent is packed and unpacked."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator

from templatekit.chunks import Chunk
from templatekit.work import Done, Setup, Worker


def in_pieces(setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    """Chunk by chunk, as they are asked for."""
    worker = Worker(pickle.loads(pickle.dumps(setup)))
    for chunk in chunks:
        yield pickle.loads(pickle.dumps(worker(pickle.loads(pickle.dumps(chunk)))))


def read_first(setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    """All chunks are read before any is done, as far ahead as an engine can be."""
    return in_pieces(setup, iter(list(chunks)))


def read_there(setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    """Chunks are read by the worker, as on Ray."""
    del chunks
    sent: Setup = pickle.loads(pickle.dumps(setup))
    return in_pieces(setup, sent.work.read(sent.pipeline()))


def swapped(setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    """Wrong: the first two the other way round."""
    first, second, *others = in_pieces(setup, chunks)
    yield from (second, first, *others)


def lost(setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    """Wrong: without the first."""
    _, *others = in_pieces(setup, chunks)
    yield from others


def twice(setup: Setup, chunks: Iterator[Chunk]) -> Generator[Done, None, None]:
    """Wrong: the first once more."""
    first, *others = in_pieces(setup, chunks)
    yield from (first, first, *others)
