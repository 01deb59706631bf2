"""Property 30: a sample that is too long comes out whole where it matters, or is dropped and counted.

`shortened_30` states what each policy promises against the pipeline without a limit, on the data that the policy is
said to have left; it knows nothing of how the library searches and cuts.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, event, given
from hypothesis import strategies as st
from testkit.budget import one_in
from testkit.through import Through, conversation_records, instruction_records

from templatekit import (
    ConfigError,
    DataOptions,
    Example,
    Message,
    Record,
    RecordError,
    Registry,
    TemplateFile,
    TokenizedExample,
    Tokenizer,
)
from templatekit.export.rows import to_row
from templatekit.formats.lookup import find_template
from templatekit.formats.template import Template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing import adversarial_text, oracle, plain_text
from templatekit.testing.check_execution import labels_agree
from templatekit.testing.checked_record import CheckedSample
from templatekit.tokens import truncation
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import loss_spans
from templatekit.types import Sample

ONE_TURN = ("alpaca", "alpaca-lora", "chapter7", "seed", "dolly", "phi3-chapter7")
CHAT = ("chatml", "llama3")
Turns = Sequence[tuple[str, str]]


def chat(turns: Turns, **last: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
    messages[-1] |= last
    return {"messages": messages}


def talk(count: int, *, system: str = "") -> list[tuple[str, str]]:
    """A conversation of `turns` turns, each of another length."""
    turns = [("system", system)] if system else []
    for index in range(count):
        turns += [("user", f"Question {index}? " + "why " * index), ("assistant", f"Answer {index}.")]
    return turns


def shorten(subject: Through, adapter: str, record: Record, limit: int, policy: str) -> tuple[Sample | None, Pipeline]:
    """The sample under a limit; None if it is dropped and counted."""
    options = {**subject.options, "max_length": limit, "truncation": policy}
    pipeline = Through(subject.template, subject.tokenizer, subject.registry, **options).pipeline(adapter)
    try:
        (prepared,) = pipeline.run([record])
    except ConfigError:
        assert pipeline.counts.dropped == {"too_long": 1}
        assert pipeline.counts.rows_out == 0 and not pipeline.counts.truncated
        return None, pipeline
    assert pipeline.counts.rows_out == 1 and not pipeline.counts.dropped
    return prepared, pipeline


# The property.


def shortened_30(subject: Through, adapter: str, record: Record, short: Sample, limit: int, policy: str) -> None:
    """The properties of a sample under a limit, shortened or not."""
    whole = subject.case(adapter, record)
    found = short.tokenized
    assert found is not None and found.rendered == short.rendered
    assert 0 < len(found) <= limit
    assert found.trained_tokens >= 1
    assert found.truncated == (policy if len(whole.tokenized) > limit else None)
    if found.truncated is None:
        assert found == whole.tokenized
        return
    case = replace(whole, sample=short)
    labels_agree(case)
    if policy == "response":
        response_30(whole, case)
    else:
        rendered_anew_30(subject, case)
        left_over_30(policy, whole, case)


def response_30(whole: CheckedSample, short: CheckedSample) -> None:
    """The ids are the first ids of the complete sample and contain the prompt; the end marker is there iff the response
    is complete.
    """
    ids, text = short.tokenized.input_ids, short.rendered.text
    before, target = whole.rendered, whole.rendered.target_spans[-1]
    assert ids == whole.tokenized.input_ids[: len(ids)]
    assert short.tokenized.loss_weights == whole.tokenized.loss_weights[: len(ids)]
    assert text == before.text[: len(text)] and len(text) > target.start
    cut = short.rendered.target_spans[-1]
    assert (cut.message, cut.start, cut.end) == (target.message, target.start, len(text))
    if len(text) == target.end:
        assert cut == target
    else:
        assert cut.marker_start == cut.end
        inside = [s for s in before.spans if s.start < len(text) <= s.end]
        assert [(s.origin.kind, s.origin.message) for s in inside] == [("field", target.message)]
        assert inside[0].origin.field in ("content", "reasoning")
    assert short.rendered.spans[-1].end == short.tokenized.loss_spans[-1].end == len(text)
    assert short.tokenized.loss_spans[-1].weight > 0
    assert not unicodedata.combining(before.text[len(text)]) if len(text) < target.marker_start else True
    assert short.sample.example == whole.sample.example
    tokenizer = short.subject.tokenizer
    if oracle.is_lossless(tokenizer, text):
        assert tokenizer.decode(ids) == oracle.expected_decoding(tokenizer, short.rendered, len(text), short.cuts)


def rendered_anew_30(subject: Through, short: CheckedSample) -> None:
    """The ids are those of a record with the remaining messages."""
    left = [
        {"role": m.role, "content": m.content, "context": m.context}
        if m.context
        else {"role": m.role, "content": m.content}
        for m in short.sample.example.messages
    ]
    if any("context" in message for message in left):
        user, assistant = left
        again = subject.case(
            "alpaca", {"instruction": user["content"], "input": user["context"], "output": assistant["content"]}
        )
    else:
        again = subject.case("messages", {"messages": left})
    assert short.tokenized.input_ids == again.tokenized.input_ids
    assert short.tokenized.loss_weights == again.tokenized.loss_weights
    assert short.rendered.text == again.rendered.text
    assert short.rendered.target_spans == again.rendered.target_spans


def left_over_30(policy: str, whole: CheckedSample, short: CheckedSample) -> None:
    """Only the oldest turns are removed, or only the end of the context."""
    before, after = whole.sample.example.messages, short.sample.example.messages
    if policy == "turns":
        head = list(itertools.takewhile(lambda m: m.role == "system", before))
        assert list(after[: len(head)]) == head
        cached_description = after[len(head) :]
        assert cached_description == before[len(before) - len(cached_description) :]
        assert cached_description[0].role == "user" and cached_description[-1].role == "assistant"
        assert len(after) < len(before)
    else:
        assert [replace(m, context="") for m in after] == [replace(m, context="") for m in before]
        (old,), (new,) = ([m.context for m in messages if m.context] for messages in (before, after))
        assert old.startswith(new) and new.strip() and len(new) < len(old)


# Trials.


@pytest.fixture(scope="session")
def templates(builtin: Registry) -> dict[str, Template]:
    return {name: find_template(name, builtin) for name in (*ONE_TURN, *CHAT)}


Of = Callable[..., Through]


@pytest.fixture
def subject_of(tokenizer: Tokenizer, templates: dict[str, Template], builtin: Registry) -> Of:
    """Subjects by template, with each tokenizer in turn."""
    return lambda template, **options: Through(templates[template], tokenizer, builtin, **options)


@pytest.fixture
def plain_of(tokenizer_of: Callable[[str], Tokenizer], templates: dict[str, Template], builtin: Registry) -> Of:
    """Subjects by template and by the tokenizer's name."""
    return lambda template, name="bytes", **options: Through(
        templates[template], tokenizer_of(name), builtin, **options
    )


