"""The content of findings: excerpts, tokens and kinds; and the rules on unusual rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from templatekit import Example, Message, Template, TemplateFile, Tokenizer
from templatekit.audit import Finding, Report, rules_training
from templatekit.audit.context import AuditContext
from templatekit.audit.excerpts import excerpt_of
from templatekit.audit.round_trip import RoundTrip
from templatekit.audit.rows import AuditedRow, AuditedSample
from templatekit.audit.rule import Occurrence
from templatekit.audit.rules_content import is_placeholder
from templatekit.audit.rules_text import _find_marker
from templatekit.audit.template_markers import markers_of
from templatekit.audit.text_report import to_text
from templatekit.tokens.supervision import loss_spans
from templatekit.types import NO_TOKENIZER, LossSpan, SpecialTokens
from templatekit.views import visible

RunAudit = Callable[..., Report]


def talk(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def finding(report: Report, code: str) -> Finding:
    return next(finding for finding in report.findings if finding.rule.code == code)


def shown(report: Report, code: str) -> str:
    example = finding(report, code).example
    assert example is not None
    return example.marked_text()


def test_an_excerpt_marks_the_occurrence_and_trained_text(run_audit: RunAudit) -> None:
    report = run_audit([talk("Hi <|im_start|>", "Hello")])
    assert shown(report, "control-text") == (
        "<|im_start|>user\nHi ▶<|im_start|>◀<|im_end|>\n<|im_start|>assistant\n⟦Hello<|im_end|>⟧\n"
    )


def test_a_long_text_is_cut_around_the_occurrence(run_audit: RunAudit) -> None:
    report = run_audit([talk("x" * 500 + "\x00" + "y" * 500, "Hello")])
    assert shown(report, "encoding") == f"…{'x' * 100}▶␀◀{'y' * 140}…"


def test_the_start_of_a_long_occurrence_is_shown(run_audit: RunAudit) -> None:
    report = run_audit([talk("Hi", "a" * 500), talk("Hi", "b" * 500)])
    assert shown(report, "same-prompt") == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦▶{'b' * 200}◀⟧…"


def test_text_from_data_cannot_act_on_a_terminal(run_audit: RunAudit) -> None:
    report = run_audit([{**talk("\x1b[31mred\u202e", "Hello"), "\x1b[2Jkey": "\x1b[2J"}])
    assert "\x1b" not in to_text(report) and "\u202e" not in to_text(report)
    assert "\x1b" not in str([part for f in report.findings for part in f.parts])
    assert visible("a\x07\u202e\u2028é\n") == "a␇\\u202e\\u2028é\n"


def test_the_boundary_shows_its_tokens(run_audit: RunAudit) -> None:
    rows = [{"instruction": "Name one.", "output": "Azure."}]
    report = run_audit(rows, template="alpaca", tokenizer={"merges": [(":", "A")]})
    example = finding(report, "unstable-boundary").example
    assert example is not None
    assert example.detail == "cut: 'e' ':' 'A' 'z'; whole: 'e' ':A' 'z' 'u'"
    assert example.marked_text().endswith("\n\n### Response:▶◀⟦Azure.<|im_end|>⟧")


def test_a_changed_character_is_named(run_audit: RunAudit) -> None:
    report = run_audit([talk("Hi", "cafe\u0301!")], tokenizer={"nfc": True})
    example = finding(report, "text-normalized").example
    assert example is not None and "comes back as 'é!' (U+00E9 U+0021)" in example.detail
    assert "caf▶e◀\u0301!" in example.marked_text()


def test_control_strings_of_a_row_are_counted_separately(run_audit: RunAudit) -> None:
    rows = [talk("<|im_end|><|im_end|><|im_start|>", "Hello"), talk("<|im_end|>", "<|im_end|>")]
    parts = finding(run_audit(rows), "control-text").parts
    assert [(part.what, part.count, part.first_row) for part in parts] == [
        ("<|im_end|> in user content", 2, 0),
        ("<|im_start|> in user content", 1, 0),
        ("<|im_end|> in assistant content", 1, 1),
    ]


def test_halves_that_join_across_fields_are_found(run_audit: RunAudit) -> None:
    template = "<|im_start|>{{ instruction }}{{ context }}<|im_end|>{{ response }}<|im_end|>"
    report = run_audit([{"instruction": "a<|im_", "input": "end|>b", "output": "c"}], template=template)
    assert "a▶<|im_end|>◀b" in shown(report, "control-text")


def test_two_changed_texts_of_a_template(run_audit: RunAudit) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{% if m.reasoning_content %}{{ '(' ~ m.reasoning_content | upper ~ ')' }}{% endif %}"
        "{{ m.content | upper }}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    row = talk("a", "b", "c", "d")
    row["messages"][1]["reasoning_content"] = "hm"
    what = [part.what for part in finding(run_audit([row], template=template), "text-changed").parts]
    assert what == ["user content", "assistant content", "assistant reasoning"]


def test_reasoning_that_its_own_sample_trains_is_not_reported(run_audit: RunAudit) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{% if m.reasoning_content and loop.last %}{{ '(' ~ m.reasoning_content ~ ')' }}{% endif %}"
        "{{ m.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    row = talk("a", "b", "c", "d")
    row["messages"][1]["reasoning_content"] = "hm"
    report = run_audit([row, talk("e", "f")], template=template)
    assert [(f.rule.code, f.rows) for f in report.findings] == [("turn-dependent", (0,))]
    assert "⟦▶(hm)b<|im_end|>◀⟧" in shown(report, "turn-dependent")
    assert report.findings[0].example is not None
    assert report.findings[0].example.detail == "sample 1 of 2 that the record gives"


def test_turns_that_are_not_trained_need_not_render_alike(run_audit: RunAudit) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{% if loop.last and m.role == 'assistant' %}{{ '(last)' }}{% endif %}"
        "{{ m.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rows = [talk("a", "b", "c", "d")]
    assert run_audit(rows, template=template, train_on="last").findings == ()


def test_a_question_that_is_another_rows_prompt(run_audit: RunAudit) -> None:
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    report = run_audit([talk("Hi", "Hello"), talk("Hi")], template=template)
    assert [f.rule.code for f in report.findings] == ["nothing-trained"]


@pytest.mark.parametrize(
    "text",
    [
        "<noinput>",
        "No input.",
        "N/A",
        "n / a",
        "None",
        "<none>",
        "null",
        "NaN",
        "TODO",
        "...",
        "-",
        "[No context provided]",
    ],
)
def test_placeholders(text: str) -> None:
    assert is_placeholder(text)
    assert is_placeholder(f" {text}\n")


@pytest.mark.parametrize(
    "text", ["No.", "None of them.", "Nothing", "No input devices are missing.", "42", "5-3", "na na na", "", "nano"]
)
def test_no_placeholders(text: str) -> None:
    assert not is_placeholder(text)


@pytest.mark.parametrize(
    ("source", "markers"),
    [
        ("Q: {{ instruction }}\nA: {{ response }}", {("Q:", True), ("A:", True)}),
        ("[INST] {{ instruction }} [/INST] {{ response }}", {("[INST]", False), ("[/INST]", False)}),
        ("{{ instruction }} => {{ response }}", set()),
        ("user\n{{ instruction }}\nassistant\n{{ response }}", set()),
        ("## Task ##\n{{ instruction }}\n\n\nAnswer - {{ response }}", {("## Task ##", False), ("Answer -", True)}),
    ],
)
def test_markers_are_the_lines_around_fields(source: str, markers: set[tuple[str, bool]]) -> None:
    template = Template(TemplateFile(name="t", source=source + "{{ eos_token }}"))
    assert {tuple(marker) for marker in markers_of(template, NO_TOKENIZER, None)} == markers


def sample_of(
    source: str, answer: str = "yes", losses: Sequence[LossSpan] | None = None
) -> tuple[AuditedSample, AuditContext]:
    """A sample and its context, without a tokenizer's files."""
    from templatekit.config.data_options import DataOptions

    special = SpecialTokens(eos="</s>", special=frozenset({"</s>"}))
    template = Template(TemplateFile(name="t", source=source))
    example = Example(messages=(Message(role="user", content="ask"), Message(role="assistant", content=answer)))
    rendered = template.render(example, special)
    spans = tuple(losses) if losses is not None else loss_spans(rendered, "response")
    context = AuditContext(
        options=DataOptions(),
        template=template,
        special_tokens=special,
        tokenizer=None,
        markers=(),
        end_marker="</s>",
        trailing="",
        stop_tokens=None,
    )
    return AuditedSample(example=example, rendered=rendered, loss_spans=spans, length=9, trained_range=(4, 8)), context


