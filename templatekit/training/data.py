"""The examples of a run, divided into splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from templatekit.cache import StoredExamples, StoredSamples, prepared_samples
from templatekit.config.options import FinetuneOptions
from templatekit.engines.processes import local_workers
from templatekit.errors import ConfigError
from templatekit.formats.template import Template
from templatekit.hooks.registry import Registry
from templatekit.packing.columns import places_of
from templatekit.pipeline.mixture import Mixture, pipeline_of
from templatekit.pipeline.pipeline import Pipeline
from templatekit.pipeline.preference import PairPipeline, pairs_of
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.training.split import split_rows
from templatekit.types import Sample, TokenizedExample, TokenizedPair

_HELD_OUT = ("validation", "test")
"""Splits that are evaluated on, the first that exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Samples by split, `train` among them; with DPO a pair's chosen and rejected answer in turn."""

    samples: dict[str, Sequence[Sample]]
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
    def asked(self) -> Sequence[Sample]:
        """Samples whose prompts show what the model has learned: of the test set where there is one."""
        return self._first_of(("test", *_HELD_OUT))[:: 2 if self.pairs else 1]

    @property
    def checked(self) -> Sequence[Sample]:
        """Samples to try a server's prompt on."""
        return (self.asked or self.samples["train"])[:20]

    @property
    def sizes(self) -> dict[str, int]:
        """Examples, or pairs, of each split."""
        return {name: len(samples) // (2 if self.pairs else 1) for name, samples in self.samples.items()}

    def _first_of(self, names: Sequence[str]) -> Sequence[Sample]:
        return next((self.samples[name] for name in names if self.samples.get(name)), [])

    def _items(self, samples: Sequence[Sample]) -> Sequence[TokenizedExample] | Sequence[TokenizedPair]:
        if self.pairs:
            return pairs_of(samples)
        if isinstance(samples, StoredSamples):
            return samples.tokenized
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


def read_splits(
    options: FinetuneOptions, pipeline: Pipeline, *, say: Callable[[str], None] = lambda line: None
) -> Splits:
    """Reads the data set; a held-out set of its own is `validation`. `say` hears what the cache has to tell."""
    engine = local_workers(options.workers)
    items = prepared_samples(pipeline, engine=engine, say=say)
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
        return Splits(
            samples={"train": items, "validation": prepared_samples(own, engine=engine, say=say)}, pairs=pairs
        )
    samples = _divided(items, options)
    if not samples["train"]:
        raise ConfigError(f"split {options.split!r} leaves no training examples of {len(items)}")
    return Splits(samples=samples, pairs=pairs)


def _divided(items: Sequence[Sample], options: FinetuneOptions) -> dict[str, Sequence[Sample]]:
    """The samples by split. Those of one row stay together, and so do its repeats in a mixture: they share text."""

    def divide(rows: int) -> dict[str, list[int]]:
        return split_rows(options.split, rows, shuffle=options.split_order == "shuffled", seed=options.seed)

    if isinstance(items, StoredSamples):  # of one set, each row once
        edges = np.append(np.flatnonzero(np.diff(items.rows, prepend=-1)), len(items))
        parts = divide(len(edges) - 1)
        return {name: items.take(_of_rows(edges, np.array(rows, dtype=np.int64))) for name, rows in parts.items()}
    by_row: dict[tuple[str, int], list[Sample]] = {}
    for item in items:
        by_row.setdefault((item.rendered.source, item.rendered.row), []).append(item)
    groups = list(by_row.values())
    return {name: [item for row in rows for item in groups[row]] for name, rows in divide(len(groups)).items()}


def _of_rows(edges: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the samples of these rows: row r has those from `edges[r]` to `edges[r + 1]`."""
    return places_of(edges[rows], np.diff(edges)[rows])


def identity_of(pipeline: Pipeline, items: Sequence[TokenizedExample] | Sequence[TokenizedPair]) -> dict[str, str]:
    """What a checkpoint must agree with: the ids and weights, the template, the tokenizer."""
    assert pipeline.tokenizer is not None
    return {
        "data": _data_hash(items),
        "template": hashlib.sha256(pipeline.template.source.encode()).hexdigest(),
        "tokenizer": pipeline.tokenizer.fingerprint,
    }


def _data_hash(items: Sequence[TokenizedExample] | Sequence[TokenizedPair]) -> str:
    """Of lengths, ids and weights, each end to end: the same wherever the examples lie."""
    lengths, ids, weights = (xxhash.xxh3_128() for _ in range(3))
    if isinstance(items, StoredExamples):
        lengths.update(items.samples.lengths.tobytes())
        for some_ids, some_weights in items.samples.runs():
            ids.update(some_ids.tobytes())
            weights.update(some_weights.tobytes())
    else:
        for item in items:
            for example in (item.chosen, item.rejected) if isinstance(item, TokenizedPair) else (item,):
                lengths.update(np.int64(len(example)).tobytes())
                ids.update(np.array(example.input_ids, dtype=np.int32).tobytes())
                weights.update(np.array(example.loss_weights, dtype=np.float64).tobytes())
    return " ".join(digest.hexdigest() for digest in (lengths, ids, weights))
