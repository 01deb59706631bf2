"""The conformance kit itself: its strategies, calling single checks, and the pytest decorator."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from testing.mutants import CHAT, QA, Faq, only_adapter, only_template

from templatekit import Adapter, Example, Message, PluginError, Record, Registry, UnknownNameError, hookimpl
from templatekit.testing import (
    CHECKS,
    TINY,
    Subject,
    adversarial_text,
    conversations,
    examples,
    parametrize_with_checks,
    plain_text,
    records_for,
    run_checks,
    subjects_of,
    texts,
    tiny_tokenizer,
)

KINDS: dict[str, Callable[[str], bool]] = {
    "a control token": lambda text: "<|im_end|>" in text,
    "half of one": lambda text: "<|im_" in text and "<|im_end|>" not in text and "<|im_start|>" not in text,
    "the template's marker": lambda text: "A: " in text,
    "NFD": lambda text: "e\u0301" in text,
    "a combining mark first": lambda text: text.startswith("\u0301"),
    "ZWJ": lambda text: "\u200d" in text,
    "U+2581": lambda text: "\u2581" in text,
    "BOM": lambda text: "\ufeff" in text,
    "NUL": lambda text: "\x00" in text,
    "RTL": lambda text: "\u202e" in text,
    "astral planes": lambda text: any(ord(char) > 0xFFFF for char in text),
    "whitespace first": lambda text: text[:1].isspace() and text.strip() != "",
    "newlines last": lambda text: text.endswith("\n\n") and text.strip() != "",
    "CRLF": lambda text: "\r\n" in text,
    "Jinja": lambda text: "{{" in text,
    "a long run": lambda text: len(text) >= 800 and len(set(text)) == 1,
    "nothing": lambda text: text == "",
}


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_texts_reach(kind: str) -> None:
    subject = only_template(QA)
    # Some kinds are one in several hundred texts; the search ends at the first.
    many = settings(
        max_examples=50_000, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck)
    )
    text = find(
        adversarial_text(subject.tokenizer, subject.template), KINDS[kind], settings=many, random=random.Random(kind)
    )
    assert KINDS[kind](text)


@given(text=plain_text())
def test_plain_texts_are_plain(text: str) -> None:
    assert text == text.strip() != ""
    assert not any(control in text for name in TINY for control in tiny_tokenizer(name).control_tokens)


def test_markers_of_a_template() -> None:
    assert {"Q: ", "A: "} <= set(texts.markers_of(only_template(QA).template))
    assert "<|im_start|>assistant\n" in texts.markers_of(only_template(CHAT).template)


@given(one=examples(plain_text()), several=conversations(plain_text(), min_turns=2))
def test_conversations_end_with_an_answer(one: Example, several: Example) -> None:
    assert [message.role for message in one.messages] == ["user", "assistant"]
    roles = [message.role for message in several.messages if message.role != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert len(roles) >= 4


@given(data=st.data())
def test_records_of_every_bundled_adapter_are_read(builtin: Registry, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(builtin.adapters)), label="adapter")
    adapter = builtin.adapters[name]
    record = data.draw(records_for(adapter, plain_text()), label="record")
    assert all(isinstance(example, Example) for example in adapter.to_examples(record))


def test_records_of_an_adapter_that_does_not_write_come_from_its_keys() -> None:
    class Reads(Adapter):
        name = "reads"
        keys = ("q", "hint", "a")
        required = ("q", "a")

        def to_example(self, record: Record) -> Example:
            user = Message(role="user", content=record["q"], context=record.get("hint") or "")
            return Example(messages=(user, Message(role="assistant", content=record["a"])))

    found = records_for(Reads(), st.just("x"))
    assert find(found, lambda record: "hint" in record) == {"q": "x", "a": "x", "hint": "x"}
    assert find(found, lambda record: "hint" not in record) == {"q": "x", "a": "x"}


def test_records_of_nested_shape_come_from_examples() -> None:
    class Nested(Adapter):
        name = "nested"
        keys = required = ("data",)
        example_records = ({"data": {"pairs": [["ask", "answer"]], "id": 3}},)

        def to_example(self, record: Record) -> Example:
            ((question, answer),) = record["data"]["pairs"]
            return Example(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))

    assert find(records_for(Nested(), st.just("x")), lambda record: True) == {"data": {"pairs": [["x", "x"]], "id": 3}}
    assert {o.status for o in run_checks(only_adapter(Nested()), examples=10)} <= {"held", "failed", "not applicable"}


class Picky(Adapter):
    name = "picky"
    keys = required = ("data",)

    def to_example(self, record: Record) -> Example:
        return Example(messages=(Message(role="user", content=record["data"]["deep"]),))


def test_an_adapter_without_a_known_record() -> None:
    """There is one failure that says what to do, and no check passes without being tried."""
    with pytest.raises(PluginError, match=r"no record of its shape is known.*give some in example_records"):
        records_for(Picky())
    outcomes = {outcome.check.name: outcome for outcome in run_checks(only_adapter(Picky()))}
    assert "example_records" in str(outcomes.pop("valid_records_are_rendered").failure)
    assert {outcome.status for outcome in outcomes.values()} == {"not tried"}


def test_calling_single_checks() -> None:
    CHECKS["prompt_is_prefix"](only_template(QA), examples=20)
    wrong = only_template(QA.replace("{{ instruction }}", "{{ instruction | lower }}"))
    with pytest.raises(AssertionError, match=r"promise:  Each text of the record(.|\n)*found:    \"[a-z ]+\""):
        CHECKS["texts_stand_unchanged"](wrong, examples=60)
    with pytest.raises(unittest.SkipTest, match="not applicable: no adapter is checked"):
        CHECKS["records_come_back"](wrong)


def test_the_smallest_record_is_shown() -> None:
    wrong = only_template(QA.replace("{{ instruction }}", "{{ instruction | replace('é', 'e') }}"))
    (outcome,) = run_checks(wrong, ["texts_stand_unchanged"], examples=300)
    assert outcome.failure is not None
    user = outcome.failure.record["messages"][0]
    assert len(user["content"]) <= len("naïve café")


def test_one_failing_input_is_enough_even_if_it_never_fails_again() -> None:
    class Once(Faq):
        calls = 0

        def to_example(self, record: Record) -> Example:
            self.calls += 1
            if self.calls == 120:
                raise KeyError("once")
            return super().to_example(record)

    (outcome,) = run_checks(only_adapter(Once()), ["records_stay_as_they_are"], examples=200)
    assert outcome.status == "failed"
    assert "KeyError" in str(outcome.failure)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'prompt_is_prefix'"):
        run_checks(only_template(QA), ["prompt_is_prefx"])
    with pytest.raises(UnknownNameError, match="check named 'x'"):
        parametrize_with_checks([Faq()], expected_failures={"x": "y"})
    with pytest.raises(UnknownNameError, match="no tiny tokenizer named 'byte'"):
        tiny_tokenizer("byte")
    with pytest.raises(ValueError, match="an adapter or a template"):
        Subject(tokenizer=tiny_tokenizer("bytes"))


def test_tiny_tokenizers_are_the_same_every_time() -> None:
    program = (
        "from templatekit.testing import TINY, tiny_tokenizer\n"
        "print(*(tiny_tokenizer(name).fingerprint for name in TINY))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0].split() == runs[1].split() == [tiny_tokenizer(name).fingerprint for name in TINY]


def test_a_template_with_special_tokens_is_tried_with_them(builtin: Registry) -> None:
    names = [subject.tokenizer.name for subject in subjects_of("dolly", ["bytes", "nfc"], builtin)]
    assert names == ["bytes", "nfc", "bytes", "nfc", "bytes+"]  # the adapter, then the template


PROMISED = """
from testing.mutants import Faq, only_template, QA
from templatekit.testing import parametrize_with_checks

