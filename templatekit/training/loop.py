"""The training loop, from top to bottom. It sees token ids and weights; no format, template or file is known to it."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from templatekit.cache import StoredExamples
from templatekit.config.options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.training.checkpoint import (
    check_identity,
    checkpoint_of,
    has_checkpoints,
    newest_checkpoint,
    restore,
    restore_weights,
    save_checkpoint,
)
from templatekit.training.distributed import ALONE, World
from templatekit.training.dpo import HELD_OUT_REFERENCE, REFERENCE, Preferences, judge
from templatekit.training.early_stopping import best_step, is_stuck
from templatekit.training.kernels.memory import keep_few_kernels, keep_freed_memory
from templatekit.training.metrics import Line, MetricsFile
from templatekit.training.optimizer import make_optimizer
from templatekit.training.sampler import StepOrder, total_steps
from templatekit.training.schedule import learning_rate
from templatekit.training.step import Computation, Objective, evaluate, train_step
from templatekit.types import TokenizedExample, TokenizedPair

_FREE_OPTIONS = {
    "output",
    "resume",
    "device",
    "activation_checkpointing",
    "eval_every",
    "eval_limit",
    "save_every",
    "keep_checkpoints",
    "keep_best",
    "patience",
    "min_delta",
    "distributed",
    "report_to",
    "cache",
    "cache_dir",
    "workers",
    "samples",
    "max_new_tokens",
}
"""Options that a resumed run may change, since no weight depends on them."""


Items: TypeAlias = Sequence[TokenizedExample] | Sequence[TokenizedPair]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a training ended."""

    steps: int
    """Optimizer steps, those of earlier processes among them."""
    eval_before: float | None
    eval_after: float | None
    """Held-out loss: the mean over the targets, by weight, or over the pairs; None without held-out examples."""
    resumed_from: int | None
    """The step of the checkpoint that this process went on from."""
    best_step: int | None = None
    """The step whose weights the model has; None where they are the last one's."""
    stopped_early: bool = False
    """Whether the held-out loss ended it."""


