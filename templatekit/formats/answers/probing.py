"""Finds the answer grammar of a template, by rendering small answers whose fields are known words.

Each answer shows the literals between the fields that it has. The answers are built as they are served, so the literals
are those that a model writes behind the generation prompt. What was found is then tried on answers of other shapes. A
form that does not even read a plain call is not used, and `lacks` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

from templatekit.formats.answers.call_forms import (
    KEYS,
    NUMBER_VALUE,
    VALUES,
    Arguments,
    CallForm,
    Field,
    WriteFunction,
    call_of,
    short_answer,
    text_fields,
)
from templatekit.formats.answers.grammar import NUMBER, Alike, AnswerGrammar, Edge, Unread
from templatekit.formats.answers.parsing import parse_answer
from templatekit.types import Message, SpecialTokens

_CALLS_WRITTEN = 3
"""The largest number of calls in the answers that show the literals."""


def probe(write: WriteFunction, tokens: SpecialTokens, *, name: str) -> AnswerGrammar | None:
    """The grammar of the template with this name; None if it writes no plain answer."""
    plain = write(short_answer())
    if plain is None:
        return None
    edges: dict[Edge, None] = {}
    for answer in (short_answer(), short_answer(thought=True), short_answer(thought=True, content=False)):
        if (written := write(answer)) is not None and (fields := text_fields(written.text, answer)) is not None:
            edges |= dict.fromkeys(_edges(written.text, fields))
    grammar = AnswerGrammar(name=name, prompt=plain.prompt, edges=tuple(edges))
    if any(edge.target == "reasoning" for edge in edges):
        grammar = replace(grammar, writes=grammar.writes | {"reasoning"})
        if not any(literal.strip() for literal in grammar.literals("reasoning", "content")):
            grammar = _without_reasoning(grammar, "nothing but blank space ends it")
    grammar = grammar.ended_as(tokens)
    form = CallForm.of(write)
    if isinstance(form, CallForm):
        grammar = _with_calls(grammar, form, write).ended_as(tokens)
    elif form:
        grammar = replace(grammar, writes=grammar.writes | {"tool_calls"}, lacks={**grammar.lacks, "tool_calls": form})
    if "reasoning" in grammar.writes and "reasoning" not in grammar.lacks:
        tried = _tried(grammar, write, _unseen_thoughts())
        grammar = tried if isinstance(tried, AnswerGrammar) else _without_reasoning(grammar, tried)
    return replace(grammar, alike=(*_alike(grammar, write), *grammar.alike))


def _without_reasoning(grammar: AnswerGrammar, why: str) -> AnswerGrammar:
    edges = tuple(edge for edge in grammar.edges if "reasoning" not in (edge.source, edge.target))
    return replace(grammar, edges=edges, lacks={**grammar.lacks, "reasoning": why})


def _with_calls(grammar: AnswerGrammar, form: CallForm, write: WriteFunction) -> AnswerGrammar:
    """The grammar with calls of this form; without them where it does not read a plain one."""
    edges = dict.fromkeys(grammar.edges)
    for answer in _answers_with_calls(form):
        if (written := write(answer)) is not None and (fields := form.fields(written.text, answer)) is not None:
            edges |= dict.fromkeys(_edges(written.text, fields))
    written_fields = {"tool_calls"} | {"reasoning" for edge in edges if edge.target == "reasoning"}
    grammar = replace(grammar, writes=grammar.writes | written_fields)
    found = replace(
        grammar,
        edges=_joined(_numbered(tuple(edges))),
        values=form.values,
        call=form.object,
        id_holds_name=form.id_holds_name,
    )
    tried = _tried(found, write, _unseen_calls(form))
    if isinstance(tried, AnswerGrammar):
        return tried
    return replace(grammar, lacks={**grammar.lacks, "tool_calls": tried})


def _tried(grammar: AnswerGrammar, write: WriteFunction, answers: Iterable[Message]) -> AnswerGrammar | str:
    """The grammar with those of these answers that it does not read; or why it does not read the first.

    An answer read as another one, for which the template writes the same text, is one of two that are alike.
    """
    alike: list[Alike] = []
    unread: list[Unread] = []
    for index, answer in enumerate(answers):
        if (written := write(answer)) is None:
            continue
        parsed = parse_answer(grammar, written.text)
        if not parsed.problems:
            if is_same(parsed.message, answer):
                continue
            again = write(parsed.message)
            if again is not None and again.text == written.text:
                alike.append(Alike(first=shown(parsed.message), second=shown(answer), text=written.text))
                continue
        problem = ", ".join(parsed.problems) or f"read as {shown(parsed.message)}"
        if not index:
            return f"{written.text!r} is not read: {problem}"
        unread.append(Unread(message=shown(answer), text=written.text, problem=problem))
    return replace(grammar, alike=(*grammar.alike, *alike), unread=(*grammar.unread, *unread))


def _edges(text: str, fields: Sequence[Field]) -> Iterator[Edge]:
    """The literals of a text with these fields."""
    all_fields: list[Field] = [("start", 0, 0), *fields, ("end", len(text), len(text))]
    for (source, _, start), (target, end, _) in pairwise(all_fields):
        yield Edge(source=source, target=target, literal=text[start:end])


def _numbered(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """The edges with a mark for the number of a call, where literals differ in nothing but that number."""
    found: dict[Edge, None] = {}
    for edge in edges:
        literals = {other.literal for other in edges if (other.source, other.target) == (edge.source, edge.target)}
        for match in re.finditer(r"\d", edge.literal):
            before, after = edge.literal[: match.start()], edge.literal[match.end() :]
            numbers = [n for n in range(int(match[0]) - 2, int(match[0]) + 3) if f"{before}{n}{after}" in literals]
            if len(numbers) >= _CALLS_WRITTEN:
                edge = replace(edge, literal=before + NUMBER + after)
                break
        found[edge] = None
    return tuple(found)


def _joined(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """The edges, and for two fields that begin alike, those of either for both: only what follows tells them apart."""
    more = []
    for one, other in combinations(edges, 2):
        if (one.source, one.literal) == (other.source, other.literal) and one.target != other.target:
            more += [replace(edge, source=one.target) for edge in edges if edge.source == other.target]
    return tuple(dict.fromkeys([*edges, *more]))


def _answers_with_calls(form: CallForm) -> Iterator[Message]:
    """Answers that show the literals around calls and arguments."""
    calls = [form.call(index, {KEYS[index]: VALUES[index]}) for index in range(_CALLS_WRITTEN)]
    for count in range(1, _CALLS_WRITTEN + 1):
        for content in (False, True):
            for thought in (False, True):
                yield short_answer(content=content, thought=thought, calls=calls[:count])
    if form.kind != "each":
        return
    text, number = {KEYS[0]: VALUES[0]}, {KEYS[0]: NUMBER_VALUE}
    more: tuple[Arguments, ...] = ({}, {KEYS[2]: VALUES[2]}, {KEYS[2]: NUMBER_VALUE + 1})
    for arguments in ({}, *({**first, **second} for first in (text, number) for second in more)):
        call = form.call(0, arguments)
        yield short_answer(calls=[call])
        yield short_answer(content=False, calls=[call])
        yield short_answer(content=False, calls=[call, calls[1]])
        yield short_answer(content=False, calls=[form.call(0, {KEYS[3]: VALUES[3]}), form.call(1, arguments)])


_TEXT = "Two \"quotes\", a 'mark' \\ and\na line"
_UNSEEN_CALLS: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = (
    (("get_weather", {"city": "Oslo"}),),
    (("get_weather", {"city": "Oslo", "days": 3, "exact": False, "at": {"x": [1.5, None, "y"], "name": _TEXT}}),),
    (("now", {}),),
    (("a", {"x": 1}), ("b", {}), ("c.d-e", {"text": _TEXT, "more": True}), ("a", {"x": [1, {"y": 2}]})),
)


def _unseen_thoughts() -> Iterator[Message]:
    """Answers to try a grammar on, with a thought and without."""
    yield Message(role="assistant", content="An answer.\n\nIn two parts.", reasoning="First this.\n\nThen that.")
    yield Message(role="assistant", content="An answer, without a thought.")


def _unseen_calls(form: CallForm) -> Iterator[Message]:
    """Answers to try a grammar on, with calls of other shapes."""
    for content in ("", "An answer.\n\nIn two parts."):
        for calls in _UNSEEN_CALLS:
            made = [call_of(name, given, form.id(name, index)) for index, (name, given) in enumerate(calls)]
            yield Message(role="assistant", content=content, tool_calls=tuple(made))


def shown(message: Message) -> dict[str, Any]:
    """The fields of an answer that hold something."""
    values: dict[str, Any] = {"reasoning": message.reasoning, "content": message.content}
    values["tool_calls"] = [call["function"] for call in message.tool_calls]
    return {field: value for field, value in values.items() if value}


def is_same(parsed: Message, written: Message) -> bool:
    """Whether two answers have equal text, but for blank space at its ends, and equal calls, but for ids."""
    if parsed.content.strip() != written.content.strip() or parsed.reasoning.strip() != written.reasoning.strip():
        return False
    return [call["function"] for call in parsed.tool_calls] == [call["function"] for call in written.tool_calls]


def _alike(grammar: AnswerGrammar, write: WriteFunction) -> Iterator[Alike]:
    """Messages that the template writes alike: a field that holds a literal looks as if it ended there."""
    pairs: list[tuple[Message, Message]] = []
    for literal in grammar.literals("reasoning", "content")[:1]:
        thought = Message(role="assistant", reasoning="One.", content=f"Two.{literal}Three.")
        pairs.append((thought, replace(thought, reasoning=f"One.{literal}Two.", content="Three.")))
    if "tool_calls" in grammar.writes and "tool_calls" not in grammar.lacks:
        call = call_of("now", {"city": "Oslo"}, "functions.now:0" if grammar.id_holds_name else "call00000")
        with_call = Message(role="assistant", content="One.", tool_calls=(call,))
        if (written := write(with_call)) is not None:
            for literal in grammar.literals("content", "end"):
                text = written.text.removesuffix(literal)
                if (start := text.find("One.")) >= 0:
                    pairs.append((with_call, Message(role="assistant", content=text[start:])))
    for first, second in pairs:
        one, other = write(first), write(second)
        if one is not None and other is not None and one.text == other.text:
            yield Alike(first=shown(first), second=shown(second), text=one.text)
