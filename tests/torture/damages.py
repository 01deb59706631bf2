"""Damaged files: the next run gives the same rows or losses, or an error that names the file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from templatekit.tokens.disk_cache import TokenizerDescription, cached_description, cached_files
from torture.place import METHODS, Files, Place, content, expect, expect_explained, shards, training, write_files

PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
if shutil.which("zstd"):  # Arrow's own writer of it adds no checksum
    PACKERS["zst"] = lambda data: subprocess.run(["zstd", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def trial(place: Place, draw: random.Random) -> int:
    """Damage one thing and read it; returns 1."""
    subjects = (cache, tokenizer, packed, saved, checkpoint)
    draw.choices(subjects, weights=(3, 2, 3, 2, 2))[0](place, draw)
    return 1


def _flip(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + bytes([data[start] ^ 1 << draw.randrange(8)]) + data[start + 1 :]


def _overwrite(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + draw.randbytes(end - start) + data[end:]


def _truncate(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start]


def _duplicate(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:end] + data[start:end] + data[end:]


def _swap(data: bytes, start: int, end: int, draw: random.Random) -> bytes:
    return data[:start] + data[end:] + data[start:end]


EDITS = {"flip": _flip, "overwrite": _overwrite, "truncate": _truncate, "duplicate": _duplicate, "swap": _swap}


def damage(paths: Sequence[Path], draw: random.Random) -> tuple[str, Path]:
    """Damage one of these files, or take it away, or let it change places with a sibling; returns how, and which."""
    path = draw.choice(paths)
    siblings = [other for other in path.parent.iterdir() if other != path and other.is_dir() == path.is_dir()]
    how = draw.choice(["delete", *(EDITS if path.is_file() else []), *(["change places"] if siblings else [])])
    if how == "delete":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif how == "change places":
        other, aside = draw.choice(siblings), path.with_name("aside")
        path.rename(aside)
        other.rename(path)
        aside.rename(other)
    else:
        data = path.read_bytes()
        start = draw.randrange(len(data))
        end = min(len(data), start + draw.choice((1, 16, len(data) // 2)))
        if (start, end) == (0, len(data)):  # a packed file twice is a packed file
            start = 1
        path.write_bytes(EDITS[how](data, start, max(end, start + 1), draw))
    return how, path


def _count(place: Place, what: str, how: str) -> None:
    place.tally[f"damages of {what}: {how}"] += 1


def cache(place: Place, draw: random.Random) -> None:
    whole, kept = place.rendered("jsonl").result, place.cached().result
    folder = place.new_folder()
    write_files(folder / "cache", kept)
    how, path = damage(sorted((folder / "cache").glob("prepared-*/*/[0-9]*/**/*")) + _shards(folder), draw)
    command = place.render(folder / "out.jsonl", "--cache", "--cache-dir", folder / "cache")
    ending = place.succeed(command)
    expect(content(folder / "out.jsonl") == whole, f"other rows after {how} of {path}", command, ending)
    expect(shards(folder / "cache") == kept, f"a damaged cache after {how} of {path}", command, ending)
    _count(place, "the cache", how)


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("prepared-*/*/[0-9]*"))


def tokenizer(place: Place, draw: random.Random) -> None:
    """Two models, since files may change places."""
    folder = place.new_folder()
    models = {folder / f"{name}.gguf": TokenizerDescription(f'{{"{name}": 1}}', {}, None) for name in ("one", "two")}
    for model in models:
        model.write_text(f"tokens and weights of {model.name}")

    def read() -> None:
        os.environ["TEMPLATEKIT_CACHE"] = str(folder)
        found = {model: cached_description(model, partial(models.__getitem__, model)) for model in models}
        assert found == models

    place.call(read, "the tokenizers are cached")
    how, _ = damage(cached_files(folder), draw)
    place.call(read, f"other tokenizers after {how}")
    _count(place, "the tokenizer cache", how)


def packed(place: Place, draw: random.Random) -> None:
    suffix = draw.choice(sorted(PACKERS))
    folder = place.new_folder()
    packed = folder / f"rows.jsonl.{suffix}"
    packed.write_bytes(PACKERS[suffix](place.rows.read_bytes()))
    how, _ = damage([packed], draw)
    _read_back(place, packed, how, packed.name)
    _count(place, f"packed data, .{suffix}", how)


def saved(place: Place, draw: random.Random) -> None:
    """An Arrow file holds no checksum: a changed text is another text. What cannot be read has to be an error."""
    folder = place.new_folder() / "saved"
    write_files(folder, place.saved())
    how, path = damage(sorted(folder.iterdir()), draw)
    silent = path.suffix == ".arrow" and how not in ("delete", "truncate")
    _read_back(place, folder, how, folder.name, other_rows=silent)
    _count(place, "a saved data set", f"{how}{', which no checksum shows' if silent else ''}")


def _read_back(place: Place, data: Path, how: str, name: str, *, other_rows: bool = False) -> None:
    command = place.render(data.with_name("out.jsonl"), data=data)
    ending = place.start(command).ended()
    found = content(data.with_name("out.jsonl"))
    if ending.code != 0:
        expect_explained(ending, command, name)
        expect(found is None, f"an output beside an error after {how}", command, ending)
    elif not other_rows:
        expect(found == place.rendered("jsonl").result, f"other rows in silence after {how}", command, ending)
    expect(ending.code >= 0, f"crashed after {how}", command, ending)


def checkpoint(place: Place, draw: random.Random) -> None:
    method = draw.choice(METHODS)
    folder = place.new_folder() / "run"
    kept: Files = place.interrupted(method)
    write_files(folder, kept)
    how, path = damage(sorted((folder / "checkpoints").rglob("*")), draw)
    command = place.finetune(folder, "--resume", method=method)
    ending = place.start(command).ended()
    if ending.code == 0:
        expect(training(folder) == place.trained(method).result, f"other losses after {how} of {path}", command, ending)
    else:
        expect_explained(ending, command, path.name, path.parent.name, str(folder))
    _count(place, f"checkpoints, {method}", f"{how}{'' if ending.code == 0 else ', an error'}")
