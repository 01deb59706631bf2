"""Each rule on a data set in which only this rule finds something, and on the repaired data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from templatekit.audit import RULES, Report

Rows = Sequence[Any]


def talk(*texts: str, **last: Any) -> dict[str, Any]:
    """A conversation; `last` are further keys of its last message."""
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    messages[-1] |= last
    return {"messages": messages}


def alpaca(instruction: str, output: str = "Red.", **more: str) -> dict[str, Any]:
    return {"instruction": instruction, "input": "", "output": output, **more}


def calling(arguments: object) -> dict[str, Any]:
    """A conversation whose last message calls a tool."""
    return talk(
        f"Call {arguments!r}",
        "",
        tool_calls=[{"type": "function", "function": {"name": "look", "arguments": arguments}}],
    )


PLAIN = talk("Hi", "Hello")
WORDS = " ".join(map(str, range(60)))
TRIMS = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content | trim ~ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALLS = TRIMS.replace("m.content | trim", "m.content ~ (m.tool_calls | tojson if m.tool_calls else '')")
ALWAYS_PROMPTS = TRIMS.replace("{% if add_generation_prompt %}", "{% if true %}")
THINKS = TRIMS.replace("m.content | trim", "(m.reasoning_content or '') ~ m.content")
SHORTENS = TRIMS.replace("m.content | trim", "m.content | replace('really ', '')")
LAST_THINKS = TRIMS.replace(
    "m.content | trim", "('(thinking) ' if loop.last and m.role == 'assistant' else '') ~ m.content"
)
BLOCK = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}INSIDE{% endgeneration %}OUTSIDE"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END_OUTSIDE = BLOCK.replace("INSIDE", "").replace("OUTSIDE", "<|im_end|>")
END_INSIDE = BLOCK.replace("INSIDE", "<|im_end|>").replace("OUTSIDE", "")


@dataclass(frozen=True, kw_only=True)
class Case:
    code: str
    rows: Rows
    control: Rows = (PLAIN,)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the audit."""
    repaired: Mapping[str, Any] = field(default_factory=dict)
    """The options that repair the finding, if the options cause it."""
    found: Sequence[int] | None = (0,)
    """The rows with a finding; None for rules about the template."""
    parts: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.code}{f' {self.parts[0]}' if self.parts else ''}"


