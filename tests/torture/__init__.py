"""Torture, outside pytest: each kind is a trial that is repeated, with the number of times in the default run."""

from __future__ import annotations

import random
from collections.abc import Callable

from torture import damages, full_disks, kills, races
from torture.place import Place

KINDS: dict[str, tuple[int, Callable[[Place, random.Random], int]]] = {
    "kills": (1000, kills.trial),
    "damages": (500, damages.trial),
    "full-disks": (100, full_disks.trial),
    "races": (50, races.trial),
}
