"""docs/testing.md lists the checks and capabilities that the code has; `--update-golden` rewrites the tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from templatekit.formats.metadata import Capabilities
from templatekit.testing import CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def checks() -> str:
    rows = [
        f"| `{check.name}` | {', '.join(map(str, check.properties))} | {check.promise} |" for check in CHECKS.values()
    ]
    return "\n".join(["| check | property | promise |", "| --- | --- | --- |", *rows])


def capabilities() -> str:
    rows = [
        f"| `{name}` | `{str(field.default).lower()}` | {field.description} |"
        for name, field in Capabilities.model_fields.items()
    ]
    return "\n".join(["| capability | by default | |", "| --- | --- | --- |", *rows])


@pytest.mark.parametrize("table", [checks, capabilities])
def test_the_page_lists_what_there_is(table: Callable[[], str], update_golden: bool) -> None:
    text = PAGE.read_text(encoding="utf-8")
    block = re.compile(rf"(?<=<!-- generated: {table.__name__} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    assert len(block.findall(text)) == 1
    if update_golden:
        PAGE.write_text(block.sub(lambda _: table() + "\n", text), encoding="utf-8")
    elif block.findall(text) != [table() + "\n"]:
        pytest.fail(f"{PAGE.name} differs from the code; make test ARGS='--update-golden tests/testing'")


def test_every_promise_is_a_sentence() -> None:
    for check in CHECKS.values():
        assert check.promise[0].isupper(), check
        assert check.promise.endswith("."), check
        assert check.properties, check
    assert {number for check in CHECKS.values() for number in check.properties} == {*range(1, 31), 34, 35, 36}
