"""The bundled data sets are large enough, varied, complete and without duplicates."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import pytest

from templatekit import create_registry
from templatekit.sources import open_source

SETS = {
    "starter": (300, ("instruction", "input", "output"), ("instruction", "output")),
    "starter-dolly": (60, ("instruction", "context", "response", "category"), ("instruction", "response", "category")),
}
Rows = Sequence[Mapping[str, Any]]


def rows_of(name: str) -> list[dict[str, str]]:
    return [dict(record) for record in open_source(name, create_registry()) if isinstance(record, Mapping)]


def folded(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()


def complaints(rows: Rows, least: int, keys: Sequence[str], needed: Sequence[str]) -> list[str]:
    """The faults of a data set; empty for a good one."""
    found = [] if len(rows) >= least else [f"{len(rows)} rows"]
    asked: Counter[str] = Counter()
    for number, row in enumerate(rows):
        if tuple(row) != tuple(keys):
            found.append(f"row {number}: keys {list(row)}")
            continue
        texts = [row[key] for key in keys]
        if not all(isinstance(text, str) for text in texts) or not all(row[key].strip() for key in needed):
            found.append(f"row {number}: a field is empty or no text")
            continue
        if any(text != text.strip() or text != unicodedata.normalize("NFC", text) for text in texts):
            found.append(f"row {number}: white space at an edge, or text that is not in NFC")
        if any(unicodedata.category(character) == "Cc" for text in texts for character in text):
            found.append(f"row {number}: a control character")
        asked[folded(f"{row[keys[0]]} {row[keys[1]]}")] += 1
    found += [f"asked twice: {text}" for text, count in asked.items() if count > 1]
    phrasings = Counter(folded(str(row[keys[0]])) for row in rows if keys[0] in row)
    found += [f"one phrasing {count} times: {text}" for text, count in phrasings.items() if count > 6]
    return found


@pytest.mark.parametrize("name", SETS)
def test_a_bundled_set_is_sound(name: str) -> None:
    least, keys, needed = SETS[name]
    assert complaints(rows_of(name), least, keys, needed) == []


@pytest.mark.parametrize("name", SETS)
def test_no_two_rows_are_near_copies(name: str) -> None:
    answer = SETS[name][2][1]
    rows = sorted(rows_of(name), key=lambda row: row["instruction"])
    for first, second in itertools.pairwise(rows):
        one, other = ("\n".join(row[key] for key in SETS[name][1] if key != "category") for row in (first, second))
        assert SequenceMatcher(None, one, other).ratio() < 0.95, (one, other)
        assert first[answer] != second[answer] or first["instruction"] != second["instruction"]


def test_the_sets_share_no_question() -> None:
    alpaca, dolly = ({folded(row["instruction"]) for row in rows_of(name)} for name in SETS)
    assert alpaca.isdisjoint(dolly)


@pytest.mark.parametrize(
    "spoil",
    [
        {"output": ""},
        {"output": "  "},
        {"output": " edge"},
        {"input": None},
        {"output": "bell \x07"},
        {"instruction": "Twice?", "input": ""},
    ],
    ids=str,
)
def test_the_check_notices(spoil: dict[str, Any]) -> None:
    good = [{"instruction": f"Say {number}.", "input": "", "output": "Done."} for number in range(5)]
    keys, needed = SETS["starter"][1:]
    assert complaints(good, 5, keys, needed) == []
    twice = {"instruction": "Twice?", "input": "", "output": "Yes."}
    assert complaints([*good, twice, good[0] | {"instruction": "New."} | spoil], 5, keys, needed)
