"""README quotes the figures that were measured, and no others."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
SPEC = spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
assert SPEC is not None and SPEC.loader is not None
results = module_from_spec(SPEC)  # the benchmarks lie beside the package, not in it
SPEC.loader.exec_module(results)


def test_readme_quotes_the_results() -> None:
    readme = results.README.read_text(encoding="utf-8")
    about, found = results.load()
    assert readme == results.with_figures(readme, results.table(about, found)), "python -m benchmarks.results"
    for one in found:
        assert all(f"{cost:,.0f} (" in readme for cost in one.costs.values())
    assert about["machine"] in readme and about["command"] in readme


def test_the_picture_shows_the_results() -> None:
    drawn = results.PICTURE.read_text(encoding="utf-8")
    _, found = results.load()
    assert drawn == results.picture(found), "python -m benchmarks.results"
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("text")]
    for one in found:
        assert one.name in texts
        assert {f"{cost:,.0f} µs" for cost in one.costs.values()} <= set(texts)
    assert len(drawn) < 20_000 and "prefers-color-scheme:dark" in drawn


def test_another_figure_would_be_noticed() -> None:
    readme = results.README.read_text(encoding="utf-8")
    about, found = results.load()
    costs = {name: cost * 1.5 for name, cost in found[0].costs.items()}
    changed = [found[0]._replace(costs=costs), *found[1:]]
    assert results.with_figures(readme, results.table(about, changed)) != readme
    assert results.picture(changed) != results.PICTURE.read_text(encoding="utf-8")


def test_the_command_that_is_quoted_is_there() -> None:
    about, _ = results.load()
    module, *options = re.findall(r"[\w.-]+", about["command"].removeprefix("python -m "))
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert all(f'"{option}"' in source for option in options)
