"""A whole run: data through the pipeline, a model through the loop, and a folder that can be served and repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from templatekit import __version__
from templatekit.config.options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.export.serving import Stops, chat_template, stops_of
from templatekit.formats.variables import chat_variables, plain
from templatekit.hooks.registry import Registry, create_registry
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.load import from_transformers, load_transformers_tokenizer, resolve_model
from templatekit.training.checkpoint import lock_run, trainable
from templatekit.training.data import identity_of, pipeline_for, read_splits
from templatekit.training.distributed import World, join_world, local_device, whole
from templatekit.training.loop import train
from templatekit.training.lora import attach_lora
from templatekit.training.metrics import Line
from templatekit.training.model import add_token_rows, check_vocabulary, load_model, resolve_device
from templatekit.training.quantization import put_together, quantize
from templatekit.training.report import Cost, Progress, cost_of, plot_run
from templatekit.training.run_folder import (
    METRICS,
    PICTURE,
    SUMMARY,
    SampledAnswer,
    run_folder,
    write_json,
    write_recipe,
    write_samples,
)
from templatekit.training.sample_answers import answer, samples_before, with_prompt
from templatekit.training.save import final_dtype, save_model
from templatekit.training.trackers import check_installed, tracking
from templatekit.types import Sample

if TYPE_CHECKING:
    from templatekit.tokens.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    """Loadable by `AutoModelForCausalLM` and `AutoTokenizer`."""
    steps: int
    eval_before: float | None
    eval_after: float | None
    """Held-out loss, the mean over its trained tokens, or over its pairs; None without held-out examples."""
    splits: dict[str, int]
    """Examples in each split; pairs with DPO."""
    counts: Counts
    cost: Cost
    samples: list[SampledAnswer] = field(default_factory=list)
    seconds: float = 0.0
    best_step: int | None = None
    """The step whose weights the model has, where they are not the last one's."""
    stopped_early: bool = False

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
    check_installed(options.report_to)
    registry = registry or create_registry()
    device = resolve_device(local_device(options.device))
    with join_world(device) as world, ExitStack() as held:
        folder = world.first(lambda: run_folder(options))
        world.first(lambda: held.enter_context(lock_run(folder)))
        return _run(options, registry, folder, device, world, say if world.is_first else lambda line: None)


def _run(
    options: FinetuneOptions,
    registry: Registry,
    folder: Path,
    device: torch.device,
    world: World,
    say: Callable[[str], None],
) -> Run:
    started = time.monotonic()
    address = resolve_model(options.model, registry) or options.model
    served = _load_tokenizer(options, registry, address)
    tokenizer = from_transformers(served, name=options.tokenizer or options.model)
    pipeline = pipeline_for(options, registry, tokenizer=tokenizer)
    added = _add_special_tokens(options, pipeline, served)
    if added:
        # The pipeline was for finding the template; what it encodes with has the new tokens.
        tokenizer = from_transformers(served, name=tokenizer.name)
        pipeline = pipeline_for(options, registry, tokenizer=tokenizer, template=pipeline.template)
    splits = read_splits(options, pipeline, say=say)
    adapter = pipeline.adapter.name if pipeline.adapter else None  # the sets of a mixture have their own
    say(f"adapter {adapter or 'of each set'}, template {pipeline.template.name}, folder {folder}")
    for line in pipeline.counts.lines(tokens=True):
        say(line)
    what = "pairs" if splits.pairs else "examples"
    say(", ".join(f"{name}: {size:,}" for name, size in splits.sizes.items()) + f" {what}")
    if world.size > 1:
        say(f"{world.size} processes, {options.distributed}")
    stops = stops_of(pipeline.template, tokenizer)
    served.chat_template = chat_template(pipeline.template, tokenizer.special_tokens)
    _check_serving(served, pipeline, splits.checked)

    def build(*, narrow: bool = options.quantize is not None) -> PreTrainedModel:
        model = load_model(address, device=device)
        new_rows = add_token_rows(model, added)
        check_vocabulary(model, tokenizer.vocabulary_size)
        if narrow:
            quantize(model)
        if not options.lora:
            return model
        return attach_lora(
            model, rank=options.lora_rank, alpha=options.lora_alpha, seed=options.seed, new_tokens=new_rows
        )

    model = build()
    template = pipeline.template.original
    world.first(lambda: write_recipe(folder, options, adapter=adapter, template=template))
    samples = world.first(lambda: samples_before(folder, options, splits.asked, model, pipeline, stops))
    train_items, held_out = splits.train, splits.held_out
    identity = identity_of(pipeline, train_items)
    with ExitStack() as shown:
        reports: list[Callable[[Line], None]] = []
        if world.is_first:
            told = options.model_dump(mode="json")
            reports = [
                shown.enter_context(Progress()),
                shown.enter_context(tracking(options.report_to, folder, told, say)),
            ]

        def report(line: Line) -> None:
            for each in reports:
                each(line)

        result = train(
            model,
            train_items,
            held_out,
            options,
            folder=folder,
            identity=identity,
            world=world,
            report=report,
            say=say,
            warn=say,
        )
    trained = _in_one_piece(model, build, options, world)

    def save_tokenizer(staging: Path) -> None:
        served.save_pretrained(staging)

    def finish() -> Run:
        for sample, item in zip(samples, with_prompt(splits.asked), strict=False):
            sample.after = answer(trained, pipeline, item.example, stops, options.max_new_tokens)
        write_samples(folder, samples)
        save_model(
            trained,
            folder,
            eos_ids=stops.ids,
            pad_id=_pad_id(tokenizer, stops),
            stop_strings=stops.strings,
            dtype=final_dtype(options, device),
            extra=save_tokenizer,
        )
        missing_picture = plot_run(folder / METRICS, folder / PICTURE)
        if missing_picture:
            say(missing_picture)
        run = Run(
            folder=folder,
            steps=result.steps,
            eval_before=result.eval_before,
            eval_after=result.eval_after,
            splits=splits.sizes,
            counts=pipeline.counts,
            cost=cost_of(folder / METRICS, device),
            samples=samples,
            seconds=time.monotonic() - started,
            best_step=result.best_step,
            stopped_early=result.stopped_early,
        )
        _write_summary(folder, run, identity)
        return run

    return world.first(finish)


