"""The subject of checks: an adapter, a template, or both, with a tokenizer."""

from __future__ import annotations

import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from templatekit.config.data_options import DataOptions
from templatekit.errors import PluginError
from templatekit.export.serving import Stops, stops_of
from templatekit.formats.lookup import find_template
from templatekit.formats.metadata import Capabilities
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing.records import (
    RecordShape,
    Scope,
    Text,
    TextLocation,
    conversations_of,
    record_shape,
    records_of,
    short_example,
    text_locations,
)
from templatekit.testing.texts import adversarial_text, plain_text
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example, Message, Record

TEMPLATES_FOR_ADAPTERS = ("alpaca", "text", "chatml")
"""Bundled templates to check an adapter with. The first one that prints everything the adapter reads is used."""


class AllFieldsAdapter(Adapter):
    """Reads and writes every field of a message: the adapter for checking a template alone."""

    name = "conversations"
    keys = required = ("messages",)

    def to_example(self, record: Record) -> Example:
        """The messages of the record, unchanged."""
        return Example(messages=tuple(Message(**message) for message in record["messages"]))

    def to_record(self, example: Example) -> Record:
        """Each message with the fields that are not empty."""
        return {
            "messages": [
                {"role": message.role, "content": message.content}
                | {name: text for name in ("context", "reasoning") if (text := getattr(message, name))}
                for message in example.messages
            ]
        }


class Subject:
    """An adapter, a template, or both, with a tokenizer.

    A template alone is checked with generated conversations that it accepts, an adapter alone with a bundled template.
    `options` are those of the pipeline (`boundary`, `control_tokens`, …).
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
        self.adapter = adapter or AllFieldsAdapter()
        self.template = template or self._bundled_template()
        self._pipelines: dict[tuple[tuple[str, Any], ...], Pipeline] = {}

    def __repr__(self) -> str:
        return f"<{self.name} with tokenizer {self.tokenizer.name}>"

    @property
    def label(self) -> str:
        """A short name for the ids of tests."""
        parts = (self.checked_adapter, self.checked_template)
        return "-".join([*(part.name for part in parts if part), Path(self.tokenizer.name).name])

    @property
    def name(self) -> str:
        """The kind and name of what is checked, such as `adapter faq with template qa`."""
        kinds = {"adapter": self.checked_adapter, "template": self.checked_template}
        return " with ".join(f"{kind} {part.name}" for kind, part in kinds.items() if part is not None)

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities that the template declares."""
        return self.template.metadata.capabilities

    @cached_property
    def scope(self) -> Scope:
        """The parts of a conversation that both the template and the checked adapter can express."""
        return _scope_of(self.template) & (self.shape.scope or Scope())

    @cached_property
    def shape(self) -> RecordShape:
        """The records that the adapter reads and the template accepts; `PluginError` if the adapter reads none."""
        if self.checked_adapter is None:
            scope = _scope_of(self.template)
            record = self.adapter.to_record(short_example(Scope(context=scope.context)))
            paths = tuple(location.path for location in self.text_locations(record))
            return RecordShape(scope=scope, records=(record,), text_paths=(paths,))
        try:
            return record_shape(self.adapter, partial(_render, self.template, self.adapter))
        except PluginError:  # if the template refuses every record, the checks report that
            return record_shape(self.adapter)

    def with_tokenizer(self, tokenizer: Tokenizer) -> Subject:
        """The same subject with another tokenizer; the shape of the records is not computed again."""
        other = copy.copy(self)
        other.tokenizer = tokenizer
        other._pipelines = {}
        vars(other).pop("stops", None)
        return other

    @cached_property
    def stops(self) -> Stops:
        """The strings and ids at which generation stops."""
        return stops_of(self.template, self.tokenizer)

    def pipeline(self, **options: Any) -> Pipeline:
        """The pipeline with these options, created once."""
        key = tuple(sorted(options.items()))
        if key not in self._pipelines:
            self._pipelines[key] = self.new_pipeline(**options)
        return self._pipelines[key]

    def new_pipeline(self, **options: Any) -> Pipeline:
        """A new pipeline with these options."""
        return Pipeline(
            DataOptions.parse({"dataset": "none", **self.options, **options}),
            self.registry,
            adapter=self.adapter,
            template=self.template,
            tokenizer=self.tokenizer,
        )

    def texts(self) -> Text:
        """Adversarial texts for this subject."""
        return adversarial_text(self.tokenizer, self.template)

    def records(self, text: Text, *, min_turns: int = 1) -> st.SearchStrategy[Record]:
        """A strategy for records with texts drawn from `text`."""
        return records_of(self.adapter, self.shape, text, self.scope, min_turns=min_turns)

    @cached_property
    def plain_records(self) -> st.SearchStrategy[Record]:
        """Records with plain texts."""
        return self.records(plain_text())

    def text_locations(self, record: Record) -> list[TextLocation]:
        """The locations of the texts in a record."""
        return text_locations(self.adapter, record)

    def _bundled_template(self) -> Template:
        """A bundled template that prints everything the adapter reads."""
        templates = [find_template(name, self.registry) for name in TEMPLATES_FOR_ADAPTERS]
        try:
            shape = record_shape(self.adapter)
        except PluginError:  # the checks report it
            return templates[-1]
        return next((template for template in templates if _accepts_all(template, shape, self.adapter)), templates[-1])


def _render(template: Template, adapter: Adapter, record: Record) -> None:
    for example in conversations_of(adapter, record):
        template.render(example)


def _accepts_all(template: Template, shape: RecordShape, adapter: Adapter) -> bool:
    """Whether a template accepts everything that an adapter reads."""
    records = [*shape.records, *({**shape.records[0], key: f"some {key}"} for key in shape.additional_keys)]
    try:
        for record in records:
            _render(template, adapter, record)
        if shape.scope is not None:
            template.render(short_example(shape.scope))
    except Exception:  # a plugin's code may raise anything
        return False
    return True


def _scope_of(template: Template) -> Scope:
    """The parts of a conversation that a template says it accepts."""
    capabilities = template.metadata.capabilities
    if template.kind == "instruction":
        return Scope(system="system" in template.variables, context="context" in template.variables)
    return Scope(
        max_turns=3 if capabilities.multi_turn else 1,
        system=capabilities.system,
        context=True,
        reasoning=any(name in template.source for name in ("reasoning_content", ".thinking", "['thinking']")),
    )
