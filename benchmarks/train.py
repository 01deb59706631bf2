"""Training steps on the CPU, side by side: TRL's trainer, padded batches, plain packs, packs that share prefixes.

All train every weight of the small built-in model on the same rows, the same steps and the same targets; each runs in
a process of its own, so that its peak memory is its own. The loss and the gradient's norm of the first step stand
beside the speed: they show that it is the same work. With `--pairs`, steps of direct preference optimization instead:
each answer with its own prompt, and answers that share it; what the starting weights are asked is counted apart.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from templatekit.config import DataOptions, FinetuneOptions
from templatekit.pairs import PairPipeline, pairs_of
from templatekit.pipeline import Pipeline
from templatekit.registry import create_registry
from templatekit.tokens.load import resolve_model
from templatekit.types import TokenizedExample, TokenizedPair

MODEL = "smollm2-135m-instruct"
TEMPLATE = "alpaca"
RATE = 1e-5
OURS: dict[str, dict[str, bool]] = {"padded": {"packing": False}, "packed": {"share": False}, "shared": {}}
LONGEST_ANSWER = 1024
"""Tokens of a prompt with its answer; longer pairs are left out."""


def examples_of(rows: str | None, count: int) -> list[TokenizedExample]:
    """The first `count` of the shuffled rows, tokenized."""
    registry = create_registry()
    pipeline = Pipeline(DataOptions(dataset=rows or "starter", template=TEMPLATE, tokenizer=MODEL), registry)
    records = list(pipeline.open())
    random.Random(0).shuffle(records)
    return [item.tokenized for item in pipeline.run(records[:count]) if item.tokenized is not None]


def pairs_from(path: str, count: int) -> list[TokenizedPair]:
    """The first `count` of the shuffled pairs that are not too long, tokenized."""
    options = DataOptions(dataset=path, template="chatml", tokenizer=MODEL, max_length=LONGEST_ANSWER, on_error="skip")
    pipeline = PairPipeline(options, create_registry())
    records = list(pipeline.open())
    random.Random(0).shuffle(records)
    return pairs_of(pipeline.run(records))[:count]


def run_ours(options: FinetuneOptions, items: list[TokenizedExample] | list[TokenizedPair]) -> dict[str, Any]:
    """Our own step, once over the examples, or over the pairs."""
    import torch

    from templatekit.training.dpo import REFERENCE, Preferences, judge
    from templatekit.training.model import load_model
    from templatekit.training.step import Computation, Objective, train_step

    model = load_model(resolve_model(MODEL, create_registry()), device=torch.device("cpu"))
    objective: Objective[Any] = Computation.of(model, options)
    examples: list[Any] = list(items)
    more = {}
    start = time.perf_counter()
    if options.method == "dpo":
        objective = Preferences.of(objective.computation, options)
        with tempfile.TemporaryDirectory() as folder:
            examples = list(judge(objective, examples, path=Path(folder) / REFERENCE, identity={}, warn=click.echo))
        more = {"reference_seconds": time.perf_counter() - start}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    steps = [
        list(range(start, min(start + options.batch_size, len(examples))))
        for start in range(0, len(examples), options.batch_size)
    ]
    start = time.perf_counter()
    numbers = [train_step(objective, optimizer, examples, step, clip_norm=1.0) for step in steps]
    return {
        **more,
        "seconds": time.perf_counter() - start,
        "computed_tokens": sum(step.computed_tokens for step in numbers),
        "loss": numbers[0].loss,
        "grad_norm": numbers[0].grad_norm,
    }


def run_trl(options: FinetuneOptions, examples: list[TokenizedExample]) -> dict[str, Any]:
    """TRL's trainer on the same ids and labels."""
    import datasets
    import torch
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from templatekit.training.model import load_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(resolve_model(MODEL, create_registry()))
        model = load_model(path, device=torch.device("cpu"))
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        data = datasets.Dataset.from_dict(
            {
                "input_ids": [list(example.input_ids) for example in examples],
                "labels": [list(example.labels) for example in examples],
            }
        )
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=options.batch_size,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            warmup_steps=0,
            max_length=None,
            use_cpu=True,
            bf16=options.precision == "bf16",
            activation_checkpointing=False,
            train_sampling_strategy="sequential",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        first = trainer.state.log_history[0]
    width = options.batch_size
    computed = sum(
        len(batch) * max(map(len, batch))
        for batch in (examples[start : start + width] for start in range(0, len(examples), width))
    )
    return {
        "seconds": seconds,
        "computed_tokens": computed,
        "loss": float(first["loss"]),
        "grad_norm": float(first["grad_norm"]),
    }


@click.command(help=__doc__)
@click.option("--rows", help="A file of records; the bundled set if left out.")
@click.option("--pairs", help="A file of preference pairs: DPO, on `--count` of them.")
@click.option("--count", default=96, show_default=True, help="Rows to train on.")
@click.option("--batch-size", default=8, show_default=True, help="Rows a step.")
@click.option("--variants", help="Of trl, padded, packed and shared; by default all, with --pairs the last two.")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--alone", is_flag=True, hidden=True, help="Run the one variant here and print its numbers.")
def main(
    rows: str | None,
    pairs: str | None,
    count: int,
    batch_size: int,
    variants: str | None,
    precision: str,
    threads: int,
    alone: bool,
) -> None:
    variants = variants or ("packed,shared" if pairs else "trl,padded,packed,shared")
    if alone:
        import torch

        torch.set_num_threads(threads)
        options = FinetuneOptions.parse(
            {
                "batch_size": batch_size,
                "lora": False,
                "precision": precision,
                "method": "dpo" if pairs else "sft",
                **OURS.get(variants, {}),
            }
        )
        if pairs:
            items = pairs_from(pairs, count)
            numbers = run_ours(options, items)
            tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in items)
        else:
            examples = examples_of(rows, count)
            numbers = run_trl(options, examples) if variants == "trl" else run_ours(options, examples)
            tokens = sum(map(len, examples))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        click.echo(json.dumps({"variant": variants, "tokens": tokens, "peak_gib": peak, **numbers}))
        return
    what = f"{pairs}, {count} pairs" if pairs else f"{rows or 'starter'}, {count} rows"
    click.echo(f"{what}, {batch_size} a step, {precision}, {threads} threads")
    first = None
    for variant in variants.split(","):
        command = [sys.executable, "-m", "benchmarks.train", *sys.argv[1:], "--variants", variant, "--alone"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            click.echo(f"{variant:8} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        numbers = json.loads(done.stdout.splitlines()[-1])
        speed = numbers["tokens"] / numbers["seconds"]
        first = first or speed
        click.echo(
            f"{variant:8} {speed:7.1f} tokens/s  x {speed / first:4.2f}  {numbers['tokens']:,} tokens, "
            f"{numbers['computed_tokens']:,} computed  peak {numbers['peak_gib']:.1f} GiB  "
            f"first loss {numbers['loss']:.4f}, gradient {numbers['grad_norm']:.4f}"
            + (f", reference {numbers['reference_seconds']:.0f} s" if pairs else "")
        )


if __name__ == "__main__":
    main()
