"""Published chat templates as they are: text as transformers renders it, and targets that a server would generate.

TRL's wheel carries the templates of many models, as originals and with `{% generation %}` marks of TRL's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit import texts
from testkit.published import OPEN_ENDED, TRL, source_of, tokens_of
from testkit.theirs import as_transformers, form_of, hugging_face
from testkit.theirs import rendered as rendered_by_transformers

from templatekit import Example, Message, RecordError, RenderedText, Template, TemplateError, TemplateFile
from templatekit.types import SpecialTokens

OWN = ["llama3-own", "qwen3-own", "smollm2-own"]
GET = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where?"}},
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, **more: Any) -> Message:
    return Message(role="assistant", content=text, **more)


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
def chat(request: pytest.FixtureRequest, tokenizer_of: Any) -> tuple[str, str, SpecialTokens]:
    """(name, source, tokens) of a published chat template."""
    if request.param in OWN:
        tokenizer = tokenizer_of(request.param.removesuffix("-own"))
        return request.param, tokenizer.chat_template, tokenizer.special_tokens
    return request.param, source_of(request.param), tokens_of(request.param)


@cache
def template(name: str, source: str) -> Template:
    return Template(TemplateFile(name=name, source=source), strict=False)


def check_boundaries(rendered: RenderedText, example: Example, prompts: Mapping[int, str]) -> None:
    """Every target begins where the prompt ends that a server feeds for its turn, or, in a generation block, later."""
    for target in rendered.target_spans:
        prompt = prompts[target.message]
        if rendered.text.startswith(prompt):
            marked = any(s.origin.generation for s in rendered.spans if s.start <= target.start < s.end)
            assert target.start == len(prompt) or (marked and target.start > len(prompt))
        else:  # this turn is printed differently once others follow; its header is still the server's
            header = prompt[-12:]
            assert rendered.text[: target.start].endswith(header)


def check_own_text(rendered: RenderedText, example: Example) -> None:
    """No target holds text of another message, and an answer's own text is all in its target."""
    owners = {index: message.role for index, message in enumerate(example.messages)}
    targets = {index: [t for t in rendered.target_spans if t.message == index] for index in owners}
    for span in rendered.spans:
        message = span.origin.message
        inside = [t for ts in targets.values() for t in ts if t.start < span.end and span.start < t.end]
        assert all(t.message == message for t in inside) or message is None, (span, inside)
        if message is not None and owners[message] == "assistant" and span.origin.field == "content":
            assert any(t.start <= span.start and span.end <= t.marker_start for t in targets[message]), span


@pytest.mark.parametrize("case", EXAMPLES)
def test_published_templates(chat: tuple[str, str, SpecialTokens], case: str) -> None:
    """Text identity, boundaries and masks. What is refused is refused for a reason that transformers confirms."""
    name, source, tokens = chat
    example = EXAMPLES[case]
    try:
        expected, generated = rendering(source, example, tokens)
    except Exception as error:  # the template's own refusal, or its failure on this shape
        with pytest.raises(RecordError) as caught:
            template(name, source).render(example, tokens)
        assert caught.value.reason in ("template_refused", "template_failed"), error
        return
    try:
        rendered = template(name, source).render(example, tokens)
    except RecordError as error:
        confirm(error, source, example, tokens, expected)
        return
    except TemplateError as error:
        assert name in OPEN_ENDED
        assert "nothing behind the answer tells the model to stop" in str(error)
        return
    assert rendered.text == expected
    turns = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    prompts = {turn: prompt(source, example, tokens, turn) for turn in turns}
    check_boundaries(rendered, example, prompts)
    if not generated:
        check_own_text(rendered, example)
        assert [target.message for target in rendered.target_spans] == turns
        assert all(rendered.text[target.marker_start : target.end].strip() for target in rendered.target_spans)
        return
    marked = [(span.start, span.end) for span in rendered.spans if span.origin.generation]
    inside = {position for start, end in marked for position in range(start, end)}
    trained = {position for target in rendered.target_spans for position in range(target.start, target.end)}
    assert trained <= inside
    untrained = inside - trained  # what stands in a block but before its turn's boundary, which a server feeds
    assert all(
        any(position < len(prompts[turn]) and rendered.text[position : position + 1] for turn in turns)
        for position in untrained
    )
    if "strip" not in case and "whitespace" not in case:  # transformers counts before it strips
        assert inside == {position for start, end in generated for position in range(start, end)}