@pytest.mark.parametrize("policy", ["turns", "context", "response"])
@given(data=st.data())
def test_30_nothing_comes_out_too_long_or_without_a_target(policy: str, subject_of: Of, data: st.DataObject) -> None:
    template = data.draw(st.sampled_from(CHAT if policy == "turns" else (*ONE_TURN, *CHAT)), label="template")
    train_on = data.draw(st.sampled_from(("response", "content", "last")), label="train_on")
    subject = subject_of(template, train_on=train_on)
    nasty = adversarial_text(subject.tokenizer)
    shapes = {
        "turns": conversation_records(nasty, subject.registry, min_turns=2),
        "context": st.fixed_dictionaries(
            {"instruction": nasty, "input": nasty.map(lambda text: f"{text}some more"), "output": nasty}
        ).map(lambda record: ("alpaca", record)),
        "response": instruction_records(nasty, subject.registry),
    }
    adapter, record = data.draw(shapes[policy], label="record")
    try:
        whole = subject.case(adapter, record)
    except RecordError:
        assume(False)
        raise
    shortest = data.draw(st.sampled_from([1, least_length(policy, whole)]), label="from")
    limit = data.draw(st.integers(shortest, len(whole.tokenized) + 1), label="limit")
    short, _ = shorten(subject, adapter, record, limit, policy)
    event(f"{policy}: {'dropped' if short is None else 'shortened' if short.tokenized != whole.tokenized else 'whole'}")
    if short is not None:
        shortened_30(subject, adapter, record, short, limit, policy)


def least_length(policy: str, case: CheckedSample) -> int:
    """The count of tokens that the policy cannot remove: those of the text that it cannot shorten, and one more."""
    if policy == "turns":
        return len(case.tokenized) // 3
    spans = [s for s in case.rendered.spans if s.origin.field == ("context" if policy == "context" else "content")]
    places = [place for place in subject_offsets(case) if spans and spans[-1].start < place[1] <= spans[-1].end]
    return min(len(case.tokenized) - len(places) + 1, len(case.tokenized))


