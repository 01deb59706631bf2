"""`finetune`: a complete run, from options to a folder with the trained model.

`_run` reads from top to bottom: tokenizer and pipeline, data, model, the training loop, then the files of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from templatekit import __version__
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import RunError
from templatekit.export.serving import stops_of
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.inputs import read_paths
from templatekit.tokens.load import from_transformers, load_transformers_tokenizer, resolve_model
from templatekit.training.checkpoint import has_checkpoints
from templatekit.training.data import data_fingerprints, read_splits, training_pipeline
from templatekit.training.distributed import TrainingGroup, full_tensor, join_process_group, local_device
from templatekit.training.generation import generate
from templatekit.training.loop import TrainResult, train
from templatekit.training.lora import attach_lora
from templatekit.training.metrics import METRICS, MetricsLine
from templatekit.training.model import (
    add_token_embeddings,
    check_vocabulary,
    load_model,
    model_fingerprints,
    resolve_device,
    trainable_parameters,
)
from templatekit.training.quantization import dequantized_weights, quantize
from templatekit.training.report import Cost, Progress, cost_of, plot_run
from templatekit.training.run_folder import PICTURE, SUMMARY, lock_run, run_folder, write_json, write_recipe
from templatekit.training.sample_answers import (
    SampledAnswer,
    answers_before_training,
    samples_with_prompt,
    write_samples,
)
from templatekit.training.save_model import final_dtype, save_model
from templatekit.training.served_tokenizer import add_special_tokens, check_prompts, pad_id, set_templates
from templatekit.training.trackers import check_installed, open_trackers
from templatekit.types import Example

_SUMMARY_FIELDS = ("steps", "eval_before", "eval_after", "best_step", "stopped_early", "splits")


@dataclass(kw_only=True)
class Run(TrainResult):
    """A finished run."""

    folder: Path
    """The run folder, which `AutoModelForCausalLM` and `AutoTokenizer` can load."""
    splits: dict[str, int]
    """The count of examples in each split; of pairs with DPO."""
    counts: Counts
    cost: Cost
    samples: list[SampledAnswer] = field(default_factory=list)
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
    """Fine-tune a model and return the run. The options are those of `FinetuneOptions`, as an object or as keywords.

    `say` gets lines for the user: what was detected, how steps are computed, and which problems did not end the run.
    """
    if not isinstance(options, FinetuneOptions):
        options = FinetuneOptions.parse({**(options or {}), **more})
    elif more:
        options = FinetuneOptions.parse({**options.model_dump(), **more})
    check_installed(options.report_to)
    registry = registry or create_registry()
    device = resolve_device(local_device(options.device))
    with join_process_group(device) as group, ExitStack() as locks:
        folder = group.run_on_main(lambda: run_folder(options, read_paths(options, registry)))
        group.run_on_main(lambda: locks.enter_context(lock_run(folder)))
        return _run(options, registry, folder, device, group, say if group.is_main else lambda line: None)


def _run(
    options: FinetuneOptions,
    registry: Registry,
    folder: Path,
    device: torch.device,
    group: TrainingGroup,
    say: Callable[[str], None],
) -> Run:
    started = time.monotonic()
    address = resolve_model(options.model, registry) or options.model
    files = address
    if options.tokenizer is not None:
        files = resolve_model(options.tokenizer, registry) or options.tokenizer
    served = load_transformers_tokenizer(files, trust_remote_code=options.trust_remote_code)
    tokenizer = from_transformers(served, name=options.tokenizer or options.model)
    pipeline = training_pipeline(options, registry, tokenizer=tokenizer)
    added = add_special_tokens(options, pipeline, served)
    if added:
        # The first pipeline served to find the template. The second one encodes with the new tokens.
        tokenizer = from_transformers(served, name=tokenizer.name)
        pipeline = training_pipeline(options, registry, tokenizer=tokenizer, template=pipeline.template)
    splits = read_splits(options, pipeline, say=say)
    adapter = pipeline.adapter.name if pipeline.adapter else None  # each set of a mixture has its own
    say(f"adapter {adapter or 'of each set'}, template {pipeline.template.name}, folder {folder}")
    for line in pipeline.counts.lines(tokens=True):
        say(line)
    unit = "pairs" if splits.pairs else "examples"
    say(", ".join(f"{name}: {size:,}" for name, size in splits.sizes.items()) + f" {unit}")
    if group.size > 1:
        say(f"{group.size} processes, {options.distributed}")
    stops = stops_of(pipeline.template, tokenizer)
    set_templates(served, pipeline.template, tokenizer)
    check_prompts(served, pipeline, splits.serving_samples)

    base: dict[str, str] = {}

    def build(*, quantized: bool = options.quantize is not None) -> PreTrainedModel:
        model = load_model(address, device=device, trust_remote_code=options.trust_remote_code)
        found = model_fingerprints(model)
        if found != (base or found):
            raise RunError(
                f"model {options.model!r} changed during the run, and the trained weights belong to the one before; "
                "put it back and go on from the last checkpoint (--resume)"
            )
        base.update(found)
        add_token_embeddings(model, added)
        check_vocabulary(model, tokenizer.vocabulary_size)
        if quantized:
            quantize(model)
        if not options.lora:
            return model
        return attach_lora(model, rank=options.lora_rank, alpha=options.lora_alpha, seed=options.seed, new_tokens=added)

    def ask(model: PreTrainedModel, example: Example) -> str:
        found = generate(
            model,
            pipeline.prompt_ids(example),
            decode=tokenizer.decode,
            max_new_tokens=options.max_new_tokens,
            stop_ids=stops.ids,
            stop_strings=stops.strings,
        )
        return found.text.strip()

    model = build()
    record = partial(write_recipe, folder, options, adapter=adapter, template=pipeline.template.original)
    goes_on = options.resume and has_checkpoints(folder)
    if not goes_on:  # else the checkpoint may refuse these options
        group.run_on_main(record)
    samples = group.run_on_main(
        lambda: answers_before_training(folder, options, splits.prompt_samples, partial(ask, model))
    )
    examples = splits.train
    fingerprints = {**data_fingerprints(pipeline, examples), **base}
    with ExitStack() as reporters:
        receivers: list[Callable[[MetricsLine], None]] = []
        if group.is_main:
            trackers = open_trackers(options.report_to, folder, options.model_dump(mode="json"), say)
            receivers = [reporters.enter_context(Progress()), reporters.enter_context(trackers)]
        result = train(
            model,
            examples,
            splits.held_out,
            options,
            folder=folder,
            fingerprints=fingerprints,
            group=group,
            report=lambda line: [receive(line) for receive in receivers],
            say=say,
            warn=say,
        )
    trained = _whole_model(model, build, options, group)

    def finish() -> Run:
        if goes_on:
            record()
        for answered, sample in zip(samples, samples_with_prompt(splits.prompt_samples), strict=False):
            answered.after = ask(trained, sample.example)
        write_samples(folder, samples)
        save_model(
            trained,
            folder,
            eos_ids=stops.ids,
            pad_id=pad_id(tokenizer, stops),
            stop_strings=stops.strings,
            dtype=final_dtype(options, device),
            extra=served.save_pretrained,
        )
        if no_picture := plot_run(folder / METRICS, folder / PICTURE):
            say(no_picture)
        run = Run(
            folder=folder,
            **asdict(result),
            splits=splits.sizes,
            counts=pipeline.counts,
            cost=cost_of(folder / METRICS, device),
            samples=samples,
            seconds=time.monotonic() - started,
        )
        summary = {
            "templatekit": __version__,
            "torch": torch.__version__,
            **{name: getattr(run, name) for name in _SUMMARY_FIELDS},
            "counts": run.counts.as_dict(),
            "sha256": fingerprints,
            "seconds": round(run.seconds, 1),
            "cost": asdict(run.cost),
        }
        write_json(folder / SUMMARY, summary)
        return run

    return group.run_on_main(finish)


def _whole_model(
    model: PreTrainedModel, build: Callable[..., PreTrainedModel], options: FinetuneOptions, group: TrainingGroup
) -> PreTrainedModel:
    """The trained model, as the main process can use and save it alone.

    A model that was sharded or quantized is built again and gets the trained weights. Quantized weights become the
    values that training computed with, so that adapters can be merged into them.
    """
    sharded = group.size > 1 and options.distributed == "fsdp"
    if not sharded and options.quantize is None:
        return model
    weights = {name: full_tensor(weight.detach()) for name, weight in trainable_parameters(model).items()}
    if not group.is_main:
        return model
    if options.quantize is not None:
        weights |= dequantized_weights(model)
    rebuilt = build(quantized=False)
    with torch.no_grad():
        for name, weight in rebuilt.named_parameters():
            if name in weights:
                weight.copy_(weights[name])
    rebuilt.train(False)
    return rebuilt


__all__ = ["Run", "SampledAnswer", "finetune"]
