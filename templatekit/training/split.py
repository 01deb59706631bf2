"""Which rows are trained on and which are held out."""

from __future__ import annotations

import random

from templatekit.errors import ConfigError, nearest

TRAIN = "train"
REST = "rest"


def parse_split(spec: str) -> dict[str, float | None]:
    """Reads `train=0.85,test=0.1,validation=rest`: the fraction of each part, in order; None for the rest."""
    parts: dict[str, float | None] = {}
    for item in spec.split(","):
        name, sign, value = (piece.strip() for piece in item.partition("="))
        if not (name and sign and value):
            raise ConfigError(f"split={spec!r}: expected NAME=FRACTION or NAME=rest; found {item.strip()!r}")
        if name in parts:
            raise ConfigError(f"split={spec!r}: {name!r} is there twice")
        parts[name] = None if value == REST else _fraction(value, spec)
    if TRAIN not in parts:
        raise ConfigError(f"split={spec!r}: no part named {TRAIN!r}; {nearest(TRAIN, parts)}")
    if list(parts.values()).count(None) != 1:
        raise ConfigError(f"split={spec!r}: exactly one part has to be {REST!r}, for the rows the fractions leave")
    total = sum(fraction for fraction in parts.values() if fraction is not None)
    if total > 1 + 1e-9:
        raise ConfigError(f"split={spec!r}: the fractions add up to {total:g}; expected at most 1")
    return parts


def split_rows(spec: str, count: int, *, shuffle: bool, seed: int) -> dict[str, list[int]]:
    """Divides the rows 0 to `count - 1`: each part takes `int(count * fraction)` of those that follow the last part's.

    With `shuffle` they follow each other in an order that `seed` alone decides. Within a part the rows rise.
    """
    parts = parse_split(spec)
    rows = list(range(count))
    if shuffle:
        random.Random(seed).shuffle(rows)
    sizes = {name: 0 if fraction is None else int(count * fraction) for name, fraction in parts.items()}
    left = count - sum(sizes.values())
    divided = {}
    start = 0
    for name, fraction in parts.items():
        size = left if fraction is None else sizes[name]
        divided[name] = sorted(rows[start : start + size])
        start += size
    if count and not divided[TRAIN]:
        raise ConfigError(f"split={spec!r} leaves none of {count} rows to train on")
    return divided


def _fraction(value: str, spec: str) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ConfigError(f"split={spec!r}: expected a fraction from 0 to 1, or {REST!r}; found {value!r}")
    return fraction
