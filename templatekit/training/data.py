"""The data of a run: read, rendered and tokenized by the pipeline, then divided into splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from templatekit.cache.preparation import prepare_samples
from templatekit.cache.sequences import ColumnarExamples, ColumnarSamples
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.engines.processes import process_engine
from templatekit.errors import ConfigError
from templatekit.formats.template import Template
from templatekit.hooks.registry import Registry
from templatekit.packing.columns import range_indices
from templatekit.pipeline.mixture import Mixture, create_pipeline
from templatekit.pipeline.pipeline import Pipeline
from templatekit.pipeline.preference import PreferencePipeline, preference_pairs
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.training.split import split_rows
from templatekit.types import Sample, TokenizedExample, TokenizedPair

_HELD_OUT = ("validation", "test")
"""Names of the split for evaluation; the first that exists is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The samples of each split, `train` among them; with DPO the chosen and rejected answer of each pair in turn."""

    samples: dict[str, Sequence[Sample]]
    pairs: bool

    @property
    def train(self) -> Sequence[TokenizedExample] | Sequence[TokenizedPair]:
        """The examples or pairs to train on."""
        return self._items(self.samples["train"])

    @property
    def held_out(self) -> Sequence[TokenizedExample] | Sequence[TokenizedPair]:
        """The examples or pairs to evaluate on; empty where nothing is held out."""
        return self._items(self._first_of(_HELD_OUT))

    @property
    def prompt_samples(self) -> Sequence[Sample]:
        """Held-out samples for sample answers, from the test set where there is one."""
        return self._first_of(("test", *_HELD_OUT))[:: 2 if self.pairs else 1]

    @property
    def serving_samples(self) -> Sequence[Sample]:
        """Samples for the check that a server prompts as training does."""
        return (self.prompt_samples or self.samples["train"])[:20]

    @property
    def sizes(self) -> dict[str, int]:
        """The count of examples, or of pairs, in each split."""
        return {name: len(samples) // (2 if self.pairs else 1) for name, samples in self.samples.items()}

    def _first_of(self, names: Sequence[str]) -> Sequence[Sample]:
        return next((self.samples[name] for name in names if self.samples.get(name)), [])

    def _items(self, samples: Sequence[Sample]) -> Sequence[TokenizedExample] | Sequence[TokenizedPair]:
        if self.pairs:
            return preference_pairs(samples)
        if isinstance(samples, ColumnarSamples):
            return samples.tokenized
        return [sample.tokenized for sample in samples if sample.tokenized is not None]


def training_pipeline(
    options: FinetuneOptions, registry: Registry, *, tokenizer: Tokenizer, template: Template | None = None
) -> Pipeline:
    """The pipeline that makes samples, or pairs with DPO, from one data set or a mixture.

    Raises `ConfigError` for a mixture with several templates, since a trained model is served with one.
    """
    kind = _pipeline_type(options)
    pipeline = create_pipeline(options, registry, pipeline_type=kind, tokenizer=tokenizer, template=template)
    if isinstance(pipeline, Mixture) and not pipeline.has_one_template:
        raise ConfigError(
            f"mix: a model is served with one template, {pipeline.template.name!r}; found sets with another or with "
            "chat_template_kwargs of their own; give all sets that template, or train on what `render` writes"
        )
    return pipeline


def _pipeline_type(options: FinetuneOptions) -> type[Pipeline]:
    return PreferencePipeline if options.method == "dpo" else Pipeline


def read_splits(
    options: FinetuneOptions, pipeline: Pipeline, *, say: Callable[[str], None] = lambda line: None
) -> Splits:
    """Read the data set and split it. A separate evaluation set is `validation`. `say` gets the cache's messages."""
    engine = process_engine(options.workers)
    items = prepare_samples(pipeline, engine=engine, say=say)
    if options.eval_dataset is not None:
        changed = {"dataset": options.eval_dataset, "limit": None, "mix": (), "mix_strategy": None}
        held_out = _pipeline_type(options)(
            options.model_copy(update=changed),
            pipeline.registry,
            adapter=pipeline.adapter,
            template=pipeline.template,
            tokenizer=pipeline.tokenizer,
        )
        samples = {"train": items, "validation": prepare_samples(held_out, engine=engine, say=say)}
    else:
        samples = _split_samples(items, options)
        if not samples["train"]:
            raise ConfigError(f"split {options.split!r} leaves no training examples of {len(items)}")
    return Splits(samples=samples, pairs=options.method == "dpo")


def _split_samples(items: Sequence[Sample], options: FinetuneOptions) -> dict[str, Sequence[Sample]]:
    """The samples by split. Samples of one row stay in one split, also where a mixture repeats it: they share text."""

    def split(row_count: int) -> dict[str, list[int]]:
        return split_rows(options.split, row_count, shuffle=options.split_order == "shuffled", seed=options.seed)

    if isinstance(items, ColumnarSamples):  # one data set, each row once
        edges = np.append(np.flatnonzero(np.diff(items.rows, prepend=-1)), len(items))
        splits = {name: np.array(rows, dtype=np.int64) for name, rows in split(len(edges) - 1).items()}
        starts, counts = edges[:-1], np.diff(edges)
        return {name: items.take(range_indices(starts[rows], counts[rows])) for name, rows in splits.items()}
    by_row: dict[tuple[str, int], list[Sample]] = {}
    for item in items:
        by_row.setdefault((item.rendered.source, item.rendered.row), []).append(item)
    groups = list(by_row.values())
    return {name: [item for row in rows for item in groups[row]] for name, rows in split(len(groups)).items()}


def data_fingerprints(
    pipeline: Pipeline, items: Sequence[TokenizedExample] | Sequence[TokenizedPair]
) -> dict[str, str]:
    """Fingerprints of data, template and tokenizer. A checkpoint resumes only with equal ones, and the model's.

    The fingerprint of the data consists of hashes of the concatenated lengths, ids and weights. It is the same for
    columnar examples and for a list.
    """
    assert pipeline.tokenizer is not None
    lengths, ids, weights = (xxhash.xxh3_128() for _ in range(3))
    if isinstance(items, ColumnarExamples):
        lengths.update(items.samples.lengths.tobytes())
        for some_ids, some_weights in items.samples.token_arrays():
            ids.update(some_ids.tobytes())
            weights.update(some_weights.tobytes())
    else:
        for item in items:
            for example in (item.chosen, item.rejected) if isinstance(item, TokenizedPair) else (item,):
                lengths.update(np.int64(len(example)).tobytes())
                ids.update(np.array(example.input_ids, dtype=np.int32).tobytes())
                weights.update(np.array(example.loss_weights, dtype=np.float64).tobytes())
    return {
        "data": " ".join(digest.hexdigest() for digest in (lengths, ids, weights)),
        "template": hashlib.sha256(pipeline.template.source.encode()).hexdigest(),
        "tokenizer": pipeline.tokenizer.fingerprint,
    }
