"""Turns as samples: each turn is trained exactly as it is served, in one text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from testkit.budget import budget
from testkit.odd_templates import made
from testkit.published import CALL, GET, OWN, TRL, assistant, conversation, published, tool, user

from templatekit import Example, Message, RecordError, Template, TokenizedExample
from templatekit.formats.turns import Conversation
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import loss_spans
from templatekit.types import NO_TOKENIZER, SpecialTokens, TargetSpan

TEXTS = (
    "Hello",
    "same",
    "it is, see: the user",
    "",
    "  ",
    "\n\nB.\n",
    "<think>\nHm.\n</think>\n\nB.",
    "x</think>y",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<tool_response>\nx\n</tool_response>",
    "/nothink",
    "{{ x }}",
)
PAIR = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}}
TOKENS = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>", "<e>", "<f>"}))


@st.composite
def exchanges(draw: st.DrawFn) -> list[Message]:
    """A user's message and what follows: an answer, or tool calls with their results, mostly with an answer."""
    text = st.sampled_from(TEXTS)
    reasoning = st.sampled_from(["", "", "Hm.", "same"])
    weight = st.sampled_from([1.0, 1.0, 1.0, 0.0])
    messages = [user(draw(text))]
    for calls in draw(st.lists(st.sampled_from([(CALL,), (PAIR,), (CALL, PAIR)]), max_size=2) | st.just([])):
        messages.append(assistant(draw(text), reasoning=draw(reasoning), weight=draw(weight), tool_calls=calls))
        messages.append(tool(draw(text)))
    if draw(st.integers(0, 5)):
        messages.append(assistant(draw(text), reasoning=draw(reasoning), weight=draw(weight)))
    return messages


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    messages = [message for turn in draw(st.lists(exchanges(), min_size=1, max_size=6)) for message in turn]
    if draw(st.booleans()):
        messages = [replace(message, reasoning="", tool_calls=()) for message in messages if message.role != "tool"]
    if draw(st.booleans()):
        messages.insert(0, Message(role="system", content="Be brief."))
    tools = (GET,) if any(message.tool_calls for message in messages) else ()
    return Example(messages=tuple(messages), tools=tools)


Alone = tuple[str, tuple[TargetSpan, ...]]


def alone(template: Template, example: Example, tokens: SpecialTokens, turn: int) -> Alone:
    """A turn's text up to the end of its target, and its targets, if the conversation ends with the turn."""
    messages = [replace(message, weight=0.0) for message in example.messages[:turn]]
    cut = replace(example, messages=(*messages, replace(example.messages[turn], weight=1.0)))
    (sample,) = template.samples(cut, tokens, last_only=True)
    targets = sample.rendered.target_spans
    return (sample.rendered.text[: targets[-1].end] if targets else "", targets)


def check_turns(template: Template, example: Example, tokens: SpecialTokens) -> int:
    """PROPERTIES 28: the targets in a text are those of each turn's own rendering, and each is in one sample.

    Returns how many samples there are.
    """
    samples = template.samples(example, tokens)
    turns = [turn for turn, message in enumerate(example.messages) if message.role == "assistant" and message.weight]
    own = {turn: alone(template, example, tokens, turn) for turn in turns}
    whole = template.render(example, tokens)
    as_served = [turn for turn in turns if whole.text.startswith(own[turn][0])]
    found = [target for target in whole.target_spans if whole.message_weights[target.message]]
    assert found == [target for turn in as_served for target in own[turn][1]]
    trained = Counter[TargetSpan]()
    for sample in samples:
        assert sample.rendered.text == template.render(sample.example, tokens).text
        for target in sample.rendered.target_spans:
            text, targets = own[target.message]
            assert sample.rendered.text.startswith(text) and target in targets
            trained[target] += 1
    assert trained == {target: 1 for turn in turns for target in own[turn][1]}
    assert any(sample.rendered.target_spans for sample in samples) or len(samples) == 1
    return len(samples)


@pytest.mark.parametrize("name", [*TRL, *OWN])
@settings(max_examples=budget(12))
@given(example=conversations())
def test_28_every_turn_is_trained_once_as_it_is_served(name: str, example: Example, tokenizer_of: Any) -> None:
    chat = published(name, tokenizer_of)
    template = chat.template.ended_by("none")
    try:
        template.samples(example, chat.tokens)
    except RecordError as error:
        event(error.reason)
        return
    try:
        event(f"{check_turns(template, example, chat.tokens)} samples")
    except RecordError as error:
        assert error.reason == "no_place_for_field"  # the turn's own rendering leaves this message out


def template_of(turn: str) -> Template:
    return made(
        "{% for m in messages %}{% if m.role == 'assistant' %}" + turn + "</s>{% else %}U {{ m.content }}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}A {% endif %}"
    )


