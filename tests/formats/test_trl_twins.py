"""The trained text of published templates beside TRL's training twins of them.

TRL's wheel carries, for many templates, a copy whose `{% generation %}` blocks mark what is trained. Ours is found on
the *original*, without marks: where a prompt ends and what ends an answer. For the last turn of a conversation the two
are the same text, but for what `TWINS` says, with the reason. docs/explanation.md shows the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from testkit.published import CALL, GET, ORIGINALS, TRL, assistant, source_of, tokens_of, user
from testkit.theirs import alike, form_of, hugging_face, is_served_answer, rendered

from templatekit import Example, Message, RecordError, Template, TemplateError, TemplateFile


class Twin(NamedTuple):
    """The text that a twin marks in addition to the text that is trained here."""

    before: str = ""
    after: str = ""


NEWLINE = Twin(after="\n")
HEADER = Twin(before="<|start|>assistant")
TWINS: Mapping[str, Twin] = {
    "cohere": Twin(),
    "cohere2": Twin(),
    "diffusion_gemma": NEWLINE,
    "gemma": NEWLINE,
    "gemma3": NEWLINE,
    "gptoss": HEADER,
    "idefics3": NEWLINE,
    "lfm2": NEWLINE,
    "lfm2_v2": NEWLINE,
    "llama3": Twin(),
    "llava_next": Twin(),
    "muse_glimmer": HEADER,
    "phi3": Twin(after="\n<EOS>"),
    "phi3_5": Twin(after="\n<EOS>"),
    "qwen2_5": Twin(before="\n", after="\n"),
    "qwen2_5_vl": NEWLINE,
    "qwen3": NEWLINE,
    "qwen3_5_nothink": Twin(before="<think>\n\n</think>\n\n", after="\n"),
    "qwen3_5_think": Twin(before="<think>\n", after="\n"),
    "qwen3_6": Twin(before="<think>\n", after="\n"),
    "qwen3_8": Twin(before="<think>\n", after="\n"),
    "qwen3_instruct_2507": NEWLINE,
    "qwen3_vl": NEWLINE,
    "smolvlm": NEWLINE,
}
REASONS: Mapping[str, str] = {
    "": "the same",
    "\n": "a newline behind the end marker, or of the header: no server generates it",
    "\n<EOS>": "what ends the whole conversation stands behind the end marker, at which a server has stopped",
    "<|start|>assistant": "the header, which a server feeds",
    "<think>\n": "the server's generation prompt holds it",
    "<think>\n\n</think>\n\n": "the server's generation prompt holds it",
}
"""The reason why `before` or `after` is not trained here."""
APART: Mapping[str, str] = {"glm4moe": "leaves open what ends an answer"}
"""Originals in which an answer has no end: they are refused, so nothing can be compared."""
BUILT = (
    "deepseek_r1_distill",
    "deepseekv3",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
)
"""Originals whose prompt opens a thought that an answer's text lacks; the twin trains behind no server's prompt."""
PAIRS = [name for name in ORIGINALS if f"{name}_training" in TRL]


def of(*messages: Message) -> Example:
    return Example(messages=messages)


CONVERSATIONS: Mapping[str, Example] = {
    "one turn": of(user("Hello there."), assistant("Hi you!")),
    "a system message": of(Message(role="system", content="Be brief."), user("Hello there."), assistant("Hi you!")),
    "three turns": of(user("A?"), assistant("B."), user("C?"), assistant("D."), user("E?"), assistant("F.")),
    "repeated texts": of(user("same"), assistant("same"), user("same"), assistant("same")),
    "whitespace": of(user("  A?\n"), assistant("\n B. \n\n"), user("\n\nC"), assistant(" D. ")),
    "markers as text": of(user("<|im_end|>\n<|im_start|>assistant\n"), assistant("[[<|im_start|>assistant\nB]]")),
    "several lines": of(user("A?"), assistant("One.\n\nTwo.\n```\ncode\n```")),
    "a tool": Example(
        messages=(
            user("Weather?"),
            Message(role="assistant", tool_calls=(CALL,)),
            Message(role="tool", content="Sunny.", name="get_weather"),
            assistant("It is sunny."),
        ),
        tools=(GET,),
    ),
    "a call beside text": Example(
        messages=(user("Weather?"), Message(role="assistant", content="Let me see.", tool_calls=(CALL, CALL))),
        tools=(GET,),
    ),
}
OTHERWISE: Mapping[tuple[str, str], str] = {
    ("diffusion_gemma", "a tool"): "its prompt behind a tool's answer lacks the header that its text has there",
    ("diffusion_gemma", "a call beside text"): "a call ends in <|tool_response>, at which a server stops",
}
"""Templates of which more is trained here than `before` and `after`; the twin's text is a part of it."""
LOSING = {("gemma", "a system message"), ("muse_glimmer", "a call beside text"), ("gptoss", "a call beside text")}
"""Messages for which an original has no place: refused here, and left out or refused by its twin."""
WITH_TOOLS = (
    "diffusion_gemma",
    "gptoss",
    "lfm2_v2",
    "muse_glimmer",
    *(name for name in TWINS if name.startswith("qwen") and name != "qwen2_5_vl"),
    *(name for name in BUILT if name.startswith("nemotron")),
)
"""Templates that accept tools; the others refuse tools, or have no place for them."""


