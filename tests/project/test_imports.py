"""Imports go down the rooms of the pipeline, never up; and what needs no torch loads none."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testkit.at_hand import Tokenizers

import templatekit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "templatekit"
ROOMS = (
    "errors places values types columns expressions hookspecs contracts sinks offers registry config counts garbage",
    "chunks",
    "sources",
    "cleaning",
    "formats",
    "tokens",
    "packing prepared reading",
    "pipeline",
    "mixture pairs",
    "parts",
    "work",
    "workers on_ray",
    "cache",
    "calls",
    "training",
    "views export",
    "audit testing",
    "cli web",
)
"""DESIGN.md's layout, from the bottom to the top: a room imports those before it, and its own."""
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names.split()}
PLUGINS = (*tuple(path.stem for path in (ROOT / "plugins").glob("*.py")), "templatekit_templates")
HEAVY = ("torch", "transformers", "datasets", "peft", "trl")
WITHOUT_TORCH = set(LEVEL) - {"training", "cli", "web"}
EXCEPTIONS = {
    ("types", "views"): "values show themselves in notebooks; loaded when they are shown",
    ("training", "export"): "the run's folder holds the template as servers read it",
}
"""(room, room above it), with the reason."""


def imports(path: Path, source: str | None = None) -> Iterator[tuple[str, bool]]:
    """(module, whether it is loaded with the module that names it) for every import of a file.

    Imports in functions are loaded later, and those under `TYPE_CHECKING` never.
    """
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    yield from _of(tree.body, at_once=True)


def _of(body: list[ast.stmt], *, at_once: bool) -> Iterator[tuple[str, bool]]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or ""), at_once
            if node.module == "templatekit":
                yield from ((f"templatekit:{alias.name}", at_once) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _of(node.orelse, at_once=at_once)
        else:
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for field in ("body", "orelse", "finalbody"):
                yield from _of(getattr(node, field, []), at_once=at_once and not later)
            for handler in getattr(node, "handlers", []):
                yield from _of(handler.body, at_once=at_once and not later)
            for case in getattr(node, "cases", []):
                yield from _of(case.body, at_once=at_once and not later)


def room_of(module: str) -> str | None:
    """The room of a module of ours: `templatekit.formats.source` is in `formats`, and so is the public `Template`."""
    if module.startswith("templatekit:"):
        name = module.partition(":")[2]
        if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir():
            return name
        return str(vars(templatekit)["_HOME_OF"][name]).split(".")[0] if not name.startswith("__") else None
    parts = module.split(".")
    return parts[1] if parts[0] == "templatekit" and len(parts) > 1 else None


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def own_room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward(path: Path, source: str | None = None, room: str | None = None) -> list[str]:
    """The imports of a module that go up, or sideways into a room of the same level."""
    room = room or own_room(path)
    wrong = []
    for module, _ in imports(path, source):
        other = room_of(module)
        if other is None or other == room or (room, other) in EXCEPTIONS:
            continue
        same_shelf = LEVEL[room] == 0 and LEVEL[other] == 0
        if LEVEL[other] > LEVEL[room] or (LEVEL[other] == LEVEL[room] and not same_shelf):
            wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    return wrong


def test_every_room_is_on_the_list() -> None:
    rooms = {own_room(path) for path in modules()} - {"__init__"}
    assert rooms <= set(LEVEL), "a new room: say in ROOMS where it stands"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    assert own_room(path) in {*LEVEL, "__init__"}, "a new room: say in ROOMS where it stands"
    if own_room(path) == "__init__":  # the public names, loaded when first used
        assert all(room_of(module) is None for module, _ in imports(path))
        return
    assert upward(path) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_never_imports_plugins_or_templates(path: Path) -> None:
    assert not {module.split(".")[0] for module, _ in imports(path)} & set(PLUGINS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_before_training_imports_torch(path: Path) -> None:
    """And nothing heavy is loaded with a module: what needs transformers or datasets loads them when it needs them."""
    room = own_room(path)
    found = [(module.split(".")[0], at_once) for module, at_once in imports(path)]
    if room in WITHOUT_TORCH:
        assert ("torch", True) not in found
        assert ("torch", False) not in found
    if room not in ("training",):
        assert not {name for name, at_once in found if at_once} & set(HEAVY)


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").glob("*.py")), ids=lambda path: path.stem)
def test_plugins_use_public_names_alone(path: Path) -> None:
    ours = {module.split(":")[0] for module, _ in imports(path) if module.startswith("templatekit")}
    ours -= {plugin for plugin in PLUGINS if plugin in ours}
    assert ours <= {"templatekit"}


def test_the_import_checks_notice() -> None:
    path = PACKAGE / "formats" / "template.py"
    assert upward(path, "from templatekit.tokens.encoder import Encoder") != []
    assert upward(path, "def f():\n    from templatekit.pipeline.pipeline import render") != []
    assert upward(path, "import templatekit.cli") != []
    assert upward(path, "from templatekit import render") != []
    assert upward(path, "from templatekit import cli") != []
    assert upward(path, "from templatekit import Span, __version__") == []
    assert upward(path, "try:\n    pass\nexcept OSError:\n    import templatekit.cli") != []
    assert upward(path, "from templatekit.types import Span") == []
    assert upward(path, "if TYPE_CHECKING:\n    from templatekit.pipeline.pipeline import render") == []
    assert list(imports(path, "def f():\n    import torch")) == [("torch", False)]


PROGRAM = """
import json, sys
from templatekit.cli import main
sys.argv = ["templatekit", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as error:
    code = error.code
else:
    code = 0
print("LOADED", json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]))
"""
Loaded = Callable[..., tuple[object, set[str]]]


@pytest.fixture
def loaded() -> Loaded:
    """The top modules that a command has loaded, with its exit code."""

    def loaded(*arguments: str, program: str = PROGRAM) -> tuple[object, set[str]]:
        run = subprocess.run(
            [sys.executable, "-c", program, json.dumps(arguments)], capture_output=True, text=True, check=False
        )
        assert "LOADED" in run.stdout, run.stderr
        code, names = json.loads(run.stdout.rpartition("LOADED ")[2])
        return code, set(names)

    return loaded


def test_help_loads_nothing_heavy(loaded: Loaded) -> None:
    code, names = loaded("--help")
    assert code in (0, None)
    assert not names & {*HEAVY, "pyarrow", "numpy", "pandas"}


def test_render_with_a_local_tokenizer_loads_nothing_heavy(
    loaded: Loaded, tokenizer_of: Tokenizers, tmp_path: Path
) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}]), encoding="utf-8")
    folder = str(tokenizer_of.folder("bytes"))
    output = tmp_path / "out.jsonl"
    code, names = loaded(
        "render", "--dataset", str(data), "--template", "chatml", "--tokenizer", folder, "--output", str(output)
    )
    assert code in (0, None)
    assert json.loads(output.read_text(encoding="utf-8"))["input_ids"]
    assert "tokenizers" in names
    assert not names & set(HEAVY)


def test_importing_the_package_is_light(loaded: Loaded) -> None:
    program = "import json, sys, templatekit\nprint('LOADED', json.dumps([0, sorted(sys.modules)]))"
    _, names = loaded(program=program)
    assert not names & {*HEAVY, "jinja2", "tokenizers", "click", "pydantic", "pluggy"}


def test_the_check_of_loaded_modules_notices(loaded: Loaded) -> None:
    program = "import json, sys, datasets\nprint('LOADED', json.dumps([0, sorted(sys.modules)]))"
    _, names = loaded(program=program)
    assert "datasets" in names
