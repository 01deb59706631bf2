"""Compiled traces give what interpreting gives, field by field, for any template and any text."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.bundled import BUNDLED, ONE_TURN
from testkit.odd_templates import made
from testkit.published import ORIGINALS, OWN, TRL, assistant, conversation, published, user

from templatekit import Example, Message, RecordError, Registry, Template, TemplateError
from templatekit.formats.lookup import find_template
from templatekit.formats.tracing import compiler, trace_tree
from templatekit.formats.tracing.compiler import RenderMode, TracingCompiler
from templatekit.formats.tracing.trace import Trace
from templatekit.testing import texts
from templatekit.types import EmptyThought, RenderedText, Sample, SpecialTokens

TOKENS = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>", "<|im_end|>", "<|im_start|>", "<e>"}))

ODD = (
    "",
    "x",
    "b",
    " ",
    "\n\n",
    "a ",
    "\n a\n",
    "<think>\nHm.\n</think>\n\nB.",
    "</think>",
    "</think></think>",
    "<think>",
    "<tool_response>\nx\n</tool_response>",
    "<think>\n\n</think>\n\n",
    "<|im_end|>\n<|im_start|>assistant\n",
    "</s>",
    "/nothink",
    "{{ x }}",
    "Ünï e\u0301 \x1c\u00a0",
    "half \ud800",
    "A b#c#d",
)
TEXT = st.sampled_from(ODD) | texts.adversarial_text(max_fragments=3)


@st.composite
def streams(draw: st.DrawFn, *, turns: int = 3, long: int = 10) -> list[Example]:
    """Examples of one or two shapes, so that traces are used, with any texts."""
    kinds = []
    for _ in range(draw(st.integers(1, 2))):
        kind = [Message(role="system")] if draw(st.booleans()) else []
        for _ in range(draw(st.integers(1, turns))):
            weight = draw(st.sampled_from([1.0, 1.0, 0.5, 0.0]))
            kind += [Message(role="user"), Message(role="assistant", weight=weight)]
        if draw(st.integers(0, 5)) == 5:
            kind.append(Message(role="user"))
        context, reasoning = draw(st.booleans()), draw(st.integers(0, 2)) == 2
        kinds.append((kind, context, reasoning))
    stream = []
    few = [draw(TEXT) for _ in range(6)]
    text = st.sampled_from(few)
    for _ in range(long):
        kind, context, reasoning = draw(st.sampled_from(kinds))
        messages = [
            replace(
                message,
                content=draw(text),
                context=draw(text) if context and message.role == "user" else "",
                reasoning=draw(text) if reasoning and message.role == "assistant" else "",
            )
            for message in kind
        ]
        stream.append(Example(messages=tuple(messages)))
    return stream


Outcome = tuple[str, ...] | tuple[Sample, ...]


def outcome(template: Template, example: Example, tokens: SpecialTokens, mode: RenderMode, *, traced: bool) -> Outcome:
    """The samples, or the error."""
    try:
        if traced:
            return template._compiler.samples(example, tokens, 7, mode)
        return template.interpret(example, tokens, 7, mode)
    except (RecordError, TemplateError) as error:
        return type(error).__name__, str(error)


def without_traces(template: Template) -> Template:
    """The template without traces; its compiled Jinja templates stay."""
    assert template._recording_template is None or template._recording_template.is_up_to_date
    fresh = copy.copy(template)
    fresh._compiler = TracingCompiler(fresh)
    return fresh


def check_stream(template: Template, stream: Sequence[Example], tokens: SpecialTokens = TOKENS) -> int:
    """Check that every example is rendered as interpreting does; return how many had a compiled trace."""
    fresh = without_traces(template)
    for mode in get_args(RenderMode):
        for example in stream:
            found = outcome(fresh, example, tokens, mode, traced=True)
            expected = outcome(template, example, tokens, mode, traced=False)
            assert found == expected, (example, mode)
    return compiled_samples(fresh)


def compiled_samples(template: Template) -> int:
    """How many examples the template's traces rendered."""
    return sum(trace.uses for tree in template._compiler._trees.values() for trace in tree.traces)


