"""A full disk: exit 1 with a message that names the path, the old output intact, no half file.

A limit on the size of files takes its part: the same call fails, with another number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torture.place import FORMATS, METHODS, Place, content, expect, expect_explained, left_behind, shards, training

PRINTED: dict[str, Callable[[Place], list[str]]] = {
    "render --format jsonl": partial(Place.render_to_stdout, form="jsonl"),
    "render --format parquet": partial(Place.render_to_stdout, form="parquet"),
    "render --format arrow": partial(Place.render_to_stdout, form="arrow"),
    "render --pack-tokens": lambda place: place.render_to_stdout("--pack-tokens", 100, form="jsonl"),
    "preview": lambda place: ["preview", "--dataset", str(place.rows), "--limit", "50", "--template", "chatml"],
    "audit": lambda place: ["audit", "--dataset", str(place.rows), "--template", "chatml", "--fail-on", "never"],
    "audit --json": lambda place: [*PRINTED["audit"](place), "--json"],
    "templates export": lambda place: ["templates", "export", "chatml"],
    "templates list": lambda place: ["templates", "list"],
    "plugins list --json": lambda place: ["plugins", "list", "--json"],
}
"""Commands that print, by name."""


def trial(place: Place, draw: random.Random) -> int:
    """Fill the disk for one command; returns 1."""
    draw.choices((render, device, stdout, cached, finetune), weights=(5, 1, 4, 3, 3))[0](place, draw)
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


def stdout(place: Place, draw: random.Random) -> None:
    """Standard output is a file, or the device that is always full: what was written is a start of the whole."""
    folder, what = place.new_folder(), draw.choice(sorted(PRINTED))
    file = folder / "stdout"
    command = PRINTED[what](place)
    if draw.random() < 0.3:
        ending = place.start(command, stdout=Path("/dev/full")).ended()
        expect_explained(ending, command, "standard output", code=1)
        place.tally[f"full disks: {what} into /dev/full"] += 1
        return
    whole = place.printed(command)
    ending = place.start(command, file_bytes=draw.randrange(int(1.05 * len(whole)) + 1), stdout=file).ended()
    found = file.read_bytes()
    if ending.code:
        expect_explained(ending, command, "standard output", code=1)
        expect(whole.startswith(found), "standard output has other bytes than a start of the whole", command, ending)
    else:
        expect(found == whole, "standard output is half, without an error", command, ending)
    place.tally[f"full disks: {what} into standard output{', that sufficed' if not ending.code else ''}"] += 1


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
    method = draw.choice(METHODS)
    folder = place.new_folder() / "run"
    command = place.finetune(folder, method=method)
    if printing := draw.random() < 0.2:
        ending = place.start(command, stdout=Path("/dev/full")).ended()
    else:
        largest = max(map(len, place.interrupted(method).values()))
        ending = place.start(command, file_bytes=draw.randrange(int(1.05 * largest))).ended()
    if ending.code:
        expect_explained(ending, command, "standard output" if printing else str(folder), code=1)
        resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
        command = place.finetune(folder, *resume, method=method)
        place.succeed(command)
    expect(training(folder) == place.trained(method).result, "other losses after a full disk", command, ending)
    where = " printing into /dev/full," if printing else ""
    place.tally[f"full disks: finetune, {method},{where} resumed{', that sufficed' if not ending.code else ''}"] += 1
