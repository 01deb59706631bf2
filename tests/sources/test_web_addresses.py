"""Addresses that a server on this machine answers, in each way in which web servers differ, and S3 of moto."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import pytest

from templatekit.errors import RecordError, SourceError
from templatekit.hooks.registry import Registry
from templatekit.sources import open_source

pytest.importorskip("aiohttp", reason="reading https:// needs aiohttp")

ROWS = [{"n": number, "text": f"row {number} ä😀"} for number in range(500)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
TABLE = "n\ttext\n" + "".join(f"{row['n']}\t{row['text']}\n" for row in ROWS)


def parquet() -> bytes:
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), buffer, row_group_size=100)
    return buffer.getvalue()


FILES = {
    "rows.jsonl": LINES,
    "rows.json": json.dumps(ROWS).encode(),
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.tsv": TABLE.encode(),
    "rows.parquet": parquet(),
    "broken.jsonl": b'{"n": 1}\n{"n": \n',
    "large.jsonl": LINES * 300,  # more than fsspec asks for at once
}


class Way(NamedTuple):
    """How a server answers."""

    length: bool = True
    chunked: bool = False
    ranges: bool = True
    head: bool = True
    packed: bool = False
    """Whether the content is compressed on its way."""
    cut: bool = False
    """Whether the connection ends in the middle of the content."""


WAYS = {
    "plain": Way(),
    "without ranges": Way(ranges=False),
    "without length": Way(length=False, ranges=False),
    "chunked": Way(length=False, chunked=True, ranges=False),
    "chunked with ranges": Way(length=False, chunked=True),
    "without HEAD": Way(head=False),
    "without HEAD and ranges": Way(head=False, ranges=False),
    "packed on its way": Way(packed=True, ranges=False),
    "packed and chunked": Way(packed=True, chunked=True, length=False, ranges=False),
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    way = Way()

    def log_message(self, *values: Any) -> None: ...

    def do_HEAD(self) -> None:
        if self.way.head:
            self.answer(body=False)
        else:
            self.send_response(405)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        way = self.way
        data = FILES.get(self.path.partition("?")[0].strip("/"))
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        start, end = 0, len(data)
        if way.ranges and asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        content = data[start:end]
        if way.packed:
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        if way.length:
            self.send_header("Content-Length", str(len(content)))
        if way.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        if not way.length and not way.chunked:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if not body:
            return
        sent = content[: len(content) // 2] if way.cut else content
        for at in range(0, len(sent), 1 << 16):
            piece = sent[at : at + (1 << 16)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if way.chunked else piece)
        if way.cut:
            self.close_connection = True
        elif way.chunked:
            self.wfile.write(b"0\r\n\r\n")


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *values: Any) -> None: ...  # a client may close its connection early


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with QuietServer(("127.0.0.1", 0), type("Answers", (Handler,), {})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def address_of(server: Any, name: str, way: Way, *, login: str = "") -> str:
    server.RequestHandlerClass.way = way
    return f"http://{login}127.0.0.1:{server.server_address[1]}/{name}"


def read(address: str, registry: Registry) -> list[Any]:
    return list(open_source(address, registry))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet"])
def test_every_format_from_every_server(server: Any, registry: Registry, name: str, way: str) -> None:
    assert read(address_of(server, name, WAYS[way]), registry) == ROWS


@pytest.mark.parametrize("way", WAYS)
def test_a_table_with_a_query(server: Any, registry: Registry, way: str) -> None:
    """The extension before the query decides the format: tabs separate the columns."""
    rows = read(address_of(server, "rows.tsv?version=2&name=x.csv", WAYS[way]), registry)
    assert rows == [{"n": str(row["n"]), "text": row["text"]} for row in ROWS]


@pytest.mark.parametrize("way", ["plain", "without ranges", "chunked", "without HEAD"])
def test_a_file_of_several_blocks(server: Any, registry: Registry, way: str) -> None:
    rows = read(address_of(server, "large.jsonl", WAYS[way]), registry)
    assert len(rows) == 300 * len(ROWS)
    assert rows[-1] == ROWS[-1]


@pytest.mark.parametrize("way", ["plain", "chunked", "without length"])
def test_a_broken_row_is_named(server: Any, registry: Registry, way: str) -> None:
    address = address_of(server, "broken.jsonl", WAYS[way])
    good, broken = read(address, registry)
    assert good == {"n": 1}
    assert isinstance(broken, RecordError)
    assert str(broken).startswith(f"{address}:1: line 2: not whole")


@pytest.mark.parametrize(
    "way",
    [Way(cut=True), Way(cut=True, ranges=False), Way(cut=True, chunked=True, length=False, ranges=False)],
    ids=["in a part", "in the whole", "between chunks"],
)
def test_a_lost_connection_is_an_error(server: Any, registry: Registry, way: Way) -> None:
    address = address_of(server, "large.jsonl", way)
    with pytest.raises(SourceError, match="cannot be read; found"):
        read(address, registry)


def test_a_missing_file(server: Any, registry: Registry) -> None:
    with pytest.raises(SourceError, match="no such file or folder there"):
        read(address_of(server, "none.jsonl", Way()), registry)


def test_no_secret_of_an_address_is_shown(server: Any, registry: Registry) -> None:
    query = "?X-Amz-Signature=c0ffee11&part=7"
    for name in ("none.jsonl", "broken.jsonl", "rows.csv"):
        address = address_of(server, name + query, Way(), login="me:hunter22@")
        try:
            said = " ".join(str(item) for item in read(address, registry) if isinstance(item, RecordError))
        except SourceError as error:
            said = f"{error} {error.__cause__} {error.__context__ if not error.__suppress_context__ else ''}"
        assert f"http://me:***@127.0.0.1:{server.server_address[1]}/{name}?X-Amz-Signature=***&part=7" in said
        assert "hunter22" not in said
        assert "c0ffee11" not in said


def test_reading_has_no_bound_on_its_time(server: Any, registry: Registry) -> None:
    """Rows are read as they are needed: the client's own bound, five minutes, would end a training run."""
    from templatekit.sources.remote import _filesystem

    filesystem, _ = _filesystem(address_of(server, "rows.jsonl", Way()))
    assert filesystem.client_kwargs["timeout"].total is None
    assert filesystem.client_kwargs["timeout"].sock_read


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    s3fs: Any = pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    moto = pytest.importorskip("moto.server", reason="moto, which stands in for S3, is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir("bucket")
    for name, data in FILES.items():
        filesystem.pipe(f"bucket/{name}", data)
    filesystem.pipe("bucket/folder/a.jsonl", LINES)
    filesystem.pipe("bucket/folder/b.jsonl.gz", gzip.compress(LINES))
    yield filesystem
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket(bucket: Any, registry: Registry) -> None:
    for name in ("rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet"):
        assert read(f"s3://bucket/{name}", registry) == ROWS
    assert len(read("s3://bucket/large.jsonl", registry)) == 300 * len(ROWS)
    assert read("s3://bucket/folder", registry) == [*ROWS, *ROWS]
    assert read("s3://bucket/folder/*.jsonl", registry) == ROWS
    assert str(read("s3://bucket/broken.jsonl", registry)[1]).startswith("s3://bucket/broken.jsonl:1: line 2")
    with pytest.raises(SourceError, match="no such file or folder there"):
        read("s3://bucket/none.jsonl", registry)
