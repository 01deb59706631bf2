"""`templatekit cache` as a user runs it, and the messages of `render --cache`."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from testkit.command_line import Templatekit

from templatekit.cli.cache import format_bytes
from templatekit.config.cache_folder import cache_folder


@pytest.fixture
def cache(templatekit: Templatekit, tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A cache with two entries, the first one two days old."""
    for template in ("alpaca", "chatml"):
        done = templatekit(
            *("render", "--tokenizer", tokenizer_folder, "--template", template, "--limit", "3"),
            *("--output", f"{template}.jsonl", "--cache", "--cache-dir", "kept"),
        )
        assert done.code == 0, done.err
    old = next(p for p in (tmp_path / "kept").glob("prepared-3/*") if '"alpaca"' in (p / "about.json").read_text())
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    return tmp_path / "kept"


def test_list_shows_size_origin_and_age(templatekit: Templatekit, cache: Path, tokenizer_folder: Path) -> None:
    done = templatekit("cache", "list", "--cache-dir", cache)
    first, second, total = done.out.splitlines()
    pattern = r"[0-9a-f]{12} +\d+\.\d kB +3 examples +(\d+s|2d) ago  starter, template (\w+), tokenizer (.*)"
    found = [re.fullmatch(pattern, line) for line in (first, second)]
    assert [match and match.groups()[1:] for match in found] == [
        ("chatml", str(tokenizer_folder)),
        ("alpaca", str(tokenizer_folder)),
    ]
    assert found[1] and found[1][1] == "2d"
    assert re.fullmatch(rf"2 in {re.escape(str(cache))}, \d+\.\d kB", total)
    assert templatekit("cache", "--cache-dir", cache).out.splitlines()[1] == second


def test_list_as_json(templatekit: Templatekit, cache: Path) -> None:
    done = templatekit("cache", "list", "--cache-dir", cache, "--json")
    listed = json.loads(done.out)
    assert listed["folder"] == str(cache)
    for entry in listed["entries"]:
        files = [file for file in Path(entry["path"]).rglob("*") if file.is_file()]
        assert entry["bytes"] == sum(file.stat().st_size for file in files)
        assert (entry["records"], entry["examples"], entry["parts"], entry["damaged"]) == (3, 3, 1, 0)
        assert entry["about"]["options"]["limit"] == 3
        assert len(entry["key"]) == 32
    one, other = cache.glob("prepared-3/*/about.json")
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)  # an origin is shown only for the entry whose it is
    shown = json.loads(templatekit("cache", "list", "--cache-dir", cache, "--json").out)["entries"]
    assert {entry["path"]: bool(entry["about"]) for entry in shown} == {str(one.parent): False, str(other.parent): True}
    one.write_bytes(mine)
    next(cache.glob("prepared-3/*/00000000/part.json")).write_text("x")
    damaged = json.loads(templatekit("cache", "list", "--cache-dir", cache, "--json").out)
    assert sorted(entry["damaged"] for entry in damaged["entries"]) == [0, 1]


def test_clear_by_key_by_age_and_all(templatekit: Templatekit, cache: Path) -> None:
    run = templatekit
    keys = {json.loads((path / "about.json").read_text())["template"]: path.name for path in cache.glob("prepared-3/*")}
    for wrong, said in (
        ((), "expected one of: keys"),
        (("--all", "--older-than", "1d"), "expected one of: keys"),
        (("zzz",), "no cache entry named 'zzz'; known: "),
        (("--older-than", "soon"), "found 'soon'; expected a number of minutes, hours, days or weeks"),
    ):
        done = run("cache", "clear", *wrong, "--cache-dir", cache)
        assert done.code == 2
        assert said in done.err
    assert len(list(cache.glob("prepared-3/*"))) == 2
    done = run("cache", "clear", "--older-than", "1d", "--cache-dir", cache)
    assert done.out.splitlines()[0].startswith(f"removed {keys['alpaca'][:12]}")
    assert re.fullmatch(r"removed 1 of 2, \d+\.\d kB", done.out.splitlines()[1])
    assert [path.name for path in cache.glob("prepared-3/*")] == [keys["chatml"]]
    done = run("cache", "clear", keys["chatml"][:6], "--cache-dir", cache, "--json")
    assert json.loads(done.out)["removed"] == [keys["chatml"]]
    assert list(cache.glob("prepared-3/*")) == []
    assert run("cache", "clear", "--all", "--cache-dir", cache).out == "removed 0 of 0, 0 B\n"


