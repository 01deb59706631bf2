"""Fixtures for plugins in folders, and for plugins as pip installs them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from templatekit.hooks.loading import PLUGIN_DIR_VARIABLE, SELECT_VARIABLE


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLUGIN_DIR_VARIABLE, raising=False)
    monkeypatch.delenv(SELECT_VARIABLE, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a plugin folder: `folder(oasst=source)` writes `oasst.py` into it."""

    def write(name: str = "plugins", **sources: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        for stem, source in sources.items():
            (place / f"{stem}.py").write_text(source, encoding="utf-8")
        return place

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Callable[..., None]]:
    """A function that puts a distribution with one plugin module on `sys.path`, as pip would install it."""
    modules: list[str] = []

    def write(distribution: str, entry: str, source: str, *, version: str = "1.0", site: str = "site") -> None:
        module = f"{distribution}_{entry}_module".replace("-", "_")
        modules.append(module)
        place = tmp_path / site
        facts = place / f"{distribution.replace('-', '_')}-{version}.dist-info"
        facts.mkdir(parents=True, exist_ok=True)
        (place / f"{module}.py").write_text(source, encoding="utf-8")
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        points = facts / "entry_points.txt"
        before = points.read_text() if points.exists() else "[templatekit]\n"
        points.write_text(f"{before}{entry} = {module}\n")
        monkeypatch.syspath_prepend(str(place))

    yield write
    for module in modules:
        sys.modules.pop(module, None)
