"""README quotes only figures that were measured."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
assert SPEC is not None and SPEC.loader is not None
results = module_from_spec(SPEC)  # the benchmarks lie beside the package, not in it
SPEC.loader.exec_module(results)


SECTIONS = pytest.mark.parametrize("section", results.SECTIONS, ids=lambda section: section.name)


def readme() -> str:
    """README as it is."""
    text: str = results.README.read_text(encoding="utf-8")
    return text


def test_readme_quotes_the_results() -> None:
    assert readme() == results.readme_of(readme()), "python -m benchmarks.results"


@SECTIONS
def test_what_measured_them_is_quoted(section: Any) -> None:
    about, found = section.load()
    assert found
    assert about["machine"] in readme()
    assert about["command"] in readme()


def test_every_figure_is_quoted() -> None:
    for one in results.RENDER.load()[1]:
        assert all(f"{cost:,.0f} (" in readme() for cost in one.costs.values())
    for one in results.TRAIN.load()[1]:
        assert one.speeds.keys() == one.memory.keys() == one.losses.keys()
        assert all(
            f"{speed:,.0f} ({speed / max(v for k, v in one.speeds.items() if 'templatekit' not in k):.2f} ×), "
            in readme()
            for speed in one.speeds.values()
        )
        assert all(f", {gib:.2f} GiB" in readme() for gib in one.memory.values())


def test_speeds_are_of_the_same_work() -> None:
    """The losses of the first step differ by no more than the rounding of bf16.

    LitGPT averages its passes' means, however many targets each has: there some targets weigh more than others.
    """
    for one in results.TRAIN.load()[1]:
        same = [loss for name, loss in one.losses.items() if not name.startswith("LitGPT")]
        assert max(same) < 1.003 * min(same), one.name
        assert max(one.losses.values()) < 1.02 * min(same), one.name


def test_the_picture_shows_the_results() -> None:
    drawn = results.PICTURE.read_text(encoding="utf-8")
    _, found = results.RENDER.load()
    assert drawn == results.picture(found), "python -m benchmarks.results"
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("text")]
    for one in found:
        assert one.name in texts
        assert {f"{cost:,.0f} µs" for cost in one.costs.values()} <= set(texts)
    assert len(drawn) < 20_000 and "prefers-color-scheme:dark" in drawn


@SECTIONS
def test_another_figure_would_be_noticed(section: Any) -> None:
    about, found = section.load()
    field = "costs" if section is results.RENDER else "speeds"
    more = {name: figure * 1.5 for name, figure in getattr(found[0], field).items()}
    changed = [found[0]._replace(**{field: more}), *found[1:]]
    assert section.within(readme(), section.table(about, changed)) != readme()
    if section is results.RENDER:
        assert results.picture(changed) != results.PICTURE.read_text(encoding="utf-8")


def test_what_is_saved_of_one_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for section in results.SECTIONS:
        section.save(section.load()[1], f"python -m benchmarks.{section.name}", path)
    for section in results.SECTIONS:
        about, found = section.load(path)
        assert found == section.load()[1]
        assert about["command"] == f"python -m benchmarks.{section.name}"


def test_a_set_without_a_peer_has_no_ratio() -> None:
    one = results.TrainResult("rows", 8, 60, {results.OURS: 1234.5}, {results.OURS: 1.5}, {results.OURS: 2.0})
    told = results.speed_table({"command": "run", "machine": "one"}, [one])
    assert "| **templatekit** | 1,234, 1.50 GiB |" in told


@SECTIONS
def test_the_command_that_is_quoted_is_there(section: Any) -> None:
    about, _ = section.load()
    module, *words = about["command"].removeprefix("python -m ").split()
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert module == f"benchmarks.{section.name}"
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))
