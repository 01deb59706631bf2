"""The examples of a run, divided into splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from templatekit.config import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.formats.template import Template
from templatekit.mixture import Mixture, pipeline_of
from templatekit.pairs import PairPipeline, pairs_of
from templatekit.pipeline import Pipeline, Prepared
from templatekit.registry import Registry
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.training.split import split_rows
from templatekit.types import TokenizedExample, TokenizedPair

_HELD_OUT = ("validation", "test")
"""Splits that are evaluated on, the first that exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Samples by split, `train` among them; with DPO a pair's chosen and rejected answer in turn."""

    samples: dict[str, list[Prepared]]
    pairs: bool

    @property
    def train(self) -> Sequence[TokenizedExample] | Sequence[TokenizedPair]:
        """What is trained on."""
        return self._items(self.samples["train"])

    @property
    def held_out(self) -> Sequence[TokenizedExample] | Sequence[TokenizedPair]:
        """What is evaluated on; empty where nothing is held out."""
        return self._items(self._first_of(_HELD_OUT))

    @property
    def asked(self) -> list[Prepared]:
        """Samples whose prompts show what the model has learned: of the test set where there is one."""
        return self._first_of(("test", *_HELD_OUT))[:: 2 if self.pairs else 1]

    @property
    def checked(self) -> list[Prepared]:
        """Samples to try a server's prompt on."""
        return (self.asked or self.samples["train"])[:20]

    @property
    def sizes(self) -> dict[str, int]:
        """Examples, or pairs, of each split."""
        return {name: len(samples) // (2 if self.pairs else 1) for name, samples in self.samples.items()}

    def _first_of(self, names: Sequence[str]) -> list[Prepared]:
        return next((self.samples[name] for name in names if self.samples.get(name)), [])

    def _items(self, samples: Sequence[Prepared]) -> Sequence[TokenizedExample] | Sequence[TokenizedPair]:
        if self.pairs:
            return pairs_of(samples)
        return [sample.tokenized for sample in samples if sample.tokenized is not None]


def pipeline_for(
    options: FinetuneOptions, registry: Registry, *, tokenizer: Tokenizer, template: Template | None = None
) -> Pipeline:
    """What prepares the records: whole samples, or pairs of answers; of one set, or of several.

    Raises `ConfigError` for sets of several templates: a trained model is served with one.
    """
    pipeline = pipeline_of(options, registry, kind=_kind(options), tokenizer=tokenizer, template=template)
    if isinstance(pipeline, Mixture) and not pipeline.one_template:
        raise ConfigError(
            f"mix: a model is served with one template, {pipeline.template.name!r}; found sets with another or with "
            "chat_template_kwargs of their own; give all sets that template, or train on what `render` writes"
        )
    return pipeline


def _kind(options: FinetuneOptions) -> type[Pipeline]:
    return PairPipeline if options.method == "dpo" else Pipeline


def read_splits(options: FinetuneOptions, pipeline: Pipeline) -> Splits:
    """Reads the data set; a held-out set of its own is `validation`."""
    items = list(pipeline.prepared())
    pairs = options.method == "dpo"
    if options.eval_dataset is not None:
        own = _kind(options)(
            options.model_copy(
                update={"dataset": options.eval_dataset, "limit": None, "mix": (), "mix_strategy": None}
            ),
            pipeline.registry,
            adapter=pipeline.adapter,
            template=pipeline.template,
            tokenizer=pipeline.tokenizer,
        )
        held_out = list(own.prepared())
        return Splits(samples={"train": items, "validation": held_out}, pairs=pairs)
    # The examples of one row stay together, and so do its repeats in a mixture: they share text.
    by_row: dict[tuple[str, int], list[Prepared]] = {}
    for item in items:
        by_row.setdefault((item.rendered.source, item.rendered.row), []).append(item)
    rows = list(by_row.values())
    parts = split_rows(options.split, len(rows), shuffle=options.split_order == "shuffled", seed=options.seed)
    samples = {name: [item for index in indices for item in rows[index]] for name, indices in parts.items()}
    if not samples["train"]:
        raise ConfigError(f"split {options.split!r} leaves no training examples of {len(items)}")
    return Splits(samples=samples, pairs=pairs)


def identity_of(pipeline: Pipeline, items: Sequence[TokenizedExample] | Sequence[TokenizedPair]) -> dict[str, str]:
    """What a checkpoint must agree with: the ids and weights, the template, the tokenizer."""
    assert pipeline.tokenizer is not None
    data = hashlib.sha256()
    for item in items:
        for example in (item.chosen, item.rejected) if isinstance(item, TokenizedPair) else (item,):
            data.update(repr((example.input_ids, example.loss_weights)).encode())
    return {
        "data": data.hexdigest(),
        "template": hashlib.sha256(pipeline.template.source.encode()).hexdigest(),
        "tokenizer": pipeline.tokenizer.fingerprint,
    }
