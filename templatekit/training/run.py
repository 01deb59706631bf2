"""A whole run: data through the pipeline, a model through the loop, and a folder that can be served and repeated."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from templatekit import __version__
from templatekit.config import FinetuneOptions
from templatekit.counts import Counts
from templatekit.errors import ConfigError, RunError
from templatekit.export.serving import Stops, chat_template, stops_of
from templatekit.formats.variables import chat_variables, plain
from templatekit.mixture import Mixture, pipeline_of
from templatekit.pipeline import Pipeline, Prepared
from templatekit.registry import Registry, create_registry
from templatekit.tokens.load import from_transformers, load_transformers_tokenizer, resolve_model
from templatekit.training.checkpoint import lock_run
from templatekit.training.final import final_dtype, save_model
from templatekit.training.folder import (
    METRICS,
    PICTURE,
    SUMMARY,
    Sample,
    read_samples,
    run_folder,
    write_json,
    write_recipe,
    write_samples,
)
from templatekit.training.loop import train
from templatekit.training.lora import attach_lora
from templatekit.training.model import add_token_rows, check_vocabulary, load_model, resolve_device
from templatekit.training.report import Progress, plot_losses
from templatekit.training.sampling import generate
from templatekit.training.split import split_rows
from templatekit.types import Example, TokenizedExample

if TYPE_CHECKING:
    from templatekit.tokens.tokenizer import Tokenizer

_HELD_OUT = ("validation", "test")
"""Splits that are evaluated on, the first that exists."""


@dataclass(kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    """Loadable by `AutoModelForCausalLM` and `AutoTokenizer`."""
    steps: int
    eval_before: float | None
    eval_after: float | None
    """Held-out loss, the mean over its trained tokens; None without held-out examples."""
    splits: dict[str, int]
    """Examples in each split."""
    counts: Counts
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    def _repr_html_(self) -> str:
        from html import escape

        loss = (
            f"held-out loss {self.eval_before:.3f} → {self.eval_after:.3f}, "
            if self.eval_after is not None and self.eval_before is not None
            else ""
        )
        rows = "".join(
            f"<tr><td>{escape(s.prompt)}</td><td>{escape(s.before)}</td><td>{escape(s.after)}</td></tr>"
            for s in self.samples
        )
        table = f"<table><tr><th>prompt</th><th>before</th><th>after</th></tr>{rows}</table>" if rows else ""
        return f"<p>{loss}{self.steps} steps in {escape(str(self.folder))}</p>{table}"


def finetune(
    options: FinetuneOptions | Mapping[str, Any] | None = None,
    *,
    registry: Registry | None = None,
    say: Callable[[str], None] = lambda line: None,
    **more: Any,
) -> Run:
    """Fine-tunes a model and returns the run. Options are those of `FinetuneOptions`, as an object or keywords.

    `say` receives a line for each thing a user may want to know before the loop begins.
    """
    if not isinstance(options, FinetuneOptions):
        options = FinetuneOptions.parse({**(options or {}), **more})
    elif more:
        options = FinetuneOptions.parse({**options.model_dump(), **more})
    registry = registry or create_registry()
    folder = run_folder(options)
    with lock_run(folder):
        return _run(options, registry, folder, say)


def _run(options: FinetuneOptions, registry: Registry, folder: Path, say: Callable[[str], None]) -> Run:
    started = time.monotonic()
    address = resolve_model(options.model, registry) or options.model
    served = _load_tokenizer(options, registry, address)
    tokenizer = from_transformers(served, name=options.tokenizer or options.model)
    pipeline = pipeline_of(options, registry, tokenizer=tokenizer)
    _check_one_template(pipeline)
    added = _add_special_tokens(options, pipeline, served)
    if added:
        # The pipeline was for finding the template; what it encodes with has the new tokens.
        tokenizer = from_transformers(served, name=tokenizer.name)
        pipeline = pipeline_of(options, registry, tokenizer=tokenizer, template=pipeline.template)
    splits = _splits(options, pipeline)
    adapter = pipeline.adapter.name if pipeline.adapter else None  # the sets of a mixture have their own
    say(f"adapter {adapter or 'of each set'}, template {pipeline.template.name}, folder {folder}")
    for line in pipeline.counts.lines(tokens=True):
        say(line)
    say(", ".join(f"{name}: {len(items):,}" for name, items in splits.items()) + " examples")
    examples = [item.tokenized for item in splits["train"] if item.tokenized is not None]
    held_out = next((splits[name] for name in _HELD_OUT if splits.get(name)), [])
    stops = stops_of(pipeline.template, tokenizer)
    served.chat_template = chat_template(pipeline.template, tokenizer.special_tokens)
    _check_serving(served, pipeline, (splits.get("test") or held_out or splits["train"])[:20])

    device = resolve_device(options.device)
    model: PreTrainedModel = load_model(address, device=device)
    new_rows = add_token_rows(model, added)
    check_vocabulary(model, tokenizer.vocabulary_size)
    trained: PreTrainedModel = model
    if options.lora:
        trained = attach_lora(
            model, rank=options.lora_rank, alpha=options.lora_alpha, seed=options.seed, new_tokens=new_rows
        )
    write_recipe(folder, options, adapter=adapter, template=pipeline.template.original)
    samples = _samples_before(folder, options, splits.get("test") or held_out, trained, pipeline, stops)
    identity = _identity(pipeline, examples)
    with Progress() as progress:
        result = train(
            trained,
            examples,
            [item.tokenized for item in held_out if item.tokenized],
            options,
            folder=folder,
            identity=identity,
            report=progress,
            warn=say,
        )
    for sample, item in zip(samples, _with_prompt(splits.get("test") or held_out), strict=False):
        sample.after = _answer(trained, pipeline, item.example, stops, options.max_new_tokens)
    write_samples(folder, samples)

    def save_tokenizer(staging: Path) -> None:
        served.save_pretrained(staging)

    save_model(
        trained,
        folder,
        eos_ids=stops.ids,
        pad_id=_pad_id(tokenizer, stops),
        stop_strings=stops.strings,
        dtype=final_dtype(options, device),
        extra=save_tokenizer,
    )
    missing_picture = plot_losses(folder / METRICS, folder / PICTURE)
    if missing_picture:
        say(missing_picture)
    run = Run(
        folder=folder,
        steps=result.steps,
        eval_before=result.eval_before,
        eval_after=result.eval_after,
        splits={name: len(items) for name, items in splits.items()},
        counts=pipeline.counts,
        samples=samples,
        seconds=time.monotonic() - started,
    )
    _write_summary(folder, run, identity)
    return run


def _load_tokenizer(options: FinetuneOptions, registry: Registry, model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers loads it, since that is what will serve the model."""
    if options.tokenizer is None:
        return load_transformers_tokenizer(model)
    return load_transformers_tokenizer(resolve_model(options.tokenizer, registry) or options.tokenizer)