LOWER = only_template(QA.replace("{{ instruction }}", "{{ instruction | lower }}"))

@parametrize_with_checks([Faq(), "chatml"], tokenizers=["bytes"])
def test_right(subject, check):
    check(subject, examples=6)

@parametrize_with_checks([LOWER], checks=["texts_stand_unchanged", "prompt_is_prefix", "records_come_back"],
                         expected_failures={"texts_stand_unchanged": "folds case", "prompt_is_prefix": "is thought to"})
def test_declared(subject, check):
    check(subject, examples=60)

@parametrize_with_checks([LOWER], checks=["texts_stand_unchanged"])
def test_wrong(subject, check):
    check(subject, examples=60)
"""


def test_the_decorator_for_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_formats.py").write_text(PROMISED, encoding="utf-8")
    here = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(here)},
        check=False,
    )
    lines = run.stdout.splitlines()
    right = [line for line in lines if line.startswith("PASSED") and "test_right[" in line]
    skipped = [line for line in lines if line.startswith("SKIPPED") and "not applicable: " in line]
    assert len(right) > 40
    assert skipped
    assert "test_right[faq-bytes-prompt_is_prefix]" in run.stdout
    assert "XFAIL test_formats.py::test_declared[wrong-bytes-texts_stand_unchanged] - folds case" in run.stdout
    assert "FAILED test_formats.py::test_declared[wrong-bytes-prompt_is_prefix]" in run.stdout  # it holds: told
    assert "[XPASS(strict)] is thought to" in run.stdout
    assert "FAILED test_formats.py::test_wrong[wrong-bytes-texts_stand_unchanged]" in run.stdout
    assert "promise:  Each text of the record" in run.stdout
    assert run.returncode == 1


def test_a_plugin_given_as_an_object() -> None:
    class Module:
        @hookimpl
        def templatekit_adapters(self) -> list[Any]:
            return [Faq()]

    from templatekit import create_registry

    registry = create_registry(plugins=[Module()])
    assert [subject.name for subject in subjects_of("faq", ["bytes"], registry)] == ["adapter faq"]


def test_only_the_command_imports_the_kit() -> None:
    """No other module needs hypothesis."""
    package = Path(__file__).parents[2] / "templatekit"
    others = [path for path in package.rglob("*.py") if path.parent.name != "testing"]
    trees = {path.name: ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in others}
    users = [
        name
        for name, nodes in trees.items()
        if any(isinstance(node, ast.ImportFrom) and node.module == "templatekit.testing" for node in nodes)
    ]
    assert users == ["check.py"]
    program = "import sys, templatekit.cli.check; assert 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
