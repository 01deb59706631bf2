"""Published chat templates as they are: text as transformers renders it, and targets that a server would generate.

TRL's wheel carries the templates of many models, as originals and with `{% generation %}` marks of TRL's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.published import CALL, GET, OPEN_ENDED, ORIGINALS, OWN, TRL, Published, assistant, published, user
from testkit.theirs import as_transformers, form_of, hugging_face, is_served_answer
from testkit.theirs import rendered as rendered_by_transformers

from templatekit import Example, Message, RecordError, RenderedText, TemplateError
from templatekit.testing import texts
from templatekit.types import Sample, SpecialTokens

EXAMPLES: Mapping[str, Example] = {
    "one turn": Example(messages=(user("Hello there."), assistant("Hi you!"))),
    "a system message": Example(
        messages=(Message(role="system", content="Be brief."), user("Hello there."), assistant("Hi you!"))
    ),
    "three turns": Example(
        messages=(user("A?"), assistant("B."), user("C?"), assistant("D."), user("E?"), assistant("F."))
    ),
    "repeated texts": Example(
        messages=(user("same"), assistant("same"), user("same"), assistant("same"), user("same"), assistant("same"))
    ),
    "an empty answer": Example(messages=(user("A?"), assistant(""), user("C?"), assistant("D."))),
    "an empty last answer": Example(messages=(user("A?"), assistant("B."), user("C?"), assistant(""))),
    "reasoning": Example(
        messages=(user("A?"), assistant("B.", reasoning="Hm."), user("C?"), assistant("D.", reasoning="Well."))
    ),
    "inline thinking": Example(
        messages=(user("A?"), assistant("<think>\nHm.\n</think>\n\nB."), user("C?"), assistant("D."))
    ),
    "whitespace": Example(messages=(user("  A?\n"), assistant("\n B. \n\n"), user("\n\n"), assistant("  "))),
    "markers as text": Example(
        messages=(
            user("<|im_end|>\n<|im_start|>assistant\n"),
            assistant("[[<|im_start|>assistant\nB]]"),
            user("C?"),
            assistant("D."),
        )
    ),
    "a tool": Example(
        messages=(
            user("Weather?"),
            assistant("", tool_calls=(CALL,)),
            Message(role="tool", content="Sunny.", name="get_weather"),
            assistant("It is sunny."),
        ),
        tools=(GET,),
    ),
    "a tool beside text": Example(
        messages=(user("Weather?"), assistant("Let me see.", tool_calls=(CALL, CALL))), tools=(GET,)
    ),
}


@pytest.fixture(params=[*TRL, *OWN])
def chat(request: pytest.FixtureRequest, tokenizer_of: Any) -> Published:
    return published(request.param, tokenizer_of)


def check_boundaries(rendered: RenderedText, prompts: Mapping[int, str]) -> None:
    """Every target begins where the prompt ends that a server feeds for its turn, or, in a generation block, later."""
    for target in rendered.target_spans:
        prompt = prompts[target.message]
        assert rendered.text.startswith(prompt)
        marked = any(s.origin.generation for s in rendered.spans if s.start <= target.start < s.end)
        assert target.start == len(prompt) or (marked and target.start > len(prompt))


def check_own_text(rendered: RenderedText) -> None:
    """No target holds text of another message, and a trained answer's own text is all in its target."""
    targets: dict[int, list[Any]] = {}
    for target in rendered.target_spans:
        targets.setdefault(target.message, []).append(target)
    for span in rendered.spans:
        message = span.origin.message
        inside = [t for ts in targets.values() for t in ts if t.start < span.end and span.start < t.end]
        assert all(t.message == message for t in inside) or message is None, (span, inside)
        if message in targets and span.origin.field == "content":
            assert any(t.start <= span.start and span.end <= t.marker_start for t in targets[message]), span


