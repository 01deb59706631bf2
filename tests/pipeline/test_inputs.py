"""Every file that options name is known, by whatever address, and an output that is one of them is refused."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.plugins import offering

from templatekit import ConfigError, DataOptions, FinetuneOptions, Registry, Source, create_registry
from templatekit.pipeline.inputs import check_output_file, check_output_folder, read_paths
from templatekit.sources import templatekit_sources

ROW = '{"instruction": "a", "output": "b"}\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with one of each thing that options name."""
    for name in ("rows.jsonl", "other.jsonl", "data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl", "data/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ROW)
    (tmp_path / "qa.jinja").write_text("{{ instruction }}{{ response }}")
    for folder in ("model", "model/adapter", "saved", "plugins", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "adapter/weights.bin"):
        (tmp_path / "model" / name).write_text("{}")
    for name in ("state.json", "data.arrow"):
        (tmp_path / "saved" / name).write_text("{}")
    (tmp_path / "plugins" / "mine.py").write_text("")
    (tmp_path / "plugins" / "mine.jinja").write_text("{{ instruction }}{{ response }}")
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("rows.jsonl", ROW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(
    output: str | Path,
    values: dict[str, Any],
    kind: type[DataOptions] = DataOptions,
    *,
    folder: bool = False,
    registry: Registry | None = None,
    against: Iterable[str] = (),
) -> str:
    """Why the output is refused beside these options; empty where it is not."""
    check = check_output_folder if folder else check_output_file
    paths = read_paths(kind.parse(values), registry or create_registry(), against=against)
    try:
        check(Path(output), f"--output {str(output)!r}", paths)
    except ConfigError as error:
        assert error.exit_code == 2
        assert str(error).startswith(f"--output {str(output)!r} "), error
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("values", "output", "option"),
    [
        ({"dataset": "rows.jsonl"}, "rows.jsonl", "--dataset 'rows.jsonl'"),
        ({"dataset": "file://HERE/rows.jsonl"}, "rows.jsonl", "--dataset 'file://"),
        ({"dataset": "file://HERE/data"}, "data/b.jsonl", "--dataset 'file://"),
        ({"dataset": "file://HERE/data/*.jsonl"}, "data/b.jsonl", "--dataset 'file://"),
        ({"dataset": "local://HERE/rows.jsonl"}, "rows.jsonl", "--dataset 'local://"),
        ({"dataset": "zip://rows.jsonl::rows.zip"}, "rows.zip", "--dataset 'zip://"),
        ({"dataset": "zip://rows.jsonl::file://HERE/rows.zip"}, "rows.zip", "--dataset 'zip://"),
        ({"dataset": "data"}, "data/b.jsonl", "--dataset 'data'"),
        ({"dataset": "*.jsonl"}, "other.jsonl", "--dataset '*.jsonl'"),
        ({"dataset": "data/**/*.jsonl"}, "data/deep/c.jsonl", "--dataset 'data/**/*.jsonl'"),
        ({"dataset": "saved"}, "saved/data.arrow", "--dataset 'saved'"),
        ({"dataset": "saved:train"}, "saved/data.arrow", "--dataset 'saved:train'"),
        ({"mix": ["rows.jsonl", "other.jsonl,weight=2"]}, "other.jsonl", "--mix 'other.jsonl'"),
        ({"mix": ["rows.jsonl,template=qa.jinja", "other.jsonl"]}, "qa.jinja", "--template 'qa.jinja'"),
        ({"template": "qa.jinja"}, "qa.jinja", "--template 'qa.jinja'"),
        ({"template": "HERE/plugins/../qa.jinja"}, "qa.jinja", "--template '"),
        ({"tokenizer": "model"}, "model/tokenizer.json", "--tokenizer 'model'"),
        ({"tokenizer": "model/tokenizer.json"}, "model/config.json", "--tokenizer 'model/tokenizer.json'"),
    ],
)
def test_each_kind_of_address(values: dict[str, Any], output: str, option: str, place: Path) -> None:
    named = json.loads(json.dumps(values).replace("HERE", str(place)))
    said = refusal(output, named)
    assert option in said
    assert "name another" in said
    os.link(output, "hard")
    (place / "link").symlink_to(output)
    for name in ("hard", "link", place / output, f"empty/../{output}"):
        assert refusal(name, named) != "", name
    for name in ("new.jsonl", "data/notes.md", "empty/new.jsonl", "/dev/null"):
        assert refusal(name, named) == "", name


def test_what_only_a_run_or_an_audit_reads(place: Path) -> None:
    assert "--eval-dataset" in refusal("other.jsonl", {"eval_dataset": "other.jsonl"}, FinetuneOptions)
    assert "--model 'model'" in refusal("model/config.json", {"model": "model"}, FinetuneOptions)
    assert "--against 'other.jsonl'" in refusal("other.jsonl", {}, against=["other.jsonl"])
    assert refusal("other.jsonl", {}, against=["rows.jsonl"]) == ""


def test_files_deep_in_a_model_are_its_own(place: Path) -> None:
    assert refusal("model/adapter/weights.bin", {"tokenizer": "model"})


def test_plugins_and_what_they_name(place: Path) -> None:
    registry = create_registry(plugin_dirs=["plugins"])
    assert "plugin 'mine'" in refusal("plugins/mine.py", {}, registry=registry)
    assert "--template 'mine'" in refusal("plugins/mine.jinja", {"template": "mine"}, registry=registry)
    assert refusal("plugins/mine.jinja", {"template": "alpaca"}, registry=registry) == ""


class Lines(Source):
    name = "lines"

    def accepts(self, address: str) -> bool:
        return address.partition(":")[0].endswith((".txt", "texts"))

    def read(self, address: str) -> Any:
        yield {"text": address}


class BrokenLines(Lines):
    def files(self, address: str) -> Any:
        raise KeyError("boom")


@pytest.mark.parametrize("kind", [Lines, BrokenLines])
def test_a_source_that_does_not_tell_its_files(kind: type[Source], place: Path) -> None:
    """Then the address itself is the file or folder, where there is one."""
    plugin = offering([kind(), *templatekit_sources()], "templatekit_sources")
    registry = create_registry(plugins=[plugin], entry_points=False)
    (place / "x.txt").write_text("x")
    (place / "texts").mkdir()
    (place / "texts" / "y").write_text("y")
    assert refusal("x.txt", {"dataset": "x.txt"}, registry=registry)
    assert refusal("x.txt", {"dataset": "x.txt:part"}, registry=registry)
    assert refusal("texts/y", {"dataset": "texts"}, registry=registry)
    assert refusal("rows.jsonl", {"dataset": "x.txt"}, registry=registry) == ""


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": "missing.jsonl"},
        {"dataset": "organisation/name"},
        {"dataset": "https://example.org/rows.jsonl"},
        {"dataset": "nowhere://rows.jsonl"},
        {"dataset": "-"},
        {"dataset": "x\0y"},
        {"template": "alpacca"},
        {"template": "tokenizer"},
        {"template": "t" * 5000},
        {"tokenizer": "nothing"},
        {"tokenizer": "organisation/name"},
    ],
)
def test_what_is_not_here_is_no_input(values: dict[str, Any], place: Path) -> None:
    """The command itself says what is wrong with such an option."""
    assert refusal("rows.jsonl", values) == ""
    assert refusal("empty", values, folder=True) == ""


