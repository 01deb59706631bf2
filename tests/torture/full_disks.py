"""A full disk: exit 1 with a message that names the path, the old output intact, no half file.

A limit on the size of files takes its part: the same call fails, with another number.
"""

from __future__ import annotations

import random
from pathlib import Path

from torture.place import FORMATS, Place, content, expect, expect_explained, left_behind, shards, training


def trial(place: Place, draw: random.Random) -> int:
    """Fill the disk for one command; returns 1."""
    draw.choices((render, device, cached, finetune), weights=(5, 1, 3, 3))[0](place, draw)
    return 1


def render(place: Place, draw: random.Random) -> None:
    form = draw.choice(FORMATS)
    whole = place.rendered(form).result
    output = place.new_folder() / f"out.{form}"
    before = place.old_output(output, draw)
    command = place.render(output, *(["--overwrite"] if before else []))
    largest = max(map(len, whole.values())) if isinstance(whole, dict) else len(whole)
    ending = place.start(command, file_bytes=draw.randrange(int(1.05 * largest))).ended()
    if ending.code:
        expect_explained(ending, command, str(output), code=1)
    expect(content(output) == (before if ending.code else whole), f"{output} is neither old nor new", command, ending)
    left = left_behind(output.parent)
    expect(not left, f"left behind on a full disk: {left}", command, ending)
    place.tally[f"full disks: render to {form}{', that sufficed' if not ending.code else ''}"] += 1


def device(place: Place, draw: random.Random) -> None:
    command = place.render(Path("/dev/full"), "--format", draw.choice(("jsonl", "parquet")))
    expect_explained(place.start(command).ended(), command, "/dev/full", code=1)
    place.tally["full disks: render to /dev/full"] += 1


def cached(place: Place, draw: random.Random) -> None:
    folder = place.new_folder()
    output, cache = folder / "out.jsonl", folder / "cache"
    command = place.render(output, "--cache", "--cache-dir", cache, "--overwrite")
    largest = max(map(len, place.cached().result.values()))
    ending = place.start(command, file_bytes=draw.randrange(int(1.05 * largest))).ended()
    if ending.code:
        expect_explained(ending, command, str(folder), code=1)
        expect(content(output) is None, f"{output} is half", command, ending)
        expect(not left_behind(folder), f"left behind on a full disk: {left_behind(folder)}", command, ending)
    place.succeed(command)
    expect(content(output) == place.rendered("jsonl").result, "other rows after a full disk", command)
    expect(shards(cache) == place.cached().result, "a half shard after a full disk", command)
    place.tally[f"full disks: render --cache{', that sufficed' if not ending.code else ''}"] += 1


def finetune(place: Place, draw: random.Random) -> None:
    folder = place.new_folder() / "run"
    command = place.finetune(folder)
    largest = max(map(len, place.interrupted().values()))
    ending = place.start(command, file_bytes=draw.randrange(int(1.05 * largest))).ended()
    if ending.code:
        expect_explained(ending, command, str(folder), code=1)
        command = place.finetune(folder, *(["--resume"] if (folder / "recipe.yaml").exists() else []))
        place.succeed(command)
    expect(training(folder) == place.trained().result, "other losses after a full disk", command, ending)
    place.tally[f"full disks: finetune, resumed{', that sufficed' if not ending.code else ''}"] += 1
