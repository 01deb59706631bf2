"""Python that lies in a model's or a tokenizer's folder is run only with `--trust-remote-code`; nobody is asked."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from testkit.command_line import SCRIPT, Result, clean_environment
from testkit.forks import Fork
from testkit.tiny_model import tiny_folder

import templatekit
from templatekit.cli import main
from templatekit.errors import ConfigError, RunError, TokenizerError
from templatekit.tokens.load import load_transformers_tokenizer
from templatekit.training.model import load_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(8)]
MARKS = "from pathlib import Path\n\nPath({!r}).write_text('it ran')\n"
MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER = """
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    vocab_files_names = {"words_file": "words.json"}

    def __init__(self, words_file, **more):
        super().__init__(tokenizer_object=Tokenizer.from_file(words_file), **more)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and three folders whose Python leaves a mark: a model, a tokenizer, and a model that needs no Python."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    python = MARKS.format(str(folder / "mark"))
    for name in ("model", "tokenizer", "known"):
        tiny_folder(folder / name)
        (folder / name / "modeling_own.py").write_text(python + MODEL)
        (folder / name / "tokenization_own.py").write_text(python + TOKENIZER)
        classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
        own = {} if name == "known" else {"model_type": "own"}
        change(folder / name / "config.json", auto_map=classes, **own)
        if name != "model":
            own = {} if name == "known" else {"tokenizer_class": "OwnTokenizer"}
            classes = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}  # type: ignore[dict-item]
            change(folder / name / "tokenizer_config.json", auto_map=classes, **own)
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "words.json")
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def command(place: Path, *arguments: str, said: str = "y\n") -> Result:
    """A command in a process of its own, with an answer on standard input. What it imports is gone with the process."""
    clean(place)
    (place / "in").write_text(said)

    def run() -> None:
        os.chdir(place)
        os.dup2(os.open("in", os.O_RDONLY), 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        torch.set_num_threads(1)
        modules: Any = import_module("transformers.dynamic_module_utils")
        modules.HF_MODULES_CACHE = str(place / "hub" / "modules")
        main(list(arguments))

    code = Fork(run).ended().code
    return Result(code, (place / "out").read_text(), (place / "err").read_text())


def installed_command(place: Path, *arguments: str) -> Result:
    """The command as a user runs it, which takes seconds to start."""
    clean(place)
    done = subprocess.run(
        [str(SCRIPT), *arguments],
        cwd=place,
        env=clean_environment({"HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1"}),
        input="y\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def clean(place: Path) -> None:
    (place / "mark").unlink(missing_ok=True)
    shutil.rmtree(place / "run", ignore_errors=True)


SHORT = ("--max-steps", "1", "--samples", "0", "--device", "cpu", "--precision", "fp32", "--output", "run")
DATA = ("--dataset", "rows.jsonl", "--template", "chatml")
COMMANDS: dict[str, tuple[str, ...]] = {
    "render": ("render", *DATA, "--tokenizer", "tokenizer"),
    "render --cache": ("render", *DATA, "--tokenizer", "tokenizer", "--cache", "--cache-dir", "kept"),
    "preview": ("preview", *DATA, "--tokenizer", "tokenizer"),
    "audit": ("audit", *DATA, "--tokenizer", "tokenizer", "--fail-on", "never"),
    "check": ("check", "chatml", "--tokenizer", "tokenizer", "--examples", "1"),
    "templates export": ("templates", "export", "chatml", "--tokenizer", "tokenizer"),
    "finetune --model": ("finetune", *DATA, "--model", "model", *SHORT),
    "finetune --tokenizer": ("finetune", *DATA, "--model", "known", "--tokenizer", "tokenizer", *SHORT),
    "generate": (
        "generate",
        "--model",
        "model",
        "--template",
        "chatml",
        "--instruction",
        "Hi",
        "--max-new-tokens",
        "2",
    ),
}


@pytest.mark.parametrize(
    ("name", "start"), [*((name, command) for name in COMMANDS), ("finetune --model", installed_command)]
)
def test_no_command_runs_it_or_asks(name: str, start: Callable[..., Result], place: Path) -> None:
    done = start(place, *COMMANDS[name])
    assert done.code == 2
    assert not (place / "mark").exists()
    assert "Do you wish to run" not in done.out + done.err
    folder, file, own = "tokenizer", "tokenizer_config.json", "tokenization_own.OwnTokenizer"
    if "model" in COMMANDS[name]:
        folder, file, own = "model", "config.json", "modeling_own.OwnConfig"
    assert f"{folder!r} cannot be loaded: it needs Python of its own, which is not run (" in done.err
    assert f"{file} names '{own}" in done.err
    assert done.err.rstrip().endswith("read that code, and if you trust it, say --trust-remote-code")


@pytest.mark.parametrize(
    ("name", "start"),
    [("render", installed_command), *((name, command) for name in ("render", "generate", "check", "templates export"))],
)
def test_with_the_option_it_runs(name: str, start: Callable[..., Result], place: Path) -> None:
    done = start(place, *COMMANDS[name], "--trust-remote-code")
    assert done.code == 0, done.err
    assert (place / "mark").read_text() == "it ran"
    assert "Do you wish to run" not in done.out + done.err


def test_a_run_of_such_a_model_is_used_and_repeated_with_the_option_alone(place: Path) -> None:
    done = command(place, *COMMANDS["finetune --model"], "--trust-remote-code")
    assert done.code == 0, done.err
    shutil.rmtree(place / "done", ignore_errors=True)
    (place / "run").rename(place / "done")
    assert "trust_remote_code" not in (place / "done" / "recipe.yaml").read_text()
    ask = ("generate", "--model", "done", "--instruction", "Hi", "--max-new-tokens", "2")
    refused = command(place, *ask)
    assert (refused.code, (place / "mark").exists()) == (2, False)
    assert "it needs Python of its own" in refused.err
    answered = command(place, *ask, "--trust-remote-code")
    assert (answered.code, (place / "mark").exists()) == (0, True), answered.err


def test_a_recipe_cannot_say_it(place: Path) -> None:
    (place / "recipe.yaml").write_text("model: model\ndataset: rows.jsonl\ntrust-remote-code: true\n")
    done = command(place, "finetune", "--config", "recipe.yaml", *SHORT)
    assert (done.code, (place / "mark").exists()) == (2, False)
    assert "expected it on the command line alone: --trust-remote-code" in done.err


def test_a_type_that_is_known_is_loaded_without_it(place: Path) -> None:
    """Every row of standard input is data, and the saved model names no Python that is not there."""
    rows = (place / "rows.jsonl").read_text()
    data = ("--dataset", "-", "--template", "chatml", "--split", "train=rest")
    done = command(place, "finetune", *data, "--model", "known", *SHORT, said=rows)
    assert done.code == 0, done.err
    assert not (place / "mark").exists()
    assert "train: 8 examples" in done.err
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((place / "run" / name).read_text())
    assert command(place, "render", "--dataset", "-", "--tokenizer", "known", said=rows).out.count("\n") == 8
    assert not (place / "mark").exists()


def test_damage_is_not_taken_for_a_need_of_it(place: Path, tmp_path: Path) -> None:
    """Nobody is asked to trust code that would not help."""
    folder = tmp_path / "known"
    shutil.copytree(place / "known", folder)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:300])
    with pytest.raises(RunError, match="cannot be loaded: ") as of_weights:
        load_model(folder, device=torch.device("cpu"))
    with pytest.raises(TokenizerError, match="cannot be loaded: ") as of_tokenizer:
        load_transformers_tokenizer(folder)
    assert "Python" not in f"{of_weights.value} {of_tokenizer.value}"