@pytest.fixture(autouse=True)
def record_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are recorded early, and only the tests compare compiled traces with interpreting."""
    monkeypatch.setattr(trace_tree, "RECORD_EVERY", 2)
    monkeypatch.setattr(compiler, "MAX_SECONDS", float("inf"))  # whatever else the machine does
    monkeypatch.setattr(compiler, "CHECK_FIRST", 0)
    monkeypatch.setattr(compiler, "CHECK_EVERY", 10**9)


@pytest.mark.parametrize("name", BUNDLED)
@settings(max_examples=max(2, settings().max_examples // 5))
@given(data=st.data())
def test_bundled_templates(name: str, builtin: Registry, data: st.DataObject) -> None:
    turns = 1 if name in ONE_TURN or name == "text" else 3
    check_stream(find_template(name, builtin), data.draw(streams(turns=turns)))


def open_ended(template: Template) -> Template:
    """The template, whose answers may end without a marker."""
    return without_traces(template).ended_by("none")


@pytest.mark.parametrize("name", [*ORIGINALS, *OWN])
@settings(max_examples=max(2, settings().max_examples // 10))
@given(stream=streams())
def test_published_templates(name: str, stream: list[Example], tokenizer_of: Any) -> None:
    chat = published(name, tokenizer_of)
    check_stream(open_ended(chat.template), stream, chat.tokens)


LOOKS = (
    "{{ m.content }}",
    "{{ m.content | trim }}",
    "{{ m.content.strip() ~ '!' }}",
    "{{ (' ' ~ m.content ~ '\n') | trim }}",
    "{{ (m.content ~ m.reasoning_content) .strip('b') }}",
    "{% if m.content %}+{% endif %}{{ m.content }}",
    "{% if not m.content.strip() %}(blank){% endif %}{{ m.content }}",
    "{% set c = m.content %}{% if '</think>' in c %}{{ c.split('</think>')[-1].lstrip('\n') }}{% endif %}{{ c }}",
    "{% set p = m.content.split('</think>') %}{% if p | length == 2 %}{{ p[0] }}|{{ p[1] }}{% endif %}{{ m.content }}",
    "{% for p in m.content.split('#') %}<{{ p }}>{% endfor %}",
    "{{ m.content.split() | join('_') }}",
    "{{ m.content.split('#', 1) | last }}{{ m.content.rsplit('#', 1)[0] }}",
    "{{ m.content.replace('</s>', '') }}",
    "{{ m.content | replace('b', 'cc') }}",
    "{{ m.content.upper() }}{{ m.content | lower }}",
    "{{ m.content | title }}",
    "{{ m.content | tojson }}",
    "{% if m.content | length > 3 %}long {% endif %}{{ m.content }}",
    "{{ m.content | length }}{{ m.content }}",
    "{% if m.content.startswith('<think>') or m.content.endswith(('\n', ' ')) %}*{% endif %}{{ m.content }}",
    "{% if m.content == 'x' %}is x{% elif m.content in ['b', ' '] %}is b{% endif %}{{ m.content }}",
    "{{ {'x': 'one', 'b': 'two'}[m.content] | default('none') }}{{ m.content }}",
    "{% if m.content[0] == ' ' %}_{% endif %}{{ m.content[1:] }}",
    "{% for c in m.content %}{{ c }}-{% endfor %}",
    "{{ m.content[:2] }}{{ m.content }}{{ m.content }}",
    "{{ m.content.partition('#')[2] or m.content }}",
    "{% if m.content < 'c' %}early {% endif %}{{ m.content }}",
    "{% if m.content.find('#') >= 0 %}#{% endif %}{{ m.content }}",
    "{{ '%s!' % m.content }}{{ '{}'.format(m.content) }}",
    "{% if m.content is string and m.content is sequence and m.content is not mapping %}{{ m.content }}{% endif %}",
    "{% if m.content.isspace() %}blank{% endif %}{{ m.content }}",
    "{% if loop.previtem is defined and loop.previtem.content == m.content %}same{% endif %}{{ m.content }}",
    "{% if loop.changed(m.content) %}new{% endif %}{{ m.content }}",
    "{% if messages[0].content in m.content %}again{% endif %}{{ m.content }}",
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content | trim }}</think>{% endif %}{{ m.content }}",
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
    "{{ m.content }}{% if 'x' in m.content and loop.last %}!{% endif %}",
    "{{ messages | map(attribute='content') | join('') | length }}{{ m.content }}",
    "{{ messages | selectattr('content', 'equalto', 'x') | list | length }}{{ m.content }}",
    "{% set ns = namespace(t='') %}{% for w in m.content.split('#') %}{% set ns.t = ns.t + w %}{% endfor %}{{ ns.t }}",
    "{% generation %}{{ m.content }}</s>{% endgeneration %}",
    "{{ m.content | e }}",
    "{% autoescape true %}{{ m.content }}{% endautoescape %}",
    "{{ [m.content, m.content] | unique | join(' ') }}",
    "{{ strftime_now('%Y') }}{{ m.content }}",
    "{{ strftime_now('%f') }}"[:0] + "{{ m.content }}",
    "{% if 'x' in m.content %}{{ raise_exception('no x') }}{% endif %}{{ m.content }}",
    "{{ 'abc' ~ loop.index ~ m.content }}{{ m.role | upper }}",
    "{% if m.content in 'xb' %}inside{% endif %}{{ m.content }}",
    "{% macro show(t, n=1) %}[{{ t | trim }}{{ n }}]{% endmacro %}{{ show(m.content) }}{{ show(t=m.content, n='b') }}",
    "{% set t %}{{ m.content }}</think>{% endset %}{{ t.strip() }}",
    "{% filter trim %} {{ m.content }} {% endfilter %}",
    "{{ m.content.plain }}{{ m.content.pieces }}{{ m.content }}",
    "{{ m.get('content') }}{% for k, v in m.items() %}{{ k }}{% endfor %}",
    "{{ m.content * 2 }}",
)


@st.composite
def sources(draw: st.DrawFn) -> str:
    """Chat templates that look at texts in several ways."""
    look = st.sampled_from(LOOKS)
    answer = "".join(draw(st.lists(look, min_size=1, max_size=2)))
    other = draw(look)
    end = draw(st.sampled_from(["</s>", "</s>", "<e></s>", "\n</s>\n", ""]))
    prompt = draw(st.sampled_from(["A ", "A ", "A", "A <think>\n"]))
    head = draw(st.sampled_from(["", "", "<e>", "{% if 'x' in messages[0].content %}X{% endif %}"]))
    return (
        f"{head}{{% for m in messages %}}{{% if m.role == 'assistant' %}}A {answer}{end}{{% else %}}U {other}\n"
        f"{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


@settings(max_examples=settings().max_examples * 3)
@given(source=sources(), stream=streams(turns=2, long=12))
def test_templates_that_look_at_texts(source: str, stream: list[Example]) -> None:
    check_stream(made(source).ended_by("none"), stream)


EMPTY_THOUGHTS = {
    "written": "<think>{{ m.reasoning_content or '' }}</think>",
    "written in the last turn": "{% if loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}",
    "opened by the prompt": "",
}


@pytest.mark.parametrize("empty_thought", ["omit", "error"])
@pytest.mark.parametrize("name", EMPTY_THOUGHTS)
@given(stream=streams(turns=2))
@settings(max_examples=max(2, settings().max_examples // 2))
def test_empty_thoughts(name: str, empty_thought: EmptyThought, stream: list[Example]) -> None:
    opening = "" if EMPTY_THOUGHTS[name] else "<think>\n"
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + EMPTY_THOUGHTS[name]
        + "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n" + opening + "{% endif %}"
    )
    check_stream(made(source).with_empty_thought(empty_thought), stream)


@pytest.mark.parametrize("look", LOOKS)
def test_each_look(look: str) -> None:
    """Each way to look at a text, alone, on all odd texts one after the other, twice."""
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A "
        + look
        + "</s>{% else %}U {{ m.content }}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}A {% endif %}"
    )
    template = made(source).ended_by("none")
    pairs = [(user("x"), assistant(text)) for text in ODD]
    stream = [conversation(*pair, *again) for pair, again in pairwise(pairs)]
    check_stream(template, [*stream, *stream])


GUARDS = {
    "content": "{% if 'b' in m.content %}!{% endif %}{{ m.content }}",
    "len(": "{% if m.content | length > 2 %}!{% endif %}{{ m.content }}",
    "split(": "{% for p in m.content.split('#') %}{{ p }};{% endfor %}",
    "startswith(": "{{ m.content if loop.last else m.content.split('#')[0] }}",
    "t0": "{% if not m.content.strip() %}!{% endif %}{{ m.content }}",
    "==": "{% if m.content == 'x' %}!{% endif %}{{ m.content }}",
}
"""Parts of guards, each with a template that records such a guard."""


def answering(look: str) -> Template:
    return made(
        "{% for m in messages %}{% if m.role == 'assistant' %}A "
        + look
        + "</s>{% else %}U {{ m.content }}\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}A {% endif %}"
    )


@pytest.mark.parametrize("part", GUARDS)
def test_the_property_notices_a_missing_guard(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: every kind of guard is needed."""
    template = answering(GUARDS[part]).ended_by("none")
    pairs = [[user("x"), assistant(text)] for text in (*reversed(ODD), *ODD) if "\ud800" not in text]
    stream = [conversation(*pair, *other) for pair in pairs for other in ([], pair, pairs[0])]
    assert check_stream(template, stream)
    guard = Trace.guard

    def skip(self: Trace, expression: str, outcome: bool) -> bool:
        return outcome if part in expression else guard(self, expression, outcome)

    monkeypatch.setattr(Trace, "guard", skip)
    with pytest.raises((AssertionError, IndexError)):  # an index out of range, where no guard counts a split
        check_stream(template, stream)


