"""The wheel, the sdist and the editable install are complete and work from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

import templatekit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"templatekit": ROOT / "templatekit", "templatekit_templates": ROOT / "templates"}
TEMPLATES = {path.name for path in FOLDERS["templatekit_templates"].glob("*.jinja")}
STARTER = {path.name for path in (ROOT / "templatekit" / "sources" / "starter").iterdir()}


def python_files(package: str) -> Iterator[str]:
    for path in FOLDERS[package].rglob("*.py"):
        yield f"{package}/{path.relative_to(FOLDERS[package]).as_posix()}"


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command; the test fails if the command fails."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "TEMPLATEKIT_CACHE" or not key.startswith(("TEMPLATEKIT_", "PYTHON", "PIP_"))
    }
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that building leaves nothing in it."""
    copy = tmp_path_factory.mktemp("source") / "templatekit"
    copy.mkdir()
    for name in "templatekit", "plugins", "templates":
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def built(source: Path) -> dict[str, Path]:
    """The sdist, and the wheel made from it."""
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    return {path.suffix: path for path in (source / "dist").iterdir()}


def fresh_python(folder: Path) -> Path:
    """A separate venv that finds the libraries of this one, but not its editable packages."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    site = next(folder.glob("lib/python*/site-packages"))
    libraries = Path(pytest.__file__).parents[1]
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return folder / "bin" / "python"


def check_works(python: Path, place: Path, *, built_from: Path | None) -> None:
    """Runs the installed command in another folder."""
    command = python.with_name("templatekit")
    listed = json.loads(run(command, "templates", "list", "--json", cwd=place))
    assert {f"{row['name']}.jinja" for row in listed} == TEMPLATES
    assert not [row for row in listed if row["description"].startswith("broken")]
    rows = run(command, "render", "--dataset", "starter", "--limit", "3", cwd=place).splitlines()
    assert [json.loads(row)["row"] for row in rows] == [0, 1, 2]
    offered = json.loads(run(command, "plugins", "--json", cwd=place))
    assert {row["name"] for row in offered} == set(PROJECT["project"]["entry-points"]["templatekit"])
    assert not [row for row in offered if row["failed"]]
    home = Path(run(python, "-c", "import templatekit; print(templatekit.__file__)", cwd=place).strip())
    assert home.is_relative_to(built_from or python.parents[1])


# What the project file says


def test_every_package_and_module_on_disk_is_listed() -> None:
    on_disk = {name.rpartition("/")[0].replace("/", ".") for package in FOLDERS for name in python_files(package)}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == {path.stem for path in (ROOT / "plugins").glob("*.py")}


def test_every_plugin_has_an_entry_point_and_the_versions_agree() -> None:
    points = set(PROJECT["project"]["entry-points"]["templatekit"].values())
    assert {*PROJECT["tool"]["setuptools"]["py-modules"], "templatekit_templates"} <= points
    assert PROJECT["project"]["version"] == templatekit.__version__


# What is built


def test_the_wheel_is_whole(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        parser = ConfigParser()
        parser.read_string(wheel.read(points).decode())
    expected = {name for package in FOLDERS for name in python_files(package)}
    expected |= {path.name for path in (ROOT / "plugins").glob("*.py")}
    expected |= {f"templatekit_templates/{name}" for name in TEMPLATES}
    expected |= {f"templatekit/sources/starter/{name}" for name in STARTER}
    expected |= {"templatekit/py.typed"}
    found = {name for name in names if ".dist-info/" not in name}
    assert found == expected
    assert dict(parser["templatekit"]) == PROJECT["project"]["entry-points"]["templatekit"]
    assert dict(parser["console_scripts"]) == {"templatekit": "templatekit.cli:main"}


def test_the_sdist_is_whole(built: dict[str, Path]) -> None:
    with tarfile.open(built[".gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    expected = {"pyproject.toml", "README.md", "templatekit/py.typed"}
    expected |= {f"templates/{name}" for name in TEMPLATES}
    expected |= {f"templatekit/sources/starter/{name}" for name in STARTER}
    assert expected <= names


# What is installed


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(built: dict[str, Path], tmp_path: Path) -> None:
    python = fresh_python(tmp_path / "venv")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        built[".whl"],
        cwd=tmp_path,
    )
    (tmp_path / "elsewhere").mkdir()
    check_works(python, tmp_path / "elsewhere", built_from=None)


@pytest.mark.slow
def test_the_editable_install_works_from_another_folder(source: Path, tmp_path: Path) -> None:
    python = fresh_python(tmp_path / "venv")
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, "-e", source, cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    check_works(python, tmp_path / "elsewhere", built_from=source)
    (source / "templates" / "new.jinja").write_text("{{ instruction }}{{ context }}: {{ response }}")
    try:
        shown = run(python.with_name("templatekit"), "templates", "show", "new", cwd=tmp_path)
        assert "Name the capital." in shown, "a change is seen at once"
    finally:
        (source / "templates" / "new.jinja").unlink()


@pytest.mark.slow
def test_a_strangers_distribution_is_installed_used_and_uninstalled(built: dict[str, Path], tmp_path: Path) -> None:
    """The distribution in `tests/third_party` is like anyone's: outside of the package, with an entry point."""
    python = fresh_python(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python)
    install = (*pip, "install", "-q", "--no-deps", "--no-index", "--no-build-isolation")
    theirs = tmp_path / "templatekit-fable"
    shutil.copytree(ROOT / "tests" / "third_party" / "templatekit-fable", theirs)
    run(*install, built[".whl"], theirs, cwd=tmp_path)
    command = python.with_name("templatekit")
    (plugin,) = [row for row in json.loads(run(command, "plugins", "--json", cwd=tmp_path)) if row["name"] == "fable"]
    assert plugin["from"] == "templatekit-fable 1.2.0"
    assert plugin["offers"] == ["adapter fable", "template fable", "format csv"]
    assert not plugin["failed"]
    fable = {"fable": "A fox, some grapes.", "teller": "Aesop", "moral": "Sour."}
    (tmp_path / "fables.jsonl").write_text(json.dumps(fable) + "\n")
    run(command, "render", "--dataset", "fables.jsonl", "--template", "fable", "--output", "fables.csv", cwd=tmp_path)
    expected = 'row,text\r\n0,"Fable: A fox, some grapes.\nTeller: Aesop\nMoral: Sour."\r\n'
    assert (tmp_path / "fables.csv").read_bytes().decode() == expected
    run(*pip, "uninstall", "-q", "-y", "templatekit-fable", cwd=tmp_path)
    assert "fable" not in run(command, "plugins", "--json", cwd=tmp_path)


@pytest.mark.slow
def test_a_new_plugin_is_installed_and_passes_its_own_tests(built: dict[str, Path], tmp_path: Path) -> None:
    python = fresh_python(tmp_path / "venv")
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*install, built[".whl"], cwd=tmp_path)
    run(python.with_name("templatekit"), "new", "plugin", "my-fable", cwd=tmp_path)
    theirs = tmp_path / "templatekit-my-fable"
    run(*install, "--no-build-isolation", "-e", theirs, cwd=tmp_path)
    passed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=theirs)
    assert " passed" in passed
    assert "failed" not in passed
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Why?", "answer": "So."}) + "\n")
    rendered = run(
        python.with_name("templatekit"), "render", "--dataset", "rows.jsonl", "--template", "my-fable", cwd=tmp_path
    )
    assert json.loads(rendered)["text"] == "Question: Why?\nAnswer: So."