@given(turns=st.integers(1, 7), system=st.sampled_from(["", "Be brief."]), data=st.data())
def test_30_turns_drops_the_fewest(turns: int, system: str, subject_of: Of, data: st.DataObject) -> None:
    subject = subject_of(data.draw(st.sampled_from(CHAT)))
    messages = talk(turns, system=system)
    head = int(bool(system))
    lengths = []
    for gone in range(turns):
        left = messages[:head] + messages[head + 2 * gone :]
        lengths.append(len(subject.case("messages", chat(left)).tokenized))
    assert lengths == sorted(lengths, reverse=True)
    limit = data.draw(st.integers(lengths[-1] - 1, lengths[0]), label="limit")
    short, _ = shorten(subject, "messages", chat(messages), limit, "turns")
    fitting = [length for length in lengths if length <= limit]
    assert (short is None) == (not fitting)
    if short is not None:
        assert short.tokenized is not None and len(short.tokenized) == fitting[0]
        shortened_30(subject, "messages", chat(messages), short, limit, "turns")


@given(words=plain_text(min_size=3), data=st.data())
def test_30_context_keeps_the_longest_beginning_that_fits(words: str, subject_of: Of, data: st.DataObject) -> None:
    subject = subject_of(data.draw(st.sampled_from(("alpaca", "dolly", "seed", "chatml"))))
    record = {"instruction": "Say it.", "input": words, "output": "It is said."}
    lengths = {
        end: len(subject.case("alpaca", {**record, "input": words[:end]}).tokenized) for end in range(1, len(words) + 1)
    }
    limit = data.draw(st.integers(min(lengths.values()) - 1, lengths[len(words)]), label="limit")
    short, _ = shorten(subject, "alpaca", record, limit, "context")
    fitting = [end for end, length in lengths.items() if length <= limit]
    assert (short is None) == (not fitting)
    if short is not None:
        assert short.example.messages[0].context == words[: fitting[-1]]
        shortened_30(subject, "alpaca", record, short, limit, "context")


@given(data=st.data())
def test_30_response_keeps_the_longest_beginning_that_fits(subject_of: Of, data: st.DataObject) -> None:
    """For plain ASCII with a byte-level tokenizer, every limit is reached exactly."""
    subject = subject_of(data.draw(st.sampled_from(("alpaca", "dolly", "chatml", "llama3"))))
    record = {"instruction": "Say it.", "input": "", "output": data.draw(plain_text(min_size=4))}
    whole = subject.case("alpaca", record)
    target = whole.rendered.target_spans[-1]
    places = subject_offsets(whole)
    prompt = sum(end <= target.start for _, end in places)
    end = sum(end <= target.end for _, end in places)
    own = sum(end <= target.marker_start for _, end in places)
    for limit in range(prompt - 1, len(whole.tokenized)):
        short, _ = shorten(subject, "alpaca", record, limit, "response")
        if limit <= prompt:
            assert short is None
            continue
        assert short is not None and short.tokenized is not None
        shortened_30(subject, "alpaca", record, short, limit, "response")
        assert len(short.tokenized) == (end if limit >= end else min(limit, own))


def subject_offsets(case: CheckedSample) -> list[tuple[int, int]]:
    return Encoder(case.subject.tokenizer).offsets(case.rendered, case.tokenized.loss_spans)


@given(data=st.data())
def test_offsets_are_those_of_the_tokens(subject_of: Of, data: st.DataObject) -> None:
    """Each token has one, ascending, within the text; between separate tokens, ids decode to the text there."""
    subject = subject_of(data.draw(st.sampled_from((*ONE_TURN, *CHAT))))
    adapter, record = data.draw(instruction_records(adversarial_text(subject.tokenizer), subject.registry))
    try:
        case = subject.case(adapter, record)
    except RecordError:
        assume(False)
        raise
    offsets = subject_offsets(case)
    assert len(offsets) == len(case.tokenized)
    starts, ends = zip(*offsets, strict=True)
    assert list(starts) == sorted(starts) and list(ends) == sorted(ends)
    assert starts[0] >= 0 and ends[-1] <= len(case.rendered.text)
    assert all(start <= end for start, end in offsets)
    control = {token.id: token.text for token in case.subject.tokenizer.control_tokens.values()}
    unknown = case.subject.tokenizer.unknown_id
    for id, (start, end) in zip(case.tokenized.input_ids, offsets, strict=True):
        if id in control and id != unknown and Path(case.subject.tokenizer.name).name != "folding":
            assert case.rendered.text[start:end].strip() == control[id].strip()