CASES = (
    Case(code="unusable", rows=(PLAIN, {"messages": "no"}), found=[1], parts=["bad_messages"]),
    Case(code="unusable", rows=(PLAIN, [1, 2]), found=[1], parts=["not_an_object"]),
    Case(code="nothing-trained", rows=(talk("Hi", "Hello", weight=0),), parts=["all weights are 0"]),
    Case(code="nothing-trained", rows=(talk("Hi"),), parts=["no assistant message"]),
    Case(
        code="nothing-trained",
        rows=(PLAIN,),
        control=(talk("Hi", "Hello", reasoning_content="Hm"),),
        options={"train_on": "response=0,reasoning", "template": THINKS, "ignored": ["end-untrained"]},
        parts=["no text"],
    ),
    Case(
        code="end-untrained",
        rows=(talk("Hi", "Hello", "Hi", "Hello"),),
        control=(PLAIN,),
        options={"train_on": "last,assistant=0.5", "ignored": ["turn-dependent"]},
        parts=["the marker carries no loss"],
    ),
    Case(
        code="end-untrained",
        rows=(PLAIN,),
        options={"template": END_OUTSIDE},
        repaired={"template": END_INSIDE},
        parts=["no marker in what is trained"],
    ),
    Case(
        code="shared-rows",
        rows=(talk("a", "b"), PLAIN),
        control=(talk("a", "b"),),
        options={"against": [PLAIN]},
        found=[1],
    ),
    Case(
        code="nearly-shared-rows",
        rows=(talk("a", "b"), talk("Hi", f"{WORDS} sixty")),
        control=(talk("a", "b"), talk("Hi", WORDS.replace(" 3", " x").replace("5 ", "y "))),
        options={"against": [talk("Hi ho", WORDS)], "shared": "near=0.7"},
        found=[1],
    ),
    Case(
        code="shared-prompts",
        rows=(talk("a", "b"), talk("Hi", "Bye")),
        control=(talk("a", "b"),),
        options={"against": [PLAIN]},
        found=[1],
    ),
    Case(
        code="too-long",
        rows=(talk("Hi" * 20, "Hello"),),
        options={"max_length": 40},
        parts=["the prompt alone is too long"],
    ),
    Case(
        code="too-long",
        rows=(talk("Hi", "Hello" * 20),),
        options={"max_length": 40, "ignored": ["end-cut-off"]},
        parts=["prompt and answer together"],
    ),
    Case(
        code="end-cut-off",
        rows=(talk("Hi", "Hello" * 20),),
        control=(PLAIN, talk("Hi" * 20, "Hello")),
        options={"max_length": 40, "ignored": ["too-long"]},
    ),
    Case(
        code="too-long",
        rows=(talk("Hi" * 20, "Hello", "Hi", "Hello"),),
        options={"max_length": 80, "truncation": "turns"},
        parts=["shortened: turns"],
    ),
    Case(
        code="too-long",
        rows=(talk("Hi" * 60, "Hello"),),
        options={"max_length": 80, "truncation": "turns"},
        parts=["the prompt alone is too long"],
    ),
    Case(
        code="end-cut-off",
        rows=(talk("Hi", "Hello" * 20),),
        control=(PLAIN, talk("Hi" * 20, "Hello")),
        options={"max_length": 40, "truncation": "response", "ignored": ["too-long"]},
        parts=["--truncation response takes it"],
    ),
    Case(
        code="stop-token",
        rows=(PLAIN,),
        options={"tokenizer": {"stops": ["<|endoftext|>"]}},
        repaired={"tokenizer": {"stops": ["<|endoftext|>", "<|im_end|>"]}},
        found=None,
    ),
    Case(
        code="stop-token",
        rows=(PLAIN,),
        options={"tokenizer": {"eos": "<|endoftext|>"}},
        repaired={"tokenizer": {"eos": "<|endoftext|>", "stops": ["<|im_end|>"]}},
        found=None,
    ),
    Case(
        code="end-not-special",
        rows=(PLAIN,),
        options={"tokenizer": {"special": ["<|endoftext|>"], "eos": "<|endoftext|>"}},
        repaired={"tokenizer": {}},
        found=None,
    ),
    Case(code="control-text", rows=(talk("<|im_end|>", "Hello"),), parts=["<|im_end|> in user content"]),
    Case(code="control-text", rows=(talk("Hi", "</s><|im_start|>"),), parts=["<|im_start|> in assistant content"]),
    Case(code="control-text", rows=(talk("<think>", "Hello"),), parts=["<think> in user content"]),
    Case(
        code="template-markers",
        rows=(alpaca("Name one.\n\n### Response:"),),
        control=(alpaca("Name one.\n\n### Answer:"),),
        options={"template": "alpaca"},
        parts=["### Response: in user content"],
    ),
    Case(
        code="template-markers",
        rows=(alpaca("Name one.", "Red.\nInput:\nblue"),),
        # A marker that begins with a letter is prose within a line.
        control=(alpaca("Name one.", "Red. Input: blue"),),
        options={"template": "dolly", "ignored": ["end-not-special"]},
        parts=["Input: in assistant content"],
    ),
    Case(
        code="text-changed",
        rows=(talk("Is it really so?", "Yes."),),
        control=(talk("Is it so?", "Yes."),),
        options={"template": SHORTENS},
        parts=["user content"],
    ),
    Case(
        code="turn-dependent",
        rows=(talk("a", "b", "c", "d"),),
        control=(talk("a", "b"),),
        options={"template": LAST_THINKS},
    ),
    Case(code="empty-answer", rows=(talk("Hi", " \n"),)),
    *(
        Case(
            code="unusable",
            rows=(PLAIN, calling(arguments)),
            control=(PLAIN, calling({"city": "Oslo"}), calling('{"city": "Oslo"}'), calling(None), calling("")),
            options={"template": CALLS},
            found=[1],
            parts=["bad_arguments"],
        )
        for arguments in ('{"city": "Os', 5)
    ),
    Case(code="empty-prompt", rows=(talk("", "Hello"),)),
    Case(code="placeholder", rows=(talk("Hi", "<No output>"),), parts=["'<No output>' as assistant content"]),
    Case(code="placeholder", rows=(talk("n/a", "Hello"),), control=(talk("None of it. No?", "No."),)),
    Case(
        code="placeholder",
        rows=(alpaca("Name one.") | {"input": "Noinput"},),
        control=(alpaca("Name one."),),
        options={"template": "alpaca"},
        repaired={"empty_context": ["noinput"]},
        parts=["'Noinput' as user context"],
    ),
    Case(code="duplicate-rows", rows=(PLAIN, PLAIN, talk("Hi ", "Hello")), found=[1]),
    Case(code="encoding", rows=(talk("a\x07b", "Hello"),), parts=["control character U+0007"]),
    Case(code="encoding", rows=(talk("\ufeffHi", "Hello"),), parts=["byte order mark U+FEFF"]),
    Case(code="encoding", rows=(talk("Hi", "a\ufffdb"),), parts=["replacement character U+FFFD"]),
    Case(
        code="encoding",
        rows=(talk("Hi", "a\rb"),),
        control=(talk("Hi", "a\r\nb"),),
        parts=["carriage return without a newline U+000D"],
    ),
    Case(
        code="encoding",
        rows=(talk("Hi", "cafÃ© isnâ€™t"),),
        control=(talk("Hi", "café isn’t é À Ã la"),),
        parts=["UTF-8 read as Windows-1252"],
    ),
    Case(code="same-prompt", rows=(PLAIN, talk("Hi", "Bye")), found=[1]),
    Case(
        code="text-trimmed",
        rows=(talk("Hi", "  Hello"),),
        control=(PLAIN,),
        options={"template": TRIMS},
        parts=["assistant content"],
    ),
    Case(
        code="text-normalized",
        rows=(talk("Hi", "cafe\u0301"),),
        control=(talk("Hi", "café ▁ 👋🏽"),),
        options={"tokenizer": {"nfc": True}},
        parts=["assistant content"],
    ),
    Case(
        code="unstable-boundary",
        rows=(alpaca("Name one.", "Azure."),),
        control=(alpaca("Name one.", "Blue."),),
        options={"template": "alpaca", "tokenizer": {"merges": [(":", "A")]}},
    ),
    Case(
        code="unstable-boundary",
        rows=(alpaca("Name one.", "Azure."),),
        control=(alpaca("Name one.", "Blue."),),
        options={"template": "alpaca", "tokenizer": {"merges": [(":", "A")]}, "boundary": "joint"},
    ),
    Case(code="control-acts", rows=(talk("Hi", "<think>Hello"),), parts=["<think> in assistant content"]),
    Case(
        code="control-acts",
        rows=(talk("<|im_end|>", "Hello"),),
        options={"control_tokens": "everywhere"},
        parts=["<|im_end|> in user content"],
    ),
    Case(
        code="trailing-text",
        rows=(PLAIN,),
        options={"template": ALWAYS_PROMPTS},
        repaired={"template": TRIMS},
        found=None,
    ),
    Case(
        code="left-out",
        rows=(PLAIN, talk("a", "b")),
        options={"filter": ["messages[0]['content'] != 'a'"]},
        found=[1],
        parts=["filtered"],
    ),
    Case(code="unread-keys", rows=(PLAIN, {**talk("a", "b"), "source": "web"}), found=[1], parts=["source"]),
)


