"""Properties 34 to 36: what a model writes is read as a message again, as a whole and as it comes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from templatekit.errors import RecordError, TemplateError
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.formats.answers.parsing import ParsedAnswer
from templatekit.formats.answers.probing import is_same
from templatekit.testing import oracle
from templatekit.testing.check import check
from templatekit.testing.checked_record import CheckedRecord, CheckedSample, equal, holds
from templatekit.testing.exemptions import lossy_tokenizer, no_template
from templatekit.testing.inputs import checked_records
from templatekit.testing.subject import Subject
from templatekit.types import AnswerPiece, Message

_CUTS = 12
"""How many pieces of an answer it is cut at."""


def no_grammar(subject: Subject) -> str | None:
    """For checks that read answers."""
    try:
        subject.template.grammar(subject.tokenizer.special_tokens)
    except (RecordError, TemplateError) as error:
        return str(error)
    return None


class _Answer(NamedTuple):
    """A trained answer, in pieces as a model gives it."""

    sample: CheckedSample
    turn: int
    prompt: str
    text: str
    pieces: list[AnswerPiece]

    @property
    def written(self) -> Message:
        """The answer as it stands in the record."""
        return self.sample.example.messages[self.turn]

    def parsed(self, pieces: Sequence[AnswerPiece]) -> ParsedAnswer:
        """What the template reads in these pieces."""
        subject = self.sample.subject
        tokens = subject.tokenizer.special_tokens
        return subject.template.parse(pieces, tokens, prompt=self.prompt, tools=self.sample.example.tools)

    def written_as(self, message: Message) -> str:
        """The text up to the end of the answer, with another message in its place."""
        example, subject = self.sample.example, self.sample.subject
        changed = replace(example, messages=(*example.messages[: self.turn], replace(message, weight=1.0)))
        try:
            samples = subject.template.samples(changed, subject.tokenizer.special_tokens, last_only=True)
        except (RecordError, TemplateError) as error:
            return f"refused: {error}"
        rendered = samples[-1].rendered
        return rendered.text[: rendered.target_spans[-1].end] if rendered.target_spans else rendered.text


def _answers(checked: CheckedRecord) -> Iterator[_Answer]:
    """The answers that are trained whole and behind a prompt."""
    tokenizer = checked.subject.tokenizer
    controls = tokenizer.control_ids
    if checked.train_on not in ("response", "last"):
        return
    for sample in checked.samples:
        runs = oracle.true_runs([bool(weight) for weight in sample.tokenized.loss_weights])
        if len(runs) != len(sample.trained_targets) or not oracle.is_lossless(tokenizer, sample.rendered.text):
            continue
        for target, (start, end) in zip(sample.trained_targets, runs, strict=True):
            if target.message > 0:
                text = sample.rendered.text[target.start : target.end]
                ids = sample.tokenized.input_ids
                pieces = tokenizer.pieces(ids[start:end], behind_control=start > 0 and ids[start - 1] in controls)
                if "".join(piece.text for piece in pieces) == text:  # not so where the tokenizer normalizes texts
                    yield _Answer(sample, target.message, sample.rendered.text[: target.start], text, pieces)


def _spells_a_literal(message: Message, grammar: AnswerGrammar) -> bool:
    """Whether a text of the message holds a literal that the tokenizer does not keep apart from text."""
    texts = f"{message.content}\n{message.reasoning}"
    literals = {*(edge.literal.strip() for edge in grammar.edges), *grammar.stops} - {""}
    return any(literal in texts for literal in literals)


@check(34, given=checked_records, unless=[no_template, no_grammar, lossy_tokenizer])
def answers_are_read_back(checked: CheckedRecord) -> str | None:
    """What a model writes for an answer is read as that answer, or as another that the template writes alike."""
    tried = 0
    grammar = checked.subject.template.grammar(checked.subject.tokenizer.special_tokens)
    for answer in _answers(checked):
        if _spells_a_literal(answer.written, grammar):
            continue
        parsed = answer.parsed(answer.pieces)
        if not is_same(parsed.message, answer.written):
            expected = answer.prompt + answer.text
            equal(answer.written_as(parsed.message), expected, "an answer, written as it was read", answer.sample)
        equal([*parsed.problems], [], "the problems of an answer in the template's form", answer.sample)
        tried += 1
    return None if tried else "no answer is trained whole, or its text spells a literal of the template"


@check(35, given=checked_records, unless=[no_template, no_grammar, lossy_tokenizer])
def answers_in_parts_are_read_alike(checked: CheckedRecord) -> str | None:
    """An answer that comes in bit by bit is read as the whole, and the events add up to the message."""
    tried = 0
    subject = checked.subject
    tokens = subject.tokenizer.special_tokens
    for answer in _answers(checked):
        tools = answer.sample.example.tools
        parser = subject.template.answer_parser(tokens, pieces=True, prompt=answer.prompt, tools=tools)
        events = [event for piece in _letters(answer.pieces) for event in parser.feed([piece])]
        parsed = parser.close()
        equal(parsed, answer.parsed(answer.pieces), "an answer that comes in bit by bit", answer.sample)
        for field in ("reasoning", "content"):
            text = "".join(event.text for event in events if event.field == field)
            whole = getattr(parsed.message, field)
            holds(whole.startswith(text), f"events tell of other {field} than the message has", answer.sample)
        tried += 1
    return None if tried else "no answer is trained whole"


def _letters(pieces: Sequence[AnswerPiece]) -> Iterator[AnswerPiece]:
    for piece in pieces:
        yield from [piece] if piece.is_control else map(AnswerPiece, piece.text)


@check(36, given=checked_records, unless=[no_template, no_grammar, lossy_tokenizer])
def broken_answers_lose_nothing(checked: CheckedRecord) -> str | None:
    """An answer that is cut, or whose parts stand in another order, is read without an error, each character once."""
    tried = 0
    for answer in _answers(checked):
        letters = list(_letters(answer.pieces))
        step = max(1, len(letters) // _CUTS)
        for cut in range(0, len(letters), step):
            for broken in (letters[:cut], letters[cut:], [*letters[cut:], *letters[:cut]]):
                parsed = answer.parsed(broken)
                text = "".join(piece.text for piece in broken)
                equal(parsed.text, text, "the text of a broken answer", answer.sample)
                starts = [*(span.start for span in parsed.spans), len(text)]
                ends = [0, *(span.end for span in parsed.spans)]
                equal(
                    starts, ends, "where the spans of a broken answer start, and those before them end", answer.sample
                )
        tried += 1
    return None if tried else "no answer is trained whole"