def test_a_second_run_reads_the_cache_and_says_so(
    templatekit: Templatekit, tokenizer_folder: Path, tmp_path: Path
) -> None:
    def render(*more: str) -> list[str]:
        done = templatekit(
            *("render", "--tokenizer", tokenizer_folder, "--output", "rows.jsonl", "--overwrite", *more),
            env={"TEMPLATEKIT_CACHE": str(tmp_path / "kept")},
        )
        assert done.code == 0, done.err
        return list(done.lines)

    plain = render()
    assert not (tmp_path / "kept").exists()
    rows = (tmp_path / "rows.jsonl").read_bytes()
    assert render("--cache") == plain
    again = render("--cache")
    assert again[1:] == plain
    assert re.fullmatch(rf"cache: examples are taken from '{tmp_path}/kept/prepared-3/[0-9a-f]{{32}}'", again[0])
    assert (tmp_path / "rows.jsonl").read_bytes() == rows


def test_a_cache_that_is_a_file_is_an_error(templatekit: Templatekit, tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    done = templatekit(
        "render", "--tokenizer", tokenizer_folder, "--output", "a.jsonl", "--cache", "--cache-dir", "kept"
    )
    assert done.code == 2
    assert done.lines[-1] == "Error: cache 'kept': found a file; expected a folder; name another (--cache-dir)"
    assert not (tmp_path / "a.jsonl").exists()


def test_workers_and_one_process_share_a_cache(
    templatekit: Templatekit, tokenizer_folder: Path, tmp_path: Path
) -> None:
    outputs = []
    for cache in ("by-one", "by-two"):
        for workers in ("1", "2") if cache == "by-one" else ("2", "1"):
            output = f"{cache}-{workers}.parquet"
            done = templatekit(
                *("render", "--tokenizer", tokenizer_folder, "--output", output, "--workers", workers, "--stats"),
                *("--cache", "--cache-dir", cache, "--max-length", "300", "--truncation", "response"),
            )
            assert done.code == 0, done.err
            said = [line for line in done.err.splitlines() if "examples are taken" not in line]
            outputs.append(((tmp_path / output).read_bytes(), said))
            assert ("examples are taken" in done.err) == (len(outputs) % 2 == 0)
    assert outputs[1:] == outputs[:1] * 3
    kept = [
        {path.name: path.read_bytes() for path in (tmp_path / cache).glob("prepared-*/*/*/*")}
        for cache in ("by-one", "by-two")
    ]
    assert kept[0] == kept[1] != {}


def test_the_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TEMPLATEKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "templatekit"
    monkeypatch.setenv("TEMPLATEKIT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder(Path("~/here")) == Path.home() / "here"
    monkeypatch.delenv("TEMPLATEKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification has programs ignore
    assert cache_folder().is_absolute()


def test_tokenizers_are_listed_and_cleared(templatekit: Templatekit, tmp_path: Path) -> None:
    folder = tmp_path / "kept" / "tokenizers-2"
    folder.mkdir(parents=True)
    (folder / "0.json").write_text("x" * 1200)
    done = templatekit("cache", "list", "--cache-dir", "kept")
    assert done.out == "0 in kept, 0 B\ntokenizers: 1, 1.2 kB\n"
    listed = json.loads(templatekit("cache", "list", "--cache-dir", "kept", "--json").out)
    assert listed["tokenizers"] == {"count": 1, "bytes": 1200}
    assert templatekit("cache", "clear", "--older-than", "1m", "--cache-dir", "kept").out == "removed 0 of 0, 0 B\n"
    done = templatekit("cache", "clear", "--all", "--cache-dir", "kept")
    assert done.out == "removed tokenizers: 1, 1.2 kB\nremoved 0 of 0, 1.2 kB\n"
    assert not list(folder.iterdir())


def test_sizes_are_formatted() -> None:
    assert [format_bytes(size) for size in (0, 999, 1000, 12_900_000, 2_500_000_000, 10**15)] == [
        *("0 B", "999 B", "1.0 kB", "12.9 MB", "2.5 GB", "1000.0 TB")
    ]
