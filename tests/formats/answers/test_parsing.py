"""Reading answers: there and back in every form of calls, as text and as ids, at once and as they come in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from testkit.answer_forms import FORMS, Form, answers
from testkit.answers import tools_for
from testkit.at_hand import Tokenizers
from testkit.budget import budget

from templatekit import Example, Message, Registry
from templatekit.formats.answers.grammar import AnswerGrammar, Edge
from templatekit.formats.answers.parsing import AnswerEvent, AnswerParser, ParsedAnswer, parse_answer
from templatekit.formats.lookup import find_template
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import LazyLossSpans
from templatekit.types import AnswerPiece

EACH = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def functions(message: Message) -> list[Any]:
    return [call["function"] for call in message.tool_calls]


def assert_same(parsed: ParsedAnswer, written: Message, text: str) -> None:
    """The answer was read as it was written."""
    assert (parsed.message.reasoning, parsed.message.content) == (written.reasoning, written.content)
    assert json.dumps(functions(parsed.message)) == json.dumps(functions(written))  # 1 is not True here, nor 1.0
    assert (parsed.problems, parsed.leftovers, parsed.ended) == ((), (), True)
    assert parsed.text == text


def joined(pieces: Iterable[AnswerPiece]) -> str:
    return "".join(piece.text for piece in pieces)


@EACH
@given(data=st.data())
@settings(max_examples=budget(60))
def test_there_and_back_in_pieces(form: Form, data: st.DataObject) -> None:
    answer = data.draw(answers(form))
    pieces = form.pieces(answer)
    assert_same(form.parse(pieces, answer), answer, joined(pieces))


@EACH
@given(data=st.data())
@settings(max_examples=budget(60))
def test_there_and_back_as_text(form: Form, data: st.DataObject) -> None:
    answer = data.draw(answers(form, plain=True))
    pieces = form.pieces(answer)
    assert_same(form.parse(pieces, answer, as_text=True), answer, joined(pieces))


@EACH
def test_the_check_notices_a_wrong_answer(form: Form) -> None:
    answer = Message(role="assistant", content="One.")
    pieces = form.pieces(answer)
    for wrong in (replace(answer, content="Two."), replace(answer, reasoning="Hm.")):
        with pytest.raises(AssertionError):
            assert_same(form.parse(pieces), wrong, joined(pieces))
    with pytest.raises(AssertionError):
        assert_same(form.parse(pieces[:-1]), answer, joined(pieces))


def test_text_that_spells_control_tokens_is_content_only_in_pieces() -> None:
    form = FORMS["object"]
    answer = Message(
        role="assistant", content='a <tool_call>\n{"name": "now", "arguments": {}}\n</tool_call> b<|end|>c'
    )
    pieces = form.pieces(answer)
    assert form.parse(pieces).message.content == answer.content
    as_text = form.parse(pieces, as_text=True)
    assert (as_text.message.content, len(as_text.message.tool_calls)) == ("a ", 1)


def chunks(pieces: Sequence[AnswerPiece], sizes: Iterator[int]) -> Iterator[list[AnswerPiece]]:
    """The same answer in chunks of so many characters; a control token is one."""
    letters = [
        AnswerPiece(part, piece.is_control, piece.is_special)
        for piece in pieces
        for part in ([piece.text] if piece.is_control else piece.text)
    ]
    start = 0
    while start < len(letters):
        end = start + next(sizes)
        yield letters[start:end]
        start = end


def assert_streams(
    form: Form, pieces: Sequence[AnswerPiece], sizes: Sequence[int], *, as_text: bool, tools: Sequence[Any] = ()
) -> None:
    """An answer in chunks is read as the whole, and the events add up to its message."""

    def cycle() -> Iterator[int]:
        while True:
            yield from sizes

    parser = AnswerParser(form.grammar, pieces=not as_text, tools=tools)
    events: list[AnswerEvent] = []
    for chunk in chunks(pieces, cycle()):
        events += parser.feed(joined(chunk) if as_text else chunk)
    events += parser.finish()
    parsed = parser.close()
    whole = parse_answer(form.grammar, joined(pieces) if as_text else pieces, tools=tools)
    assert parsed == whole
    assert_events(events, parsed)


def assert_events(events: Sequence[AnswerEvent], parsed: ParsedAnswer) -> None:
    """The events tell what the message holds."""
    for field in ("reasoning", "content"):
        text = "".join(event.text for event in events if event.field == field)
        assert text == getattr(parsed.message, field)
    assert [event.call for event in events if event.field == "tool_call"] == [*parsed.message.tool_calls]
    assert sum(event.field == "end" for event in events) == parsed.ended


@EACH
@given(data=st.data())
@settings(max_examples=budget(60))
def test_in_chunks_an_answer_is_read_as_the_whole(form: Form, data: st.DataObject) -> None:
    answer = data.draw(answers(form))
    pieces = form.pieces(answer)
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    cut = data.draw(st.integers(0, len(pieces)))
    for part in (pieces, pieces[:cut]):
        assert_streams(form, part, sizes, as_text=data.draw(st.booleans()), tools=tools_for(answer))


def test_the_check_of_events_notices_lost_ones() -> None:
    form = FORMS["name"]
    answer = Message(
        role="assistant",
        content="One.",
        tool_calls=({"type": "function", "function": {"name": "now", "arguments": {}}},),
    )
    parser = AnswerParser(form.grammar, pieces=True)
    events = [*parser.feed(form.pieces(answer)), *parser.finish()]
    parsed = parser.close()
    assert_events(events, parsed)
    assert [event.field for event in events] == ["content", "name", "tool_call", "end"]
    for lost in (0, 2, 3):
        with pytest.raises(AssertionError):
            assert_events([event for index, event in enumerate(events) if index != lost], parsed)


def test_text_comes_out_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser(FORMS["object"].grammar)
    assert parser.feed("Hello, wor") == [AnswerEvent("content", "Hello, wor")]
    assert parser.feed("ld <too") == [AnswerEvent("content", "ld ")]  # it may become <tool_call>
    assert parser.feed("ls>") == [AnswerEvent("content", "<tools>")]


OBJECT, NAME, TAGS, QUOTES = (FORMS[name].grammar for name in ("object", "name", "tags", "quotes"))
OPENED, CLOSED = "<tool_call>\n", "\n</tool_call>"
CALL = '<tool_call>\n{"name": "now", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "problems", "content", "calls"),
    [
        ("Hi.", ["no_end"], "Hi.", 0),
        ("Hi.<|end|>x", ["behind_end"], "Hi.", 0),
        ("Hi.<|end|>\n", [], "Hi.", 0),
        ("<think>\nso", ["no_end", "open_thought"], "", 0),
        ("<think>\nso<|end|>", ["open_thought"], "", 0),
        ("<think>\nso\n</think>\n\nHi.<think>again</think><|end|>", ["second_thought"], "Hi.<think>again</think>", 0),
        (f"Hi.{CALL}", ["no_end"], "Hi.", 1),  # a server cuts off the end marker
        (CALL[:-5], ["no_end"], "", 1),
        (CALL[:-13], ["no_end"], "", 1),
        (CALL[:-14], ["no_end", "open_call"], "", 0),
        (f"{CALL[:-13]}<|end|>", ["open_call"], "", 1),  # the call is whole, but its closing tag is missing
        (f"{CALL[:-15]}<|end|>", ["bad_call"], CALL[:-15], 0),
        (f"{CALL}{CALL}<|end|>", [], "", 2),
        (f"{CALL[:-13]},\n</tool_call><|end|>", ["between_fields"], "", 1),
        (OPENED + '{"name": now}' + CLOSED + "<|end|>", ["bad_call"], OPENED + '{"name": now}' + CLOSED, 0),
        (
            OPENED + '{"name": 5, "arguments": {}}' + CLOSED + "<|end|>",
            ["bad_call"],
            OPENED + '{"name": 5, "arguments": {}}' + CLOSED,
            0,
        ),
        (OPENED + '{"arguments": {}}' + CLOSED + "<|end|>", ["bad_call"], OPENED + '{"arguments": {}}' + CLOSED, 0),
        (
            OPENED + '{"name": "a", "arguments": [1]}' + CLOSED + "<|end|>",
            ["bad_call"],
            OPENED + '{"name": "a", "arguments": [1]}' + CLOSED,
            0,
        ),
        ('<tool_call>\n{"name": "a", "arguments": "{\\"x\\": 1}"}\n</tool_call><|end|>', [], "", 1),
        (
            OPENED + '{"name": "a", "arguments": "[[["}' + CLOSED + "<|end|>",
            ["bad_call"],
            OPENED + '{"name": "a", "arguments": "[[["}' + CLOSED,
            0,
        ),
        (
            OPENED + '{"name": "a", "arguments": {"x": NaN}}' + CLOSED + "<|end|>",
            ["bad_call"],
            OPENED + '{"name": "a", "arguments": {"x": NaN}}' + CLOSED,
            0,
        ),
        (
            OPENED + '{"name": "a", "arguments": {"x": 1e999}}' + CLOSED + "<|end|>",
            ["bad_call"],
            OPENED + '{"name": "a", "arguments": {"x": 1e999}}' + CLOSED,
            0,
        ),
        (
            OPENED + '{"name": "a", "name": "b", "arguments": {}}' + CLOSED + "<|end|>",
            ["bad_call"],
            OPENED + '{"name": "a", "name": "b", "arguments": {}}' + CLOSED,
            0,
        ),
        (f"{OPENED}{{'name'{CLOSED}{CALL}<|end|>", ["bad_call"], f"{OPENED}{{'name'{CLOSED}", 1),
        (f"{OPENED}{'[' * 100_000}{CLOSED}{CALL}<|end|>", ["bad_call"], f"{OPENED}{'[' * 100_000}{CLOSED}", 1),
        (f"It says <tool_call>. {CALL}<|end|>", ["bad_call"], "It says <tool_call>. ", 1),
        ("<tool_call><tool_call><|end|>", ["bad_call"], "<tool_call><tool_call>", 0),
        ("", ["no_end"], "", 0),
        ("<thi", ["no_end"], "<thi", 0),
    ],
)
def test_what_is_sound_of_a_broken_answer(answer: str, problems: list[str], content: str, calls: int) -> None:
    parsed = parse_answer(OBJECT, answer)
    assert sorted(parsed.problems) == problems
    assert (parsed.message.content, len(parsed.message.tool_calls)) == (content, calls)
    assert parsed.text == answer


@pytest.mark.parametrize(
    ("answer", "problems", "arguments"),
    [
        ("<parameter=x>\n5\n</parameter>\n", [], {"x": 5}),
        ("<parameter=x>\n5\n</parameter>\n<parameter=y>\n\n</parameter>\n", [], {"x": 5, "y": ""}),
        ("<parameter=x>\n5\n</parameter>\n<parameter=x>\n6\n</parameter>\n", ["bad_call"], None),
        ("<parameter=x>\n5<parameter=y>\n</parameter>\n", [], {"x": "5<parameter=y>"}),
        ("", [], {}),
    ],
)
def test_arguments_one_by_one(answer: str, problems: list[str], arguments: dict[str, Any] | None) -> None:
    parsed = parse_answer(TAGS, f"<tool_call>\n<function=f>\n{answer}</function>\n</tool_call><|end|>")
    assert [*parsed.problems] == problems
    assert functions(parsed.message) == ([] if arguments is None else [{"name": "f", "arguments": arguments}])


def test_a_value_that_is_cut_by_the_end_marker_makes_no_call() -> None:
    parsed = parse_answer(TAGS, "<tool_call>\n<function=f>\n<parameter=x>\n5<|end|>")
    assert (parsed.message.tool_calls, parsed.problems) == ((), ("bad_call",))
    assert parsed.message.content == "<tool_call>\n<function=f>\n<parameter=x>\n5"
    parsed = parse_answer(TAGS, "<tool_call>\n<function=f>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>")
    assert (functions(parsed.message), parsed.problems) == ([{"name": "f", "arguments": {"x": 5}}], ("no_end",))


TYPES: dict[str, Any] = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "maybe": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    "open": {},
    "list": {"type": ["array", "null"]},
}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "5", "5"),
        ("text", "null", "null"),
        ("count", "5", 5),
        ("count", "5.0", 5),
        ("count", "five", "five"),
        ("maybe", "2.5", 2.5),
        ("maybe", "null", None),
        ("open", "5", 5),
        ("open", "five", "five"),
        ("list", '["a", 1]', ["a", 1]),
        ("list", "['a', None]", ["a", None]),
        ("unknown", "true", True),
    ],
)
def test_the_schema_of_a_tool_types_arguments(key: str, text: str, value: Any) -> None:
    answer = f"<tool_call>\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call><|end|>"
    tool = {"name": "f", "parameters": {"type": "object", "properties": TYPES}}
    for tools in ([tool], [{"type": "function", "function": tool}]):
        (call,) = functions(parse_answer(TAGS, answer, tools=tools).message)
        assert json.dumps(call["arguments"]) == json.dumps({key: value})


@pytest.mark.parametrize("tools", [[{}], [{"name": 5}], [{"name": "f", "parameters": {"properties": {"x": 5}}}]])
def test_odd_tools_are_no_error(tools: list[Any]) -> None:
    answer = "<tool_call>\n<function=f>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call><|end|>"
    assert functions(parse_answer(TAGS, answer, tools=tools).message) == [{"name": "f", "arguments": {"x": 5}}]


def special(text: str) -> AnswerPiece:
    return AnswerPiece(text, True, True)


def test_a_special_token_is_never_part_of_a_field() -> None:
    end, image = special("<|end|>"), special("<|image|>")
    parsed = parse_answer(OBJECT, [AnswerPiece("a"), image, AnswerPiece("b"), end])
    assert (parsed.message.content, parsed.problems, parsed.ended) == ("ab", ("control_token",), True)
    assert [(left.start, left.text) for left in parsed.leftovers] == [(1, "<|image|>")]
    opened, closed = AnswerPiece("<tool_call>", True), AnswerPiece("</tool_call>", True)
    inside = [AnswerPiece('\n{"name": "now", "arguments": {"x": "a'), image, AnswerPiece('"}}\n')]
    parsed = parse_answer(OBJECT, [opened, *inside, closed, end])
    assert (parsed.message.tool_calls, parsed.problems, parsed.ended) == ((), ("bad_call", "control_token"), True)
    named = [special("<|call|>"), AnswerPiece("no"), image, AnswerPiece("w"), special("<|sep|>"), AnswerPiece("{}")]
    parsed = parse_answer(NAME, [*named, special("<|call_end|>"), end])
    assert (parsed.message.tool_calls, parsed.problems, parsed.ended) == ((), ("bad_call",), True)


def test_a_control_token_that_is_not_special_may_stand_in_a_string() -> None:
    pieces = [
        AnswerPiece("<tool_call>", True),
        AnswerPiece('\n{"name": "say", "arguments": {"x": "a '),
        AnswerPiece("</tool_call>", True),
        AnswerPiece(' \\" b"}}\n'),
        AnswerPiece("</tool_call>", True),
        special("<|end|>"),
    ]
    parsed = parse_answer(OBJECT, pieces)
    assert functions(parsed.message) == [{"name": "say", "arguments": {"x": 'a </tool_call> " b'}}]


def test_no_character_of_text_is_taken_for_a_control_token() -> None:
    """Those that stand for control tokens, given as text and by JSON's escapes; surrogates too."""
    for form in FORMS.values():
        every = "".join(map(chr, range(0x100000, 0x100040))) + "\U0010ffff\ud83d\udfff"
        pieces = [AnswerPiece(f"a{every}b"), special("<|end|>")]
        if form.name == "channels":
            pieces[:0] = [special("<|channel|>"), AnswerPiece("final"), special("<|message|>")]
        parsed = parse_answer(form.grammar, pieces)
        assert (parsed.message.content, parsed.problems) == (f"a{every}b", ())
        assert parsed.text == joined(pieces)
    arguments = json.dumps({"x": "\U00100000\U00100001\ud83d"})
    opened, closed = AnswerPiece("<tool_call>", True), AnswerPiece("</tool_call>", True)
    for mark in (closed, AnswerPiece("\U00100000")):
        text = f'\n{{"name": "now", "arguments": {arguments[:-2]}'
        pieces = [opened, AnswerPiece(text), mark, AnswerPiece('"}}\n'), closed, special("<|end|>")]
        (call,) = functions(parse_answer(OBJECT, pieces).message)
        assert call["arguments"] == {"x": f"\U00100000\U00100001\ud83d{mark.text}"}