DEPENDENT = {
    "a text that it searches for": "A {% if 'b' in m.content and loop.last %}!{% endif %}{{ m.content }}",
    "a text that it splits at": "A {{ m.content if loop.last else m.content.split('b')[-1] }}",
    "a text in a variable": "{% set t = '<b>' %}A {% if t in m.content and loop.last %}!{% endif %}{{ m.content }}",
    "whitespace at the edge": "A {% if loop.last %}{{ m.content | trim }}{% else %}{{ m.content }}{% endif %}",
    "a field": "A {% if m.reasoning_content and loop.last %}{{ m.reasoning_content }}!{% endif %}{{ m.content }}",
    "the next role": "A {% if loop.nextitem is defined and loop.nextitem.role == 'tool' %}!{% endif %}{{ m.content }}",
    "an empty text": "A {% if not m.content and loop.last %}(nothing){% endif %}{{ m.content }}",
    "the position": "A {{ m.content }}{% if loop.index < 5 and loop.revindex > 1 %}!{% endif %}",
}
ODD = {
    "a text that it searches for": assistant("abc"),
    "a text that it splits at": assistant("abc"),
    "a text in a variable": assistant("a<b>c"),
    "whitespace at the edge": assistant("a "),
    "a field": assistant("a", reasoning="r"),
    "the next role": assistant("a"),
    "an empty text": assistant(""),
    "the position": assistant("a"),
}


def with_odd_turn(what: str) -> Example:
    """Eight plain turns, except that the template treats the fifth differently."""
    pairs = [(user("x"), assistant("a")) for _ in range(8)]
    pairs[4] = (user("x"), ODD[what])
    messages = [message for pair in pairs for message in pair]
    if what == "the next role":
        messages.insert(10, Message(role="tool", content="t"))
    return Example(messages=tuple(messages))


@pytest.mark.parametrize("what", DEPENDENT)
def test_a_turn_that_is_treated_differently_is_noticed(what: str) -> None:
    assert check_turns(template_of(DEPENDENT[what]), with_odd_turn(what), TOKENS) > 1


def test_a_turn_not_as_served_that_changes_the_text_before_another() -> None:
    """As in GLM 4.5, which drops old reasoning: the next answer was served with it, which no shape shows."""
    source = (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "{% if m.role == 'user' %}U {{ m.content }}\n{% else %}"
        "A {{ m.content if loop.index0 > ns.last else m.content.split('#')[-1] }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A {% endif %}"
    )
    plain = [user("x"), assistant("a"), assistant("b")]
    thought = [user("x"), assistant("hm#a"), assistant("b")]
    example = conversation(*plain, *thought, *plain, *plain)
    for weight in (1.0, 0.0):
        messages = tuple(replace(m, weight=weight) if m.content == "hm#a" else m for m in example.messages)
        assert check_turns(made(source), replace(example, messages=messages), TOKENS) == 2


def test_the_property_notices_turns_that_are_trained_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Conversation.texts
    monkeypatch.setattr(
        Conversation, "texts", lambda self, last_only: texts(self, last_only=last_only) * (2 - last_only)
    )
    with pytest.raises(AssertionError):
        check_turns(template_of("A {{ m.content }}"), conversation(user("x"), assistant("a")), TOKENS)


def trained_texts(
    template: Template, example: Example, tokens: SpecialTokens, **options: Any
) -> list[tuple[int, list[str]]]:
    """How many messages each sample has, and the text of its targets."""
    samples = template.samples(example, tokens, **options)
    return [
        (len(s.example.messages), [s.rendered.text[t.start : t.end] for t in s.rendered.target_spans]) for s in samples
    ]


def qwen3(tokenizer_of: Any) -> tuple[Template, SpecialTokens]:
    chat = published("qwen3-own", tokenizer_of)
    return chat.template, chat.tokens


def test_qwen3_gives_a_sample_a_user_message(tokenizer_of: Any) -> None:
    thoughts = [assistant(text, reasoning="Hm.") for text in ("B.", "D.")]
    example = conversation(user("A?"), thoughts[0], user("C?"), thoughts[1])
    assert trained_texts(*qwen3(tokenizer_of)[:1], example, qwen3(tokenizer_of)[1]) == [
        (2, ["<think>\nHm.\n</think>\n\nB.<|im_end|>"]),
        (4, ["<think>\nHm.\n</think>\n\nD.<|im_end|>"]),
    ]