def _add_special_tokens(options: FinetuneOptions, pipeline: Pipeline, served: PreTrainedTokenizerBase) -> list[int]:
    """Adds the tokens that the template's authors add; the ids of new ones."""
    if not options.add_special_tokens:
        return []
    tokens = pipeline.template.metadata.special_tokens
    if not tokens:
        raise ConfigError(f"--add-special-tokens: template {pipeline.template.name!r} lists no special tokens")
    known = len(served)
    served.add_tokens(list(tokens), special_tokens=True)
    return list(range(known, len(served)))


def _splits(options: FinetuneOptions, pipeline: Pipeline) -> dict[str, list[Prepared]]:
    """The examples by split, `train` among them; a held-out set of its own is `validation`."""
    items = list(pipeline.prepared())
    if options.eval_dataset is not None:
        own = Pipeline(
            options.model_copy(
                update={"dataset": options.eval_dataset, "limit": None, "mix": (), "mix_strategy": None}
            ),
            pipeline.registry,
            adapter=pipeline.adapter,
            template=pipeline.template,
            tokenizer=pipeline.tokenizer,
        )
        return {"train": items, "validation": list(own.run(own.open(), source=options.eval_dataset))}
    # The examples of one row stay together, and so do its repeats in a mixture: they share text.
    by_row: dict[tuple[str, int], list[Prepared]] = {}
    for item in items:
        by_row.setdefault((item.rendered.source, item.rendered.row), []).append(item)
    rows = list(by_row.values())
    parts = split_rows(options.split, len(rows), shuffle=options.split_order == "shuffled", seed=options.seed)
    splits = {name: [item for index in indices for item in rows[index]] for name, indices in parts.items()}
    if not splits["train"]:
        raise ConfigError(f"split {options.split!r} leaves no training examples of {len(items)}")
    return splits