def test_in_python_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "mark").unlink(missing_ok=True)
    with pytest.raises(TokenizerError, match="needs Python of its own"):
        list(templatekit.render(ROWS, template="chatml", tokenizer="tokenizer"))
    with pytest.raises(ConfigError, match="needs Python of its own"):
        templatekit.finetune({"model": "model", "dataset": "rows.jsonl", "template": "chatml", "output": "own"})
    assert not (place / "mark").exists()


LOADS = {"from_pretrained", "from_config", "load_dataset"}


def loads_without_a_word(source: str) -> list[str]:
    """The calls that load something without saying whether to run its code."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [(getattr(call.func, "attr", getattr(call.func, "id", "")), call) for call in calls]
    return [
        name
        for name, call in named
        if name in LOADS and "trust_remote_code" not in {keyword.arg for keyword in call.keywords}
    ]


def test_every_call_says_whether_to_run_code() -> None:
    root = Path(templatekit.__file__).parent
    sources = {path.name: path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert {name: found for name, source in sources.items() if (found := loads_without_a_word(source))} == {}
    assert sum("trust_remote_code=" in source for source in sources.values()) > 5
    assert loads_without_a_word("AutoModel.from_pretrained(name, **more)\nload_dataset(name)") == [
        "from_pretrained",
        "load_dataset",
    ]