def test_offsets_cover_blanks_where_a_tokenizer_trims_them(tokenizer_of: Any) -> None:
    definition = (tokenizer_of.folder("bytes") / "tokenizer.json").read_text(encoding="utf-8")
    trims = re.sub(r'("post_processor".*?"trim_offsets":\s*)false', r"\1true", definition, flags=re.DOTALL)
    assert tokenizers.Tokenizer.from_str(trims).encode("a the").offsets[-1] == (2, 5)
    backend = Tokenizer(trims, config={}, name="given").backend(control=True, prefix=True)
    assert backend.encode("a the", add_special_tokens=False).offsets[-1] == (1, 5)


# Each policy on what it must not touch.


def test_a_turn_goes_with_its_tool_results(plain_of: Of) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}"
    source += "<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    plain = plain_of("chatml")
    subject = Through(Template(TemplateFile(name="t", source=source)), plain.tokenizer, plain.registry)
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "one"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    limit = len(subject.case("messages", {"messages": messages}).tokenized) - 1
    short, _ = shorten(subject, "messages", {"messages": messages}, limit, "turns")
    assert short is not None
    assert [(m.role, m.content) for m in short.example.messages] == [("system", "S"), ("user", "c"), ("assistant", "d")]


def test_turns_needs_two_turns_and_says_so(plain_of: Of) -> None:
    subject = plain_of("chatml")
    _, pipeline = shorten(subject, "messages", chat(talk(1)), 10, "turns")
    assert "expected at most 10; it has one turn, which is never cut" in pipeline.counts.first_dropped["too_long"]
    alone = len(subject.case("messages", chat(talk(2)[2:])).tokenized)
    _, pipeline = shorten(subject, "messages", chat(talk(2)), alone - 1, "turns")
    assert pipeline.counts.first_dropped["too_long"].endswith(f"; its last turn alone has {alone}")


def test_turns_keeps_the_last_answer_that_is_trained(plain_of: Of) -> None:
    """Not only the last turn: the conversation may end in one that is not trained."""
    subject = plain_of("chatml")
    messages = chat(talk(3))["messages"]
    messages[3]["weight"], messages[5]["weight"] = 2.0, 0
    record = {"messages": messages}
    lengths = [len(subject.case("messages", {"messages": messages[start:]}).tokenized) for start in (0, 2)]
    short, _ = shorten(subject, "messages", record, lengths[0] - 1, "turns")
    assert short is not None and short.tokenized is not None and len(short.tokenized) == lengths[1]
    assert short.tokenized.trained_tokens and set(short.tokenized.loss_weights) == {0.0, 2.0}
    short, _ = shorten(subject, "messages", record, lengths[1] - 1, "turns")
    assert short is None


