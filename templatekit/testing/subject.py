"""What is checked: an adapter, a template, or both, with a tokenizer; and what becomes of one record."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from templatekit.config.options import DataOptions
from templatekit.errors import NOTHING_TRAINED, ConfigError, PluginError, RecordError
from templatekit.export.serving import Stops, stops_of
from templatekit.formats.lookup import find_template
from templatekit.formats.metadata import Capabilities
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.registry import Registry, create_registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing.adversarial import adversarial_text
from templatekit.testing.records import (
    Place,
    Scope,
    Shape,
    Text,
    conversations_of,
    places_of,
    records_of,
    shape_of,
    short_example,
)
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example, Message, Record, RenderedText, Sample, TargetSpan, TokenizedExample, TrainOn

SUITED = ("alpaca", "text", "chatml")
"""The bundled templates that an adapter alone is checked with: the first that takes all that the adapter reads."""


class Conversations(Adapter):
    """Reads every field of a message: the adapter of a template that is checked alone."""

    name = "conversations"
    keys = required = ("messages",)

    def to_example(self, record: Record) -> Example:
        """The messages as they stand there."""
        return Example(messages=tuple(Message(**message) for message in record["messages"]))

    def to_record(self, example: Example) -> Record:
        """Each message with what it holds."""
        return {
            "messages": [
                {"role": message.role, "content": message.content}
                | {name: text for name in ("context", "reasoning") if (text := getattr(message, name))}
                for message in example.messages
            ]
        }


class Unmade(Exception):
    """No sample came of a record; `error` says why, and `declared` whether the template says that this may happen."""

    def __init__(self, error: Exception, *, declared: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.declared = declared


class Silent(Exception):
    """A check has nothing to say about an input: why."""


class Subject:
    """An adapter, a template, or both, with a tokenizer.

    A template alone is checked on generated conversations of its kind, an adapter alone with the bundled template that
    suits it. `options` are the pipeline's (`boundary`, `control_tokens`, …).
    """

    def __init__(
        self,
        *,
        adapter: Adapter | None = None,
        template: Template | None = None,
        tokenizer: Tokenizer,
        registry: Registry | None = None,
        **options: Any,
    ) -> None:
        if adapter is None and template is None:
            raise ValueError("a subject needs an adapter or a template; got neither")
        self.checked_adapter = adapter
        self.checked_template = template
        self.tokenizer = tokenizer
        self.registry = registry or create_registry(select=())
        self.options = options
        self.adapter = adapter or Conversations()
        self.template = template or self._suited()
        self._pipelines: dict[tuple[tuple[str, Any], ...], Pipeline] = {}

    def __repr__(self) -> str:
        return f"<{self.name} with tokenizer {self.tokenizer.name}>"

    @property
    def label(self) -> str:
        """The same, short: for the names of tests."""
        parts = (self.checked_adapter, self.checked_template)
        return "-".join([*(part.name for part in parts if part), Path(self.tokenizer.name).name])

    @property
    def name(self) -> str:
        """What is checked."""
        kinds = {"adapter": self.checked_adapter, "template": self.checked_template}
        return " with ".join(f"{kind} {part.name}" for kind, part in kinds.items() if part is not None)

    @property
    def capabilities(self) -> Capabilities:
        """What the template declares."""
        return self.template.metadata.capabilities

    @cached_property
    def scope(self) -> Scope:
        """What can be expressed: by the template, and by the adapter where one is checked."""
        return _scope_of(self.template) & (self.shape.scope or Scope())

    @cached_property
    def shape(self) -> Shape:
        """The records that the adapter reads and the template takes; `PluginError` where the adapter reads none."""
        if self.checked_adapter is None:
            scope = _scope_of(self.template)
            record = self.adapter.to_record(short_example(Scope(context=scope.context)))
            places = tuple(place.path for place in self.places(record))
            return Shape(scope=scope, records=(record,), more=(), fewer=(), places=(places,))
        try:
            return shape_of(self.adapter, self._accept)
        except PluginError:  # where it is the template that takes none of them, the checks say so
            return shape_of(self.adapter)

    def _accept(self, record: Record) -> None:
        for example in conversations_of(self.adapter, record):
            self.template.render(example)

    def with_tokenizer(self, tokenizer: Tokenizer) -> Subject:
        """The same with another tokenizer: what is known of its shape is not found out again."""
        other = copy.copy(self)
        other.tokenizer = tokenizer
        other._pipelines = {}
        vars(other).pop("stops", None)
        return other

    @cached_property
    def stops(self) -> Stops:
        """What ends an answer when generating."""
        return stops_of(self.template, self.tokenizer)

    def pipeline(self, **options: Any) -> Pipeline:
        """The stages joined, made once for equal options."""
        key = tuple(sorted(options.items()))
        if key not in self._pipelines:
            self._pipelines[key] = self.new_pipeline(**options)
        return self._pipelines[key]

    def new_pipeline(self, **options: Any) -> Pipeline:
        """The stages joined, made anew."""
        return Pipeline(
            DataOptions.parse({"dataset": "none", **self.options, **options}),
            self.registry,
            adapter=self.adapter,
            template=self.template,
            tokenizer=self.tokenizer,
        )

    def run(self, record: Record, **options: Any) -> list[Sample]:
        """What becomes of one record; raises what the pipeline raises."""
        return list(self.pipeline(**options).run([record]))

    def case(self, record: Record, **options: Any) -> Case:
        """One record, to be looked at."""
        return Case(self, record, **options)

    def texts(self) -> Text:
        """Adversarial texts for this subject."""
        return adversarial_text(self.tokenizer, self.template)

    def records(self, text: Text, *, min_turns: int = 1) -> st.SearchStrategy[Record]:
        """A strategy for records with such texts."""
        return records_of(self.adapter, self.shape, text, self.scope, min_turns=min_turns)

    def places(self, record: Record) -> list[Place]:
        """Where the texts of a record stand."""
        return places_of(self.adapter, record)

    def _suited(self) -> Template:
        """The bundled template for an adapter alone."""
        templates = [find_template(name, self.registry) for name in SUITED]
        try:
            shape = shape_of(self.adapter)
        except PluginError:  # said again, and loudly, when the checks are run
            return templates[-1]
        return next((each for each in templates if _covers(each, shape, self.adapter)), templates[-1])


def _covers(template: Template, shape: Shape, adapter: Adapter) -> bool:
    """Whether a template has a place for all that an adapter reads."""
    records = [*shape.records, *({**shape.records[0], key: f"some {key}"} for key in shape.more)]
    try:
        for record in records:
            for example in conversations_of(adapter, record):
                template.render(example)
        if shape.scope is not None:
            template.render(short_example(shape.scope))
    except Exception:  # a plugin's code may raise anything
        return False
    return True


def _scope_of(template: Template) -> Scope:
    """What a template says that it takes."""
    capabilities = template.metadata.capabilities
    if template.kind == "instruction":
        return Scope(system="system" in template.variables, context="context" in template.variables)
    return Scope(
        turns=3 if capabilities.multi_turn else 1,
        system=capabilities.system,
        context=True,
        reasoning=any(name in template.source for name in ("reasoning_content", ".thinking", "['thinking']")),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedSample:
    """One sample of a record after all stages, and what a server would be fed."""

    subject: Subject
    prepared: Sample
    options: Mapping[str, Any]

    @property
    def train_on(self) -> TrainOn:
        """What was asked to be trained."""
        text: TrainOn = self.subject.pipeline(**self.options).options.train_on
        return text

    @property
    def example(self) -> Example:
        """The conversation."""
        return self.prepared.example

    @property
    def rendered(self) -> RenderedText:
        """Its text."""
        return self.prepared.rendered

    @property
    def tokenized(self) -> TokenizedExample:
        """Its ids and weights."""
        assert self.prepared.tokenized is not None
        return self.prepared.tokenized

    @property
    def cuts(self) -> list[int]:
        """Where the text is cut: at the boundary of every trained turn, and where the weight changes."""
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
        """Whether a server would be fed anything: a text without a question has no prompt."""
        return bool(self.trained_targets) and self.trained_targets[0].message > 0

    @cached_property
    def first_turn(self) -> int:
        """The index of the first message that is trained; raises `Silent` where no message comes before it."""
        if not self.prompted:
            raise Silent("no message comes before a trained answer")
        return self.trained_targets[0].message

    def before(self, turn: int) -> Example:
        """The conversation up to a turn, without it."""
        return replace(self.example, messages=self.example.messages[:turn])

    def rendered_up_to(self, count: int, *more: Message) -> RenderedText:
        """The conversation's first messages, and perhaps more, rendered by themselves.

        Of the answers before the last of the first nothing is asked: they may be none that a server could be prompted
        for.
        """
        *earlier, last = self.example.messages[:count]
        messages = (*(replace(message, weight=0.0) for message in earlier), last, *more)
        example = replace(self.example, messages=messages)
        return self.subject.template.render(example, self.subject.tokenizer.special_tokens)

    @cached_property
    def prompt(self) -> RenderedText:
        """What a server feeds to have the first trained turn generated."""
        return self.subject.template.prompt(self.before(self.first_turn), self.subject.tokenizer.special_tokens)

    @cached_property
    def prompt_ids(self) -> tuple[int, ...]:
        """Its ids."""
        return self.subject.pipeline(**self.options).prompt_ids(self.before(self.first_turn))


class Case:
    """One record and what became of it."""

    def __init__(self, subject: Subject, record: Record, **options: Any) -> None:
        self.subject = subject
        self.record = record
        self.options = options

    @property
    def train_on(self) -> TrainOn:
        """What was asked to be trained."""
        text: TrainOn = self.subject.pipeline(**self.options).options.train_on
        return text

    @cached_property
    def _outcome(self) -> list[CheckedSample] | Exception:
        try:
            prepared = self.subject.run(self.record, **self.options)
        except Exception as error:  # templates and plugins may raise anything
            return error
        return [CheckedSample(subject=self.subject, prepared=each, options=self.options) for each in prepared]

    @property
    def samples(self) -> list[CheckedSample]:
        """Its samples; raises `Unmade` where none came, `Silent` where none has anything to train."""
        if isinstance(self._outcome, Exception):
            raise Unmade(self._outcome, declared=self._declared(self._outcome)) from self._outcome
        if not self._outcome:
            raise Silent("nothing is trained")
        return self._outcome

    def _declared(self, error: Exception) -> bool:
        """Whether that is as it should be: an adapter may refuse by name, and so may a template that splits texts."""
        if isinstance(error, ConfigError) and NOTHING_TRAINED in str(error):
            return True
        if not isinstance(error, RecordError):
            return False
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
        """How many examples the adapter makes of the record."""
        return len(conversations_of(self.subject.adapter, self.record))

    @property
    def whole(self) -> CheckedSample:
        """The sample of the whole conversation."""
        return max(self.samples, key=lambda sample: len(sample.example.messages))