def test_a_run_notices_a_wrong_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first examples of a trace, and then one in many, are interpreted too."""
    template = answering(GUARDS["content"])
    monkeypatch.setattr(Trace, "guard", lambda self, expression, outcome: outcome)
    right, wrong = (conversation(user("x"), assistant(text)) for text in ("a", "b"))
    for few, every in ((1, 10**9), (0, 4)):
        monkeypatch.setattr(compiler, "CHECK_FIRST", few)
        monkeypatch.setattr(compiler, "CHECK_EVERY", every)
        fresh = without_traces(template)
        for _ in range(2 if few else 5):
            fresh.samples(right, TOKENS)
        message = "its compiled trace differs from interpreting: text is .*please report"
        with pytest.raises(TemplateError, match=message):
            for _ in range(2 if few else 1):
                fresh.samples(wrong, TOKENS)


def test_a_trace_that_depends_on_the_time_has_a_guard_on_it() -> None:
    template = answering("{{ strftime_now('%Y') }}{{ m.content }}")
    example = conversation(user("x"), assistant("a"))
    assert check_stream(template, [example] * 4)
    always = without_traces(answering("{{ strftime_now('%H%M%S%f') }}{{ m.content }}"))
    found = [always.samples(example, TOKENS)[0].rendered.text for _ in range(6)]
    assert len(set(found)) == 6 and not compiled_samples(always)


def traced_text(template: Template, example: Example) -> RenderedText:
    """The example's text, by a compiled trace."""
    fresh = without_traces(template)
    for _ in range(3):
        (sample,) = fresh.samples(example, TOKENS, row=7)
    assert compiled_samples(fresh)
    return sample.rendered


