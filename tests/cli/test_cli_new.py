"""`templatekit new`: its files work unchanged, and no file is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testkit.command_line import Templatekit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_new_template_renders_and_passes_its_checks(templatekit: Templatekit, here: Path) -> None:
    made = templatekit("new", "template", "fable")
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines()[0] == "wrote fable.jinja"
    assert [*written(here)] == ["fable.jinja"]
    (here / "rows.json").write_text(json.dumps([{"instruction": "Why?", "input": "x", "output": "So."}]))
    shown = templatekit("render", "--dataset", "rows.json", "--template", "fable.jinja")
    assert json.loads(shown.out)["text"] == "Question: Why?\nx\nAnswer: So."
    checked = templatekit("check", "fable.jinja", "--examples", "5")
    assert checked.code == 0, checked.out + checked.err


def test_a_new_adapter_reads_its_records_and_passes_its_checks(templatekit: Templatekit, here: Path) -> None:
    made = templatekit("new", "adapter", "my-fable")
    assert (made.code, [*written(here)]) == (0, ["my_fable.py"])
    (here / "rows.json").write_text(json.dumps([{"question": "Why?", "answer": "So."}]))
    shown = templatekit("render", "--plugin-dir", ".", "--dataset", "rows.json", "--template", "chatml")
    assert json.loads(shown.out)["text"].endswith("<|im_start|>assistant\nSo.<|im_end|>\n")
    assert "adapter: my-fable (inferred from the records' keys)" in shown.err
    checked = templatekit("check", "my_fable.py", "--examples", "5")
    assert checked.code == 0, checked.out + checked.err


@pytest.mark.parametrize("name", ["", "Fable", "my_fable", "../x", "-x", "x-", "é", "a b", "1a"])
def test_an_invalid_name_is_an_error(name: str, templatekit: Templatekit, here: Path) -> None:
    refused = templatekit("new", "template", "--", name)
    assert refused.code == 2
    assert refused.err.startswith(f"Error: name {name!r}: expected small letters")
    assert not written(here)


@pytest.mark.parametrize("kind", ["adapter", "template", "plugin"])
def test_nothing_is_overwritten(kind: str, templatekit: Templatekit, here: Path) -> None:
    assert templatekit("new", kind, "fable").code == 0
    for path in here.rglob("*"):
        if path.is_file():
            path.write_text("mine")
    before = written(here)
    refused = templatekit("new", kind, "fable")
    assert refused.code == 2
    assert "exists; choose another name or --directory" in refused.err
    assert written(here) == before


def test_a_link_to_a_missing_file_is_not_followed(templatekit: Templatekit, here: Path) -> None:
    (here / "fable.jinja").symlink_to("elsewhere")
    refused = templatekit("new", "template", "fable")
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert not (here / "elsewhere").exists()


def test_the_directory_can_be_chosen(templatekit: Templatekit, here: Path) -> None:
    assert templatekit("new", "template", "fable", "--directory", "deep/er").code == 0
    assert (here / "deep/er/fable.jinja").is_file()
    (here / "file").write_text("")
    assert templatekit("new", "template", "fable", "--directory", "file/x").code == 2