def _check_one_template(pipeline: Pipeline) -> None:
    """A trained model is served with one template: the one that all its examples have."""
    if isinstance(pipeline, Mixture) and not pipeline.one_template:
        raise ConfigError(
            f"mix: a model is served with one template, {pipeline.template.name!r}; found sets with another or with "
            "chat_template_kwargs of their own; give all sets that template, or train on what `render` writes"
        )


def _check_serving(served: PreTrainedTokenizerBase, pipeline: Pipeline, items: Sequence[Prepared]) -> None:
    """Sees, before anything is trained, that transformers prompts the model with the ids it is trained on."""
    for item in items:
        messages = item.example.messages
        example = item.example
        if len(messages) < 2 or any(m.tool_calls for m in messages) or example.tools or example.documents:
            continue
        if pipeline.template.kind == "chat":
            if any(message.context for message in messages):
                continue
            chat = plain(chat_variables(messages[:-1], example, pipeline.template.takes)["messages"])
        else:
            chat = [
                {"role": m.role, "content": m.content} | ({"context": m.context} if m.context else {})
                for m in messages[:-1]
            ]
        ids = served.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        ours = pipeline.prompt_ids(item.example)
        if tuple(ids) != ours and not _holds_control_text(pipeline, item):
            raise RunError(
                f"row {item.rendered.row}: transformers would prompt the model with other ids than it is trained on; "
                f"found {list(ids)[:20]}, expected {list(ours)[:20]}"
            )


def _holds_control_text(pipeline: Pipeline, item: Prepared) -> bool:
    """Whether the data holds a control token's text, which transformers would take for the token itself."""
    assert pipeline.tokenizer is not None
    texts = [field for m in item.example.messages for field in (m.role, m.content, m.context)]
    return any(token in text for text in texts for token in pipeline.tokenizer.control_tokens)


def _samples_before(
    folder: Path,
    options: FinetuneOptions,
    items: Sequence[Prepared],
    model: PreTrainedModel,
    pipeline: Pipeline,
    stops: Stops,
) -> list[Sample]:
    """Answers to the first held-out prompts before training; those of the first start where the run is resumed."""
    if options.resume and (known := read_samples(folder)) is not None:
        return known
    samples = []
    for item in islice(_with_prompt(items), options.samples):
        before, last = item.example.messages[-2], item.example.messages[-1]
        prompt = before.content + (f"\n\n{before.context}" if before.context else "")
        answer = _answer(model, pipeline, item.example, stops, options.max_new_tokens)
        samples.append(Sample(prompt=prompt, reference=last.content, before=answer))
    write_samples(folder, samples)
    return samples


def _with_prompt(items: Iterable[Prepared]) -> Iterator[Prepared]:
    """Those in which something comes before the last answer."""
    return (item for item in items if len(item.example.messages) > 1)


def _answer(model: PreTrainedModel, pipeline: Pipeline, example: Example, stops: Stops, longest: int) -> str:
    assert pipeline.tokenizer is not None
    answer = generate(
        model,
        pipeline.prompt_ids(example),
        decode=pipeline.tokenizer.decode,
        max_new_tokens=longest,
        stop_ids=stops.ids,
        stop_strings=stops.strings,
    )
    return answer.text.strip()


def _pad_id(tokenizer: Tokenizer, stops: Stops) -> int | None:
    """The tokenizer's own padding token, else the first stop token: labels never depend on it."""
    pad = tokenizer.special_tokens.pad
    return tokenizer.id_of(pad) if pad else next(iter(stops.ids), None)


def _identity(pipeline: Pipeline, examples: Sequence[TokenizedExample]) -> dict[str, str]:
    """What a checkpoint must agree with: the ids and weights, the template, the tokenizer."""
    assert pipeline.tokenizer is not None
    data = hashlib.sha256()
    for example in examples:
        data.update(repr((example.input_ids, example.loss_weights)).encode())
    return {
        "data": data.hexdigest(),
        "template": hashlib.sha256(pipeline.template.source.encode()).hexdigest(),
        "tokenizer": pipeline.tokenizer.fingerprint,
    }


def _write_summary(folder: Path, run: Run, identity: Mapping[str, str]) -> None:
    summary = {
        "templatekit": __version__,
        "torch": torch.__version__,
        "steps": run.steps,
        "eval_before": run.eval_before,
        "eval_after": run.eval_after,
        "splits": run.splits,
        "counts": run.counts.as_dict(),
        "sha256": dict(identity),
        "seconds": round(run.seconds, 1),
    }
    write_json(folder / SUMMARY, summary)


__all__ = ["Run", "Sample", "finetune"]