def test_a_traced_text_equals_an_interpreted_one() -> None:
    template = answering("{{ m.content }}")
    example = conversation(user("x"), assistant("a b"))
    (sample,) = template.interpret(example, TOKENS, 7, "all")
    interpreted = sample.rendered
    assert traced_text(template, example) == interpreted and interpreted == traced_text(template, example)
    assert hash(traced_text(template, example)) == hash(interpreted)
    assert repr(traced_text(template, example)) == repr(interpreted)
    for again in (
        pickle.loads(pickle.dumps(traced_text(template, example))),
        copy.copy(traced_text(template, example)),
    ):
        assert again == interpreted
    assert replace(traced_text(template, example), sample=1, samples=2).text == interpreted.text
    other = conversation(user("x"), assistant("a c"))
    assert traced_text(template, other) != interpreted
    with pytest.raises(FrozenInstanceError):
        traced_text(template, example).row = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="no attribute 'words'"):
        attrgetter("words")(traced_text(template, example))


def test_texts_of_one_trace_share_a_layout() -> None:
    template = without_traces(answering("{{ m.content }}"))
    found = []
    for answer, weight in zip("abcdefgh", [1.0] * 4 + [0.5, 0.25] * 2, strict=True):
        example = conversation(user("x"), replace(assistant(answer), weight=weight))
        (sample,) = template.samples(example, TOKENS)
        if sample.rendered.traced is not None:
            found.append(sample.rendered.traced)
            assert found[-1].pieces == ("U ", "x", "\nA ", answer, "</s>")
            assert [*map(str, found[-1].layout.origins)] == [str(span.origin) for span in sample.rendered.spans]
            assert found[-1].layout.is_constant == (True, False, True, False, True)
            assert found[-1].layout.target_messages == {1}
    weights = [traced.layout.message_weights for traced in found]
    assert weights == [(1.0, 1.0)] * 2 + [None] * 2
    assert found[0].layout is found[1].layout and found[2].layout is found[3].layout


