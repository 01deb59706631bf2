"""Generated answers of every shape, what a template writes for them, and whether they are read back."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from templatekit import Example, Message, Template
from templatekit.errors import TemplatekitError
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.types import AnswerPiece, RenderedText, SpecialTokens

TEXTS = (
    "It is four.",
    "Two lines.\nAnd another one.",
    "Ein Satz mit Umlauten: äöü, 日本語, 🎉.",
    "Quotes \"here\" and 'there', a \\ and {braces: [1, 2]}.",
    '```json\n{"name": "get", "arguments": {}}\n```',
    "a < b > c & d </p> <b>",
)
NAMES = ("get_weather", "now", "search.web", "add-item")
VALUES: tuple[Any, ...] = (
    "Oslo",
    "two words",
    'with "quotes"',
    "line\nbreak",
    "ünïcode 🎉",
    "12",
    "true",
    "",
    7,
    -3,
    2.5,
    True,
    False,
    None,
    [],
    [1, "two", None],
    {"inner": "value", "list": [{"deep": 1}]},
)


def schema_of(value: Any) -> dict[str, Any]:
    """The JSON Schema of a value's type."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array"}
    return {"type": names.get(type(value), "object")}


def messages(grammar: AnswerGrammar, count: int, seed: int) -> Iterator[Message]:
    """Answers with reasoning, content, no call, one or three, of what the template writes.

    Some texts spell the template's own literals.
    """
    chance = random.Random(seed)
    markers = [m for edge in grammar.edges if (m := edge.literal.strip()) and "\0" not in m] or ["</s>"]
    for _ in range(count):
        texts = [*TEXTS, f"It says {chance.choice(markers)} here.", chance.choice(markers) + "."]
        calls: list[dict[str, Any]] = []
        if "tool_calls" in grammar.writes and chance.random() < 0.6:
            for index in range(chance.choice((1, 1, 3))):
                name = f"{chance.choice(NAMES)}_{index}"  # each with a schema of its own
                arguments = {f"key_{n}": chance.choice(VALUES) for n in range(chance.choice((0, 1, 1, 2, 4)))}
                id = f"functions.{name}:{index}" if grammar.id_holds_name else f"call{index:05d}"
                calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
        thought = chance.choice(texts[:7]) if "reasoning" in grammar.writes and chance.random() < 0.5 else ""
        content = "" if calls and chance.random() < 0.5 else chance.choice(texts)
        yield Message(role="assistant", content=content, reasoning=thought, tool_calls=tuple(calls))


def tools_for(message: Message) -> tuple[dict[str, Any], ...]:
    """The tools that a message calls, with the types of its arguments; of two calls of one name, those in common."""
    tools: dict[str, dict[str, Any]] = {}
    for call in message.tool_calls:
        function = call["function"]
        types = {key: schema_of(value) for key, value in function["arguments"].items()}
        known = tools.get(function["name"], types)
        tools[function["name"]] = types if known == types else {}
    return tuple(
        {
            "type": "function",
            "function": {
                "name": name,
                "description": "A tool.",
                "parameters": {"type": "object", "properties": properties},
            },
        }
        for name, properties in tools.items()
    )


def written(template: Template, tokens: SpecialTokens, answer: Message) -> RenderedText | None:
    """What the template writes for an answer to a question; None if it refuses it."""
    example = Example(messages=(Message(role="user", content="A question?"), answer), tools=tools_for(answer))
    for tried in (example, replace(example, tools=())):
        try:
            rendered = template.interpret(tried, tokens, 0, "last")[-1].rendered
        except TemplatekitError:
            continue
        if rendered.target_spans:
            return rendered
    return None


def pieces_of(rendered: RenderedText, tokens: SpecialTokens) -> list[AnswerPiece]:
    """The answer as a tokenizer with these tokens gives it: those in literals apart, text in fields as text."""
    start, end = rendered.target_spans[0].start, rendered.target_spans[-1].end
    ordered = sorted(tokens.special, key=len, reverse=True)
    token = re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else re.compile("(?!)()")
    found: list[AnswerPiece] = []
    for span in rendered.spans:
        text = rendered.text[max(span.start, start) : min(span.end, end)] if span.end > start else ""
        if span.origin.is_template:
            found += [AnswerPiece(part, part in tokens.special, True) for part in token.split(text) if part]
        elif text:
            found.append(AnswerPiece(text))
    return found


Outcome = Literal["same", "alike", "ends early", "refused", "misread"]


def read_back(template: Template, tokens: SpecialTokens, answer: Message) -> tuple[Outcome, str]:
    """Whether an answer is read as it was written, or as another that the template writes alike but for blank space.

    A text that spells what closes it, in characters that no token keeps apart, ends early: the first counts.
    """
    rendered = written(template, tokens, answer)
    if rendered is None:
        return "refused", ""
    prompt = rendered.text[: rendered.target_spans[0].start]
    parsed = template.parse(pieces_of(rendered, tokens), tokens, prompt=prompt, tools=tools_for(answer))
    text = rendered.text[rendered.target_spans[0].start : rendered.target_spans[-1].end]
    if parsed.text != text:
        return "misread", f"{text!r} became {parsed.text!r}"
    if _texts(parsed.message) == _texts(answer) and not parsed.problems:
        return "same", ""
    again = written(template, tokens, parsed.message)
    if again is not None and again.text.split() == rendered.text.split():
        return "alike", ""
    if _spells_an_end(answer, template.grammar(tokens), tokens):
        return "ends early", ""
    return "misread", f"{text!r} is read as {_texts(parsed.message)}, {', '.join(parsed.problems)}"


def _spells_an_end(answer: Message, grammar: AnswerGrammar, tokens: SpecialTokens) -> bool:
    """Whether a text spells what opens or closes a thought, or an end marker that no token keeps apart from text."""
    texts = f"{answer.content}\n{answer.reasoning}"
    literals = [edge.literal.strip() for edge in grammar.edges if "reasoning" in (edge.source, edge.target)]
    ends = [stop for stop in grammar.stops if stop not in tokens.special]
    ends += [edge.literal.strip() for edge in grammar.edges if edge.target == "end"]
    return any(text and text in texts for text in (*literals, *ends))


def _texts(message: Message) -> tuple[str, str, Sequence[Any]]:
    return message.reasoning.strip(), message.content.strip(), [call["function"] for call in message.tool_calls]
