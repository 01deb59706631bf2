"""The split: which rows are trained on and which are held out."""

from __future__ import annotations

import random
from itertools import islice

from templatekit.config.options import parse_pairs
from templatekit.errors import ConfigError, nearest

TRAIN = "train"
REST = "rest"


def parse_split(spec: str) -> dict[str, float | None]:
    """Parse `train=0.85,test=0.1,validation=rest` to the fraction of each split, in order; None for the rest."""
    pairs = parse_pairs(spec, f"split={spec!r}", "NAME=FRACTION or NAME=rest")
    fractions = {name: None if value == REST else _fraction(value, spec) for name, value in pairs.items()}
    if TRAIN not in fractions:
        raise ConfigError(f"split={spec!r}: no part named {TRAIN!r}; {nearest(TRAIN, fractions)}")
    if list(fractions.values()).count(None) != 1:
        raise ConfigError(f"split={spec!r}: exactly one part has to be {REST!r}, for the rows the fractions leave")
    total = sum(fraction for fraction in fractions.values() if fraction is not None)
    if total > 1 + 1e-9:
        raise ConfigError(f"split={spec!r}: the fractions add up to {total:g}; expected at most 1")
    return fractions


def split_rows(spec: str, count: int, *, shuffle: bool, seed: int) -> dict[str, list[int]]:
    """Divide the rows 0 to `count - 1`: each split gets the next `int(count * fraction)` rows, and one gets the rest.

    With `shuffle` the rows are first shuffled by `seed`. The rows of each split are sorted.
    """
    fractions = parse_split(spec)
    rows = list(range(count))
    if shuffle:
        random.Random(seed).shuffle(rows)
    sizes = {name: int(count * (fraction or 0)) for name, fraction in fractions.items()}
    rest = count - sum(sizes.values())
    remaining = iter(rows)
    splits = {
        name: sorted(islice(remaining, rest if fractions[name] is None else size)) for name, size in sizes.items()
    }
    if count and not splits[TRAIN]:
        raise ConfigError(f"split={spec!r} leaves none of {count} rows to train on")
    return splits


def _fraction(value: str, spec: str) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ConfigError(f"split={spec!r}: expected a fraction from 0 to 1, or {REST!r}; found {value!r}")
    return fraction