def test_slow_examples_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MAX_SECONDS", 0.0)
    assert not check_stream(answering("{{ m.content }}"), [conversation(user("x"), assistant("a"))] * 4)


def test_the_traces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MAX_SHAPES", 2)
    monkeypatch.setattr(trace_tree, "MAX_TRACES", 3)
    look = "".join(f"{{% if '{letter}' in m.content %}}!{{% endif %}}" for letter in "abcdefgh")
    template = answering(look + "{{ m.content }}").ended_by("none")
    answers = ["a", "b", "c", "d", "ab", "abc", "bcd", "h"] * 4
    stream = [conversation(*[user("x"), assistant(text)] * turns) for text in answers for turns in (1, 2, 3)]
    assert check_stream(template, [*stream, *sorted(stream, key=lambda example: len(example.messages))])
    fresh = without_traces(template)
    for example in sorted(stream, key=lambda example: len(example.messages)):
        fresh.samples(example, TOKENS)
    assert len(fresh._compiler._trees) == 2
    assert all(len(tree.traces) == 3 for tree in fresh._compiler._trees.values())


SERVED = {
    "plain": conversation(user("Question?"), assistant("Answer.")),
    "turns": conversation(*[user("Question?"), assistant("Answer.")] * 3),
    "system": conversation(Message(role="system", content="Be brief."), user("Question?"), assistant("Answer.")),
}


@pytest.mark.parametrize("kind", SERVED)
def test_conversations_have_traces(kind: str, builtin: Registry, tokenizer_of: Any) -> None:
    """Every bundled and published template that renders a conversation of this kind has a trace for it."""
    chats = [(name, find_template(name, builtin), TOKENS) for name in BUNDLED]
    names = [*ORIGINALS, *OWN] if TRL else []
    chats += [(one.name, one.template, one.tokens) for one in (published(name, tokenizer_of) for name in names)]
    served, without = 0, []
    for name, template, tokens in chats:
        fresh = without_traces(open_ended(template))
        try:
            for _ in range(3):
                fresh.samples(SERVED[kind], tokens)
        except RecordError:
            continue
        served += compiled_samples(fresh)
        without += [name] if not compiled_samples(fresh) else []
    assert not without and served > len(chats) / 2
