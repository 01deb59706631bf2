"""Imports go down the rooms of the pipeline, never up, and a module that does not need torch does not load it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path

import pytest
from testkit.at_hand import Tokenizers

import templatekit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "templatekit"
FLOORS = (
    "errors fast_init views",
    "types",
    "config packing",
    "hooks",
    "sources formats tokens",
    "pipeline export serving",
    "engines",
    "cache",
    "training/kernels",
    "training/attention",
    "training api",
    "audit testing",
    "cli",
)
"""The rooms of the package from the ground up. A room imports its own modules and those of lower floors, no others."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
PLUGINS = (*tuple(path.stem for path in (ROOT / "plugins").glob("*.py")), "templatekit_templates")
HEAVY = ("torch", "transformers", "datasets", "peft", "trl")
MAY_IMPORT_TORCH = {room for room in FLOOR if room.split("/")[0] in ("training", "cli")}
AT_MOST_IN_THE_ROOT = 10


@cache
def imports(path: Path, source: str | None = None) -> tuple[tuple[str, bool], ...]:
    """(module, whether it is loaded with the file) for every import of a file.

    Imports in functions are loaded later, and those under `TYPE_CHECKING` never. `from package import module` is the
    module; a public name of `templatekit` is the module that it comes from.
    """
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    return tuple(_of(tree.body, at_once=True))


def _of(body: list[ast.stmt], *, at_once: bool) -> Iterator[tuple[str, bool]]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from ((_imported(node.module, alias.name), at_once) for alias in node.names)
        else:
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            later |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for field in ("body", "orelse", "finalbody"):
                yield from _of(getattr(node, field, []), at_once=at_once and not later)
            for handler in getattr(node, "handlers", []):
                yield from _of(handler.body, at_once=at_once and not later)
            for case in getattr(node, "cases", []):
                yield from _of(case.body, at_once=at_once and not later)


def _imported(module: str, name: str) -> str:
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    if module == "templatekit" and not name.startswith("__"):
        return f"templatekit.{vars(templatekit)['_MODULE_OF'][name]}"
    return module


def name_of(path: Path) -> str:
    """The module that a file of the package holds."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INNER = {name: path for name, path in MODULES.items() if name not in ("templatekit", "templatekit.__main__")}
"""All modules except `__init__`, which loads public names on first use, and `__main__`."""


def room_of(module: str) -> str | None:
    """The innermost room on the list that a module lies in; None for the package itself and for others' modules."""
    package, *parts = module.split(".")
    if package != "templatekit" or not parts:
        return None
    return "/".join(parts[:2]) if "/".join(parts[:2]) in FLOOR else parts[0]


def climbing(path: Path, source: str | None = None) -> list[str]:
    """The imports of a file that do not go down: up, or into another room of its floor."""
    room = room_of(name_of(path))
    assert room is not None
    others = ((module, room_of(module)) for module, _ in imports(path, source))
    return [module for module, other in others if other not in (None, room) and FLOOR[other or ""] >= FLOOR[room]]


def circles(arrows: Mapping[str, Set[str]]) -> list[str]:
    """The modules that import themselves, through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [*arrows.get(start, ())]
        while todo:
            if (module := todo.pop()) not in seen:
                seen.add(module)
                todo += arrows.get(module, ())
        return seen

    return [module for module in arrows if module in reached(module)]


def test_every_room_is_on_the_list() -> None:
    assert {room_of(name) for name in INNER} == set(FLOOR), "a new room: say in FLOORS where it stands"


def test_the_architecture_page_lists_the_rooms_from_the_ground_up() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors = [FLOOR[room] for room in re.findall(r"^  (\w+)/ ", page, flags=re.MULTILINE)]
    assert len(floors) > 10
    assert floors == sorted(floors)


def test_tests_have_the_rooms_of_the_package() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    outside = {folder for folder in folders if not (PACKAGE / folder).is_dir() and "third_party" not in folder}
    assert outside == {"plugins", "project"}


def test_the_root_stays_small() -> None:
    root = [path.name for path in PACKAGE.glob("*.py")]
    assert len(root) <= AT_MOST_IN_THE_ROOT, "a new module belongs into the room of its stage"


def test_imports_go_down() -> None:
    assert {name: found for name, path in INNER.items() if (found := climbing(path))} == {}


def test_no_modules_import_each_other() -> None:
    """This holds within a room too, and for imports that are only for types or inside functions."""
    arrows = {name: {module for module, _ in imports(path) if module in INNER} for name, path in INNER.items()}
    assert circles(arrows) == []


def test_the_core_never_imports_plugins_or_templates() -> None:
    for name, path in INNER.items():
        assert not {module.split(".")[0] for module, _ in imports(path)} & set(PLUGINS), name


def test_nothing_before_training_imports_torch() -> None:
    """No module loads a heavy package when it is imported; transformers and datasets are loaded on demand."""
    for name, path in INNER.items():
        room = room_of(name)
        found = [(module.split(".")[0], at_once) for module, at_once in imports(path)]
        if room not in MAY_IMPORT_TORCH:
            assert "torch" not in dict(found), name
        if room is None or room.split("/")[0] != "training":
            assert not {module for module, at_once in found if at_once} & set(HEAVY), name


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").glob("*.py")), ids=lambda path: path.stem)
def test_plugins_use_public_names_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in found if name.split(".")[0] == "templatekit"} <= {"templatekit"}


def test_the_import_checks_notice() -> None:
    path = PACKAGE / "formats" / "template.py"
    for source in (
        "from templatekit.tokens.encoder import Encoder",  # another room of the same floor
        "from templatekit.pipeline import pipeline",
        "def f():\n    from templatekit.pipeline.pipeline import Pipeline",
        "import templatekit.cli",
        "from templatekit import render",
        "from templatekit import cli",
        "try:\n    pass\nexcept OSError:\n    import templatekit.cli",
        "if TYPE_CHECKING:\n    from templatekit.pipeline.pipeline import Pipeline",
    ):
        assert climbing(path, source) != [], source
    assert climbing(path, "from templatekit import Span, __version__") == []
    assert climbing(path, "from templatekit.types import Span") == []
    assert climbing(PACKAGE / "training" / "kernels" / "fusion.py", "from templatekit.training import step") != []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circles({"a": {"b"}, "b": {"c"}}) == []
    assert imports(path, "def f():\n    import torch") == (("torch", False),)


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
