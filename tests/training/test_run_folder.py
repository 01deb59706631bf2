"""A run begins in a new or empty folder, never in one that holds other files or what the run reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testkit.tiny_model import tiny_folder

import templatekit
from templatekit.cli import main
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.hooks.registry import Registry
from templatekit.pipeline.inputs import read_paths
from templatekit.training.metrics import MetricsFile
from templatekit.training.run_folder import run_folder

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(8)]
Start = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model and rows, also in folders of their own."""
    tiny_folder(tmp_path / "model")
    for folder in ("data", "held-out"):
        (tmp_path / folder).mkdir()
    for name in ("rows.json", "data/rows.json", "held-out/rows.json"):
        (tmp_path / name).write_text(json.dumps(ROWS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(**more: Any) -> dict[str, Any]:
    return {
        "dataset": "rows.json", "model": "model", "template": "chatml", "max_steps": 1, "samples": 0,
        "max_new_tokens": 2, "precision": "fp32", "device": "cpu", **more,
    }  # fmt: skip


def in_python(**more: Any) -> None:
    templatekit.finetune(options(**more))


def on_the_command_line(**more: Any) -> None:
    arguments = [word for name, value in options(**more).items() for word in (f"--{name.replace('_', '-')}", value)]
    try:
        main(["finetune", *map(str, arguments)])
    except SystemExit as end:
        if end.code:
            raise ConfigError(f"exit {end.code}") from None


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"output": "model"}, "output 'model' is or holds the data of --model 'model', which is read here"),
    ({"output": "link"}, "output 'link' is or holds the data of --model 'model'"),
    ({"output": "model/run"}, "output 'model/run' lies in the folder of --model 'model'"),
    ({"output": "copy", "tokenizer": "copy"}, "output 'copy' is or holds the data of --tokenizer 'copy'"),
    ({"output": "data", "dataset": "data/rows.json"}, "output 'data' is or holds the data of --dataset 'data/rows"),
    ({"output": "data", "dataset": "data"}, "output 'data' is or holds the data of --dataset 'data'"),
    ({"output": "data", "mix": ["data/rows.json"]}, "output 'data' is or holds the data of --mix 'data/rows.json'"),
    ({"output": "held-out", "eval_dataset": "held-out"}, "output 'held-out' is or holds the data of --eval-dataset"),
    ({"output": "."}, "output '.' is or holds the data of "),
    ({"output": "other"}, "output 'other' holds files and no run: 'config.json'; choose a new or an empty folder"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
@pytest.mark.parametrize("start", [in_python, on_the_command_line])
def test_folders_that_are_refused(
    start: Start, more: dict[str, Any], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "link").symlink_to("model")
    for folder in ("other", "copy"):
        (place / folder).mkdir()
    (place / "other" / "config.json").write_text("mine")
    for path in (place / "model").iterdir():
        (place / "copy" / path.name).write_bytes(path.read_bytes())
    if "mix" in more:
        more = {**more, "dataset": "starter"}
        if start is on_the_command_line:
            more = {**more, "mix": more["mix"][0]}
    before = content(place)
    with pytest.raises(ConfigError) as raised:
        start(**more)
    said = capsys.readouterr().err if start is on_the_command_line else str(raised.value)
    assert message in said
    assert raised.value.exit_code == 2
    if start is on_the_command_line:
        assert str(raised.value) == "exit 2"
    assert content(place) == before
    assert not (place / "model" / "run").exists()


_HALF = ".making-recipe.yaml-0123abcd"


@pytest.mark.parametrize("left", [None, ".lock", _HALF, f".lock and {_HALF}"])
def test_a_new_or_empty_folder_is_used(left: str | None, place: Path) -> None:
    """What a process leaves that was killed before it wrote its recipe is nothing to keep."""
    folder = place / "runs" / "x"
    if left is not None:
        folder.mkdir(parents=True)
        for name in left.split(" and "):
            (folder / name).write_text("4711\n")
    before = content(place)
    in_python(output="runs/x")
    assert (folder / "model.safetensors").is_file()
    assert not (folder / _HALF).exists()
    after = content(place)
    assert {name: after[name] for name in before if not name.startswith("runs")} == {
        name: text for name, text in before.items() if not name.startswith("runs")
    }


def test_a_run_beside_its_data(place: Path, monkeypatch: pytest.MonkeyPatch, builtin: Registry) -> None:
    """New folders where somebody works are allowed, even if the model is there."""
    monkeypatch.chdir(place / "model")
    for output in ("runs/x", None):
        parsed = FinetuneOptions.parse(options(model=".", dataset="../rows.json", output=output))
        folder = run_folder(parsed, read_paths(parsed, builtin))
        assert folder.is_dir()


def test_a_run_that_is_resumed_keeps_its_folder(place: Path, builtin: Registry) -> None:
    in_python(output="runs/x")
    for more in {"resume": True}, {"resume": True, "template": "runs/x/recipe.yaml"}:
        parsed = FinetuneOptions.parse(options(output="runs/x", **more))
        if "template" not in more:
            assert run_folder(parsed, read_paths(parsed, builtin)) == Path("runs/x")
            continue
        with pytest.raises(ConfigError, match="is or holds the data of --template"):
            run_folder(parsed, read_paths(parsed, builtin))
    with pytest.raises(ConfigError, match="is or holds the data of --model 'runs/x'"):
        in_python(output="runs/x", model="runs/x", resume=True)
    with pytest.raises(ConfigError, match="holds another run"):
        in_python(output="runs/x")
    (place / "runs" / "x" / "recipe.yaml").unlink()
    before = content(place)
    with pytest.raises(ConfigError, match="holds another run; go on with it"):
        in_python(output="runs/x")
    assert content(place) == before


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_lock_that_is_another_file_is_not_written(link: str, place: Path) -> None:
    """Whoever may write in the folder of a run must not get another file of its user emptied."""
    (place / "precious").write_text("for years")
    (place / "runs" / "x").mkdir(parents=True)
    getattr(place / "runs" / "x" / ".lock", link)(place / "precious")
    with pytest.raises(
        ConfigError, match=r"output 'runs/x' cannot be written: \.lock: (a link is not|found a file with)"
    ):
        in_python(output="runs/x")
    assert (place / "precious").read_text() == "for years"


def test_links_at_names_that_can_be_guessed_are_replaced(place: Path) -> None:
    """Links that somebody puts into a run's folder while it is stopped lead nowhere."""
    in_python(output="runs/x")
    folder = place / "runs" / "x"
    (place / "precious").write_text("for years")
    for names in (["recipe.yaml", "run.json", "samples.json", "loss.png", "template.jinja"], ["metrics.jsonl"]):
        for name in names:
            (folder / name).unlink()
            (folder / name).symlink_to(place / "precious")
            (folder / f".{name}").symlink_to(place / "precious")
        in_python(output="runs/x", resume=True)
        assert (place / "precious").read_text() == "for years"
        assert [name for name in names if (folder / name).is_symlink()] == []


def test_a_metrics_file_that_becomes_a_link_ends_the_run(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path, up_to_step=0)
    metrics.write({"step": 1, "loss": 1.0})
    (tmp_path / "precious").write_text("for years")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("precious")
    with pytest.raises(RunError, match=r"metrics.jsonl' cannot be written: a link is not followed"):
        metrics.write({"step": 2, "loss": 1.0})
    with pytest.raises(RunError, match=r"metrics.jsonl' cannot be written: a link is not followed"):
        metrics.fsync()
    assert (tmp_path / "precious").read_text() == "for years"