def rendering(source: str, example: Example, tokens: SpecialTokens) -> tuple[str, list[tuple[int, int]]]:
    """transformers' text, and its extents of `{% generation %}` blocks."""
    messages = [hugging_face(message, form_of(source)) for message in example.messages]
    tools = list(example.tools) or None
    return rendered_by_transformers(source, messages, tokens, tools=tools, return_assistant_tokens_mask=True)


def prompt(source: str, example: Example, tokens: SpecialTokens, turn: int) -> str:
    before = Example(messages=example.messages[:turn], tools=example.tools)
    return as_transformers(source, before, tokens, form_of(source), add_generation_prompt=True)


def confirm(error: RecordError, source: str, example: Example, tokens: SpecialTokens, text: str) -> None:
    """A refusal has to be true of transformers' own rendering as well."""
    assert error.field is not None or error.reason == "template_failed"
    if error.reason == "prompt_is_no_prefix":
        turn = int(str(error.field).removeprefix("messages[").removesuffix("]"))
        assert not text.startswith(prompt(source, example, tokens, turn))
    elif error.reason == "unknown_role":
        assert "'tool'" in str(error) and "Sunny." not in text
    elif error.reason == "no_place_for_field":
        field = str(error.field)
        if field == "tools":
            assert "Tells the weather." not in text
        elif field.endswith("tool_calls"):
            assert "Zürich" not in text
        elif field.endswith(("reasoning", "name")):
            spoken = re.sub(r"\{#.*?#\}", "", source, flags=re.DOTALL)
            assert "reasoning" not in spoken or "name" in field
        else:
            message = example.messages[int(field.split("[")[1].split("]")[0])]
            assert text.count(message.content.strip()) < 1 + [m.content for m in example.messages].count(
                message.content
            )
    elif error.reason == "template_failed":
        assert "prints None" in str(error) and "None" in text, error
    else:
        raise error


def test_most_published_templates_render() -> None:
    """Counted, so that a template which stops rendering is noticed."""
    if not TRL:
        pytest.skip("trl is not installed")
    rendered = 0
    for name in TRL:
        try:
            rendered += bool(template(name, source_of(name)).render(EXAMPLES["one turn"], tokens_of(name)).target_spans)
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
    tokenizer = tokenizer_of(name.removesuffix("-own"))
    source, tokens = tokenizer.chat_template, tokenizer.special_tokens
    example = Example(messages=tuple(message for a, b in turns for message in (user(a), assistant(b))))
    try:
        rendered = template(name, source).render(example, tokens)
    except RecordError as error:
        confirm(error, source, example, tokens, as_transformers(source, example, tokens))
        return
    assert rendered.text == as_transformers(source, example, tokens)
    turn_indices = range(1, len(example.messages), 2)
    check_boundaries(rendered, example, {turn: prompt(source, example, tokens, turn) for turn in turn_indices})
    check_own_text(rendered, example)
    assert [target.message for target in rendered.target_spans] == list(turn_indices)


def test_boundary_checks_notice_a_shifted_boundary(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("llama3")
    source, tokens = tokenizer.chat_template, tokenizer.special_tokens
    example = EXAMPLES["three turns"]
    rendered = template("llama3-own", source).render(example, tokens)
    prompts = {turn: prompt(source, example, tokens, turn) for turn in (1, 3, 5)}
    check_boundaries(rendered, example, prompts)
    from dataclasses import replace

    for shift in (-1, 1):
        last = rendered.target_spans[-1]
        moved = replace(rendered, target_spans=(*rendered.target_spans[:-1], replace(last, start=last.start + shift)))
        with pytest.raises(AssertionError):
            check_boundaries(moved, example, prompts)
    swallowed = replace(rendered, target_spans=(replace(rendered.target_spans[0], end=len(rendered.text)),))
    with pytest.raises(AssertionError):
        check_own_text(swallowed, example)