def test_ids_after_names_and_numbers_of_calls() -> None:
    """A form with `<|tool1|>`: a digit of its own; a call's number, of any length; then its id."""
    edges: list[tuple[Any, Any, str]] = [
        ("start", "content", ""),
        ("content", "end", "<eos>"),
        ("start", "name", "<|tool1|>\0:"),
        ("content", "name", "<|tool1|>\0:"),
        ("name", "arguments", "="),
        ("arguments", "id", "#"),
        ("id", "name", "<|tool1|>\0:"),
        ("id", "end", "<eos>"),
    ]
    made = tuple(Edge(source=source, target=target, literal=text) for source, target, text in edges)
    grammar = AnswerGrammar(name="numbers", prompt="", edges=made, stops=("<eos>",))
    answer = 'Hi<|tool1|>0:f={"x": 1}#a<|tool1|>1234:g={}#b<eos>'
    whole = parse_answer(grammar, answer)
    assert [(call["id"], call["function"]["name"]) for call in whole.message.tool_calls] == [("a", "f"), ("b", "g")]
    assert (whole.message.content, whole.problems) == ("Hi", ())
    parser = AnswerParser(grammar)
    for character in answer:
        parser.feed(character)
    assert parser.close() == whole


REAL = [("tokenizer", "qwen3"), ("llama3", "llama3")]
TINY = [("chatml", "bytes"), ("chatml", "unigram"), ("llama3", "bytes"), ("qwen3", "nfc"), ("zephyr", "sentencepiece")]


