from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from templatekit.errors import RecordError, SourceError
from templatekit.sources.folders import FolderSource

Write = Callable[[str, "str | bytes"], str]


def test_files_of_one_kind_in_the_order_of_names(write: Write, tmp_path: Path) -> None:
    write("b.jsonl", '{"n": 2, "date": "2020-01-01"}\nbroken\n')
    write("a.json", '[{"n": 1}]')
    write("c.ndjson.gz", gzip.compress(b'{"n": 4}'))
    write("README.md", "words")
    write(".hidden.json", "broken")
    write("_SUCCESS", "")
    (tmp_path / "subfolder.json").mkdir()
    first, second, error, last = FolderSource().read(str(tmp_path))
    assert [first, second, last] == [{"n": 1}, {"n": 2, "date": "2020-01-01"}, {"n": 4}]
    assert isinstance(error, RecordError)
    assert str(error).startswith(f"{tmp_path}/b.jsonl:1: line 2: ")


def test_kinds_are_not_mixed(write: Write, tmp_path: Path) -> None:
    write("a.json", "[]")
    write("b.jsonl", "")
    write("c.parquet", "")
    with pytest.raises(SourceError, match=r"found 1 \.json, 1 \.jsonl, 1 \.parquet; expected one; name one file"):
        list(FolderSource().read(str(tmp_path)))


def test_a_folder_without_data(write: Write, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no data files; found an empty folder"):
        list(FolderSource().read(str(tmp_path)))
    (tmp_path / "data").mkdir()
    write("table.xlsx", "a,b")
    with pytest.raises(SourceError, match=r"no data files; found data/, table\.xlsx; expected files that"):
        list(FolderSource().read(str(tmp_path)))


def test_a_file_that_cannot_be_read_ends_it(write: Write, tmp_path: Path) -> None:
    write("a.json", '{"a": 1}')
    write("b.json", "")
    items = FolderSource().read(str(tmp_path))
    assert next(items) == {"a": 1}
    with pytest.raises(SourceError, match=r"b\.json: no records"):
        next(items)


def test_a_pipe_in_a_folder_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    started = time.perf_counter()
    with pytest.raises(SourceError, match=r"a pipe \(FIFO\)"):
        list(FolderSource().read(str(tmp_path)))
    assert time.perf_counter() - started < 1


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SourceError, match="no permission to read it"):
        list(FolderSource().read(str(tmp_path)))
