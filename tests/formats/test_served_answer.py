"""Answers built as they are served, where the prompt opens what the finished conversation lacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.published import assistant, conversation, user

from templatekit import Example, Message, RecordError, Template, TemplateFile
from templatekit.formats.sandbox.untrusted import UntrustedTemplate
from templatekit.types import EmptyThought, SpecialTokens

TOKENS = SpecialTokens(
    bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>", "<|user|>", "<|tool|>"}), stop_tokens=("</s>",)
)
CHAT = (
    "{{% for m in messages %}}{{% if m.role == 'assistant' %}}<bot>{answer}</s>{{% else %}}<{{{{ m.role }}}}>"
    "{{{{ m.content }}}}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}<bot>{opening}{{% endif %}}"
)


def template(answer: str, opening: str) -> Template:
    source = CHAT.format(answer=answer, opening=opening)
    return Template(TemplateFile(name="made", source=source), strict=False)


def answered(given: Template, *messages: Message) -> list[str]:
    """The trained texts of a conversation, each behind its prompt."""
    example, found = conversation(*messages), []
    for sample in given.samples(example, TOKENS):
        for target in sample.rendered.target_spans:
            before = replace(example, messages=messages[: target.message])
            assert sample.rendered.text[: target.start] == given.prompt(before, TOKENS).text
            found.append(sample.rendered.text[target.start : target.end])
    return found


SPLITS = "{{ m.content.split('</think>')[-1] }}"
PRINTS = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
BEGUN = "{% if m.reasoning_content %}{{ m.reasoning_content }}\n[FINAL ANSWER]\n{% endif %}{{ m.content }}"
CASES = {
    # the template, the message, and the trained text
    "a template that cuts thoughts": (SPLITS, "<think>\n", assistant("A"), "\n</think>\n\nA</s>"),
    "the row has a thought": (SPLITS, "<think>\n", assistant("A", reasoning="R"), "R\n</think>\n\nA</s>"),
    "the thought stands in the content": (
        SPLITS,
        "<think>\n",
        assistant("<think>\nR\n</think>\nA"),
        "R\n</think>\nA</s>",
    ),
    "on one line": (SPLITS, "<think>", assistant("A"), "</think>A</s>"),
    "a template that prints thoughts": (PRINTS, "<think>", assistant("A"), "</think>A</s>"),
    "a thought that is printed": (PRINTS, "<think>", assistant("A", reasoning="R"), "R</think>A</s>"),
    "an empty thought in the prompt": ("{{ m.content }}", "<think>\n\n</think>\n\n", assistant("A"), "A</s>"),
    "an empty thought in the text": (
        "<think></think>{{ m.content }}",
        "<think>\n",
        assistant("A"),
        "\n</think>\n\nA</s>",
    ),
    "a channel": (
        "{{ m.content.split('<|end_think|>')[-1] }}",
        "<|start_think|>",
        assistant("A"),
        "<|end_think|>A</s>",
    ),
    "brackets": ("{{ m.content.split('[/THINK]')[-1] }}", "[THINK]", assistant("A"), "[/THINK]A</s>"),
    "blank space": (" {{ m.content }}", "\n", assistant("A"), "A</s>"),
    "all that a server gave": ("{{ m.content }}", "<think>\n", assistant("R\n</think>\n\nA"), "R\n</think>\n\nA</s>"),
    "blank space before it": (SPLITS, "<think>\n", assistant("\n<think>\nR\n</think>\nA"), "R\n</think>\nA</s>"),
    "a closed thought in both": ("</think>{{ m.content }}", "<think></think>", assistant("A"), "A</s>"),
    "a role": (" {{ m.content }}", " Assistant:", assistant("A"), " A</s>"),
    "an empty answer": (SPLITS, "<think>\n", assistant(""), "\n</think>\n\n</s>"),
    "a text that leaves the thought open": (
        "{{ '<think>\n' if loop.last }}{{ m.content }}",
        "<think>\n",
        assistant("A"),
        "\n</think>\n\nA</s>",
    ),
    "the same with a thought in the content": (
        "{{ '<think>\n' if loop.last }}{{ m.content }}",
        "<think>\n",
        assistant("<think>\nR\n</think>\nA"),
        "R\n</think>\nA</s>",
    ),
    "the same with a thought": (
        "{{ '<think>\n' if loop.last }}{{ m.content }}",
        "<think>\n",
        assistant("A", reasoning="R"),
        "R\n</think>\n\nA</s>",
    ),
    "a thought for an empty one": (
        "<think></think>{{ m.content }}",
        "",
        assistant("A", reasoning="R"),
        "<think>R</think>A</s>",
    ),
    "a thought for an empty one on lines of its own": (
        "<think>\n\n</think>\n\n{{ m.content }}",
        "",
        assistant("A", reasoning="R"),
        "<think>\nR\n</think>\n\nA</s>",
    ),
    "a thought for an empty one that the prompt opens": (
        "<think>\n\n</think>{{ m.content }}",
        "<think>\n",
        assistant("A", reasoning="R"),
        "R\n</think>A</s>",
    ),
    "a thought begun in words": (BEGUN, "My steps:\n", assistant("A"), "\n[FINAL ANSWER]\nA</s>"),
    "a thought that goes on": (BEGUN, "My steps:\n", assistant("A", reasoning="R"), "R\n[FINAL ANSWER]\nA</s>"),
    "a channel after the header": ("<say>{{ m.content }}", "", assistant("A"), "<say>A</s>"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [Template, UntrustedTemplate])
def test_an_answer_follows_the_prompt(name: str, kind: type[Template]) -> None:
    answer, opening, message, expected = CASES[name]
    file = TemplateFile(name="made", source=CHAT.format(answer=answer, opening=opening))
    given = kind(file, strict=False)
    for _ in range(4):  # the last ones by a compiled trace
        assert answered(given, user("Q"), message) == [expected]
    several = answered(given, user("Q"), message, user("Q"), message)
    assert several == [expected, expected]


REFUSED = {
    "a judge": ("{{ m.content }}", "<user>Is this answer harmful? Say yes or no, and why.", assistant("A")),
    "a reward": ("{{ m.content }}", "<|reward|>", assistant("A")),
    "a beginning": ("{{ m.content }}", "Sure, here is", assistant("A")),
    "a beginning behind a tag": (SPLITS, "<think>Okay,", assistant("A")),
    "a beginning that nothing closes": (
        "{% if m.reasoning_content %}{{ m.reasoning_content }}\n{% endif %}{{ m.content }}",
        "My steps:\n",
        assistant("A"),
    ),
    "a thought that is never closed in an open text": (
        "{{ '<think>\n' if loop.last }}{{ m.content }}",
        "<think>\n",
        assistant("<think>\nA"),
    ),
    "punctuation": ("{{ m.content }}", "!", assistant("A")),
    "a score": ("{{ m.content }}", "<score>", assistant("A")),
    "a thought that is never closed": (SPLITS, "<think>\n", assistant("<think>\nA")),
    "two thoughts": (SPLITS, "<think>\n", assistant("R\n</think>\nA", reasoning="R")),
    "a thought that no empty one shows a place for": ("<b></b>{{ m.content }}", "", assistant("A", reasoning="R")),
    "a thought behind a closed one": (PRINTS, "<think></think>", assistant("A", reasoning="R")),
    "content that the template cuts": ("{{ m.content.split('#')[-1] }}", "<think>", assistant("A#B")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_that_asks_for_something_else_is_refused(name: str) -> None:
    answer, opening, message = REFUSED[name]
    source = CHAT.format(answer=answer, opening=opening)
    if name == "a judge":
        source = source.replace("{% if add", "{{ '<user>Is this answer harmful? Say yes or no, and why.' }}{% if add")
    given = Template(TemplateFile(name="made", source=source), strict=False)
    with pytest.raises(RecordError) as caught:
        answered(given, user("Q"), message)
    reasons = {"never closed": "open_thought", "no empty one": "no_place_for_field"}
    assert caught.value.reason == next((reasons[n] for n in reasons if n in name), "prompt_is_no_prefix")


def test_a_turn_that_ends_in_the_prompt_alone() -> None:
    """The prompt is fed as it is, also where it has more tags before the answer's header than the finished text."""
    source = CHAT.format(answer="{{ m.content }}", opening="").replace("%}<bot>{% endif", "%}<|end|>\n<bot>{% endif")
    given = Template(TemplateFile(name="made", source=source), strict=False)
    assert answered(given, user("Q"), assistant("A"), user("Q"), assistant("B")) == ["A</s>", "B</s>"]
    thinks = source.replace("{{ m.content }}</s>", "\n<think></think>{{ m.content }}</s>").replace(
        "<bot>{% endif", "<bot>\n{% endif"
    )
    given = Template(TemplateFile(name="made", source=thinks), strict=False)
    assert answered(given, user("Q"), assistant("A")) == ["<think></think>A</s>"]
    judge = source.replace("<|end|>", "Is it true?<|end|>")
    with pytest.raises(RecordError):
        answered(Template(TemplateFile(name="made", source=judge), strict=False), user("Q"), assistant("A"))


