"""Compressed files of several streams: all of them are read, or the file is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.errors import SourceError
from templatekit.sources.compression import decompressed
from templatekit.sources.json_records import read_json

Pack = Callable[[bytes], bytes]


def zstd(data: bytes) -> bytes:
    """A frame with a checksum, which Arrow does not write: without one, a flipped bit may show nowhere."""
    return subprocess.run(["zstd", "-c", "--check"], input=data, capture_output=True, check=True).stdout


def zstd_of_arrow(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACKERS: dict[str, Pack] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
if shutil.which("zstd"):
    PACKERS["zstd"] = zstd
TOOLS = [name for name in PACKERS if shutil.which(name)]
"""The formats whose tools, of the same names, are on this machine."""
FIRST = b"".join(json.dumps({"n": number, "text": "first " * (number % 7)}).encode() + b"\n" for number in range(200))
SECOND = FIRST.replace(b"first", b"other")
ROWS = [json.loads(line) for line in (FIRST + SECOND).splitlines()]
PADDING = {"gzip": (1, 2, 3, 4, 8, 512), "xz": (4, 8, 512), "zstd": (), "bzip2": ()}
"""Counts of zero bytes that may follow a stream."""


def read(packed: bytes) -> list[Any]:
    with decompressed(io.BytesIO(packed), "x.jsonl") as stream:
        return list(read_json(stream, "x.jsonl"))


def refused(packed: bytes) -> str:
    with pytest.raises(SourceError, match=r"x\.jsonl: damaged") as caught:
        read(packed)
    return str(caught.value)


@pytest.mark.parametrize("name", PACKERS)
def test_all_streams_are_read(name: str) -> None:
    pack = PACKERS[name]
    assert read(pack(FIRST) + pack(SECOND)) == ROWS
    assert read(pack(FIRST) + pack(b"") + pack(SECOND)) == ROWS
    pieces = [pack(line + b"\n") for line in (FIRST + SECOND).splitlines()[::20]]
    assert read(b"".join(pieces)) == ROWS[::20]


@pytest.mark.parametrize("name", PACKERS)
def test_a_large_second_stream_is_read(name: str) -> None:
    """Larger than any buffer in between."""
    pack = PACKERS[name]
    assert read(pack(FIRST * 40) + pack(SECOND * 40)) == ROWS[:200] * 40 + ROWS[200:] * 40


@pytest.mark.parametrize("name", PACKERS)
@given(data=st.data())
def test_a_cut_later_stream_is_an_error(name: str, data: st.DataObject) -> None:
    first, second = PACKERS[name](FIRST), PACKERS[name](SECOND)
    length = data.draw(st.integers(1, len(second) - 1))
    assert "damaged" in refused(first + second[:length])


@pytest.mark.parametrize("name", PACKERS)
def test_a_later_stream_cut_at_its_edges_is_an_error(name: str) -> None:
    first, second = PACKERS[name](FIRST), PACKERS[name](SECOND)
    for length in (*range(1, 40), *range(len(second) - 40, len(second))):
        refused(first + second[:length])
    assert read(first) == ROWS[:200]  # cut between the streams, it is a whole file


@pytest.mark.parametrize("name", PACKERS)
@given(data=st.data())
def test_a_damaged_later_stream_is_an_error(name: str, data: st.DataObject) -> None:
    """Wherever a bit of it is flipped: in the header, the body, the checksum, the index of xz."""
    first, second = PACKERS[name](FIRST), bytearray(PACKERS[name](SECOND))
    at = data.draw(st.integers(0, len(second) - 1))
    second[at] ^= data.draw(st.sampled_from([1 << bit for bit in range(8)]))
    try:
        got = read(first + bytes(second))
    except SourceError:
        return
    # Some bits mean nothing, such as the time in a header of gzip. Then no row may be missing.
    assert got == ROWS


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("garbage", [b"g", b"garbage", b"\n", b"\0garbage", FIRST, b"\x1f", b"BZ", b"\xfd7z"])
def test_garbage_after_a_stream_is_an_error(name: str, garbage: bytes) -> None:
    assert "with nothing after it but more streams" in refused(PACKERS[name](FIRST) + garbage)


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("zeros", [1, 2, 3, 4, 8, 512])
def test_zero_bytes_are_padding_where_the_format_says_so(name: str, zeros: int) -> None:
    packed = PACKERS[name](FIRST) + b"\0" * zeros
    if zeros not in PADDING[name]:
        refused(packed)
        return
    assert read(packed) == ROWS[:200]
    assert read(packed + PACKERS[name](SECOND)) == ROWS


@pytest.mark.parametrize("name", TOOLS)
@given(data=st.data())
def test_what_is_read_is_what_the_tool_unpacks(name: str, data: st.DataObject) -> None:
    packed = bytearray(PACKERS[name](FIRST) + PACKERS[name](SECOND))
    if data.draw(st.booleans()):
        del packed[data.draw(st.integers(7, len(packed))) :]
    packed += data.draw(st.sampled_from([b"", b"", b"\0" * 4, b"\0", b"x"]))
    done = subprocess.run([name, "-dc"], input=bytes(packed), capture_output=True, check=False)
    try:
        got = read(bytes(packed))
    except SourceError:
        # Only what the tool warns of and ignores is refused here and not there.
        assert done.returncode or b"trailing garbage" in done.stderr
        return
    assert done.returncode == 0
    assert got == [json.loads(line) for line in done.stdout.splitlines()]


def test_a_skippable_frame_of_zstd_comes_first() -> None:
    frame = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # `pzstd` begins its files with one
    assert read(frame + zstd_of_arrow(FIRST) + frame + zstd_of_arrow(SECOND)) == ROWS


def test_a_dictionary_of_gigabytes_is_refused() -> None:
    huge = lzma.compress(FIRST, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}])
    assert "Memory usage limit" in refused(huge)
    assert read(lzma.compress(FIRST, preset=9)) == ROWS[:200]


def test_the_standard_library_drops_a_damaged_later_stream() -> None:
    """The reason why it is not used: negative control of the tests above."""
    damaged = bytearray(bz2.compress(SECOND))
    damaged[len(damaged) // 2] ^= 1
    with bz2.open(io.BytesIO(bz2.compress(FIRST) + damaged)) as stream:
        assert stream.read() == FIRST
