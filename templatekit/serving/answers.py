"""Reads rows of what a model wrote, as servers and evaluation tools save them, and writes each as a message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from templatekit.errors import ConfigError, RecordError, shorten
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.formats.answers.parsing import ParsedAnswer
from templatekit.formats.template import Template
from templatekit.hooks.record_fields import tools_of
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import NO_TOKENIZER, AnswerPiece, Message, Record

ANSWER_KEYS = (
    "answer",
    "completion",
    "response",
    "model_response",
    "output",
    "generated_text",
    "prediction",
    "text",
)
"""The keys under which a row may hold an answer as text; the first that it has counts."""
ANSWER_ID_KEYS = ("answer_ids", "completion_ids", "output_ids", "token_ids", "ids")
"""The keys under which it may hold the answer's ids, which are read where there is a tokenizer."""
PROMPT_KEYS = ("prompt", "prompt_text")
PROMPT_ID_KEYS = ("prompt_ids", "prompt_token_ids", "input_ids")


@dataclass(kw_only=True)
class AnswerCounts:
    """How many answers were read, and what was wrong with them."""

    answers: int = 0
    with_reasoning: int = 0
    with_calls: int = 0
    calls: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """The rows without an answer, by reason."""

    def add(self, parsed: ParsedAnswer) -> None:
        """Count one answer."""
        self.answers += 1
        self.with_reasoning += bool(parsed.message.reasoning)
        self.with_calls += bool(parsed.message.tool_calls)
        self.calls += len(parsed.message.tool_calls)
        self.problems.update(parsed.problems)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON-like values."""
        return {
            "answers": self.answers,
            "with_reasoning": self.with_reasoning,
            "with_calls": self.with_calls,
            "calls": self.calls,
            "problems": dict(self.problems),
            "refused": dict(self.refused),
        }

    def lines(self) -> Iterator[str]:
        """The counts in words."""
        yield (
            f"answers: {self.answers:,}, {self.with_reasoning:,} with reasoning, {self.with_calls:,} with calls "
            f"({self.calls:,} in all)"
        )
        for title, counts in (("problems", self.problems), ("rows left out", self.refused)):
            if counts:
                yield f"{title}: {', '.join(f'{name} {count:,}' for name, count in counts.most_common())}"


def read_answer(
    answer: str | Iterable[int],
    template: Template,
    tokenizer: Tokenizer | None = None,
    *,
    prompt: str | Iterable[int] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> ParsedAnswer:
    """Read what a model wrote, as text or ids; see `Template.parse`. Raises `ConfigError` for ids without a tokenizer.

    The end of a prompt in ids tells how the tokenizer wrote the first text behind it.
    """

    def pieces(ids: Iterable[int], *, behind_control: bool = False) -> list[AnswerPiece]:
        if tokenizer is None:
            raise ConfigError("tokenizer: found None; expected the tokenizer of the ids")
        return tokenizer.pieces(ids, behind_control=behind_control)

    behind_control = False
    if prompt is not None and not isinstance(prompt, str):
        before = pieces(prompt)
        behind_control = bool(before) and before[-1].is_control
        prompt = "".join(piece.text for piece in before)
    return template.parse(
        answer if isinstance(answer, str) else pieces(answer, behind_control=behind_control),
        NO_TOKENIZER if tokenizer is None else tokenizer.special_tokens,
        prompt=prompt,
        tools=tools,
    )


class AnswerReader:
    """Reads the answers in rows by the template that prompted them."""

    def __init__(self, template: Template, tokenizer: Tokenizer | None = None) -> None:
        """Raises `TemplateError` if the template writes no answer."""
        self._template, self._tokenizer = template, tokenizer
        tokens = NO_TOKENIZER if tokenizer is None else tokenizer.special_tokens
        self.grammar: AnswerGrammar = template.grammar(tokens)

    def read(self, record: Record) -> ParsedAnswer:
        """The answer in a row. Raises `RecordError` for a row without one.

        Where the row has ids as well as text, and there is a tokenizer, the ids are read.
        """
        prompt = self._value(record, PROMPT_KEYS, PROMPT_ID_KEYS)
        answer = self._value(record, ANSWER_KEYS, ANSWER_ID_KEYS)
        if answer is None:
            named = next(
                (key for key in ANSWER_ID_KEYS if self._tokenizer is None and record.get(key) is not None), None
            )
            if named is not None:
                raise RecordError("ids need the tokenizer (--tokenizer)", field=named, reason="no_answer")
            found = ", ".join(key for key, value in record.items() if value is not None) or "nothing"
            raise RecordError(
                f"no answer; found {found}; expected one of {', '.join(ANSWER_KEYS)}, or with a tokenizer "
                f"{', '.join(ANSWER_ID_KEYS)}; or name the key (--columns answer=KEY)",
                reason="no_answer",
            )
        return read_answer(answer, self._template, self._tokenizer, prompt=prompt, tools=tools_of(record))

    def _value(self, record: Record, texts: Sequence[str], ids: Sequence[str]) -> str | Sequence[int] | None:
        """What stands under the first of these keys that the row has; keys of ids count only with a tokenizer."""
        if self._tokenizer is not None:
            for key in ids:
                if (value := record.get(key)) is not None:
                    return _ids(value, key)
        for key in texts:
            if (value := record.get(key)) is not None:
                if not isinstance(value, str):
                    raise RecordError(f"found {shorten(value)}; expected text", field=key, reason="bad_answer")
                return value
        return None


def _ids(value: Any, key: str) -> Sequence[int]:
    if not isinstance(value, (list, tuple)) or any(type(id) is not int or id < 0 for id in value):
        raise RecordError(f"found {shorten(value)}; expected a list of token ids", field=key, reason="bad_answer")
    return value


def as_message(message: Message) -> dict[str, Any]:
    """A message as Hugging Face's chat templates take it."""
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        values["reasoning_content"] = message.reasoning
    if message.tool_calls:
        values["tool_calls"] = list(message.tool_calls)
    return values


def as_row(parsed: ParsedAnswer, row: int) -> Mapping[str, Any]:
    """A row to write: the message, and what is wrong with the answer, if anything is."""
    values: dict[str, Any] = {"row": row, "message": as_message(parsed.message)}
    if parsed.problems:
        values["problems"] = list(parsed.problems)
    if parsed.leftovers:
        values["leftovers"] = [leftover._asdict() for leftover in parsed.leftovers]
    return values
