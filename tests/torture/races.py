"""Two commands at once on one output: one whole result, or a clear error for one of them."""

from __future__ import annotations

import random
import time
from pathlib import Path

from testkit.forks import Ending

from torture.place import (
    FOLDER_FORMAT,
    FORMATS,
    Place,
    content,
    expect,
    expect_explained,
    left_behind,
    shards,
    training,
)


def trial(place: Place, draw: random.Random) -> int:
    """Let two commands race; returns 1."""
    draw.choices((render, cached, cleared, finetune), weights=(4, 2, 2, 2))[0](place, draw)
    return 1


def _both(place: Place, commands: list[list[str]], draw: random.Random, seconds: float) -> tuple[Ending, Ending]:
    first = place.start(commands[0])
    time.sleep(draw.uniform(0, seconds))
    second = place.start(commands[1])
    return first.ended(), second.ended()


def render(place: Place, draw: random.Random) -> None:
    form = draw.choice(FORMATS)
    folder = place.new_folder()
    output: Path = folder / f"out.{form}"
    overwrite = ["--overwrite"] if draw.random() < 0.5 and form != FOLDER_FORMAT else []
    limits = (["--limit", 200], ["--limit", 190])
    results = [place.rendered(form, *limit).result for limit in limits]
    commands = [place.render(output, *limit, *overwrite) for limit in limits]
    endings = _both(place, commands, draw, place.rendered(form, *limits[0]).seconds)
    won = [result for result, ending in zip(results, endings, strict=True) if ending.code == 0]
    for command, ending in zip(commands, endings, strict=True):
        if ending.code:
            expect_explained(ending, command, str(output))
    expect(len(won) == 2 if overwrite else len(won) == 1, f"{len(won)} commands succeeded", commands[0], endings[1])
    expect(content(output) in won, "the output is that of neither command", commands[0], endings[1])
    expect(not left_behind(folder), f"left behind by a race: {left_behind(folder)}", commands[0])
    place.tally[f"races: render and render to {form}{', --overwrite' if overwrite else ''}"] += 1


def cached(place: Place, draw: random.Random) -> None:
    whole, seconds = place.cached()
    folder = place.new_folder()
    outputs = [folder / "one.jsonl", folder / "two.jsonl"]
    commands = [place.render(output, "--cache", "--cache-dir", folder / "cache") for output in outputs]
    for ending, command, output in zip(_both(place, commands, draw, seconds), commands, outputs, strict=True):
        expect(ending.code == 0, "a command failed beside another", command, ending)
        expect(content(output) == place.rendered("jsonl").result, "other rows", command, ending)
    expect(shards(folder / "cache") == whole, "another cache than that of one command", commands[0])
    expect(not left_behind(folder), f"left behind by a race: {left_behind(folder)}", commands[0])
    place.tally["races: render --cache and render --cache"] += 1


def cleared(place: Place, draw: random.Random) -> None:
    folder = place.new_folder()
    command = place.render(folder / "out.jsonl", "--cache", "--cache-dir", folder / "cache")
    clear = ["cache", "clear", "--all", "--cache-dir", str(folder / "cache")]
    rendered, cleared = _both(place, [command, clear], draw, place.cached().seconds)
    for each, ending in ((command, rendered), (clear, cleared)):
        if ending.code:
            expect_explained(ending, each, str(folder))
    if not rendered.code:
        found = content(folder / "out.jsonl")
        expect(found == place.rendered("jsonl").result, "other rows beside cache clear", command, rendered)
    errors = ", an error" if rendered.code or cleared.code else ""
    place.tally[f"races: render --cache and cache clear{errors}"] += 1


def finetune(place: Place, draw: random.Random) -> None:
    folder = place.new_folder() / "run"
    command = place.finetune(folder)
    endings = _both(place, [command, command], draw, place.trained().seconds)
    for ending in endings:
        if ending.code:
            expect_explained(ending, command, str(folder))
    expect(sum(ending.code == 0 for ending in endings) == 1, "not one of two runs succeeded", command, endings[1])
    expect(training(folder) == place.trained().result, "other losses beside another run", command)
    place.tally["races: finetune and finetune"] += 1
