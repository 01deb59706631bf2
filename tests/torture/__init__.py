"""Torture, outside pytest: each kind is a trial that is repeated, with the number of times in the default run."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

from torture import damages, full_disks, kills, races, ray_kills
from torture.place import Place


class Kind(NamedTuple):
    """One kind of torture."""

    times: int
    """How often, by default."""
    trial: Callable[[Place, random.Random], int]
    """Tries it and returns how often it did what it does."""
    skipped: str = ""
    """Why it is left out here; empty where it is not."""


_NO_RAY = "" if find_spec("ray") else "ray is not installed: pip install 'templatekit[ray]'"
KINDS: dict[str, Kind] = {
    "kills": Kind(1000, kills.trial),
    "damages": Kind(500, damages.trial),
    "full-disks": Kind(150, full_disks.trial),
    "races": Kind(50, races.trial),
    "ray": Kind(50, ray_kills.trial, _NO_RAY),
}
