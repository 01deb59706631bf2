"""The texts that a template writes around fields, found by rendering examples of every shape it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from templatekit.audit.values import Marker
from templatekit.errors import RecordError, TemplateError
from templatekit.formats.end_markers import EndMarkers
from templatekit.formats.template import Template
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example, Message, RenderedText, SpecialTokens

_USER, _CONTEXT = Message(role="user", content="question"), Message(role="user", content="question", context="context")
_SYSTEM, _ANSWER = Message(role="system", content="system"), Message(role="assistant", content="answer")
_THOUGHT = Message(role="assistant", content="answer", reasoning="reasoning")
_CALL = {"type": "function", "function": {"name": "name", "arguments": {"key": "value"}}}
_CALLS, _RESULT = Message(role="assistant", tool_calls=(_CALL,)), Message(role="tool", content="result")
_SHAPES = (
    (_USER, _ANSWER),
    (_CONTEXT, _ANSWER),
    (_SYSTEM, _USER, _ANSWER),
    (_USER, _ANSWER, _USER, _ANSWER),
    (_USER, _THOUGHT),
    (_USER, _CALLS, _RESULT, _ANSWER),
)
_TAG = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]|<<\S+?>>")
_TOLD = ("content", "context", "reasoning")
"""Fields whose surroundings are markers; what surrounds parts of a tool call is JSON."""


def probes(template: Template, special: SpecialTokens) -> Iterator[RenderedText]:
    """An example of every shape that the template takes, or where it takes no such answer, the prompt for it."""
    for messages in _SHAPES:
        example = Example(messages=messages)
        for render in (template.render, template.prompt):
            try:
                yield render(example, special)
                break
            except (RecordError, TemplateError):
                continue


class Ending(NamedTuple):
    """What a template writes behind the last answer."""

    marker: str = ""
    trailing: str = ""
    """Behind the end marker."""


def ending_of(template: Template, special: SpecialTokens) -> Ending:
    """The ending of the first shape that the template takes."""
    pattern = EndMarkers.of(template.metadata, special).pattern
    for rendered in probes(template, special):
        for target in rendered.target_spans[-1:]:
            # A generation block may end before the marker, or behind it.
            blocks = any(span.origin.generation for span in rendered.spans)
            match = pattern.search(rendered.text, target.marker_start) if pattern and blocks else None
            end = match.end() if match else target.end
            return Ending(rendered.text[target.marker_start : end], rendered.text[end:])
    return Ending()


def markers_of(template: Template, special: SpecialTokens, tokenizer: Tokenizer | None) -> tuple[Marker, ...]:
    """The markers, without the tokenizer's control tokens: those are looked for by a rule of their own."""
    control = frozenset(tokenizer.control_tokens) if tokenizer else frozenset()
    found = {text.strip(): False for text in (*template.metadata.stop, *template.metadata.special_tokens)}
    for rendered in probes(template, special):
        for line, leads in _lines(rendered, control):
            # Of a line with tags in it (`<|im_start|>user`) the tags alone say that it is the template's.
            for text in _TAG.findall(line) or [line]:
                found[text] = found.get(text, True) and leads and text[0].isalnum()
    return tuple(
        Marker(text=text, leads=leads) for text, leads in found.items() if _is_marker(text) and text not in control
    )


def _is_marker(text: str) -> bool:
    """A word alone is no marker, nor is punctuation alone: prose and Markdown hold both."""
    bare = text.replace(" ", "")
    return any(map(str.isalpha, bare)) and not bare.isalnum()


def _lines(rendered: RenderedText, control: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """The template's lines right before and right behind each text, with whether they begin there a line."""
    ordered = sorted(control, key=lambda token: (-len(token), token))
    tokens = re.compile("|".join(map(re.escape, ordered)) or "(?!)")
    for scaffold in _scaffolds(rendered):
        pieces = tokens.split(scaffold.text)
        line = pieces[-1].rstrip().rpartition("\n")[2]
        if scaffold.before_text and line.strip():
            begins = "\n" in pieces[-1].rstrip() or len(pieces) > 1 or scaffold.first
            yield line.strip(), begins
        line = pieces[0].strip().partition("\n")[0]
        if scaffold.behind_text and line:
            yield line.strip(), "\n" in pieces[0][: pieces[0].index(line)]


class _Scaffold(NamedTuple):
    """A run of the template's own text, roles included."""

    text: str
    first: bool
    """The rendered text begins with it."""
    behind_text: bool
    before_text: bool


def _scaffolds(rendered: RenderedText) -> Iterator[_Scaffold]:
    start, told = 0, False
    for span in rendered.spans:
        if span.origin.is_template or span.origin.in_header:
            continue
        here = span.origin.field in _TOLD
        if span.start > start:
            yield _Scaffold(rendered.text[start : span.start], start == 0, told, here)
        start, told = span.end, here
    if start < len(rendered.text):
        yield _Scaffold(rendered.text[start:], start == 0, told, False)
