"""The training loop, from top to bottom. It sees token ids and weights alone: no data format, template or file.

Each turn of the loop evaluates if due, saves a checkpoint if due, and makes one optimizer step (`step.train_step`).
"""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias, cast

import torch
from transformers import PreTrainedModel

from templatekit.cache.sequences import ColumnarExamples
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.training.checkpoint import checkpoint_to_resume, load_best, restore, run_identity, save_checkpoint
from templatekit.training.distributed import SINGLE_PROCESS, TrainingGroup
from templatekit.training.dpo import HELD_OUT_REFERENCE, REFERENCE, DPOObjective, precompute_reference
from templatekit.training.early_stopping import best_step, should_stop_early
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.kernels.memory import keep_freed_memory, limit_kernel_cache
from templatekit.training.metrics import MetricsFile, MetricsLine
from templatekit.training.objective import Objective
from templatekit.training.optimizer import make_optimizer
from templatekit.training.sampler import BatchSampler, total_steps
from templatekit.training.schedule import learning_rate
from templatekit.training.step import evaluate, train_step
from templatekit.types import TokenizedExample, TokenizedPair

Items: TypeAlias = Sequence[TokenizedExample] | Sequence[TokenizedPair]


@dataclass(kw_only=True)
class TrainResult:
    """The result of the training loop."""

    steps: int
    """Optimizer steps, including those before the run was resumed."""
    eval_before: float | None
    eval_after: float | None
    """Held-out loss: the mean over the targets, by weight, or over the pairs; None without held-out examples."""
    resumed_from: int | None
    """The step of the checkpoint that the run was resumed from; None where it was not."""
    best_step: int | None = None
    """The step whose weights the model has; None where it is the last step."""
    stopped_early: bool = False
    """Whether early stopping ended the run."""


