"""SIGKILL at random moments: the output is absent, whole and old, or whole and new; the next run is as if unbroken."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from torture.place import FORMATS, METHODS, Place, content, expect, left_behind, shards, training


def trial(place: Place, draw: random.Random) -> int:
    """Kill one command a few times, then let it end; returns the number of kills."""
    return draw.choices((render, cached, finetune), weights=(6, 3, 2))[0](place, draw)


def _kill(place: Place, command: list[str], draw: random.Random, seconds: float, what: str) -> bool:
    """Kill a command at a random moment; False where it ended before.

    It lasts about `seconds` at first, later as long as it last did: others may use the machine.
    """
    began = time.monotonic()
    ending = place.start(command).killed_after(draw.uniform(0, 1.1 * place.lasting.setdefault(what, seconds)))
    if ending.code == -signal.SIGKILL:
        place.lasting[what] *= 1.01
        place.tally[f"kills of {what}"] += 1
        return True
    place.lasting[what] = time.monotonic() - began
    expect(ending.code == 0, "a command failed after kills", command, ending)
    return False


def render(place: Place, draw: random.Random) -> int:
    form = draw.choice(FORMATS)
    whole, seconds = place.rendered(form)
    output = place.new_folder() / f"out.{form}"
    before = place.old_output(output, draw)
    command = place.render(output, *(["--overwrite"] if before is not None else []))
    what = f"render to {form}, {'a new path' if before is None else 'over an old file'}"
    kills = 0
    for _ in range(draw.randint(1, 4)):
        kills += _kill(place, command, draw, seconds, what)
        found = content(output)
        expect(found in (before, whole), f"{output} is neither absent nor old nor new", command)
        if found == whole:
            _remove(output)  # what was killed after its work; the next run makes it again
            before = None
    place.succeed(command)
    expect(content(output) == whole, f"{output} is not what an unbroken run gives", command)
    left = left_behind(output.parent)
    expect(not left, f"left behind by killed runs, after a whole one: {left}", command)
    return kills


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink()


def cached(place: Place, draw: random.Random) -> int:
    workers = 2 if draw.random() < 0.1 else 1
    whole, kept = place.rendered("jsonl").result, place.cached().result
    seconds = place.cached().seconds + (2.0 if workers > 1 else 0.0)
    folder = place.new_folder()
    cache, output = folder / "cache", folder / "out.jsonl"
    caching = ["--cache", "--cache-dir", cache, "--workers", workers]
    command, kills, before = place.render(output, *caching, "--overwrite"), 0, 0
    for _ in range(draw.randint(1, 4)):
        kills += _kill(place, command, draw, seconds, f"render --cache, {workers} workers")
        found = shards(cache)
        expect(all(kept.get(name) == data for name, data in found.items()), "a half or other shard", command)
        expect(len(found) % 4 == 0 and len(found) >= before, "a shard was lost", command)
        expect(content(output) in (None, whole), f"{output} is half", command)
        before = len(found)
    place.succeed(command)
    expect(content(output) == whole, "other rows than without a cache", command)
    expect(shards(cache) == kept, "another cache than that of an unbroken run", command)
    left = left_behind(folder)
    expect(not left, f"left behind by killed runs, after a whole one: {left}", command)
    return kills


def finetune(place: Place, draw: random.Random) -> int:
    method = draw.choice(METHODS)
    whole, seconds = place.trained(method)
    folder = place.new_folder() / "run"
    kills = 0

    def command_now() -> list[str]:
        return place.finetune(folder, *(["--resume"] if (folder / "recipe.yaml").exists() else []), method=method)

    while True:
        command = command_now()
        if kills >= 5 or not _kill(place, command, draw, seconds, f"finetune, {method}, resumed"):
            break
        kills += 1
    if not (folder / "run.json").exists():
        command = command_now()  # every kill may have come before the run began
        place.succeed(command)
    expect(training(folder) == whole, f"other losses or weights after {kills} kills", command)
    left = left_behind(folder, ".lock")
    expect(not left, f"left behind by killed runs, after a whole one: {left}", command)
    return kills
