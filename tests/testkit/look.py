"""Views of one record for tests: its text, and exactly what is trained, in characters and in tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from templatekit import DataOptions, Record, Registry, Template, TemplateFile, TokenizedExample, Tokenizer
from templatekit.formats.lookup import find_template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing.oracle import true_runs


class Seen(NamedTuple):
    """One record after all stages."""

    text: str
    trained: list[str]
    """The decoded runs of trained tokens."""
    example: TokenizedExample


class Eye:
    """Runs records through a template and a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, registry: Registry) -> None:
        self.tokenizer = tokenizer
        self.registry = registry

    def template(self, name: str) -> Template:
        """A bundled template by name, the tokenizer's own as `tokenizer`, or a chat template's source."""
        if "{" in name:
            return Template(TemplateFile(name="given", source=name), strict=False)
        return find_template(name, self.registry, chat_template=self.tokenizer.chat_template)

    def pipeline(self, template: str, **options: Any) -> Pipeline:
        parsed = DataOptions.parse({"dataset": "none", **options})
        return Pipeline(parsed, self.registry, template=self.template(template), tokenizer=self.tokenizer)

    def all(self, records: Iterable[Record], template: str, **options: Any) -> list[Seen]:
        """Every record that comes out."""
        prepared = self.pipeline(template, **options).run(records)
        return [self._seen(item.tokenized) for item in prepared if item.tokenized is not None]

    def one(self, record: Record, template: str, **options: Any) -> Seen:
        (seen,) = self.all([record], template, **options)
        return seen

    def samples(self, turns: Sequence[tuple[str, str]], template: str, **options: Any) -> list[Seen]:
        """The samples of a conversation of (role, content)."""
        return self.all([_conversation(turns)], template, **options)

    def chat(self, turns: Sequence[tuple[str, str]], template: str, **options: Any) -> Seen:
        """A conversation of (role, content) that gives one sample."""
        return self.one(_conversation(turns), template, **options)

    def _seen(self, example: TokenizedExample) -> Seen:
        runs = true_runs([bool(weight) for weight in example.loss_weights])
        trained = [self.tokenizer.decode(example.input_ids[start:end]) for start, end in runs]
        return Seen(example.rendered.text, trained, example)


def _conversation(turns: Sequence[tuple[str, str]]) -> Record:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def control_ids(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The control tokens among ids, by their text."""
    texts = {token.id: text for text, token in tokenizer.control_tokens.items()}
    return [texts[id] for id in ids if id in texts]