@pytest.mark.parametrize(
    ("values", "output"),
    [
        ({"model": "model"}, "model"),
        ({"model": "model"}, "model/adapter"),
        ({"model": "model"}, "model/new/run"),
        ({"model": "model", "dataset": "rows.jsonl"}, "."),
        ({"tokenizer": "model"}, "model"),
        ({"dataset": "rows.jsonl"}, "."),
        ({"dataset": "data"}, "data"),
        ({"dataset": "data/deep/c.jsonl"}, "data"),
        ({"dataset": "file://HERE/data"}, "data"),
        ({"template": "qa.jinja"}, "."),
    ],
)
def test_folders(values: dict[str, Any], output: str, place: Path) -> None:
    named = json.loads(json.dumps(values).replace("HERE", str(place)))
    said = refusal(output, named, FinetuneOptions, folder=True)
    assert "name another folder" in said
    (place / "link").symlink_to(output)
    assert refusal("link", named, FinetuneOptions, folder=True)
    for name in ("runs/new", "empty", "empty/deep"):
        assert refusal(name, named, FinetuneOptions, folder=True) == "", name


def test_a_new_folder_beside_what_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that somebody works in, new folders are theirs to name, even if the model is there."""
    assert refusal("data/run", {"dataset": "data"}, FinetuneOptions, folder=True) == ""
    monkeypatch.chdir(place / "model")
    assert refusal("runs/x", {"model": "."}, FinetuneOptions, folder=True) == ""
    assert refusal(".", {"model": "."}, FinetuneOptions, folder=True)
    assert refusal("tokenizer.json", {"tokenizer": "."})


def test_links_in_a_data_folder_lead_to_files_that_are_read(place: Path) -> None:
    """Both the link and its file are read."""
    (place / "data" / "z.jsonl").symlink_to(place / "empty" / "z.jsonl")
    (place / "empty" / "z.jsonl").write_text(ROW)
    assert refusal("empty/z.jsonl", {"dataset": "data"})
    assert refusal("empty", {"dataset": "data"}, folder=True)
    assert refusal("data", {"dataset": "data/z.jsonl"}, folder=True)


NAMES = st.sampled_from(["rows.jsonl", "data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl", "other.jsonl"])
ADDRESSES = {
    "rows.jsonl": {"rows.jsonl"},
    "*.jsonl": {"rows.jsonl", "other.jsonl"},
    "[or]*": {"rows.jsonl", "other.jsonl"},
    "data": {"data/a.jsonl", "data/b.jsonl"},
    "data/?.jsonl": {"data/a.jsonl", "data/b.jsonl"},
    "**/*.jsonl": {"rows.jsonl", "other.jsonl", "data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl"},
}


@given(
    name=NAMES,
    address=st.sampled_from(sorted(ADDRESSES)),
    detours=st.lists(st.sampled_from([".", "data/..", "data/deep/../.."]), max_size=3),
    absolute=st.booleans(),
    links=st.lists(st.sampled_from(["hard", "symbolic", "relative"]), max_size=3),
)
def test_an_output_is_refused_exactly_where_it_is_read(
    name: str,
    address: str,
    detours: list[str],
    absolute: bool,
    links: list[str],
    builtin: Registry,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("links")
    for path in ("rows.jsonl", "other.jsonl", "data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(ROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("links").mkdir()
        output = Path(*detours, name)
        for index, kind in enumerate(links):
            link = Path("links", f"{index}.out")
            if kind == "hard":
                os.link(os.path.realpath(output), link)
            else:
                link.symlink_to(output.absolute() if kind == "symbolic" else Path("..", output))
            output = link
        refused = refusal(output.absolute() if absolute else output, {"dataset": address}, registry=builtin)
    assert bool(refused) == (name in ADDRESSES[address])
