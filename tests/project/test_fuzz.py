"""A few inputs for each target of `make fuzz`, and what it does with an input that breaks something."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.__main__ import Failure, main, mutate, mutated
from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mutate(name, TARGETS[name], 12, seed=1).total() == 12


def test_equal_seeds_give_equal_inputs() -> None:
    from random import Random

    seeds = TARGETS["recipes"].seeds()
    first, second, other = ([mutated(seeds, Random(seed)) for _ in range(3)] for seed in (1, 1, 2))
    assert first == second != other


def test_an_input_that_breaks_something_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative control."""

    def fragile(data: bytes) -> str:
        if b"\xff" in data:
            raise KeyError("missing")
        return "fine"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TARGETS, "recipes", Target(lambda: [b"name: value\n" * 9], fragile))
    assert main(["--inputs", "500", "--only", "recipes"]) == 1
    assert "KeyError: 'missing'; the input is in fuzz-recipes.input" in capsys.readouterr().out
    with pytest.raises(Failure):
        mutate("recipes", Target(lambda: [Path("fuzz-recipes.input").read_bytes()], fragile), 500, seed=0)