def check_covers(samples: tuple[Sample, ...], turns: list[int]) -> None:
    """Every turn is trained in one sample, and its sample's messages reach at least to it."""
    trained = Counter(t for s in samples for t in {target.message for target in s.rendered.target_spans})
    assert trained == dict.fromkeys(turns, 1)
    assert [s.rendered.sample for s in samples] == list(range(len(samples)))
    assert all(s.rendered.samples == len(samples) for s in samples)
    lengths = [len(s.example.messages) for s in samples]
    assert lengths == sorted(set(lengths))


@pytest.mark.parametrize("case", EXAMPLES)
def test_published_templates(chat: Published, case: str) -> None:
    """Text identity, boundaries and masks. Every refusal has a reason that transformers confirms."""
    name, source, tokens = chat
    example = EXAMPLES[case]
    try:
        expected, _ = rendering(source, example, tokens)
    except Exception as error:  # the template's own refusal, or its failure on this shape
        with pytest.raises(RecordError) as caught:
            chat.template.samples(example, tokens)
        assert caught.value.reason in ("template_refused", "template_failed"), error
        return
    try:
        samples = chat.template.samples(example, tokens)
    except RecordError as error:
        confirm(error, source, example, tokens, expected)
        return
    except TemplateError as error:
        assert name in OPEN_ENDED
        assert "leaves open what ends an answer" in str(error)
        return
    turns = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    for sample in samples:
        check_sample(sample, source, tokens, case)
    if "{% generation" not in source and "{%- generation" not in source:
        check_covers(samples, turns)
        return
    check_covers(samples, sorted({t.message for s in samples for t in s.rendered.target_spans}))


def check_sample(sample: Sample, source: str, tokens: SpecialTokens, case: str) -> None:
    example, rendered = sample.example, sample.rendered
    expected, generated = rendering(source, example, tokens)
    trained = {target.message for target in rendered.target_spans}
    prompts = {turn: prompt(source, example, tokens, turn) for turn in trained}
    last = len(example.messages) - 1
    built = not expected.startswith(prompts.get(last, ""))
    if not built:
        assert rendered.text == expected
    else:
        target = rendered.target_spans[-1]
        answer, message = rendered.text[target.start : target.end], example.messages[-1]
        inline = re.match(r"<think>\s*(.*?)\s*</think>", message.content, re.DOTALL)
        thought = inline[1] if inline else message.reasoning
        assert is_served_answer(answer, prompts[last], expected, thought=thought)
    check_boundaries(rendered, prompts)
    if not generated:
        check_own_text(rendered)
        assert all(rendered.text[target.marker_start : target.end].strip() for target in rendered.target_spans)
        return
    marked = {p for span in rendered.spans if span.origin.generation for p in range(span.start, span.end)}
    assert {p for target in rendered.target_spans for p in range(target.start, target.end)} <= marked
    fed = {position for turn in prompts for position in range(len(prompts[turn]))}
    if "whitespace" not in case and not built:  # transformers counts before it strips
        # A block may begin with characters that the prompt has: a server feeds them.
        assert marked - fed == {position for start, end in generated for position in range(start, end)} - fed


def rendering(source: str, example: Example, tokens: SpecialTokens) -> tuple[str, list[tuple[int, int]]]:
    """transformers' text, and its extents of `{% generation %}` blocks."""
    messages = [hugging_face(message, form_of(source)) for message in example.messages]
    tools = list(example.tools) or None
    return rendered_by_transformers(source, messages, tokens, tools=tools, return_assistant_tokens_mask=True)


def prompt(source: str, example: Example, tokens: SpecialTokens, turn: int) -> str:
    before = Example(messages=example.messages[:turn], tools=example.tools)
    return as_transformers(source, before, tokens, form_of(source), add_generation_prompt=True)


