"""Broken answers: no error, no character lost, read alike in any chunks, in a time that grows with their length."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest
from testkit.answer_forms import FORMS, Form
from testkit.budget import FULL

from templatekit import Message
from templatekit.formats.answers.parsing import AnswerParser, ParsedAnswer, parse_answer
from templatekit.types import AnswerPiece

COUNT = 10_000 if FULL else 600
"""How many broken answers are read, over all forms."""


def sample(form: Form) -> Message:
    """An answer with everything that a form can write."""
    calls = [
        ("now", {}),
        ("get_weather", {"city": 'New "York"', "days": 3, "where": {"at": [1.5, None, "x"]}}),
        ("now", {"text": "two\nlines \\ {", "more": True}),
    ]
    made = [
        {"id": f"functions.{name}:{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(calls)
    ]
    made = made[1:2] if form.calls == 1 else made
    return Message(
        role="assistant",
        content="An answer.\nIn two lines." if form.with_content else "",
        reasoning="So <far>, so good." if form.has_thoughts else "",
        tool_calls=tuple(made),
    )


def letters(form: Form) -> list[AnswerPiece]:
    """An answer, a character or a control token at a time."""
    return [
        AnswerPiece(part, piece.is_control, piece.is_special)
        for piece in form.pieces(sample(form))
        for part in ([piece.text] if piece.is_control else piece.text)
    ]


def broken(form: Form, given: Sequence[AnswerPiece], chance: random.Random) -> list[AnswerPiece]:
    """The answer with a few parts cut off, swapped, inserted, deleted or doubled."""
    pieces = list(given)
    controls = [AnswerPiece(token, True, token in form.tokens.special) for token in sorted(form.tokens.added)]
    controls += [AnswerPiece("<|image|>", True, True), AnswerPiece("<unused>", True)]
    for _ in range(chance.choice((1, 1, 2, 5))):
        start, end = sorted(chance.choices(range(len(pieces) + 1), k=2))
        end = min(end, start + chance.choice((1, 3, 40)))
        part = pieces[start:end]
        kind = chance.choice(("cut", "behead", "swap", "insert", "text", "delete", "double"))
        if kind == "cut":
            del pieces[start:]
        elif kind == "behead":
            del pieces[:start]
        elif kind == "swap":
            at = chance.randrange(len(pieces) + 1)
            pieces[start:end], pieces[at:at] = [], part
        elif kind == "insert":
            pieces[start:start] = [chance.choice(controls)]
        elif kind == "text":
            pieces[start:start] = map(
                AnswerPiece, chance.choice(['"', "{", "}", "]", "\\", "<", "\0", chance.choice(controls).text])
            )
        elif kind == "delete":
            del pieces[start:end]
        else:
            pieces[start:start] = part
    return pieces


def joined(pieces: Sequence[AnswerPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def assert_nothing_is_lost(parsed: ParsedAnswer, text: str) -> None:
    """Every character of the answer is in one span, and each field has those of its spans."""
    assert parsed.text == text
    assert [0, *(span.end for span in parsed.spans)] == [*(span.start for span in parsed.spans), len(text)]
    for field in ("reasoning", "content"):
        assert getattr(parsed.message, field) == "".join(
            text[span.start : span.end] for span in parsed.spans if span.field == field
        )
    left = [(span.start, text[span.start : span.end]) for span in parsed.spans if span.field == "leftover"]
    assert left == [(leftover.start, leftover.text) for leftover in parsed.leftovers]
    assert {leftover.problem for leftover in parsed.leftovers} <= set(parsed.problems)


def read_in_chunks(form: Form, pieces: Sequence[AnswerPiece], chance: random.Random, *, as_text: bool) -> ParsedAnswer:
    parser = AnswerParser(form.grammar, pieces=not as_text)
    events, start = [], 0
    while start < len(pieces):
        end = start + chance.choice((1, 1, 2, 7, 50))
        events += parser.feed(joined(pieces[start:end]) if as_text else pieces[start:end])
        start = end
    events += parser.finish()
    parsed = parser.close()
    for field in ("reasoning", "content"):
        assert "".join(e.text for e in events if e.field == field) == getattr(parsed.message, field)
    assert [event.call for event in events if event.field == "tool_call"] == [*parsed.message.tool_calls]
    return parsed


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_broken_answers(form: Form) -> None:
    given, chance = letters(form), random.Random(form.name)
    cuts = [given[:length] for length in range(len(given))]
    rest = COUNT // len(FORMS) - len(cuts)
    for pieces in [*cuts[:: 1 if FULL else 9], *(broken(form, given, chance) for _ in range(rest))]:
        for as_text in (False, True):
            parsed = parse_answer(form.grammar, joined(pieces) if as_text else pieces)
            assert_nothing_is_lost(parsed, joined(pieces))
            assert read_in_chunks(form, pieces, chance, as_text=as_text) == parsed
            assert parsed.problems or pieces == given or parsed.ended


def test_the_check_notices_a_lost_character() -> None:
    form = FORMS["object"]
    text = joined(form.pieces(sample(form)))
    parsed = parse_answer(form.grammar, text)
    assert_nothing_is_lost(parsed, text)
    for wrong in (f"{text}x", text[1:], text.replace("answer", "Answer")):
        with pytest.raises(AssertionError):
            assert_nothing_is_lost(parsed, wrong)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_calls_before_a_cut_are_kept(form: Form) -> None:
    """However far an answer is cut, the whole calls in it are those of the whole answer."""
    given = letters(form)
    whole = parse_answer(form.grammar, given).message
    counts = []
    for length in range(len(given)):
        message = parse_answer(form.grammar, given[:length]).message
        assert message.tool_calls == whole.tool_calls[: len(message.tool_calls)]
        counts.append(len(message.tool_calls))
    assert counts == sorted(counts)
    assert counts[-1] == len(whole.tool_calls)


UNITS: dict[str, Callable[[Form], str]] = {
    "half markers": lambda form: "<tool_cal<|calls|<|channel|>fin",
    "markers": lambda form: "".join(edge.literal for edge in form.grammar.edges if "\0" not in edge.literal),
    "openings": lambda form: next(
        e.literal for e in form.grammar.edges if e.target not in ("content", "end", "reasoning")
    ),
    "brackets": lambda form: "[{",
    "an open string": lambda form: 'word \\" ',
    "calls without an end": lambda form: '{"name": "a", "arguments": {',
    "names": lambda form: '{"name"',
    "blank space": lambda form: " \n",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("unit", UNITS)
def test_the_time_grows_with_the_length(form: Form, unit: str) -> None:
    """Long answers made to be slow, at once and bit by bit."""
    size = 100_000 if FULL else 6_000
    opening = next(e.literal for e in form.grammar.edges if e.source == "start" and e.target not in ("content", "end"))
    text = UNITS[unit](form) or "{"
    for start in (opening + "{", opening + '{"', ""):
        answer = (start + text * (size // len(text)))[:size]
        began = time.process_time()
        whole = parse_answer(form.grammar, answer)
        parser = AnswerParser(form.grammar)
        for character in answer:
            parser.feed(character)
        assert parser.close() == whole
        assert whole.text == answer
        assert time.process_time() - began < size * 4e-4  # 10 to 20 times what it takes; were it quadratic, 100 times
