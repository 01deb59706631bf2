"""Finds the texts that a template writes around fields, such as `### Response:`, by rendering short examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from templatekit.audit.rows import TEXT_FIELDS
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
_CONVERSATIONS = (
    (_USER, _ANSWER),
    (_CONTEXT, _ANSWER),
    (_SYSTEM, _USER, _ANSWER),
    (_USER, _ANSWER, _USER, _ANSWER),
    (_USER, _THOUGHT),
    (_USER, _CALLS, _RESULT, _ANSWER),
)
_TAG = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]|<<\S+?>>")


class TemplateMarker(NamedTuple):
    """A text that the template writes around fields."""

    text: str
    line_start: bool
    """Whether the marker counts only at the start of a line: it starts with a letter, so prose may contain it too."""


def rendered_examples(template: Template, special_tokens: SpecialTokens) -> Iterator[RenderedText]:
    """A text for each kind of conversation that the template accepts.

    Where the template refuses the answer, the text is the prompt for it.
    """
    for messages in _CONVERSATIONS:
        example = Example(messages=messages)
        for render in (template.render, template.prompt):
            try:
                yield render(example, special_tokens)
                break
            except (RecordError, TemplateError):
                continue


def ending_of(template: Template, special_tokens: SpecialTokens) -> tuple[str, str]:
    """The last end marker of the first conversation that the template accepts, and the text after it."""
    pattern = EndMarkers.of(template.metadata, special_tokens).pattern
    for rendered in rendered_examples(template, special_tokens):
        for target in rendered.target_spans[-1:]:
            # A generation block may end before the marker or after it.
            blocks = any(span.origin.generation for span in rendered.spans)
            match = pattern.search(rendered.text, target.marker_start) if pattern and blocks else None
            end = match.end() if match else target.end
            return rendered.text[target.marker_start : end], rendered.text[end:]
    return "", ""


def markers_of(
    template: Template, special_tokens: SpecialTokens, tokenizer: Tokenizer | None
) -> tuple[TemplateMarker, ...]:
    """The markers, without the tokenizer's control tokens, for which there is another rule."""
    control = frozenset(tokenizer.control_tokens) if tokenizer else frozenset()
    found = {text.strip(): False for text in (*template.metadata.stop, *template.metadata.special_tokens)}
    for rendered in rendered_examples(template, special_tokens):
        for line, line_start in _adjacent_lines(rendered, control):
            # In a line with tags (`<|im_start|>user`) only the tags are typical of the template.
            for text in _TAG.findall(line) or [line]:
                found[text] = found.get(text, True) and line_start and text[0].isalnum()
    return tuple(
        TemplateMarker(text=text, line_start=line_start)
        for text, line_start in found.items()
        if _is_marker(text) and text not in control
    )


def _is_marker(text: str) -> bool:
    """Whether a text has letters and punctuation: prose and Markdown contain words alone and punctuation alone."""
    bare = text.replace(" ", "")
    return any(map(str.isalpha, bare)) and not bare.isalnum()


def _adjacent_lines(rendered: RenderedText, control: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """The template's lines directly before and after each text, and whether they start on a line of their own."""
    ordered = sorted(control, key=lambda token: (-len(token), token))
    tokens = re.compile("|".join(map(re.escape, ordered)) or "(?!)")
    for literal in _literals(rendered):
        texts = tokens.split(literal.text)
        line = texts[-1].rstrip().rpartition("\n")[2]
        if literal.before_text and line.strip():
            line_start = "\n" in texts[-1].rstrip() or len(texts) > 1 or literal.first
            yield line.strip(), line_start
        line = texts[0].strip().partition("\n")[0]
        if literal.after_text and line:
            yield line.strip(), "\n" in texts[0][: texts[0].index(line)]


class _Literal(NamedTuple):
    """Consecutive characters that the template writes, roles included."""

    text: str
    first: bool
    """The rendered text starts with it."""
    after_text: bool
    before_text: bool


def _literals(rendered: RenderedText) -> Iterator[_Literal]:
    start, after_text = 0, False
    for span in rendered.spans:
        if span.origin.is_template or span.origin.in_header:
            continue
        is_text = span.origin.field in TEXT_FIELDS  # text around parts of a tool call is JSON
        if span.start > start:
            yield _Literal(rendered.text[start : span.start], start == 0, after_text, is_text)
        start, after_text = span.end, is_text
    if start < len(rendered.text):
        yield _Literal(rendered.text[start:], start == 0, after_text, False)