def train(
    model: PreTrainedModel,
    examples: Items,
    held_out: Items,
    options: FinetuneOptions,
    *,
    folder: Path,
    identity: Mapping[str, str] | None = None,
    world: World = ALONE,
    report: Callable[[Line], None] = lambda line: None,
    say: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = warnings.warn,
) -> TrainResult:
    """Trains what of the model is trainable, and leaves checkpoints and `metrics.jsonl` in `folder`.

    A step is `options.batch_size` examples, or pairs with `options.method="dpo"`, however many passes they take. With
    `options.resume` it goes on from the newest whole checkpoint, to the same losses as without the stop; `identity`
    holds fingerprints (data, template, tokenizer) that have to be the same then. `say` gets a line on how a step is
    computed, `report` `{"step", "total_steps"}` and then each line of the metrics. torch's generators are seeded, which
    only dropout draws from. In a `world` of several processes each calls this with the same arguments, and the first
    writes.

    Raises `ConfigError` for options that do not fit the model, the examples or the checkpoint; `RunError` where a loss
    or gradient is not finite, or the disk is full. The first SIGINT or SIGTERM ends it with a `KeyboardInterrupt` after
    the step, which is saved; a second one is handled as without us.
    """
    order = StepOrder(
        count=len(examples), batch_size=options.batch_size, seed=options.seed, drop_last=options.drop_last
    )
    total = total_steps(options, order.steps_per_epoch)
    held_out = held_out[: options.eval_limit]
    if not held_out and (options.keep_best or options.patience):
        raise ConfigError("keep_best and patience compare held-out losses; found no held-out examples; see --split")
    _check_lengths(examples, held_out, model)
    if model.device.type == "cpu":
        keep_freed_memory()
        keep_few_kernels(options.pack_tokens)
    computation = Computation.of(model, options, world)
    say(computation.line())
    optimizer = make_optimizer(model, options)
    identity = _identity(options, computation, len(examples), identity or {})
    torch.manual_seed(options.seed + world.rank)
    objective, examples, held_out = _objective(computation, options, examples, held_out, order, folder, identity, warn)
    start = _resume(folder, model, optimizer, identity, options.resume, world, warn)

    with closing(MetricsFile(folder, until=start, world=world)) as metrics, _stop_requests() as stop:
        report({"step": start, "total_steps": total})
        for step in range(start, total + 1):  # `step` of them are done
            stopping = world.any(stop.is_set())
            evaluate_now = held_out and not stopping and _is_due(step, options.eval_every, total, at_first=True)
            if evaluate_now and metrics.evaluated(step) is None:
                began = time.perf_counter()
                with _place(f"step {step}"):
                    found = evaluate(objective, held_out)
                line = {"step": step, "eval_loss": found.loss, **_prefixed("eval_", found.more)}
                _log({**line, "seconds": time.perf_counter() - began}, metrics, report)
            stopping = stopping or world.any(stop.is_set())
            stuck = is_stuck(metrics.lines, patience=options.patience, min_delta=options.min_delta)
            best = best_step(metrics.lines) if options.keep_best else None
            if step > start and (stopping or stuck or step == best or _is_due(step, options.save_every, total)):
                metrics.sync()
                save_checkpoint(
                    folder,
                    step=step,
                    model=model,
                    optimizer=optimizer,
                    identity=identity,
                    keep=options.keep_checkpoints,
                    best=best,
                    world=world,
                )
            if stopping:
                raise KeyboardInterrupt(f"stopped and saved after step {step} of {total}; --resume goes on from it")
            if step == total or stuck:
                break

            began = time.perf_counter()
            rate = learning_rate(
                step, total, peak=options.peak_learning_rate, schedule=options.schedule, warmup=options.warmup
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train(True)
            with _place(f"step {step + 1}, learning_rate={rate:.3g}"):
                numbers = train_step(objective, optimizer, examples, order.documents(step), clip_norm=options.clip_norm)
            line = {"step": step + 1, "learning_rate": rate, **numbers.line()}
            _log({**line, "seconds": time.perf_counter() - began}, metrics, report)
        model.train(False)
        if best is not None and best != step:
            best = _go_back(folder, model, best, warn)
        return TrainResult(
            steps=step,
            eval_before=metrics.evaluated(0),
            eval_after=metrics.evaluated(step if best is None else best),
            resumed_from=start or None,
            best_step=None if best == step else best,
            stopped_early=step < total,
        )


def _objective(
    computation: Computation,
    options: FinetuneOptions,
    examples: Sequence[Any],
    held_out: Sequence[Any],
    order: StepOrder,
    folder: Path,
    identity: Mapping[str, Any],
    warn: Callable[[str], None],
) -> tuple[Objective[Any], Sequence[Any], Sequence[Any]]:
    """What is minimised, over which items. With DPO the model, not yet trained, is asked for its own opinion first."""
    if options.method == "sft":
        return computation, examples, held_out
    objective = Preferences.of(computation, options)
    first_epoch = [order.documents(step) for step in range(order.steps_per_epoch)]
    parts: list[tuple[Sequence[Any], str, Sequence[Sequence[int]]]] = [
        (examples, REFERENCE, first_epoch),
        (held_out, HELD_OUT_REFERENCE, ()),
    ]
    judged = [
        judge(objective, pairs, path=folder / name, identity=identity, warn=warn, steps=steps) if pairs else []
        for pairs, name, steps in parts
    ]
    return objective, judged[0], judged[1]


def _answers(items: Items) -> Iterator[TokenizedExample]:
    for item in items:
        yield from (item.chosen, item.rejected) if isinstance(item, TokenizedPair) else (item,)


def _go_back(folder: Path, model: PreTrainedModel, step: int, warn: Callable[[str], None]) -> int | None:
    """Gives the model the weights of a step before; the step, or None where its checkpoint is not whole."""
    checkpoint, wrong = checkpoint_of(folder, step)
    if checkpoint is None:
        warn(f"the best step is {step}, but {wrong}; the model keeps the last step's weights")
        return None
    restore_weights(checkpoint, model)
    return step


def _prefixed(prefix: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in numbers.items()}


def _check_lengths(examples: Items, held_out: Items, model: PreTrainedModel) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    rows = [row for items in (examples, held_out) for row in _longer(items, longest)]
    if rows and longest > 0:
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise ConfigError(
            f"rows {', '.join(map(str, rows[:3]))}{more} are longer than the model's {longest} positions; "
            f"use --max-length {longest}"
        )


def _longer(items: Items, longest: float) -> list[int]:
    """The rows of the examples with more inputs."""
    if isinstance(items, StoredExamples):
        found: list[int] = items.samples.rows[items.samples.lengths - 1 > longest].tolist()
        return found
    return [example.row for example in _answers(items) if len(example) - 1 > longest]


def _identity(
    options: FinetuneOptions, computation: Computation, examples: int, given: Mapping[str, str]
) -> dict[str, Any]:
    """What a checkpoint has to agree with: everything that the weights depend on."""
    return {
        **options.model_dump(mode="json", exclude=_FREE_OPTIONS),
        "precision": "bf16" if computation.bf16 else "fp32",
        "training examples": examples,
        **given,
    }


def _resume(
    folder: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    resume: bool,
    world: World,
    warn: Callable[[str], None],
) -> int:
    """Restores the newest whole checkpoint; the number of steps it has done, 0 where the run begins here."""
    if not resume:
        if has_checkpoints(folder):
            raise ConfigError(f"output {str(folder)!r} holds checkpoints of a run; use --resume or another --output")
        return 0
    checkpoint, damaged = newest_checkpoint(folder)
    for line in damaged:
        warn(line)
    if checkpoint is None:
        if damaged:
            raise RunError(f"no checkpoint in {str(folder)!r} is whole; begin anew in another --output")
        return 0
    check_identity(checkpoint, identity)
    restore(checkpoint, model, optimizer, world)
    return checkpoint.step


def _is_due(step: int, every: int | None, total: int, *, at_first: bool = False) -> bool:
    """Whether something done every so many steps, and at the end, is due after `step` of them."""
    return step == total or (at_first and step == 0) or (every is not None and step > 0 and step % every == 0)


@contextmanager
def _place(where: str) -> Iterator[None]:
    """Says where in the run an error came up."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{where}: {error}") from None


def _log(line: Line, metrics: MetricsFile, report: Callable[[Line], None]) -> None:
    metrics.write(line)
    report(line)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; it gives the next one back to whoever handled it before."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can Python take signals
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore_handlers()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore_handlers()
