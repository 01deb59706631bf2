"""A record of a subject after all stages, and the exceptions and assertions of checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from templatekit.errors import NOTHING_TRAINED, ConfigError, RecordError
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing.records import conversations_of
from templatekit.testing.subject import Subject
from templatekit.types import Example, Message, Record, RenderedText, Sample, TargetSpan, TokenizedExample, TrainOn


class NoSampleError(Exception):
    """A record gave no sample. `error` is the cause; `declared` says whether the format announces such refusals."""

    def __init__(self, error: Exception, *, declared: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.declared = declared


class SkipInput(Exception):
    """An input shows nothing about the check; the text is the reason."""


class Violation(AssertionError):
    """The promise of a check is broken."""

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        found: object = None,
        sample: CheckedSample | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.found = found
        self.sample = sample
        self.hint = hint


def equal(found: object, expected: object, what: str, sample: CheckedSample | None = None) -> None:
    """Raise `Violation` if two values differ."""
    if found != expected:
        raise Violation(what, expected=expected, found=found, sample=sample)


def holds(condition: object, what: str, sample: CheckedSample | None = None, **more: Any) -> None:
    """Raise `Violation` if a condition is false."""
    if not condition:
        raise Violation(what, sample=sample, **more)


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedSample:
    """A sample of a record, with the prompt that a server would encode for it."""

    subject: Subject
    sample: Sample
    pipeline: Pipeline

    @property
    def train_on(self) -> TrainOn:
        """The option `train_on`."""
        return self.pipeline.options.train_on

    @property
    def example(self) -> Example:
        """The conversation."""
        return self.sample.example

    @property
    def rendered(self) -> RenderedText:
        """The rendered text."""
        return self.sample.rendered

    @property
    def tokenized(self) -> TokenizedExample:
        """The ids and loss weights."""
        assert self.sample.tokenized is not None
        return self.sample.tokenized

    @property
    def cuts(self) -> list[int]:
        """Positions where the text is cut: at the boundary of every trained turn, and where the weight changes."""
        return [span.start for span in self.tokenized.loss_spans][1:]

    @property
    def trained_targets(self) -> list[TargetSpan]:
        """The targets of the turns that are trained."""
        targets = [target for target in self.rendered.target_spans if self.rendered.message_weights[target.message]]
        if self.train_on == "last" and self.rendered.target_spans:
            last = self.rendered.target_spans[-1].message
            targets = [target for target in targets if target.message == last]
        return targets

    @property
    def prompted(self) -> bool:
        """Whether the sample has a prompt: a text without a question has none."""
        return bool(self.trained_targets) and self.trained_targets[0].message > 0

    @cached_property
    def first_turn(self) -> int:
        """The index of the first message that is trained; raises `SkipInput` if no message precedes it."""
        if not self.prompted:
            raise SkipInput("no message comes before a trained answer")
        return self.trained_targets[0].message

    def before(self, turn: int) -> Example:
        """The conversation before a turn."""
        return replace(self.example, messages=self.example.messages[:turn])

    def rendered_up_to(self, count: int, *more: Message) -> RenderedText:
        """Render the first `count` messages of the conversation, followed by `more`.

        Earlier answers get weight 0, because a server may have no prompt for them.
        """
        *earlier, last = self.example.messages[:count]
        messages = (*(replace(message, weight=0.0) for message in earlier), last, *more)
        example = replace(self.example, messages=messages)
        return self.subject.template.render(example, self.subject.tokenizer.special_tokens)

    @cached_property
    def prompt(self) -> RenderedText:
        """The prompt from which a server generates the first trained turn."""
        return self.subject.template.prompt(self.before(self.first_turn), self.subject.tokenizer.special_tokens)

    @cached_property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids of the prompt."""
        return self.pipeline.prompt_ids(self.before(self.first_turn))


class CheckedRecord:
    """A record of a subject with its samples, which are made when they are first needed."""

    def __init__(self, subject: Subject, record: Record, **options: Any) -> None:
        self.subject = subject
        self.record = record
        self.options = options

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline that makes the samples."""
        return self.subject.pipeline(**self.options)

    @property
    def train_on(self) -> TrainOn:
        """The option `train_on`."""
        return self.pipeline.options.train_on

    @cached_property
    def _outcome(self) -> list[CheckedSample] | Exception:
        try:
            samples = list(self.pipeline.run([self.record]))
        except Exception as error:  # templates and plugins may raise anything
            return error
        return [CheckedSample(subject=self.subject, sample=sample, pipeline=self.pipeline) for sample in samples]

    @property
    def samples(self) -> list[CheckedSample]:
        """The samples; raises `NoSampleError` if the record failed, `SkipInput` if nothing in it is trained."""
        if isinstance(self._outcome, Exception):
            raise NoSampleError(self._outcome, declared=self._is_declared(self._outcome)) from self._outcome
        if not self._outcome:
            raise SkipInput("nothing is trained")
        return self._outcome

    def _is_declared(self, error: Exception) -> bool:
        """Whether the refusal is legitimate.

        An adapter may refuse a record if it names the field; a template that splits texts may refuse one too.
        """
        if not isinstance(error, RecordError):
            return isinstance(error, ConfigError) and NOTHING_TRAINED in str(error)
        if self.subject.capabilities.splits_content and error.reason == "no_place_for_field":
            return True
        try:
            conversations_of(self.subject.adapter, self.record)
        except RecordError as refusal:
            return refusal.field is not None
        except Exception:  # a plugin's code may raise anything
            return False
        return False

    @cached_property
    def conversations(self) -> int:
        """The number of examples that the adapter reads from the record."""
        return len(conversations_of(self.subject.adapter, self.record))

    @property
    def whole(self) -> CheckedSample:
        """The sample with the most messages: the whole conversation."""
        return max(self.samples, key=lambda sample: len(sample.example.messages))