def test_qwen3_a_call_with_reasoning_and_its_answer_are_one_sample(tokenizer_of: Any) -> None:
    template, tokens = qwen3(tokenizer_of)
    call = assistant("", reasoning="Look.", tool_calls=(CALL,))
    example = conversation(user("A?"), call, tool("Sunny."), assistant("B.", reasoning="Hm."), tools=True)
    ((messages, trained),) = trained_texts(template, example, tokens)
    assert messages == 4
    assert trained[0].startswith("<think>\nLook.\n</think>\n\n<tool_call>")
    assert trained[1] == "<think>\nHm.\n</think>\n\nB.<|im_end|>"
    # Without reasoning, the call has an empty block if it is last, and none if its result follows.
    plain = replace(example, messages=(example.messages[0], replace(call, reasoning=""), *example.messages[2:]))
    assert [messages for messages, _ in trained_texts(template, plain, tokens)] == [2, 4]


def test_a_turn_without_weight_needs_no_sample(tokenizer_of: Any) -> None:
    template, tokens = qwen3(tokenizer_of)
    example = conversation(user("A?"), assistant("B.", weight=0.0), user("C?"), assistant("D."))
    assert [messages for messages, _ in trained_texts(template, example, tokens)] == [4]
    last = conversation(user("A?"), assistant("B."), user("C?"), assistant("D.", weight=0.0))
    assert [messages for messages, _ in trained_texts(template, last, tokens)] == [2]
    none = conversation(user("A?"), assistant("B.", weight=0.0))
    assert trained_texts(template, none, tokens) == [(2, [])]


def test_the_last_turn_alone(tokenizer_of: Any) -> None:
    template, tokens = qwen3(tokenizer_of)
    example = conversation(user("A?"), assistant("B."), user("C?"), assistant("D."))
    (sample,) = trained_texts(template, example, tokens, last_only=True)
    assert sample == (4, ["<think>\n\n</think>\n\nD.<|im_end|>"])
    # A user's message after the answer does not change the text that was served.
    open_ended = replace(example, messages=(*example.messages, user("E?")))
    assert trained_texts(template, open_ended, tokens, last_only=True) == [sample]


def test_a_turn_at_the_start_of_a_conversation_has_no_prompt(tokenizer_of: Any) -> None:
    """Qwen 3's template fails on no messages at all: the greeting is history, and the rest is trained."""
    example = conversation(assistant("Welcome."), user("A?"), assistant("B."))
    template, tokens = qwen3(tokenizer_of)
    assert [trained for _, trained in trained_texts(template, example, tokens)] == [
        ["<think>\n\n</think>\n\nB.<|im_end|>"]
    ]
    smollm2 = published("smollm2-own", tokenizer_of)
    trained = [text for _, texts in trained_texts(smollm2.template, example, smollm2.tokens) for text in texts]
    assert "B.<|im_end|>" in trained


MARKED = (
    "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% else %}A{% if loop.last %}!{% endif %}"
    "{% generation %}{{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}"
)


def test_blocks_decide_what_is_trained_and_the_served_text_where() -> None:
    example = conversation(user("q"), assistant("r"), user("s"), assistant("t"))
    assert trained_texts(made(MARKED), example, TOKENS) == [(2, ["r</s>"]), (4, ["t</s>"])]
    as_served = made(MARKED.replace("{% if loop.last %}!{% endif %}", ""))
    assert trained_texts(as_served, example, TOKENS) == [(4, ["r</s>", "t</s>"])]
    never = made(
        MARKED.replace(
            "{% generation %}", "{% if loop.length > 9 %}{% generation %}{% endgeneration %}{% endif %}", 1
        ).replace("</s>{% endgeneration %}", "</s>")
    )
    assert trained_texts(never, example, TOKENS) == [(4, [])]


