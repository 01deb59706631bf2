"""One template with one tokenizer, for records of any adapter: for tests of a single part."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import strategies as st

from templatekit import Example, Record, Registry, Template, Tokenizer
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing import Subject, conversations, examples
from templatekit.testing.checked_record import CheckedRecord, CheckedSample, NoSampleError

ONE_TURN = ("alpaca", "dolly", "prompt-completion", "messages", "sharegpt")
"""Adapters of records of one turn."""
SEVERAL = ("messages", "sharegpt")
Text = st.SearchStrategy[str]
Drawn = st.SearchStrategy[tuple[str, Record]]


class Through:
    """A template and a tokenizer, with pipelines for any adapter."""

    def __init__(self, template: Template, tokenizer: Tokenizer, registry: Registry, **options: Any) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.registry = registry
        self.options = options

    def subject(self, adapter: str) -> Subject:
        parts: dict[str, Any] = {"adapter": self.registry.adapters[adapter], "template": self.template}
        return Subject(**parts, tokenizer=self.tokenizer, registry=self.registry, **self.options)

    def pipeline(self, adapter: str) -> Pipeline:
        return self.subject(adapter).new_pipeline()

    def case(self, adapter: str, record: Record) -> CheckedSample:
        """The sample of the whole record; raises what the pipeline raises."""
        try:
            return CheckedRecord(self.subject(adapter), record).whole
        except NoSampleError as no_sample:
            raise no_sample.error from None


def _named(name: str, example: Example) -> tuple[str, Example]:
    return name, example


def instruction_records(text: Text, registry: Registry) -> Drawn:
    """(adapter, record) of one turn, in each adapter's own shape; with a context where it has a place for one."""
    return st.one_of(
        *(examples(text, context=name in ("alpaca", "dolly")).map(partial(_named, name)) for name in ONE_TURN)
    ).map(lambda drawn: (drawn[0], registry.adapters[drawn[0]].to_record(drawn[1])))


def conversation_records(text: Text, registry: Registry, *, min_turns: int = 1, max_turns: int = 3) -> Drawn:
    """(adapter, record) of several turns, with and without a system message."""
    drawn = st.tuples(st.sampled_from(SEVERAL), conversations(text, min_turns=min_turns, max_turns=max_turns))
    return drawn.map(lambda drawn: (drawn[0], registry.adapters[drawn[0]].to_record(drawn[1])))
