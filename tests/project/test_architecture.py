"""docs/architecture.md names every room, and only modules and functions that exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "templatekit"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LONGEST_PAGE = 110
"""Lines: the page is for somebody who has ten minutes."""


def rooms_on(page: str) -> list[str]:
    """The rooms of the annotated tree, subfolders by their path."""
    rooms: list[str] = []
    for indent, name in re.findall(r"^( +)(\w+)/ ", page, flags=re.MULTILINE):
        rooms.append(name if len(indent) == 2 else f"{rooms[-1].split('/')[0]}/{name}")
    return rooms


def rooms() -> set[str]:
    """The folders of the package that hold modules."""
    return {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}


def missing_files(page: str) -> list[str]:
    """The files that the page names but that do not exist; `NAME` stands for any name."""
    names = re.findall(r"(?<![\w*])((?:[a-z_]+/)*[\w-]+\.(?:py|md|toml))\b", page)
    return [name for name in names if "NAME" not in name and not any(_holds(folder, name) for folder in _FOLDERS)]


_FOLDERS = (ROOT, ROOT / "docs", PACKAGE, *(path.parent for path in PACKAGE.rglob("__init__.py")))


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def missing_names(page: str) -> list[str]:
    """The dotted names (`room.module.Class.method`) that the page gives and the package does not."""
    missing = []
    for dotted in re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_.]+)`", page):
        if dotted.endswith((".py", ".md", ".toml", ".jinja")):
            continue
        module, *rest = dotted.split(".")
        while rest and (PACKAGE / f"{module.replace('.', '/')}").is_dir():
            module = f"{module}.{rest.pop(0)}"
        try:
            found: object = import_module(f"templatekit.{module}")
            for name in rest:
                found = getattr(found, name)
        except (ImportError, AttributeError):
            missing.append(dotted)
    return missing


def test_the_tree_names_every_room() -> None:
    assert sorted(rooms_on(PAGE)) == sorted(rooms())


def test_what_the_page_names_is_there() -> None:
    assert missing_files(PAGE) == []
    assert missing_names(PAGE) == []


def test_the_page_stays_short() -> None:
    assert len(PAGE.splitlines()) <= LONGEST_PAGE


def test_the_checks_of_the_page_notice() -> None:
    assert rooms_on("templatekit/\n  formats/   x\n    tracing/   y\n  tokens/  z\n") == [
        "formats",
        "formats/tracing",
        "tokens",
    ]
    assert missing_files("`nowhere.py` and `types.py`") == ["nowhere.py"]
    assert missing_names("`types.Nothing`, `types.IGNORE_INDEX`, `tokens.encoder.Encoder.gone`") == [
        "types.Nothing",
        "tokens.encoder.Encoder.gone",
    ]