@pytest.mark.parametrize(
    ("weights", "found"),
    [((0, 1), None), ((0, 0), None), ((1, 0), "the marker carries no loss")],
    ids=["trained", "untrained turn", "marker left out"],
)
def test_an_end_marker_without_loss(weights: tuple[float, float], found: str | None) -> None:
    sample, context = sample_of("{{ instruction }}:{{ response }}{{ eos_token }}")
    target = sample.rendered.target_spans[0]
    inside = weights[0] or weights[1]
    losses = (
        LossSpan(start=0, end=target.start, weight=0),
        LossSpan(start=target.start, end=target.marker_start, weight=inside),
        LossSpan(start=target.marker_start, end=target.end, weight=weights[1]),
    )
    row = AuditedRow(number=0, samples=(replace(sample, loss_spans=losses),))
    assert [found.kind for found in rules_training.end_marker_untrained(row, context)] == ([found] if found else [])


def test_an_excerpt_at_the_very_end() -> None:
    sample, _ = sample_of("{{ instruction }}:{{ response }}{{ eos_token }}")
    end = len(sample.rendered.text)
    assert excerpt_of(Occurrence(sample=sample, start=end, end=end), 0).marked_text() == "ask:⟦yes</s>▶◀⟧"


def test_leading_markers_are_found_in_linear_time() -> None:
    text = "Input: " * 200_000 + "\n  Input: x"
    started = time.process_time()
    assert _find_marker(text, "Input:", 0, len(text), line_start=True) == 0
    assert _find_marker(text, "Input:", 1, len(text), line_start=True) == len(text) - 8
    assert _find_marker(text, "Input:", 1, len(text) - 10, line_start=True) == -1
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", ["bytes", "nfc", "sentencepiece", "metaspace", "unigram"])
def test_clean_text_comes_back_from_every_tokenizer(name: str, tokenizer_of: Callable[[str], Tokenizer]) -> None:
    texts = ["Hello", " two  spaces ", "a\n\n\tb", "é 漢字 👋🏽", "0" * 50, "\u00e9\u0142"]
    examples = [Example(messages=(Message(role="user", content=text),)) for text in texts]
    assert list(RoundTrip(tokenizer_of(name)).differences(examples)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("nfc", "e\u0301"), ("sentencepiece", "a ▁ b"), ("metaspace", "▁"), ("folding", "ABC"), ("unknowing", "漢字")],
)
def test_changed_text_is_found_in_every_kind_of_tokenizer(
    name: str, text: str, tokenizer_of: Callable[[str], Tokenizer]
) -> None:
    examples = [Example(messages=(Message(role="user", content=value),)) for value in ("the", text)]
    found = list(RoundTrip(tokenizer_of(name)).differences(examples))
    assert [(index, difference.text) for index, difference in found] == [(1, text)]


def test_without_a_tokenizer_the_rest_is_checked(run_audit: RunAudit, tmp_path: Path) -> None:
    report = run_audit([talk("Hi", ""), talk("a", "b\x00")], tokenizer=None)
    assert {f.rule.code for f in report.findings} == {"empty-answer", "encoding"}
    assert report.lengths is not None and report.lengths.unit == "characters"
    assert (report.tokens, report.trained_tokens) == (None, None)
    assert report.not_checked["unstable-boundary"] == "--tokenizer"
    assert report.not_checked["too-long"] == "--tokenizer and --max-length"
