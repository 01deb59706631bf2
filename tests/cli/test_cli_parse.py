"""`templatekit parse`: rows of what a model wrote become messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testkit.command_line import Templatekit

from templatekit.testing import tiny_tokenizer

THOUGHT = "<think>\nTwice two.\n</think>\n\nIt is four.<|im_end|>"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'


def rows_file(folder: Path, *rows: Any) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_become_messages(templatekit: Templatekit, tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"answer": THOUGHT}, {"completion": CALL})
    done = templatekit("parse", "--dataset", path, "--template", "qwen3")
    assert done.code == 0, done.err
    first, second = map(json.loads, done.out.splitlines())
    message = {"role": "assistant", "content": "It is four.", "reasoning_content": "Twice two."}
    assert first == {"row": 0, "message": message}
    function = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    assert second["message"]["tool_calls"] == [{"type": "function", "function": function}]
    assert "answers: 2, 1 with reasoning, 1 with calls (1 in all)" in done.lines


def test_a_broken_answer_says_what_is_wrong(templatekit: Templatekit, tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"answer": CALL[:-40]})
    done = templatekit("parse", "--dataset", path, "--template", "qwen3", "--json")
    (row,) = map(json.loads, done.out.splitlines())
    assert row["problems"] == ["no_end", "open_call"]
    assert [leftover["problem"] for leftover in row["leftovers"]] == ["open_call"]
    counts = json.loads(done.lines[-1])
    assert counts["answers"] == 1 and counts["problems"] == {"no_end": 1, "open_call": 1}


def test_a_prompt_may_have_begun_the_answer(templatekit: Templatekit, tmp_path: Path) -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    path = rows_file(tmp_path, {"prompt": prompt, "answer": THOUGHT.removeprefix("<think>\n")})
    (row,) = map(json.loads, templatekit("parse", "--dataset", path, "--template", "qwen3").out.splitlines())
    assert row["message"]["reasoning_content"] == "Twice two."


def test_ids_are_read_with_a_tokenizer(
    templatekit: Templatekit, tmp_path: Path, saved_tokenizer: Callable[[], Path]
) -> None:
    tokenizer = tiny_tokenizer("bytes")
    end = tokenizer.id_of("<|im_end|>")
    assert end is not None
    ids = tokenizer.backend(control=False, prefix=False).encode("It ends in <|im_end|>.").ids
    path = rows_file(tmp_path, {"answer_ids": [*ids, end], "answer": "other"})
    done = templatekit("parse", "--dataset", path, "--template", "chatml", "--tokenizer", saved_tokenizer())
    (row,) = map(json.loads, done.out.splitlines())
    assert row == {"row": 0, "message": {"role": "assistant", "content": "It ends in <|im_end|>."}}


@pytest.fixture
def saved_tokenizer(tmp_path: Path) -> Callable[[], Path]:
    def save() -> Path:
        folder = tmp_path / "tokenizer"
        folder.mkdir()
        backend = tiny_tokenizer("bytes").backend(control=True, prefix=True)
        (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
        return folder

    return save


def test_a_row_without_an_answer_is_an_error_or_counted(templatekit: Templatekit, tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"question": "Hi"}, {"answer": "Four.<|im_end|>"}, {"answer": 4})
    done = templatekit("parse", "--dataset", path, "--template", "chatml")
    assert done.code == 2
    assert "0: no answer; found question; expected one of answer, completion" in done.err
    done = templatekit("parse", "--dataset", path, "--template", "chatml", "--on-error", "skip")
    assert done.code == 0
    assert "rows left out: no_answer 1, bad_answer 1" in done.lines
    assert [json.loads(line)["row"] for line in done.out.splitlines()] == [1]
    named = templatekit(
        "parse", "--dataset", path, "--template", "chatml", "--limit", 1, "--columns", "answer=question"
    )
    assert json.loads(named.out.splitlines()[0])["problems"] == ["no_end"]


def test_the_grammar_is_shown(templatekit: Templatekit) -> None:
    done = templatekit("parse", "--template", "qwen3", "--show-grammar")
    assert done.code == 0
    assert r"reasoning --'\n</think>\n\n'--> content" in done.out
    assert "note: written alike" in done.out


def test_the_answers_are_not_written_over(templatekit: Templatekit, tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"answer": THOUGHT})
    before = path.read_bytes()
    done = templatekit("parse", "--dataset", path, "--template", "qwen3", "--output", path, "--overwrite")
    assert done.code == 2 and path.read_bytes() == before
    assert templatekit("parse", "--template", "qwen3").code == 2
    assert "--template" in templatekit("parse", "--dataset", path).err
    output = tmp_path / "messages.jsonl"
    assert templatekit("parse", "--dataset", path, "--template", "qwen3", "--output", output).code == 0
    assert json.loads(output.read_text(encoding="utf-8"))["row"] == 0


def test_ids_without_a_tokenizer_say_what_is_missing(templatekit: Templatekit, tmp_path: Path) -> None:
    done = templatekit("parse", "--dataset", rows_file(tmp_path, {"answer_ids": [1]}), "--template", "chatml")
    assert done.code == 2 and "0:answer_ids: ids need the tokenizer (--tokenizer)" in done.err


def test_a_template_of_a_file_is_read_without_a_tokenizer(templatekit: Templatekit, tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "own.jinja").write_text(source, encoding="utf-8")
    path = rows_file(tmp_path, {"answer": "Four.<|im_end|>"}, {"answer": "Fo"})
    done = templatekit("parse", "--dataset", path, "--template", tmp_path / "own.jinja")
    first, second = map(json.loads, done.out.splitlines())
    assert first == {"row": 0, "message": {"role": "assistant", "content": "Four."}}
    assert second["problems"] == ["no_end"]