def codes(report: Report) -> set[str]:
    return {finding.rule.code for finding in report.findings}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_the_rule_of_the_case_finds_something(case: Case, run_audit: Callable[..., Report]) -> None:
    report = run_audit(case.rows, **case.options)
    assert codes(report) == {case.code}
    [finding] = report.findings
    assert finding.rows == tuple(case.found or ())
    assert finding.share == (None if case.found is None else len(case.found) / len(case.rows))
    assert [part.what for part in finding.parts][: len(case.parts)] == list(case.parts)
    assert finding.example is not None
    assert finding.example.row == (case.found[0] if case.found else None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_repaired_data_set_has_no_findings(case: Case, run_audit: Callable[..., Report]) -> None:
    rows = case.rows if case.repaired else case.control
    assert codes(run_audit(rows, **{**case.options, **case.repaired})) == set()


def test_every_rule_has_a_case() -> None:
    assert [rule.code for rule in RULES] == sorted(
        {case.code for case in CASES}, key=[rule.code for rule in RULES].index
    )


@pytest.mark.parametrize("case", [case for case in CASES if not case.options.get("ignored")], ids=str)
def test_a_rule_that_is_left_out_finds_nothing(case: Case, run_audit: Callable[..., Report]) -> None:
    assert codes(run_audit(case.rows, **{**case.options, "ignored": [case.code]})) == set()


def test_rules_are_in_order_and_say_what_to_do() -> None:
    levels = [rule.level for rule in RULES]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    for rule in RULES:
        assert rule.help.endswith(".") and ":" in rule.help, rule.code
        assert (rule.check_row is None) != (rule.check_template is None), rule.code
