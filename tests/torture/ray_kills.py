"""SIGKILL on a Ray cluster: of the command, which leaves nothing half, or of the cluster's processes.

Ray repeats what a killed process did, a few times; a command that gives up says so and leaves no output.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from torture.place import Place, content, expect, expect_explained, left_behind

SUFFIXES = ("jsonl", "parquet")
"""The formats."""


def trial(place: Place, draw: random.Random) -> int:
    """Kill the command or some of its workers; returns the number of kills."""
    return draw.choice((command, workers))(place, draw)


def command(place: Place, draw: random.Random) -> int:
    form = draw.choice(SUFFIXES)
    whole = place.rendered(form, data=place.many).result
    cluster, output = place.cluster(), place.new_folder() / f"out.{form}"
    render = place.render(output, "--engine", "ray", "--workers", 2, data=place.many)
    kills = 0
    for _ in range(draw.randint(1, 3)):
        began = time.monotonic()
        running = place.start(render, environment=cluster.environment)
        ending = running.killed_after(draw.uniform(0, place.lasting.setdefault("ray", 10.0)))
        if ending.code == -signal.SIGKILL:
            kills += 1
            place.tally["kills of render on Ray"] += 1
        else:
            place.lasting["ray"] = time.monotonic() - began
            expect(ending.code == 0, "a command failed after kills", render, ending)
        found = content(output)
        expect(found in (None, whole), f"{output} is half", render)
        output.unlink(missing_ok=True)
    began = time.monotonic()
    ending = place.start(render, environment=cluster.environment).ended()
    place.lasting["ray"] = time.monotonic() - began
    expect(ending.code == 0, "a command failed after kills", render, ending)
    expect(content(output) == whole, "other rows than in one process", render, ending)
    left = left_behind(output.parent)
    expect(not left, f"left behind by killed runs, after a whole one: {left}", render)
    return kills


def workers(place: Place, draw: random.Random) -> int:
    form = draw.choice(SUFFIXES)
    whole = place.rendered(form, data=place.many).result
    cluster, output = place.cluster(), place.new_folder() / f"out.{form}"
    render = place.render(output, "--engine", "ray", "--workers", 2, data=place.many)
    running = place.start(render, environment=cluster.environment)
    kills = 0
    for _ in range(draw.randint(1, 3)):
        time.sleep(draw.uniform(0, place.lasting.setdefault("ray", 10.0) / 2))
        found = cluster.processes("ray::")
        if found and not running.has_ended():
            with suppress(ProcessLookupError):
                os.kill(draw.choice(found), signal.SIGKILL)
                kills += 1
                place.tally["kills of workers of render on Ray"] += 1
    ending = running.ended()
    if ending.code:
        expect_explained(ending, render, "Ray raised", code=1)
        expect(content(output) is None, f"an output beside an error: {output}", render, ending)
        place.tally["kills of workers of render on Ray, an error"] += 1
    else:
        expect(content(output) == whole, "other rows than in one process", render, ending)
    expect(not left_behind(output.parent), f"left behind: {left_behind(output.parent)}", render)
    return kills