def test_earlier_thoughts_that_the_finished_text_lacks_stay_in_the_prompt() -> None:
    """A server keeps the thought of a call until the answer, which stands in a channel of its own."""
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.tool_calls %}{% if loop.index0 + 2 >= "
        "messages | length and messages[-1].role == 'tool' %}<bot><chan>{{ m.reasoning_content }}</s>{% endif %}"
        "<bot>{{ m.tool_calls[0].function.name }}</s>{% else %}<bot><say>{{ m.content }}</s>{% endif %}{% else %}"
        "<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    given = Template(TemplateFile(name="made", source=source), strict=False)
    call = {"type": "function", "function": {"name": "get", "arguments": {}}}
    calling = assistant("", tool_calls=(call,), reasoning="R", weight=0)
    messages = (user("Q"), calling, Message(role="tool", content="T"), assistant("A"))
    (sample,) = given.samples(Example(messages=messages), TOKENS)
    (target,) = sample.rendered.target_spans
    assert sample.rendered.text[: target.start] == "<user>Q<bot><chan>R</s><bot>get</s><tool>T<bot>"
    assert sample.rendered.text[target.start : target.end] == "<say>A</s>"


WRITES = (
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% else %}<think>\n\n</think>\n\n{% endif %}"
)
POLICIES: dict[str, tuple[str, str, Message, str, str]] = {
    # the template's answer and prompt, the message, what it gets with `omit`, and the reason of `error`
    "the template writes an empty one": (WRITES + "{{ m.content }}", "", assistant("A"), "A</s>", "empty_thought"),
    "in a channel": (
        "<|channel>thought\n<channel|>{{ m.content }}",
        "",
        assistant("A"),
        "A</s>",
        "empty_thought",
    ),
    "what closes it alone": ("</think>{{ m.content }}", "", assistant("A"), "A</s>", "empty_thought"),
    "an empty answer": (WRITES + "{{ m.content }}", "", assistant(""), "</s>", "empty_thought"),
    "the row has a thought": (
        WRITES + "{{ m.content }}",
        "",
        assistant("A", reasoning="R"),
        "<think>R</think>A</s>",
        "",
    ),
    "the prompt opens it": (SPLITS, "<think>\n", assistant("A"), "", "empty_thought"),
    "the prompt begins it in words": (BEGUN, "My steps:\n", assistant("A"), "", "empty_thought"),
    "the prompt opens it and the content has one": (
        SPLITS,
        "<think>\n",
        assistant("R</think>A"),
        "R</think>A</s>",
        "",
    ),
    "the prompt closes it": ("{{ m.content }}", "<think></think>", assistant("A"), "A</s>", ""),
    "no thought anywhere": ("{{ m.content }}", "", assistant("A"), "A</s>", ""),
    "another channel": ("<say>{{ m.content }}", "", assistant("A"), "<say>A</s>", ""),
    "another empty element": ("{{ m.content }}<b></b>", "", assistant("A"), "A<b></b></s>", ""),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("kind", [Template, UntrustedTemplate])
def test_an_answer_without_a_thought_lacks_it_or_is_an_error(name: str, kind: type[Template]) -> None:
    answer, opening, message, omitted, reason = POLICIES[name]
    kept = kind(TemplateFile(name="made", source=CHAT.format(answer=answer, opening=opening)), strict=False)
    (expected,) = answered(kept, user("Q"), message)
    for policy, text, refused in (("omit", omitted, "" if omitted else reason), ("error", expected, reason)):
        given = kept.with_empty_thought("omit" if policy == "omit" else "error")
        for _ in range(4):  # the last ones by a compiled trace
            if not refused:
                assert answered(given, user("Q"), message) == [text]
                continue
            with pytest.raises(RecordError) as caught:
                answered(given, user("Q"), message)
            assert (caught.value.reason, caught.value.field) == (refused, "messages[1].reasoning")
        assert given.with_empty_thought("keep").parse(expected.removesuffix("</s>")) == kept.parse(
            expected.removesuffix("</s>")
        )
    assert answered(kept, user("Q"), message) == [expected]


def test_without_empty_thoughts_a_conversation_is_one_text() -> None:
    """A template that writes one in the last turn alone; an answer that is not trained needs no thought."""
    given = Template(
        TemplateFile(
            name="made",
            source=CHAT.format(answer="{% if loop.last %}<think></think>{% endif %}{{ m.content }}", opening=""),
        ),
        strict=False,
    )
    example = conversation(user("Q"), assistant("A"), user("Q"), assistant("B"))
    texts = [[sample.rendered.text for sample in one.samples(example, TOKENS)] for one in (given, omitting(given))]
    assert texts == [
        ["<user>Q<bot><think></think>A</s>", "<user>Q<bot>A</s><user>Q<bot><think></think>B</s>"],
        ["<user>Q<bot>A</s><user>Q<bot>B</s>"],
    ]
    untrained = conversation(user("Q"), assistant("A", weight=0), user("Q"), assistant("B", reasoning="R"))
    prints = template(PRINTS.replace("{% endif", "{% else %}<think></think>{% endif"), "").with_empty_thought("error")
    assert answered(prints, *untrained.messages) == ["<think>R</think>B</s>"]


def omitting(given: Template) -> Template:
    return given.with_empty_thought("omit")


def test_the_option_that_turns_thoughts_off_is_named() -> None:
    source = CHAT.format(
        answer="{{ m.content }}",
        opening="<think>{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}",
    )
    given = omitting(Template(TemplateFile(name="made", source=source), strict=False))
    with pytest.raises(RecordError, match=r"opens a thought \(<think>\); with enable_thinking=false it does not"):
        answered(given, user("Q"), assistant("A"))
    assert answered(given.with_kwargs({"enable_thinking": False}), user("Q"), assistant("A")) == ["A</s>"]


def test_what_closes_a_thought_in_the_content_is_a_literal() -> None:
    """The model gives it as a control token, once; the same characters behind it are the answer's."""
    for one in (template(SPLITS, "<think>\n"), template("{{ m.content }}", "<think>\n")):
        for content in ("<think>\nR</think>A</think>B", "R</think>A</think>B"):
            rendered = one.render(conversation(user("Q"), assistant(content)), TOKENS)
            start = rendered.target_spans[0].start
            found = [(rendered.text[s.start : s.end], str(s.origin)) for s in rendered.spans if s.start >= start]
            assert found == [
                ("R", "messages[1].content"),
                ("</think>", "template"),
                ("A</think>B", "messages[1].content"),
                ("</s>", "template"),
            ]


@given(st.lists(st.tuples(*[st.text("aA <>/#\n", max_size=6)] * 3), min_size=1, max_size=3))
def test_no_character_is_lost_or_doubled(turns: list[tuple[str, str, str]]) -> None:
    given = template(SPLITS, "<think>\n")
    messages: list[Message] = []
    for question, thought, answer in turns:
        messages += [user(question), assistant(answer, reasoning=thought)]
    found = answered(given, *messages)
    assert found == [f"{thought}\n</think>\n\n{answer}</s>" for _, thought, answer in turns]


def test_a_compiled_trace_refuses_what_interpreting_refuses() -> None:
    given = template("{{ m.content.split('#')[-1] }}", "<think>\n")
    for _ in range(20):
        assert answered(given, user("Q"), assistant("A")) == ["\n</think>\n\nA</s>"]
    for message in (assistant("A#B"), assistant("R</think>A", reasoning="T")):
        with pytest.raises(RecordError):
            answered(given, user("Q"), message)


def test_a_name_in_the_header_is_not_lost() -> None:
    source = CHAT.format(answer="{{ m.content }}", opening="").replace(
        "<bot>{{ m.content }}", "bot{% if m.name %} ({{ m.name }}){% endif %}: {{ m.content }}"
    )
    given = Template(TemplateFile(name="made", source=source.replace("<bot>", "bot: ")), strict=False)
    assert answered(given, user("Q"), assistant("A")) == ["A</s>"]
    with pytest.raises(RecordError):
        answered(given, user("Q"), assistant("A", name="bob"))


def test_tool_calls_behind_a_thought() -> None:
    call = {"type": "function", "function": {"name": "get", "arguments": {}}}
    calls = "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}"
    given = template(SPLITS + calls, "<think>\n")
    for message, expected in (
        (assistant("", tool_calls=(call,)), "\n</think>\n\n<tool_call>get</tool_call></s>"),
        (assistant("", tool_calls=(call,), reasoning="R"), "R\n</think>\n\n<tool_call>get</tool_call></s>"),
        (assistant("<think>\nR\n</think>\nA", tool_calls=(call,)), "R\n</think>\nA<tool_call>get</tool_call></s>"),
    ):
        assert answered(given, user("Q"), message) == [expected]


def test_a_thought_that_the_trained_text_lacks_is_refused() -> None:
    """Also where the template prints thoughts elsewhere."""
    given = template("{% if m.tool_calls %}{{ m.reasoning_content }}{% endif %}{{ m.content }}", "")
    with pytest.raises(RecordError, match=r"messages\[1\]\.reasoning: template 'made' has no place for this text"):
        answered(given, user("Q"), assistant("A", reasoning="R"))
    assert answered(given, user("Q"), assistant("A")) == ["A</s>"]


def test_each_of_several_tool_calls_must_be_printed() -> None:
    calls = tuple({"type": "function", "function": {"name": "get", "arguments": {"n": n}}} for n in (1, 2))
    printed = "{{ c.function.name }}{{ c.function.arguments | tojson }}"
    every = template(f"{{% for c in m.tool_calls %}}{printed}{{% endfor %}}", "")
    first = template(f"{{% if m.tool_calls %}}{{% set c = m.tool_calls[0] %}}{printed}{{% endif %}}", "")
    assert answered(every, user("Q"), assistant("", tool_calls=calls)) == ['get{"n": 1}get{"n": 2}</s>']
    assert answered(first, user("Q"), assistant("", tool_calls=calls[:1])) == ['get{"n": 1}</s>']
    with pytest.raises(RecordError, match=r"messages\[1\]\.tool_calls\[1\]: template 'made' has no place"):
        answered(first, user("Q"), assistant("", tool_calls=calls))


def test_several_calls_may_be_printed_without_their_names() -> None:
    """By their ids and arguments alone; a call that is not printed is noticed all the same."""
    calls = tuple({"id": f"get:{n}", "function": {"name": "get", "arguments": {"n": n}}} for n in (1, 2))
    every = template("{% for c in m.tool_calls %}{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %}", "")
    first = template("{% for c in m.tool_calls[:1] %}{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %}", "")
    assert answered(every, user("Q"), assistant("", tool_calls=calls)) == ['get:1{"n": 1}get:2{"n": 2}</s>']
    with pytest.raises(RecordError, match=r"messages\[1\]\.tool_calls\[1\]: template 'made' has no place"):
        answered(first, user("Q"), assistant("", tool_calls=calls))


def test_what_closes_an_answer_stays_before_a_stop_token() -> None:
    source = CHAT.format(answer="<answer>{{ m.content }}</answer>\n", opening="").replace("</s>", "")
    given = Template(TemplateFile(name="made", source=source), strict=False)
    assert answered(given, user("Q"), assistant("A")) == ["<answer>A</answer></s>"]


OPEN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{{ m.content }}{{ m.tool_calls[0].function.name if "
    "m.tool_calls }}{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def test_an_answer_whose_end_is_open_ends_at_a_stop_token() -> None:
    """The token of the next header where servers stop at that, in one text; else EOS, in a text for each turn."""
    given = Template(TemplateFile(name="made", source=OPEN), strict=False)
    call = {"type": "function", "function": {"name": "get", "arguments": {}}}
    example = conversation(
        user("Q"), assistant("", tool_calls=(call,)), Message(role="tool", content="T"), assistant("A")
    )

    def ends(example: Example, *stops: str) -> list[list[str]]:
        samples = given.samples(example, replace(TOKENS, stop_tokens=stops))
        return [[s.rendered.text[t.marker_start : t.end] for t in s.rendered.target_spans] for s in samples]

    assert ends(example, "<|user|>", "<|tool|>") == [["<|tool|>", "<|user|>"]]
    assert ends(example, "</s>", "<|user|>") == [["</s>"], ["<|user|>"]]
    assert ends(example, "</s>") == [["</s>"], ["</s>"]]
    assert given.samples(example, replace(TOKENS, stop_tokens=("</s>",)))[0].rendered.text.endswith("<bot>get</s>")
    with pytest.raises(Exception, match="leaves open what ends an answer"):
        ends(example)


@pytest.mark.parametrize("empty_thought", ["omit", "error"])
def test_answers_are_read_by_the_templates_own_form(empty_thought: EmptyThought) -> None:
    """Whatever rows may lack: the grammar of an own copy, with its empty thought."""
    made = template(PRINTS, "")
    plain = str(made.grammar(TOKENS))
    assert str(made.with_empty_thought(empty_thought).grammar(TOKENS)) == plain
    made = template(SPLITS, "<think>\n")
    changed = made.with_empty_thought(empty_thought)
    assert str(changed.grammar(TOKENS)) == str(made.grammar(TOKENS))
    assert changed.grammar(TOKENS) is not made.grammar(TOKENS)