def test_turns_of_a_template_that_refuses_some_beginnings(plain_of: Of) -> None:
    """If this template cannot express a shortened conversation, it is shortened further, or dropped."""
    plain = plain_of("chatml")
    source = "{% if messages[0].content == 'b' %}{{ raise_exception('not so') }}{% endif %}{% for m in messages %}"
    source += "[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    subject = Through(Template(TemplateFile(name="t", source=source)), plain.tokenizer, plain.registry)
    turns = [(role, text) for text in "abc" for role in ("user", "assistant")]
    limit = len(subject.case("messages", chat(turns)).tokenized) - 1
    short, _ = shorten(subject, "messages", chat(turns), limit, "turns")
    assert short is not None and [m.content for m in short.example.messages] == ["c", "c"]
    short, pipeline = shorten(subject, "messages", chat(turns[:4]), limit // 2, "turns")
    assert short is None and "of fewer turns: template 't' refuses: not so" in pipeline.counts.first_dropped["too_long"]


def test_a_context_is_never_cut_to_nothing(plain_of: Of) -> None:
    """Without a context Stanford's Alpaca has another wording."""
    subject = plain_of("alpaca")
    record = {"instruction": "a", "input": " \n" + "word " * 40, "output": "b"}
    least = len(subject.case("alpaca", {**record, "input": " \nw"}).tokenized)
    none = len(subject.case("alpaca", {**record, "input": ""}).tokenized)
    assert none < least
    short, _ = shorten(subject, "alpaca", record, least, "context")
    assert short is not None and short.example.messages[0].context == " \nw"
    assert "paired with an input" in short.rendered.text
    short, pipeline = shorten(subject, "alpaca", record, least - 1, "context")
    assert short is None
    reason = pipeline.counts.first_dropped["too_long"]
    assert reason.endswith(f"; with a character of its context it still has {least}")
    short, pipeline = shorten(subject, "alpaca", {**record, "input": ""}, none - 1, "context")
    assert short is None and "it has no context to shorten" in pipeline.counts.first_dropped["too_long"]


def test_several_contexts_are_shortened_the_oldest_first(plain_of: Of) -> None:
    plain = plain_of("chatml")
    messages = [
        Message(role="user", content="a", context="one " * 9),
        Message(role="assistant", content="b"),
        Message(role="user", content="c", context="two " * 9),
        Message(role="assistant", content="d"),
    ]
    pipeline = plain.pipeline("messages")
    example = Example(messages=tuple(messages))
    assert pipeline.encoder is not None

    def encoded(example: Example) -> TokenizedExample:
        rendered = plain.template.render(example, pipeline.special_tokens)
        assert pipeline.encoder is not None
        return pipeline.encoder.encode(rendered, loss_spans(rendered, "response"))

    seen = []
    whole = encoded(example)
    for limit in range(len(whole) - 1, 0, -1):
        options = DataOptions.parse({"max_length": limit, "truncation": "context"})
        bound = pipeline.length_limit(options)
        assert bound is not None
        try:
            fitted = bound.fit(example, whole)
        except RecordError:
            break
        assert len(fitted.tokenized) <= limit and fitted.tokenized == replace(
            encoded(fitted.example), truncated="context"
        )
        seen.append([len(m.context) for m in fitted.example.messages if m.context])
    assert seen == sorted(seen, reverse=True)
    assert seen[0][1] == 36 and seen[-1] == [1, 1]
    assert all(one == 1 or two == 36 for one, two in seen)


@pytest.mark.parametrize("name", ["nfc", "sentencepiece", "unigram", "gpt2", "qwen3"])
@pytest.mark.parametrize("policy", ["context", "response"])
@pytest.mark.parametrize(
    "unit",
    one_in(
        3, ["日", "é", "e\u0301", "👩\u200d👩\u200d👧", "🇫🇷x", "각", "\u1100\u1161\u11a8", "👍🏽", "\U0010ffff", "ﬁ"]
    ),
)
def test_no_character_is_cut_in_two(unit: str, policy: str, name: str, plain_of: Of) -> None:
    """Characters are those that a reader sees: of a repeated character, only complete ones are left."""
    subject = plain_of("alpaca", name)
    field = "input" if policy == "context" else "output"
    record = {"instruction": "a", "input": "x", "output": "y", field: f"{unit} " * 12}
    least = len(subject.case("alpaca", {**record, field: unit}).tokenized)
    whole = len(subject.case("alpaca", record).tokenized)
    lengths = set()
    for limit in range(least, whole, 2):
        short, _ = shorten(subject, "alpaca", record, limit, policy)
        assert short is not None and short.tokenized is not None
        shortened_30(subject, "alpaca", record, short, limit, policy)
        message = short.example.messages[0]
        text = message.context if policy == "context" else short.rendered.text[short.rendered.target_spans[-1].start :]
        text = text.removesuffix(short.rendered.text[short.rendered.target_spans[-1].marker_start :] or "\0")
        assert text.replace(unit, "").strip() in ("", "🇫🇷" if unit == "🇫🇷x" else "") and text.strip()
        lengths.add(len(text))
    assert len(lengths) > 5 or name == "unigram"


def test_a_response_is_cut_in_its_reasoning_too_but_not_in_between(tokenizer_of: Any, plain_of: Of) -> None:
    plain = plain_of("chatml", "nfc")
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    source += "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    subject = Through(Template(TemplateFile(name="t", source=source)), plain.tokenizer, plain.registry)
    record = chat([("user", "Why?"), ("assistant", "So it is.")], reasoning_content="Let me think it over.")
    whole = subject.case("messages", record)
    ends = []
    for limit in range(len(whole.prompt_ids) + 1, len(whole.tokenized)):
        short, _ = shorten(subject, "messages", record, limit, "response")
        if short is None:
            assert limit <= len(whole.prompt_ids) + 2  # <think>, \n
            continue
        shortened_30(subject, "messages", record, short, limit, "response")
        ends.append(short.rendered.text.rpartition("<|im_start|>assistant\n")[2])
    assert "<think>\nLet me think it over." in ends
    assert ends[-1] == "<think>\nLet me think it over.\n</think>\n\nSo it is.<|im_end|>"
    assert not any(end.endswith(("<think>", ">\n", "over.\n", "</think>", "\n\n")) for end in ends)


def test_a_tool_call_is_never_cut(plain_of: Of) -> None:
    plain = plain_of("chatml")
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "y" * 30}}}
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}"
    source += "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    subject = Through(Template(TemplateFile(name="t", source=source)), plain.tokenizer, plain.registry)
    record = chat([("user", "Why?"), ("assistant", "Let me see.")], tool_calls=[call])
    whole = subject.case("messages", record)
    for limit in range(1, len(whole.tokenized)):
        short, pipeline = shorten(subject, "messages", record, limit, "response")
        assert (short is not None) == (limit == len(whole.tokenized) - 1)  # the newline after the end marker may be cut
        if short is None:
            assert "a tool call is never cut" in pipeline.counts.first_dropped["too_long"]


