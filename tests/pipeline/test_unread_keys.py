"""The keys of a record that the adapter does not read: a bounded number of names of bounded length."""

from __future__ import annotations

from templatekit.config.data_options import DataOptions
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.reader import Reader

GOOD = {"instruction": "add", "output": "3"}


def unread(extra: dict[str, int]) -> dict[str, object]:
    return Reader(DataOptions(adapter="alpaca"), create_registry()).unread({**GOOD, **extra})


def test_a_few_keys_are_named_as_they_are() -> None:
    extra = {f"key {number}": number for number in range(40)}
    assert unread(extra) == extra
    assert unread({}) == {}


def test_of_many_keys_the_first_are_named_and_the_others_counted() -> None:
    found = unread({f"key {number}": number for number in range(100_000)})
    assert list(found) == [*(f"key {number}" for number in range(40)), "… and 99,960 more"]


def test_a_long_key_is_shortened() -> None:
    assert list(unread({"x" * 1_000_000: 1, "y": 2})) == ["x" * 79 + "…", "y"]