def train(
    model: PreTrainedModel,
    examples: Items,
    held_out: Items,
    options: FinetuneOptions,
    *,
    folder: Path,
    fingerprints: Mapping[str, str] | None = None,
    group: TrainingGroup = SINGLE_PROCESS,
    report: Callable[[MetricsLine], object] = lambda line: None,
    say: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = warnings.warn,
) -> TrainResult:
    """Train the trainable parameters of the model; write checkpoints and `metrics.jsonl` to `folder`.

    A step trains on `options.batch_size` examples, or pairs with `options.method="dpo"`. With `options.resume` the run
    continues from its newest checkpoint that is not damaged, with the same losses as without the stop. `fingerprints`
    (of data, template, tokenizer, model) have to be the same then. `say` gets a line on how a step is computed;
    `report` gets `{"step", "total_steps"}` and then each line of the metrics. torch's random generators are seeded;
    only dropout draws from them. In a `group` of several processes each calls this with the same arguments, and the
    main one writes.

    Raises `ConfigError` for options that do not fit the model, the examples or the checkpoint; `RunError` where a loss
    or gradient is not finite, or the disk is full. The first SIGINT or SIGTERM ends the run with `KeyboardInterrupt`
    after the current step, which is saved. A second signal goes to the handler from before.
    """
    sampler = BatchSampler(
        count=len(examples), batch_size=options.batch_size, seed=options.seed, drop_last=options.drop_last
    )
    total = total_steps(options, sampler.steps_per_epoch)
    held_out = held_out[: options.eval_limit]
    if not held_out and (options.keep_best or options.patience):
        raise ConfigError("keep_best and patience compare held-out losses; found no held-out examples; see --split")
    _check_lengths(examples, held_out, model)
    if model.device.type == "cpu":
        keep_freed_memory()
        limit_kernel_cache(options.pack_tokens)
    forward_pass = ForwardPass.of(model, options, group)
    say(forward_pass.describe())
    optimizer = make_optimizer(model, options)
    identity = run_identity(
        options, bf16=forward_pass.bf16, example_count=len(examples), fingerprints=fingerprints or {}
    )
    # Before anything is written to the folder, such as DPO's reference: the checkpoint may be of another run.
    checkpoint = checkpoint_to_resume(folder, identity, resume=options.resume, warn=warn)
    torch.manual_seed(options.seed + group.rank)
    objective = Objective(forward_pass)
    items, held_out_items = cast("Sequence[Any]", examples), cast("Sequence[Any]", held_out)
    if options.method == "dpo":
        objective = DPOObjective(forward_pass, options)
        score = partial(precompute_reference, objective, identity=identity, warn=warn)
        first_epoch = [sampler.indices(step) for step in range(sampler.steps_per_epoch)]
        items = score(items, path=folder / REFERENCE, steps=first_epoch)
        held_out_items = score(held_out_items, path=folder / HELD_OUT_REFERENCE) if held_out else []
    start = 0
    if checkpoint is not None:
        restore(checkpoint, model, optimizer, group)
        start = checkpoint.step
    save = partial(save_checkpoint, folder, model=model, optimizer=optimizer, identity=identity, group=group)

    metrics = MetricsFile(folder, up_to_step=start, group=group)
    with _stop_requests() as stop:

        def log(line: MetricsLine, started: float) -> None:
            line = {**line, "seconds": time.perf_counter() - started}
            metrics.write(line)
            report(line)

        report({"step": start, "total_steps": total})
        for step in range(start, total + 1):  # `step` counts the steps that are done
            stopping = group.any(stop.is_set())
            evaluate_now = held_out and not stopping and _is_due(step, options.eval_every, total, at_start=True)
            if evaluate_now and metrics.eval_loss_at(step) is None:
                started = time.perf_counter()
                with _located(f"step {step}"):
                    evaluation = evaluate(objective, held_out_items)
                log({"step": step, **{f"eval_{name}": value for name, value in evaluation.items()}}, started)
            stopping = stopping or group.any(stop.is_set())
            stop_early = should_stop_early(metrics.lines, patience=options.patience, min_delta=options.min_delta)
            best = best_step(metrics.lines) if options.keep_best else None
            if step > start and (stopping or stop_early or step == best or _is_due(step, options.save_every, total)):
                metrics.fsync()
                save(step=step, best=best, keep=options.keep_checkpoints)
            if stopping:
                raise KeyboardInterrupt(f"stopped and saved after step {step} of {total}; --resume goes on from it")
            if step == total or stop_early:
                break

            started = time.perf_counter()
            rate = learning_rate(
                step, total, peak=options.peak_learning_rate, schedule=options.schedule, warmup=options.warmup
            )
            for param_group in optimizer.param_groups:
                param_group["lr"] = rate
            model.train(True)
            with _located(f"step {step + 1}, learning_rate={rate:.3g}"):
                trained = train_step(objective, optimizer, items, sampler.indices(step), clip_norm=options.clip_norm)
            log({"step": step + 1, "learning_rate": rate, **trained}, started)
        model.train(False)
        if best is not None and best != step:
            best = load_best(folder, model, best, warn)
        return TrainResult(
            steps=step,
            eval_before=metrics.eval_loss_at(0),
            eval_after=metrics.eval_loss_at(step if best is None else best),
            resumed_from=start or None,
            best_step=None if best == step else best,
            stopped_early=step < total,
        )


def _check_lengths(examples: Items, held_out: Items, model: PreTrainedModel) -> None:
    """Raise `ConfigError` for examples with more input tokens than the model has positions."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    rows = [row for items in (examples, held_out) for row in _rows_longer_than(items, longest)]
    if rows and longest > 0:
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise ConfigError(
            f"rows {', '.join(map(str, rows[:3]))}{more} are longer than the model's {longest} positions; "
            f"use --max-length {longest}"
        )


def _rows_longer_than(items: Items, longest: float) -> list[int]:
    """The rows of the examples with more than `longest` input tokens."""
    if isinstance(items, ColumnarExamples):
        return cast("list[int]", items.samples.rows[items.samples.lengths - 1 > longest].tolist())
    answers = ((item.chosen, item.rejected) if isinstance(item, TokenizedPair) else (item,) for item in items)
    return [example.row for example in chain.from_iterable(answers) if len(example) - 1 > longest]


def _is_due(step: int, every: int | None, total: int, *, at_start: bool = False) -> bool:
    """Whether something that is done every `every` steps and at the end is due after `step` steps."""
    return step == total or (at_start and step == 0) or (every is not None and step > 0 and step % every == 0)


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Add to a `RunError` where in the run it occurred."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{where}: {error}") from None


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets. The next signal goes to the previous handler again."""
    stop = threading.Event()
    with ExitStack() as previous_handlers:

        def request(number: int, frame: FrameType | None) -> None:
            stop.set()
            previous_handlers.close()

        if threading.current_thread() is threading.main_thread():  # Python can set handlers there only
            for number in (signal.SIGINT, signal.SIGTERM):
                previous_handlers.callback(signal.signal, number, signal.signal(number, request))
        yield stop