def test_a_response_ends_the_sample(plain_of: Of) -> None:
    """Text after the last trained answer is removed first, including whole turns; an earlier answer is never cut."""
    subject = plain_of("chatml")
    messages = chat(talk(3))["messages"]
    messages[5]["weight"] = 0
    record = {"messages": messages}
    whole = subject.case("messages", record)
    offsets = subject_offsets(whole)
    second = whole.rendered.target_spans[1]
    for limit in range(1, len(offsets)):
        short, _ = shorten(subject, "messages", record, limit, "response")
        behind = [place for place in offsets[:limit] if place[1] > second.start]
        assert (short is not None) == bool(behind)
        if short is not None:
            assert second.start < len(short.rendered.text) <= second.end
            assert [target.message for target in short.rendered.target_spans] == [1, 3]
    short, _ = shorten(subject, "messages", record, len(offsets) - 1, "response")
    assert short is not None and short.rendered.text == whole.rendered.text[: second.end]


FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}({{ m.reasoning_content }}){% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Prints a thought in the last turn alone, so that every turn with one is trained in a sample of its own."""


def thoughtful(*thoughts: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for turn, thought in enumerate(thoughts):
        answer = {"role": "assistant", "content": f"Answer {turn}.", "reasoning_content": thought}
        messages += [{"role": "user", "content": f"Question {turn}?"}, answer]
    return {"messages": messages}


@pytest.mark.parametrize("policy", ["turns", "response"])
def test_samples_of_a_record_are_shortened_each_by_itself(policy: str, plain_of: Of) -> None:
    """No answer is trained twice, and each is trained as without a limit: after the prompt that a server would feed."""
    plain = plain_of("chatml")
    record = thoughtful("Hm, let me see.", "", "Well, now.", "", "So.")
    template = Template(TemplateFile(name="forgets", source=FORGETS))

    def samples(**options: Any) -> list[Sample]:
        subject = Through(template, plain.tokenizer, plain.registry, **options)
        return list(subject.pipeline("messages").run([record]))

    free = samples()
    lengths = [len(item.tokenized) for item in free if item.tokenized]
    assert len(free) == 3 and lengths == sorted(lengths)
    pipeline = plain.pipeline("messages")
    shortened = 0
    for limit in range(min(lengths), max(lengths)):
        items = samples(max_length=limit, truncation=policy)
        answers = [
            item.example.messages[target.message].content for item in items for target in item.rendered.target_spans
        ]
        assert len(answers) == len(set(answers))
        for item in items:
            whole, found = free[item.rendered.sample], item.tokenized
            assert found is not None and len(found) <= limit and item.rendered.samples == 3
            shortened += found.truncated is not None
            last, own = item.rendered.target_spans[-1], whole.rendered.target_spans[-1]
            answer, all_of_it = item.rendered.text[last.start : last.end], whole.rendered.text[own.start : own.end]
            assert answer == all_of_it if policy == "turns" else all_of_it.startswith(answer)
            prompt = template.prompt(item.example, pipeline.special_tokens)
            assert item.rendered.text[: last.start] == prompt.text
            if policy == "turns":
                assert item.example.messages[0].role == "system" and item.example.messages[1].role == "user"
                assert item.rendered.text == template.render(item.example, pipeline.special_tokens).text
    assert shortened > 20


def test_weights_of_the_history_go_with_it(plain_of: Of) -> None:
    """A prompt's text that has a weight is trained in the first sample that holds it, shortened or not."""
    plain = plain_of("chatml")
    template = Template(TemplateFile(name="forgets", source=FORGETS))
    train_on = "response,user=0.5,system=0.25"

    def weighted(record: Record, limit: int) -> tuple[list[list[tuple[str, float]]], list[TokenizedExample]]:
        subject = Through(
            template, plain.tokenizer, plain.registry, train_on=train_on, truncation="turns", max_length=limit
        )
        found = [item.tokenized for item in subject.pipeline("messages").run([record]) if item.tokenized]
        return [
            [(one.rendered.text[s.start : s.end], s.weight) for s in one.loss_spans if 0 < s.weight < 1]
            for one in found
        ], found

    first = [("Be brief.", 0.25), ("Question 0?", 0.5)]
    record = thoughtful("Hm, let me see.", "Well, now.", "So.")
    seen, whole = weighted(record, 1000)
    assert seen == [first, [("Question 1?", 0.5)], [("Question 2?", 0.5)]]
    seen, short = weighted(record, len(whole[-1]) - 1)
    assert seen == [first, [("Question 1?", 0.5)], [("Question 2?", 0.5)]]
    assert [one.truncated for one in short] == [None, None, "turns"]
    record = thoughtful("Hm, let me see.", "", "", "So.")
    seen, whole = weighted(record, 1000)
    assert seen == [first, [(f"Question {turn}?", 0.5) for turn in (1, 2, 3)]]
    seen, short = weighted(record, len(whole[0]))
    assert seen == [first, [("Question 3?", 0.5)]]


def test_of_the_last_turn_alone_no_more_is_asked_once_it_is_shortened(plain_of: Of) -> None:
    """Earlier turns that this template renders differently from serving do not stop the run."""
    plain = plain_of("chatml")
    doubts = "{{ '!' if messages[-1].content == 'Question 1?' }}"
    source = FORGETS.replace("assistant\n{% endif %}", f"assistant\n{doubts}{{% endif %}}")
    assert source != FORGETS
    template = Template(TemplateFile(name="t", source=source))
    record = thoughtful("", "", "")
    for train_on in ("last", "response"):
        subject = Through(template, plain.tokenizer, plain.registry, train_on=train_on)
        pipeline = subject.pipeline("messages")
        try:
            (whole,) = pipeline.run([record])
        except RecordError:
            assert train_on == "response"
            continue
        assert train_on == "last" and whole.tokenized is not None
        short, _ = shorten(subject, "messages", record, len(whole.tokenized) - 1, "turns")
        assert short is not None and [m.content for m in short.example.messages][1] == "Question 1?"


def counted_renders(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """The examples that are rendered from here on."""
    rendered: list[Example] = []
    for name in ("render", "samples"):
        monkeypatch.setattr(Template, name, counting(getattr(Template, name), rendered))
    return rendered


def counting(render: Callable[..., Any], rendered: list[Example]) -> Callable[..., Any]:
    def counted(self: Template, example: Example, *more: Any, **named: Any) -> Any:
        rendered.append(example)
        return render(self, example, *more, **named)

    return counted


@pytest.mark.parametrize("policy", ["turns", "context", "response"])
def test_a_sample_within_the_limit_is_left_alone(policy: str, plain_of: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = plain_of("chatml")
    record = {"instruction": "a", "input": "b c d", "output": "e f g"}
    whole = subject.case("alpaca", record)
    renders = counted_renders(monkeypatch)
    short, pipeline = shorten(subject, "alpaca", record, len(whole.tokenized), policy)
    assert short is not None and short.tokenized == whole.tokenized and short.tokenized.truncated is None
    assert len(renders) == 1 and not pipeline.counts.truncated


@pytest.mark.parametrize(("policy", "most"), [("turns", 8), ("context", 40), ("response", 1)])
def test_the_search_takes_few_steps(policy: str, most: int, plain_of: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    """The renderings of one over-long sample of 100 turns, or of 40,000 characters."""
    subject = plain_of("chatml")
    if policy == "turns":
        record, adapter = chat([("user", "Why is it so?"), ("assistant", "So it is.")] * 100), "messages"
    else:
        record, adapter = {"instruction": "a", "input": "x", "output": "y"}, "alpaca"
        record["input" if policy == "context" else "output"] = "".join(f"word {n} of many. " for n in range(2500))
    renders = counted_renders(monkeypatch)
    short, _ = shorten(subject, adapter, record, 512, policy)
    assert short is not None and short.tokenized is not None and len(short.tokenized) > 480
    assert len(renders) <= most


def test_what_was_shortened_is_counted_by_policy_with_its_rows(plain_of: Of) -> None:
    rows = [chat(talk(count)) for count in (2, 9, 2, 1, 8)]
    pipeline = plain_of("chatml", max_length=150, truncation="turns").pipeline("messages")
    items = list(pipeline.run(rows, source="rows.json"))
    assert [item.tokenized.truncated for item in items if item.tokenized] == [None, "turns", None, None, "turns"]
    counts = pipeline.counts
    assert counts.as_dict()["truncated"] == {"turns": 2}
    assert counts.as_dict()["truncated_rows"] == {"turns": [1, 4]}
    assert re.fullmatch(r"rows\.json:1: 1\d\d of \d{3} tokens", counts.first_truncated["turns"])
    assert counts.tokens == sum(len(item.tokenized) for item in items if item.tokenized)
    (line,) = (line for line in counts.lines(tokens=True) if line.startswith("shortened"))
    assert line == f"shortened 2 × turns (rows 1, 4); the first: {counts.first_truncated['turns']}"


def test_an_example_says_that_it_was_shortened(plain_of: Of) -> None:
    pipeline = plain_of("chatml", max_length=100, truncation="turns").pipeline("messages")
    (whole, short) = (item.tokenized for item in pipeline.run([chat(talk(1)), chat(talk(6))]))
    assert whole is not None and short is not None
    assert to_row(short)["truncated"] == "turns" and "truncated" not in to_row(whole)
    assert ", shortened: turns</div>" in short._repr_html_() and "shortened" not in whole._repr_html_()


# Negative controls: on these the same functions fail.


def fails(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False


def test_negative_controls_of_30(plain_of: Of) -> None:
    subject = plain_of("chatml")
    record = {"instruction": "Say it.", "input": "", "output": "It is said, as you see."}
    whole = subject.case("alpaca", record)
    limit = len(whole.tokenized) - 6
    short, _ = shorten(subject, "alpaca", record, limit, "response")
    assert short is not None and short.tokenized is not None

    def wrong(**changes: Any) -> bool:
        assert short is not None and short.tokenized is not None
        tokenized = replace(short.tokenized, **changes)
        doctored = replace(short, tokenized=tokenized, rendered=tokenized.rendered)
        return fails(shortened_30, subject, "alpaca", record, doctored, limit, "response")

    ids, weights, rendered = short.tokenized.input_ids, short.tokenized.loss_weights, short.rendered
    assert not wrong()
    assert wrong(truncated=None)
    end = subject.tokenizer.id_of("<|im_end|>")
    assert wrong(input_ids=(*ids[:-1], end))  # an end marker although the answer was cut
    assert wrong(input_ids=ids[:-1], loss_weights=weights[:-1])  # ids and text part
    assert wrong(loss_weights=(0.0,) * len(ids))  # nothing trained
    assert wrong(rendered=replace(rendered, target_spans=whole.rendered.target_spans))
    prompt = len(whole.prompt_ids)
    assert wrong(input_ids=(*ids[1:prompt], *ids[prompt - 1 :]))  # a header was cut
    # What a trainer that cuts at the limit would have: the right length, but for one that is too short.
    assert fails(shortened_30, subject, "alpaca", record, short, limit - 1, "response")
    assert fails(shortened_30, subject, "alpaca", record, short, limit, "context")


def test_negative_controls_of_the_policies_that_render_anew(plain_of: Of) -> None:
    subject = plain_of("chatml")
    record = chat(talk(4, system="Be brief."))
    limit = len(subject.case("messages", record).tokenized) - 1
    short, _ = shorten(subject, "messages", record, limit, "turns")
    assert short is not None and short.tokenized is not None
    shortened_30(subject, "messages", record, short, limit, "turns")
    messages = short.example.messages
    for left in (messages[1:], (messages[0], *messages[2:]), messages[:-1], (messages[0], *messages[-2:])):
        other = replace(short, example=replace(short.example, messages=left))
        assert fails(shortened_30, subject, "messages", record, other, limit, "turns")
    sliced = replace(
        short.tokenized, input_ids=short.tokenized.input_ids[1:], loss_weights=short.tokenized.loss_weights[1:]
    )
    assert fails(shortened_30, subject, "messages", record, replace(short, tokenized=sliced), limit, "turns")
    record = {"instruction": "a", "input": "one two three four", "output": "b"}
    limit = len(subject.case("alpaca", record).tokenized) - 2
    short, _ = shorten(subject, "alpaca", record, limit, "context")
    assert short is not None
    shortened_30(subject, "alpaca", record, short, limit, "context")
    user, assistant = short.example.messages
    for context in ("", user.context[1:], user.context[:-1], "one two three four"):
        other = replace(short, example=replace(short.example, messages=(replace(user, context=context), assistant)))
        assert fails(shortened_30, subject, "alpaca", record, other, limit, "context")


def test_a_search_that_stops_early_is_noticed(plain_of: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of `keeps the longest`: one character less is not the longest."""
    subject = plain_of("alpaca")
    record = {"instruction": "Say it.", "input": "the capital of France", "output": "b"}
    limit = len(subject.case("alpaca", record).tokenized) - 3
    best, _ = shorten(subject, "alpaca", record, limit, "context")
    longest = truncation._longest_end
    monkeypatch.setattr(truncation, "_longest_end", lambda *a: longest(*a) - 1)
    worse, _ = shorten(subject, "alpaca", record, limit, "context")
    assert best is not None and worse is not None
    assert best.example.messages[0].context[:-1] == worse.example.messages[0].context
    assert best.rendered.text != worse.rendered.text