@pytest.mark.parametrize(("template", "tokenizer"), TINY + REAL)
@given(data=st.data())
@settings(max_examples=budget(12))
def test_the_ids_of_an_answer_are_read_back(
    template: str, tokenizer: str, tokenizer_of: Tokenizers, builtin: Registry, data: st.DataObject
) -> None:
    """Answers as a model gives them: the ids that training shows it, and what `Tokenizer.pieces` makes of them."""
    loaded = tokenizer_of(tokenizer)
    found = find_template(template, builtin, chat_template=loaded.chat_template)
    grammar, special = found.grammar(loaded.special_tokens), loaded.special_tokens.special
    answer = data.draw(answers(FORMS["object"]))
    answer = replace(
        answer,
        reasoning=answer.reasoning if "reasoning" in grammar.writes else "",
        tool_calls=answer.tool_calls if "tool_calls" in grammar.writes else (),
    )
    # Tokens that are not special are read as such in text too, and Qwen's template splits texts at `</think>`.
    ambiguous = {*grammar.controls, "</think>"} - special
    assume(answer.content and not any(token in answer.content + answer.reasoning for token in ambiguous))
    example = Example(messages=(Message(role="user", content="So?"), answer), tools=tools_for(answer))
    rendered = found.samples(example, loaded.special_tokens)[-1].rendered
    encoded = Encoder(loaded).encode(rendered, LazyLossSpans(rendered, "last"))
    ids = [id for id, weight in zip(encoded.input_ids, encoded.loss_weights, strict=True) if weight]
    pieces = loaded.pieces(ids)
    parsed = found.parse(
        pieces, loaded.special_tokens, prompt=rendered.text[: rendered.target_spans[-1].start], tools=example.tools
    )
    if joined(pieces) == rendered.text[rendered.target_spans[-1].start : rendered.target_spans[-1].end]:
        assert_same(parsed, answer, joined(pieces))
    assert parsed.text == joined(pieces)
