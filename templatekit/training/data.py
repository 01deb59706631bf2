"""The examples of a run, divided into splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from templatekit.config import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.pairs import PairPipeline, pairs_of
from templatekit.pipeline import Pipeline, Prepared
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


def pipeline_class(options: FinetuneOptions) -> type[Pipeline]:
    """What prepares the records: whole samples, or pairs of answers."""
    return PairPipeline if options.method == "dpo" else Pipeline


def read_splits(options: FinetuneOptions, pipeline: Pipeline) -> Splits:
    """Reads the data set; a held-out set of its own is `validation`."""
    items = list(pipeline.run(pipeline.open(), source=options.dataset))
    pairs = options.method == "dpo"
    if options.eval_dataset is not None:
        own = type(pipeline)(
            options.model_copy(update={"dataset": options.eval_dataset, "limit": None}),
            pipeline.registry,
            adapter=pipeline.adapter,
            template=pipeline.template,
            tokenizer=pipeline.tokenizer,
        )
        held_out = list(own.run(own.open(), source=options.eval_dataset))
        return Splits(samples={"train": items, "validation": held_out}, pairs=pairs)
    # The examples of one row stay together: they share text.
    rows = [list(examples) for _, examples in groupby(items, key=lambda item: item.rendered.row)]
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
