"""Detects by its first bytes that a stream is not UTF-8 text, and names its actual format."""

from __future__ import annotations

from typing import BinaryIO

from templatekit.errors import SourceError

_BOM = b"\xef\xbb\xbf"
_FOREIGN = (
    (b"PAR1", "a Parquet file", "rename it to end in .parquet"),
    (b"ARROW1", "an Arrow file", "rename it to end in .arrow"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x1f\x8b", "gzip data within compressed data", "decompress it once"),
    (b"BZh", "bzip2 data within compressed data", "decompress it once"),
    (b"\xfd7zXZ", "xz data within compressed data", "decompress it once"),
    (b"\x28\xb5\x2f\xfd", "zstd data within compressed data", "decompress it once"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
)


def skip_bom(stream: BinaryIO, address: str, expected: str) -> int:
    """Skip a byte order mark and return the offset after it; raise `SourceError` for a file that is not UTF-8 text."""
    start = stream.read(8)
    for magic, what, todo in _FOREIGN:
        if start.startswith(magic):
            raise SourceError(f"{address}: not {expected} in UTF-8; found {what}; {todo}")
    if len(start) >= 4 and start[:4].count(0) == 2 and (start[0] == start[2] == 0 or start[1] == start[3] == 0):
        order = "BE" if start[0] == 0 else "LE"
        raise SourceError(f"{address}: not UTF-8; found UTF-16 text; convert it: iconv -f UTF-16{order} -t UTF-8")
    begin = len(_BOM) if start.startswith(_BOM) else 0
    stream.seek(begin)
    return begin
