"""`make torture` runs, and notices outputs that are written in place and damage that is not looked for."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from templatekit.cache.atomic_files import STATE, read_state
from templatekit.cli import main

if sys.platform == "win32":
    pytest.skip("processes are forked", allow_module_level=True)
from torture import KINDS, damages, full_disks, kills, races, ray_kills
from torture.__main__ import main as torture
from torture.place import Loss, Place

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(bool(KINDS["ray"].skipped), reason=KINDS["ray"].skipped)


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


def _silent(args: list[str]) -> None:
    """The command line, which ends with 0, whatever happened."""
    with suppress(SystemExit):
        main(args)


@pytest.mark.parametrize(
    "names", [[name for name in KINDS if name != "ray"], pytest.param(["ray"], marks=pytest.mark.full)], ids=str
)
def test_a_handful_of_each(names: list[str], tmp_path: Path) -> None:
    if skipped := next((KINDS[name].skipped for name in names if KINDS[name].skipped), ""):
        pytest.skip(skipped)
    with closing(Place(tmp_path)) as place:
        for name in names:
            KINDS[name].trial(place, random.Random(1))
        assert len(place.tally) >= len(names)


def test_what_is_not_installed_is_skipped_clearly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "ray", KINDS["ray"]._replace(skipped="it is not here"))
    monkeypatch.setattr("sys.argv", ["torture", "--only", "ray"])
    assert torture() == 0
    assert "ray: skipped, since it is not here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "trial", "loss"),
    [
        (_careless, kills.render, "is neither absent nor old nor new"),
        (_careless, damages.cache, "other rows|a damaged cache"),
        (_careless, full_disks.render, "no clear error|is neither old nor new"),
        (_silent, full_disks.stdout, "no clear error|is half, without an error"),
        (_careless, races.render, "2 commands succeeded"),
        pytest.param(_careless, ray_kills.command, "is half", marks=[pytest.mark.full, needs_ray]),
    ],
)
def test_a_careless_command_is_noticed(
    run: Callable[[list[str]], None], trial: Callable[[Place, random.Random], object], loss: str, tmp_path: Path
) -> None:
    with closing(Place(tmp_path, run)) as place, pytest.raises(Loss, match=loss):
        for seed in range(20):
            trial(place, random.Random(seed))
