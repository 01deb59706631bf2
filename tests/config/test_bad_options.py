"""Wrong options are refused by name, in recipes, on the command line and in Python."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.command_line import InProcess, Result

from templatekit import ConfigError, DataOptions, FinetuneOptions, TemplatekitError, TokenizerError, prepare, render
from templatekit.config.options import Options
from templatekit.config.strict_yaml import parse_yaml

GOOD = [{"instruction": f"add {row}", "output": "x" * row} for row in range(1, 5)]
ROWS = "rows.json"


@pytest.fixture
def run(in_process: InProcess) -> InProcess:
    """The command line, in a folder with four good rows."""
    Path(ROWS).write_text(json.dumps(GOOD))
    return in_process


@pytest.fixture
def folder(tokenizer_of: Any, tmp_path: Path) -> Path:
    """A copy of a tokenizer that a test may damage."""
    copy = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_of.folder("bytes"), copy)
    return copy


def change(folder: Path, **changes: Any) -> None:
    """Change keys of tokenizer_config.json; None removes a key."""
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refused(result: Result) -> str:
    assert (result.code, result.out) == (2, "")
    (line,) = result.lines
    return line


# Lengths


@pytest.mark.parametrize(("length", "left"), [(1, 0), (50, 0), (10_000, 4)])
def test_a_length_that_drops_everything_is_an_error(length: int, left: int, run: InProcess, folder: Path) -> None:
    result = run("render", "--dataset", ROWS, "--tokenizer", folder, "--max-length", length)
    if left:
        assert (result.code, result.out.count("\n")) == (0, left)
        return
    line = refused(result)
    assert line.startswith("Error: 0 of 4 samples left; dropped: 4 too_long; the first: rows.json:0: too long; found ")
    assert line.endswith(f" tokens; expected at most {length}")


def test_a_length_that_drops_some_rows_counts_them(run: InProcess, folder: Path) -> None:
    options = ("render", "--dataset", ROWS, "--tokenizer", folder)
    lengths = [len(json.loads(line)["input_ids"]) for line in run(*options).out.splitlines()]
    result = run(*options, "--max-length", min(lengths))
    assert result.code == 0
    kept = [json.loads(line)["row"] for line in result.out.splitlines()]
    assert kept == [row for row, length in enumerate(lengths) if length <= min(lengths)]
    assert f"dropped: {4 - len(kept)}" in result.lines[1]
    strict = run(*options, "--max-length", min(lengths), "--truncation", "error")
    assert strict.code == 2
    assert strict.lines[0].endswith("; to drop: --truncation drop")


@pytest.mark.parametrize("name", ["max-length", "limit"])
@pytest.mark.parametrize("value", [0, -1, -(10**30)])
def test_limits_of_zero_and_below(name: str, value: int, run: InProcess, folder: Path) -> None:
    line = refused(run("render", "--tokenizer", folder, f"--{name}", value))
    assert line.startswith(f"Error: {name.replace('-', '_')}: found {value}; expected a number greater than 0")


def test_a_length_needs_a_tokenizer(run: InProcess) -> None:
    assert refused(run("render", "--max-length", 5)) == (
        "Error: max_length=5 counts tokens; found no tokenizer; expected --tokenizer too"
    )


@pytest.mark.parametrize("policy", ["turns", "context", "response", "error"])
def test_a_truncation_policy_needs_a_length(policy: str, run: InProcess, folder: Path) -> None:
    assert refused(run("render", "--tokenizer", folder, "--truncation", policy)) == (
        f"Error: truncation='{policy}' counts tokens; found no max_length; expected --max-length too"
    )


# Names and types


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_lenght": 5}, "unknown option 'max_lenght'; did you mean 'max_length'?"),
        ({"zzz": 5}, "unknown option 'zzz'; known: "),
        ({"dataset": 5}, "dataset: found 5; expected a valid string"),
        ({"dataset": None}, "dataset: found None; expected a valid string"),
        ({"max_length": "long"}, "max_length: found 'long'; expected a valid integer"),
        ({"max_length": 1.5}, "max_length: found 1.5; expected a valid integer, got a number with a fractional part"),
        ({"max_length": True}, "max_length: found True; expected a number"),
        ({"limit": False}, "limit: found False; expected a number"),
        ({"train_on": "answers"}, "train_on: found 'answers'; no part is named 'answers'"),
        ({"train_on": 1}, "train_on: found 1; expected a valid string"),
        ({"control_tokens": "data"}, "control_tokens: found 'data'; expected 'template' or 'everywhere'"),
        ({"columns": "a=b"}, "columns: found 'a=b'; expected a valid dictionary"),
        ({"columns": {"a": 5}}, "columns.a: found 5; expected a valid string"),
        ({"empty_context": "<noinput>"}, "empty_context: found '<noinput>'; expected a valid tuple"),
        ({"empty_context": [5]}, "empty_context.0: found 5; expected a valid string"),
        ({"on_error": []}, "on_error: found []; expected 'stop' or 'skip'"),
    ],
)
@pytest.mark.parametrize("options", [DataOptions, FinetuneOptions])
def test_wrong_values_are_named(options: type[Options], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        options.parse(values)
    assert str(raised.value).startswith(message)
    if options is DataOptions and "dataset" not in values:
        with pytest.raises(ConfigError, match="^" + message.split(";")[0].replace("[", r"\[")):
            render(GOOD, **values)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("learning_rat: 1", "recipe.yaml: unknown option 'learning_rat'; did you mean 'learning_rate'"),
        ("epochs: .inf", "recipe.yaml: epochs: found inf; expected a finite number"),
        ("epochs: .nan", "recipe.yaml: epochs: found nan; expected"),
        ("epochs: -1", "recipe.yaml: epochs: found -1; expected a number greater than 0"),
        ("lora: maybe", "recipe.yaml: lora: found 'maybe'; expected a valid boolean"),
        ("batch-size: [1]", "recipe.yaml: batch_size: found [1]; expected a valid integer"),
        ("lora_rank: yes", "recipe.yaml: lora_rank: found True; expected a number"),
        ("beta1: 1.0", "recipe.yaml: beta1: found 1.0; expected a number less than 1"),
        ("a: 1\nb: 2", "recipe.yaml: unknown option 'a'; known: "),
        ("- a", "recipe 'recipe.yaml': expected `name: value` lines; found list"),
        ("", "recipe 'recipe.yaml': expected `name: value` lines; found NoneType"),
        ("a: [", "recipe 'recipe.yaml' cannot be read: "),
        ("\x00", "recipe 'recipe.yaml' cannot be read: "),
        ("epochs: 1\nlora: true\nepochs: 2", "recipe 'recipe.yaml' cannot be read: found key 'epochs' twice"),
        ("chat_template_kwargs: {a: {b: 1, 'b': 2}}", "recipe 'recipe.yaml' cannot be read: found key 'b' twice"),
        ("batch_size: 1\nbatch-size: 2", "recipe 'recipe.yaml': 'batch_size' twice, as 1 and 2; keep one"),
        ("epochs: 2024-13-45", "recipe 'recipe.yaml' cannot be read: month must be in 1..12"),
        ("[" * 5_000, "recipe 'recipe.yaml' cannot be read: nested too deeply"),
        ("#" * 1_000_001, "recipe 'recipe.yaml' cannot be read: found 1,000,001 bytes; expected at most 1,000,000"),
        ("!!python/object/apply:os.system ['true']", "recipe 'recipe.yaml' cannot be read: "),
    ],
)
def test_a_wrong_recipe(recipe: str, message: str, run: InProcess) -> None:
    Path("recipe.yaml").write_text(recipe)
    assert refused(run("finetune", "--config", "recipe.yaml")).startswith(f"Error: {message}")


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_a_recipe_is_a_regular_file(path: str, run: InProcess) -> None:
    os.mkfifo("pipe")
    message = f"Error: recipe {path!r} cannot be read: found a pipe, a socket or a device; expected a regular file"
    assert refused(run("finetune", "--config", path)).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["epochs=1", "lora=true", "epochs=2"], "--set: 'epochs' twice, as 1 and 2; keep one"),
        (["batch-size=1", "batch_size=1"], "--set: 'batch_size' twice, as 1 and 1; keep one"),
        (["chat_template_kwargs={a: 1, a: 2}"], "--set chat_template_kwargs: found key 'a' twice"),
        (["epochs=0", "lora=true"], "epochs: found 0; expected a number greater than 0"),  # no two of a name
    ],
)
def test_an_option_is_set_once(settings: list[str], message: str, run: InProcess) -> None:
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    assert refused(run("finetune", *arguments)).startswith(f"Error: {message}")


def test_keys_of_a_merge_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}
    assert parse_yaml("[{x: 1}, {x: 2}, {1: a, '1': b}]") == [{"x": 1}, {"x": 2}, {1: "a", "1": "b"}]


def test_numbers_in_a_recipe_may_be_text() -> None:
    parsed = FinetuneOptions.parse({"learning_rate": "5e-4", "epochs": 1, "max_length": "512", "output": "runs/a"})
    assert (parsed.learning_rate, parsed.epochs, parsed.max_length, parsed.output) == (5e-4, 1, 512, Path("runs/a"))


def test_several_wrong_options_are_all_named() -> None:
    with pytest.raises(ConfigError) as raised:
        DataOptions.parse({"max_length": 0, "limti": 5, "train_on": "x"}, source="recipe.yaml")
    message = str(raised.value)
    assert message.startswith("recipe.yaml: ")
    assert all(part in message for part in ("max_length: ", "train_on: ", "'limti'; did you mean 'limit'?"))


@given(st.dictionaries(st.sampled_from(list(DataOptions.model_fields)) | st.text(max_size=5),
                       st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
                       | st.lists(st.integers(), max_size=2)))  # fmt: skip
def test_any_options_are_accepted_or_refused_by_name(values: dict[str, Any]) -> None:
    try:
        DataOptions.parse(values)
    except ConfigError as error:
        assert any(name in str(error) or repr(name) in str(error) for name in values)
        assert "Input should" not in str(error)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("instruction", "columns: found 'instruction'; expected FIELD=COLUMN, separated by commas"),
        ("instruction=", "columns: found 'instruction='; expected FIELD=COLUMN"),
        ("instruction=a,instruction=b", "columns: 'instruction' twice, as 'a' and 'b'; keep one"),
        ("instruction=question", None),
    ],
)
def test_wrong_columns(columns: str, message: str | None, run: InProcess) -> None:
    line = refused(run("render", "--dataset", ROWS, "--columns", columns))
    if message is None:
        message = "rows.json:0:question: no column 'question'"
        assert line.endswith("; to skip: --on-error skip")
    assert line.startswith(f"Error: {message}")


# Tokenizers


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[1]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"eos_token": "<|lost|>"}'),
        ("tokenizer_config.json", '{"eos_token": 5}'),
        ("special_tokens_map.json", "nonsense"),
    ],
)
def test_a_damaged_tokenizer_is_named(file: str, content: str, run: InProcess, folder: Path) -> None:
    (folder / file).write_text(content)
    line = refused(run("render", "--dataset", ROWS, "--tokenizer", folder))
    assert line.startswith("Error: tokenizer ")
    assert str(folder) in line


def test_a_truncated_tokenizer_file(run: InProcess, folder: Path) -> None:
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    line = refused(run("render", "--dataset", ROWS, "--tokenizer", folder))
    assert str(folder) in line
    assert "tokenizer.json" in line


def test_a_template_that_prints_eos_needs_an_eos_token(run: InProcess, folder: Path) -> None:
    change(folder, eos_token=None)
    line = refused(run("render", "--dataset", ROWS, "--tokenizer", folder))
    assert "eos" in line.lower()
    chatml = run("render", "--dataset", ROWS, "--tokenizer", folder, "--template", "chatml")
    assert chatml.code == 0, "ChatML has its own end marker"


def test_an_end_marker_that_the_template_never_writes(run: InProcess, folder: Path) -> None:
    options = ("render", "--dataset", ROWS, "--tokenizer", folder, "--template", "chatml", "--end-marker")
    line = refused(run(*options, "<|im_ned|>"))
    assert "end_marker='<|im_ned|>'" in line
    assert "did you mean '<|im_end|>'" in line
    for text in ("<|im_end|>", "<|im_end|>\n", "none"):
        assert run(*options, text).code == 0


@pytest.mark.parametrize("pad", [None, "<|endoftext|>", "<|im_end|>"])
def test_the_pad_token_changes_nothing(pad: str | None, folder: Path) -> None:
    expected = [item.input_ids for item in render(GOOD, tokenizer=folder)]
    change(folder, pad_token=pad)
    items = list(render(GOOD, tokenizer=folder))
    assert [item.input_ids for item in items] == expected
    assert all(item.labels[-1] == item.input_ids[-1] for item in items), "EOS is trained"


@pytest.mark.parametrize("address", ["no/such/folder", "nosuchmodel", "./tokenizer2", "~/no/such", "x.gguf", ROWS, ""])
def test_a_missing_tokenizer(address: str, run: InProcess) -> None:
    line = refused(run("render", "--dataset", ROWS, "--tokenizer", address))
    assert "Traceback" not in line


def test_ids_need_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="tokenizer: found None"):
        prepare(GOOD, tokenizer=None)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError):
        prepare(GOOD, tokenizer="no/such/folder")
    with pytest.raises(TemplatekitError):
        prepare(GOOD, tokenizer="no/such/folder", template="no-such")
