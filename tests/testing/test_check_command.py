"""`templatekit check` as the author of a plugin runs it: output, exit codes, JSON and seed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from testkit.at_hand import Tokenizers
from testkit.command_line import Templatekit

from templatekit.testing import CHECKS

RIGHT = "Q: {{ instruction }}\nA:\n{{ response }}{{ eos_token }}\n"
WRONG = RIGHT.replace("{{ instruction }}", "{{ instruction | trim }}")
PLUGIN = """\
from templatekit import Adapter, Example, Message, hookimpl


class Faq(Adapter):
    name = "faq"
    keys = required = ("question", "answer")

    def to_example(self, record):
        print("reading")
        user = Message(role="user", content=record["question"])
        return Example(messages=(user, Message(role="assistant", content=record["answer"])))


@hookimpl
def templatekit_adapters():
    return [Faq()]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("right.jinja", RIGHT), ("wrong.jinja", WRONG), ("faq.py", PLUGIN)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


FEW = ("--examples", "8")


def test_a_right_template(folder: Path, templatekit: Templatekit) -> None:
    result = templatekit("check", "right.jinja", *FEW)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "template right: one turn"
    assert lines[1] == "declares nothing; tokenizers bytes, nfc, sentencepiece, metaspace"
    assert "  ok      prompt_is_prefix                 tried 32 times" in lines
    assert any(line.startswith("  not applicable, since no adapter is checked: bad_records_are") for line in lines)
    assert re.fullmatch(
        rf"{len(CHECKS)} checks: \d+ held, \d+ not applicable; [\d,]+ trials \(--examples 8 --seed 0\)", lines[-1]
    )
    assert sorted(path.name for path in folder.iterdir()) == ["faq.py", "right.jinja", "wrong.jinja"]


def test_a_wrong_template(folder: Path, templatekit: Templatekit) -> None:
    result = templatekit("check", "wrong.jinja", "--examples", "30")
    assert (result.code, result.err) == (1, "")
    assert result.out.count("FAILED") == 1
    assert "  FAILED  texts_stand_unchanged            with bytes, nfc, sentencepiece, metaspace\n" in result.out
    _, _, failure = result.out.partition("\n\n")
    assert failure.splitlines()[:8] == [
        "template wrong, tokenizer bytes: texts_stand_unchanged (property 9)",
        f"  promise:  {CHECKS['texts_stand_unchanged'].promise}",
        "  broken:   the template changes messages[0].content",
        '  record:   {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": ""}]}',
        '  expected: " "',
        '  found:    ""',
        '  ids:      55"Q" 32":" 227" " 205"\\n" 39"A" 32":" 205"\\n" 0"<|endoftext|>"*',
        "  hint:     whitespace at its edges is taken off; a format that means to says so in its leading comment: "
        "capabilities: {strips_content: true}",
    ]


def test_declared_behaviour_is_no_failure(folder: Path, templatekit: Templatekit) -> None:
    comment = "{#- templatekit\ncapabilities: {strips_content: true}\n#}\n"
    (folder / "wrong.jinja").write_text(comment + WRONG, encoding="utf-8")
    result = templatekit("check", "wrong.jinja", *FEW)
    assert result.code == 0
    assert "declares strips_content: true;" in result.out


def test_an_expected_failure_is_accepted_and_its_absence_reported(
    folder: Path,
    templatekit: Templatekit,
) -> None:
    expected = ("--expect-failure", "texts_stand_unchanged=trims by design")
    result = templatekit("check", "wrong.jinja", "--examples", "30", *expected)
    assert result.code == 0
    assert "  failed  texts_stand_unchanged            as expected: trims by design\n" in result.out
    result = templatekit("check", "right.jinja", "--examples", "30", *expected)
    assert result.code == 1
    assert "though a failure was expected (trims by design): take that back" in result.out


def test_output_of_a_plugin_file_goes_to_stderr(folder: Path, templatekit: Templatekit) -> None:
    result = templatekit("check", "faq.py", *FEW, "--json")
    assert result.code == 1
    assert set(result.err.split()) == {"reading"}
    (checked,) = json.loads(result.out)["checked"]
    assert checked["name"] == "adapter faq"
    failed = [check for check in checked["checks"] if check["status"] == "failed"]
    assert [check["check"] for check in failed] == ["bad_records_are_refused_by_name"]
    failure = failed[0]["failures"][0]
    assert failure["tokenizer"] == "bytes"
    assert failure["what"] in (
        "the adapter raised an exception of Python's own",
        "the adapter put something else than text into content",
    )
    assert failure["record"].keys() <= {"question", "answer"}


def test_the_same_seed_gives_the_same_output(folder: Path, templatekit: Templatekit) -> None:
    one, other = (templatekit("check", "wrong.jinja", *FEW, "--json", env={"PYTHONHASHSEED": seed}) for seed in "12")
    assert one.out == other.out
    assert json.loads(one.out)["seed"] == 0


def test_a_tokenizer_given(folder: Path, templatekit: Templatekit, tokenizer_of: Tokenizers) -> None:
    given = tokenizer_of.folder("unigram")
    result = templatekit("check", "right.jinja", "--tokenizer", given, "--examples", "4", "--json")
    assert result.code == 0
    (checked,) = json.loads(result.out)["checked"]
    assert checked["tokenizers"] == ["bytes", "nfc", "sentencepiece", "metaspace", "unigram"]


def test_names(templatekit: Templatekit) -> None:
    """A name may mean an adapter and a template; the name of a plugin means all that it offers."""
    for name, expected in (
        ("dolly", ["adapter dolly", "template dolly"]),
        ("prompt_completion", ["adapter prompt-completion"]),
    ):
        result = templatekit("check", name, "--examples", "1", "--json")
        assert [checked["name"] for checked in json.loads(result.out)["checked"]] == expected


def test_the_time_budget_ends_the_run(folder: Path, templatekit: Templatekit) -> None:
    result = templatekit("check", "right.jinja", "--examples", "100000", "--time-budget", "3")
    assert result.code == 0
    assert "no time was left" not in result.out  # every check is tried once at least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chatm1",), "no adapter, template or plugin named 'chatm1'; did you mean 'chatml'?"),
        (("sources",), "no adapter or template named 'sources'; known:"),
        (("missing.jinja",), "template file 'missing.jinja' cannot be read"),
        (("missing.py",), "plugin file 'missing.py': importing it raised FileNotFoundError"),
        (("tokenizer",), "the tokenizer's own template needs a tokenizer; expected --tokenizer DIR"),
        (("chatml", "--expect-failure", "x"), "--expect-failure: found 'x'; expected CHECK=REASON"),
        (
            ("chatml", "--expect-failure", "prompt_is_prefi=x"),
            "no check named 'prompt_is_prefi'; did you mean 'prompt_is_prefix'",
        ),
        (("chatml", "--tokenizer", "nowhere"), "nowhere"),
        (("chatml", "--examples", "0"), "--examples"),
        ((), "Missing argument"),
    ],
)
def test_usage(arguments: Any, message: str, templatekit: Templatekit) -> None:
    result = templatekit("check", *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.lines) == 1
    assert result.out == ""
