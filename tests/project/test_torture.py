"""`make torture` runs, and notices outputs that are written in place and damage that is not looked for."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from templatekit.cache.atomic_files import STATE, read_state
from templatekit.cli import main

if sys.platform == "win32":
    pytest.skip("processes are forked", allow_module_level=True)
from torture import KINDS, damages, full_disks, kills, races
from torture.place import Loss, Place

pytestmark = pytest.mark.slow


@contextmanager
def _in_place(output: Path, **options: Any) -> Iterator[BinaryIO]:
    with output.open("wb") as file:
        yield file


def _careless(args: list[str]) -> None:
    """The command line, which writes in place, over anything, and believes the cache. It runs in forks only."""
    patch = pytest.MonkeyPatch()
    patch.setattr("templatekit.cli.render.may_replace", lambda *given, **named: True)
    patch.setattr("templatekit.cli.output.atomic_file", _in_place)
    patch.setattr(
        "templatekit.cache.shard.hash_file",
        lambda path: read_state(path.parent / STATE)["files"][path.name]["xxh3_128"],
    )
    main(args)


def test_a_handful_of_each(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for _, trial in KINDS.values():
        trial(place, random.Random(1))
    assert len(place.tally) >= len(KINDS)


@pytest.mark.parametrize(
    ("trial", "loss"),
    [
        (kills.render, "is neither absent nor old nor new"),
        (damages.cache, "other rows|a damaged cache"),
        (full_disks.render, "no clear error|is neither old nor new"),
        (races.render, "2 commands succeeded"),
    ],
)
def test_a_careless_command_is_noticed(
    trial: Callable[[Place, random.Random], object], loss: str, tmp_path: Path
) -> None:
    place = Place(tmp_path, _careless)
    with pytest.raises(Loss, match=loss):
        for seed in range(20):
            trial(place, random.Random(seed))