def ours(name: str, example: Example) -> str:
    """The text of the last turn that is trained on the original."""
    template = Template(TemplateFile(name=name, source=source_of(name)), strict=False)
    text = template.render(example, tokens_of(name))
    (target,) = (target for target in text.target_spans if target.message == len(example.messages) - 1)
    return text.text[target.start : target.end]


def theirs(name: str, example: Example) -> str:
    """The text that the twin marks after the text of the turns before the last."""
    source = source_of(f"{name}_training")
    messages = [hugging_face(message, form_of(source)) for message in example.messages]
    more: dict[str, Any] = {"tools": list(example.tools) or None}
    text, blocks = rendered(source, messages, tokens_of(name), return_assistant_tokens_mask=True, **more)
    before, _ = rendered(source, messages[:-1], tokens_of(name), **more)
    closed = alike(text, before)
    return "".join(text[max(start, closed) : end] for start, end in blocks if end > closed)


def served(name: str, example: Example) -> tuple[str, str]:
    """transformers' prompt for the last turn, and its text of the conversation."""
    source, form = source_of(name), form_of(source_of(name))
    messages = [hugging_face(message, form) for message in example.messages]
    more: dict[str, Any] = {"tools": list(example.tools) or None}
    prompt, _ = rendered(source, messages[:-1], tokens_of(name), add_generation_prompt=True, **more)
    return prompt, rendered(source, messages, tokens_of(name), **more)[0]


def same(mine: str, twins: str, twin: Twin) -> bool:
    return twins == f"{twin.before}{mine}{twin.after}"


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", PAIRS)
def test_the_trained_text_is_the_twins(name: str, case: str) -> None:
    example = CONVERSATIONS[case]
    if name in APART:
        if not example.tools:
            with pytest.raises((RecordError, TemplateError), match=APART[name]):
                ours(name, example)
        return
    if (name, case) in LOSING or (example.tools and name not in WITH_TOOLS):
        with pytest.raises(RecordError, match=r"refuses|has no place|does not know role"):
            ours(name, example)
        return
    mine, twins = ours(name, example), theirs(name, example)
    if name in BUILT:
        fed, finished = served(name, example)
        assert is_served_answer(mine, fed, finished) and not finished.startswith(fed)
        assert "</think>" in mine and not any(same(mine, twins, twin) for twin in TWINS.values())
        return
    if (name, case) in OTHERWISE:
        assert twins.removesuffix("\n") in mine and not same(mine, twins, TWINS[name])
        return
    assert same(mine, twins, TWINS[name])


def test_every_pair_is_listed() -> None:
    if not TRL:
        pytest.skip("trl is not installed")
    assert sorted([*TWINS, *APART, *BUILT]) == sorted(PAIRS)
    assert {edge for twin in TWINS.values() for edge in twin} == set(REASONS)


def test_the_comparison_notices_a_shift() -> None:
    """Negative controls: the table is exact on both sides."""
    for name, twin in TWINS.items():
        example = CONVERSATIONS["several lines"]
        mine, twins = ours(name, example), theirs(name, example)
        assert same(mine, twins, twin)
        assert not same(mine[1:], twins, twin) and not same(mine[:-1], twins, twin)
        assert not any(same(mine, twins, other) for other in set(TWINS.values()) - {twin})


def test_the_explanation_shows_the_table() -> None:
    if not TRL:
        pytest.skip("trl is not installed")
    explanation = (Path(__file__).resolve().parents[2] / "docs" / "explanation.md").read_text(encoding="utf-8")
    table = explanation.partition("## Beside others' masks")[2].partition("\n## ")[0]
    rows = [line.strip("| ").rsplit(" | ", 1) for line in table.splitlines() if line.startswith("| `")]
    shown = {name: cell.replace("\\|", "|") for names, cell in rows for name in re.findall(r"`(\w+)`", names)}
    assert sorted(shown) == sorted(PAIRS)
    for name, twin in TWINS.items():
        edges = [f"`{edge}`".replace("\n", "\\n") for edge in twin if edge]
        assert shown[name] == (" and ".join(edges) or "nothing"), name
    assert {name for name, cell in shown.items() if cell.startswith("refused here: ")} == set(APART)
    assert {name for name, cell in shown.items() if cell.startswith("another text: ")} == set(BUILT)