def _in_one_piece(
    model: PreTrainedModel, build: Callable[..., PreTrainedModel], options: FinetuneOptions, world: World
) -> PreTrainedModel:
    """The trained model as the first process can use it alone: where it is divided, built anew with the weights.

    So it is where weights were quantized; it gets those that were trained with, and adapters can be merged into it.
    """
    divided = world.size > 1 and options.distributed == "fsdp"
    if not divided and options.quantize is None:
        return model
    weights = {name: whole(weight.detach()) for name, weight in trainable(model).items()}
    if not world.is_first:
        return model
    if options.quantize is not None:
        weights |= put_together(model)
    fresh = build(narrow=False)
    with torch.no_grad():
        for name, weight in fresh.named_parameters():
            if name in weights:
                weight.copy_(weights[name])
    fresh.train(False)
    return fresh


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


def _check_serving(served: PreTrainedTokenizerBase, pipeline: Pipeline, items: Sequence[Sample]) -> None:
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


def _holds_control_text(pipeline: Pipeline, item: Sample) -> bool:
    """Whether the data holds a control token's text, which transformers would take for the token itself."""
    assert pipeline.tokenizer is not None
    texts = [field for m in item.example.messages for field in (m.role, m.content, m.context)]
    return any(token in text for text in texts for token in pipeline.tokenizer.control_tokens)


def _pad_id(tokenizer: Tokenizer, stops: Stops) -> int | None:
    """The tokenizer's own padding token, else the first stop token: labels never depend on it."""
    pad = tokenizer.special_tokens.pad
    return tokenizer.id_of(pad) if pad else next(iter(stops.ids), None)


def _write_summary(folder: Path, run: Run, identity: Mapping[str, str]) -> None:
    summary = {
        "templatekit": __version__,
        "torch": torch.__version__,
        "steps": run.steps,
        "eval_before": run.eval_before,
        "eval_after": run.eval_after,
        "best_step": run.best_step,
        "stopped_early": run.stopped_early,
        "splits": run.splits,
        "counts": run.counts.as_dict(),
        "sha256": dict(identity),
        "seconds": round(run.seconds, 1),
        "cost": run.cost.as_dict(),
    }
    write_json(folder / SUMMARY, summary)


__all__ = ["Run", "SampledAnswer", "finetune"]