@pytest.mark.parametrize(
    ("name", "wide"),
    [("llama3-own", True), ("qwen3_instruct_2507", False), ("phi3", False), ("gemma3", False), ("muse_glimmer", False)],
)
@pytest.mark.parametrize("tools", [False, True])
def test_texts_with_origins_are_linear_in_turns(
    name: str, wide: bool, tools: bool, tokenizer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In characters rendered: 80 turn pairs take at most 20 times as many as 5."""
    chat = published(name, tokenizer_of)
    run = Template._render_variables
    rendered = 0

    def counted(self: Template, *arguments: Any) -> Any:
        nonlocal rendered
        text = run(self, *arguments)
        rendered += len(text)
        return text

    monkeypatch.setattr(Template, "_render_variables", counted)

    def cost(pairs: int) -> int:
        nonlocal rendered
        rendered = 0
        messages = []
        for number in range(pairs):
            messages.append(user(f"Question {number:02}?"))
            if tools:
                messages += [assistant("", tool_calls=(CALL,)), tool(f"{number:02}")]
            messages.append(assistant(f"Answer {number:02}."))
        (sample,) = chat.template.samples(conversation(*messages, tools=tools), chat.tokens)
        assert len(sample.rendered.target_spans) == pairs * (2 if tools else 1)
        return rendered

    try:
        assert cost(80) <= 20 * cost(5)
    except RecordError as error:
        assert tools and error.reason in ("no_place_for_field", "template_refused", "unknown_role")


def test_a_conversation_is_rendered_at_one_instant() -> None:
    """Time passes between two renderings, but not within one sample's texts."""
    source = "{{ strftime_now('%H:%M:%S.%f') }}" + template_of("A {{ m.content }}").source
    example = conversation(*(message for _ in range(4) for message in (user("q"), assistant("a"))))
    (sample,) = made(source).samples(example, TOKENS)
    assert len(sample.rendered.target_spans) == 4
    twice = made("{{ strftime_now('%f') }}{% for _ in range(999) %}{% endfor %}{{ strftime_now('%f') }}" + source)
    text = twice.render(example, TOKENS).text
    assert text[:6] == text[6:12]


@pytest.mark.parametrize("name", ["qwen3-own", "llama3-own", "smollm2-own"])
@given(example=conversations())
def test_17_the_ids_before_a_turn_are_those_a_server_feeds(name: str, example: Example, tokenizer_of: Any) -> None:
    """For the first turn that each sample trains: the text after that turn is cut at more positions than a prompt."""
    chat = published(name, tokenizer_of)
    encoder = Encoder(tokenizer_of(name.removesuffix("-own")))
    try:
        samples = chat.template.samples(example, chat.tokens)
    except RecordError:
        return
    for sample in samples:
        check_prompt_ids(sample.rendered, chat.template, encoder.encode, example, chat.tokens)


def check_prompt_ids(
    rendered: Any, template: Template, encode: Callable[..., TokenizedExample], example: Example, tokens: SpecialTokens
) -> None:
    if not rendered.target_spans:
        return
    first = rendered.target_spans[0].message
    until = replace(example, messages=example.messages[: first + 1])
    prompt = encode(template.prompt(until, tokens)).input_ids
    tokenized = encode(rendered, loss_spans(rendered, "response"))
    assert tokenized.input_ids[: len(prompt)] == prompt
    assert not any(tokenized.loss_weights[: len(prompt)]) and tokenized.loss_weights[len(prompt)]


def test_an_end_that_is_in_a_generation_block_behind_an_answer_alone() -> None:
    """The whole text ends alike behind a user's message, but in no block."""
    template = made(
        "{% for m in messages %}{% if m.role == 'assistant' %}A {% generation %}{{ m.content }}</s>\n"
        "{% endgeneration %}"
        "{% else %}U {{ m.content }}</s>\n{% endif %}{% endfor %}{% if add_generation_prompt %}A {% elif "
        "messages[-1].role == 'assistant' %}{% generation %}<e>{% endgeneration %}{% else %}<e>{% endif %}"
    )
    example = conversation(user("a"), assistant("b"), assistant("c"), user("d"))
    assert check_turns(template, example, TOKENS) == 2


def test_the_error_for_a_prompt_that_is_no_prefix_names_kwargs_that_help(tokenizer_of: Any) -> None:
    if "qwen3_5_nothink" not in TRL:
        pytest.skip("trl is not installed")
    example = conversation(user("A?"), assistant("B.", reasoning="R."))
    asks = made(
        "{% for m in messages %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}Is it so?{% endif %}"
    )
    chat = published("qwen3_5_nothink", tokenizer_of)
    for template, tokens, turns, helps in (
        (chat.template, chat.tokens, example, "enable_thinking=true"),
        (asks, TOKENS, conversation(user("A?"), assistant("B.")), None),
    ):
        with pytest.raises(RecordError) as caught:
            template.samples(turns, tokens)
        assert caught.value.reason == "prompt_is_no_prefix"
        expected = f"--chat-template-kwargs {helps}" if helps else "no option of the template changes that"
        assert expected in str(caught.value)


def test_text_joined_to_escaped_text_is_refused_in_plain_words() -> None:
    example = conversation(user("<b>"), assistant("a"))
    from templatekit import TemplateError

    source = "{{ (messages[0].content | e) + '<x>' }}{% for m in messages[1:] %}{{ m.content }}{% endfor %}"
    with pytest.raises(TemplateError, match=r"joins text to the result of `\| e`, which Jinja then escapes too"):
        made(source).render(example, NO_TOKENIZER)
    apart = made("{{ messages[0].content | e }}{% for m in messages[1:] %}{{ m.content }}{% endfor %}")
    assert apart.render(example, NO_TOKENIZER).text == "&lt;b&gt;a"