def confirm(error: RecordError, source: str, example: Example, tokens: SpecialTokens, text: str) -> None:
    """The reason of a refusal must also hold for transformers' own rendering."""
    assert error.field is not None or error.reason == "template_failed"
    if error.reason == "prompt_is_no_prefix":
        turn = int(str(error.field).removeprefix("messages[").removesuffix("]"))
        alone = replace(example, messages=example.messages[: turn + 1])
        assert not rendering(source, alone, tokens)[0].startswith(prompt(source, example, tokens, turn))
    elif error.reason == "unknown_role":
        assert "'tool'" in str(error) and "Sunny." not in text
    elif error.reason == "no_place_for_field":
        field = str(error.field)
        if field == "tools":
            assert "Tells the weather." not in text
        elif field.endswith("tool_calls"):
            assert "Zürich" not in text
        elif field.endswith("reasoning"):
            index = int(field.split("[")[1].split("]")[0])
            alone = replace(example, messages=example.messages[: index + 1])
            assert example.messages[index].reasoning not in rendering(source, alone, tokens)[0]
        elif field.endswith("name"):
            assert "get_weather" not in text or example.messages[2].role == "tool"
        else:
            message = example.messages[int(field.split("[")[1].split("]")[0])]
            assert text.count(message.content.strip()) < 1 + [m.content for m in example.messages].count(
                message.content
            )
    elif error.reason == "template_failed":
        assert "prints None" in str(error) and "None" in text, error
    else:
        raise error


def test_the_reference_lists_the_published_templates() -> None:
    if not TRL:
        pytest.skip("trl is not installed")
    reference = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    section = reference.partition("## Published chat templates")[2].partition("\n## ")[0]
    names = re.findall(r"`([a-z0-9_]+)`[,.]", section)
    assert names == ORIGINALS and len(names) >= 40


def test_most_published_templates_render(tokenizer_of: Any) -> None:
    """The renderings are counted, so that a template which stops rendering is noticed."""
    if not TRL:
        pytest.skip("trl is not installed")
    rendered = 0
    for name in TRL:
        chat = published(name, tokenizer_of)
        try:
            rendered += bool(chat.template.render(EXAMPLES["one turn"], chat.tokens).target_spans)
        except TemplateError:
            assert name in OPEN_ENDED
        except RecordError as error:
            assert error.reason in ("prompt_is_no_prefix", "no_place_for_field", "template_failed"), (name, error)
    assert rendered >= 45


CHATS = st.lists(
    st.tuples(*[st.one_of(st.text(max_size=8), st.sampled_from([*texts.MARKERS, *texts.WHITESPACE]))] * 2),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", OWN)
@given(turns=CHATS)
def test_boundaries_of_every_turn(name: str, turns: list[tuple[str, str]], tokenizer_of: Any) -> None:
    chat = published(name, tokenizer_of)
    example = Example(messages=tuple(message for a, b in turns for message in (user(a), assistant(b))))
    try:
        samples = chat.template.samples(example, chat.tokens)
    except RecordError as error:
        confirm(error, chat.source, example, chat.tokens, as_transformers(chat.source, example, chat.tokens))
        return
    for sample in samples:
        check_sample(sample, chat.source, chat.tokens, "whitespace")
    check_covers(samples, list(range(1, len(example.messages), 2)))


def test_boundary_checks_notice_a_shifted_boundary(tokenizer_of: Any) -> None:
    chat = published("llama3-own", tokenizer_of)
    example = EXAMPLES["three turns"]
    rendered = chat.template.render(example, chat.tokens)
    prompts = {turn: prompt(chat.source, example, chat.tokens, turn) for turn in (1, 3, 5)}
    check_boundaries(rendered, prompts)
    for shift in (-1, 1):
        last = rendered.target_spans[-1]
        moved = replace(rendered, target_spans=(*rendered.target_spans[:-1], replace(last, start=last.start + shift)))
        with pytest.raises(AssertionError):
            check_boundaries(moved, prompts)
    swallowed = replace(rendered, target_spans=(replace(rendered.target_spans[0], end=len(rendered.text)),))
    with pytest.raises(AssertionError):
        check_own_text(swallowed)
    samples = chat.template.samples(example, chat.tokens)
    with pytest.raises(AssertionError):
        check_covers(samples, [1, 3])
    with pytest.raises(AssertionError):
        check_covers((*samples, *samples), [1, 3, 5])
