"""Training steps side by side: TRL's trainer, LitGPT's, padded batches, plain packs, packs that share prefixes, LoRA.

`again` is the shared packs with activation checkpointing, `compiled` with compiled layers (made before the clock
starts), `8bit` with the optimizer's moments in eight bits, `qlora` is `lora` over frozen weights in four. All but these
last two train every weight of the small built-in model on the same rows, the same steps and the same targets; each runs
in a process of its own, so that its peak memory is its own. The loss and the gradient's norm of the first step stand
beside the speed: they show that it is the same work. `trl-4` is TRL with 4 rows a pass and as many passes a step as
give the same effective batch, `litgpt-4` likewise (it is left out where `pip install litgpt` was not done); all stand
beside the fastest of TRL's. Memory is what a run took at its peak above weights, gradients and the optimizer's state,
which takes two steps to show: the first begins without them. Few steps show little of a run: in the first ones it takes
its memory, in later ones rows of other lengths come.

With `--pairs`, steps of direct preference optimization instead: each answer with its own prompt, and answers that share
it; what the starting weights are asked is counted apart.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks.memory import begin_peak, state_gib
from templatekit.config import DataOptions, FinetuneOptions
from templatekit.pairs import PairPipeline, pairs_of
from templatekit.pipeline import Pipeline
from templatekit.registry import create_registry
from templatekit.tokens.load import resolve_model
from templatekit.types import TokenizedExample, TokenizedPair

MODEL = "smollm2-135m-instruct"
TEMPLATE = "alpaca"
RATE = 1e-5
PEERS = ("trl", "litgpt")
OURS: dict[str, dict[str, Any]] = {
    "padded": {"packing": False},
    "packed": {"share": False},
    "shared": {},
    "again": {"activation_checkpointing": True},
    "compiled": {"compile": True},
    "8bit": {"optimizer": "adamw8bit"},
    "lora": {"lora": True},
    "qlora": {"lora": True, "quantize": "4bit"},
}
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


def run_ours(
    options: FinetuneOptions, items: list[TokenizedExample] | list[TokenizedPair], *, profiled: bool
) -> dict[str, Any]:
    """Our own step, once over the examples, or over the pairs."""
    import torch

    from benchmarks.profile import shares
    from templatekit.training.dpo import REFERENCE, Preferences, judge
    from templatekit.training.lora import attach_lora
    from templatekit.training.memory import keep_few_kernels, keep_freed_memory
    from templatekit.training.model import load_model, resolve_device
    from templatekit.training.optimizer import make_optimizer
    from templatekit.training.quantized import quantize
    from templatekit.training.step import Computation, Objective, train_step

    model = load_model(resolve_model(MODEL, create_registry()) or MODEL, device=resolve_device(options.device))
    if options.quantize:
        quantize(model)
    if options.lora:
        model = attach_lora(model, rank=options.lora_rank, alpha=options.lora_alpha, seed=options.seed)
    keep_freed_memory()
    keep_few_kernels(options.pack_tokens)
    peak = begin_peak()
    objective: Objective[Any] = Computation.of(model, options)
    examples: list[Any] = list(items)
    steps = [
        list(range(start, min(start + options.batch_size, len(examples))))
        for start in range(0, len(examples), options.batch_size)
    ]
    more = {}
    start = time.perf_counter()
    if options.method == "dpo":
        objective = Preferences.of(objective.computation, options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / REFERENCE
            examples = list(judge(objective, examples, path=path, identity={}, warn=click.echo, steps=steps))
        more = {"reference_seconds": time.perf_counter() - start}
    model.train()
    optimizer = make_optimizer(model, options)

    def step(documents: list[int]) -> Any:
        return train_step(objective, optimizer, examples, documents, clip_norm=1.0)

    if profiled:
        step(steps[0])  # in which memory is taken and kernels are made
        return {"shares": shares(lambda: step(steps[0]))}
    start = time.perf_counter()
    numbers = [step(documents) for documents in steps]
    if objective.computation.model.device.type == "cuda":
        torch.cuda.synchronize()
    return {
        **more,
        "seconds": time.perf_counter() - start,
        "computed_tokens": sum(step.computed_tokens for step in numbers),
        "loss": numbers[0].loss,
        "grad_norm": numbers[0].grad_norm,
        "above": peak() - state_gib(model),
    }


@click.command(help=__doc__)
@click.option("--rows", help="A file of records; the bundled set if left out.")
@click.option("--pairs", help="A file of preference pairs: DPO, on `--count` of them.")
@click.option("--count", default=96, show_default=True, help="Rows to train on.")
@click.option("--batch-size", default="8", show_default=True, help="Rows a step; several as 8,32,96.")
@click.option(
    "--variants",
    help="Of trl, trl-N, litgpt, litgpt-N, padded, packed, shared, again, compiled, 8bit, lora, qlora; with --pairs of "
    "packed, shared, again, compiled.",
)
@click.option("--pack-tokens", default=2048, show_default=True, help="Budget of one pass.")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--profile", "profiled", is_flag=True, help="Show where the time of a step goes instead; ours alone.")
@click.option("--alone", is_flag=True, hidden=True, help="Run the one variant here and print its numbers.")
def main(
    rows: str | None,
    pairs: str | None,
    count: int,
    batch_size: str,
    variants: str | None,
    pack_tokens: int,
    precision: str,
    threads: int,
    profiled: bool,
    alone: bool,
) -> None:
    variants = variants or ("packed,shared" if pairs else "trl-1,trl-4,trl-8,litgpt-8,padded,packed,shared,again,lora")
    if alone:
        import torch

        torch.set_num_threads(threads)
        values = {"batch_size": int(batch_size), "lora": False, "precision": precision, "pack_tokens": pack_tokens}
        values["method"] = "dpo" if pairs else "sft"
        options = FinetuneOptions.parse({**values, "learning_rate": RATE, **OURS.get(variants, {})})
        items: list[Any] = [*(pairs_from(pairs, count) if pairs else examples_of(rows, count))]
        peer, _, width = variants.partition("-")
        if peer in PEERS:
            from benchmarks import peers

            run = peers.run_trl if peer == "trl" else peers.run_litgpt
            numbers = run(options, items, int(width or batch_size), RATE)
        else:
            numbers = run_ours(options, items, profiled=profiled)
        tokens = sum(len(i.chosen) + len(i.rejected) if isinstance(i, TokenizedPair) else len(i) for i in items)
        click.echo(json.dumps({"tokens": tokens, **numbers}))
        return
    what = f"{pairs}, {count} pairs" if pairs else f"{rows or 'starter'}, {count} rows"
    for size in map(int, batch_size.split(",")):
        click.echo(f"{what}, {size} a step, {precision}, {threads} threads")
        best = None
        for variant in variants.split(","):
            peer, _, width = variant.partition("-")
            if peer in PEERS and (profiled or size % int(width or size)):
                continue
            if peer in PEERS and find_spec(peer) is None:
                click.echo(f"{variant:8} left out: pip install {peer}")
                continue
            own = ["--batch-size", str(size), "--variants", variant, "--alone"]
            command = [sys.executable, "-m", "benchmarks.train", *sys.argv[1:], *own]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                click.echo(f"{variant:8} failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            numbers = json.loads(done.stdout.splitlines()[-1])
            if profiled:
                click.echo(f"{variant}\n" + "\n".join(f"  {s:6.1%} {kind}" for kind, s in numbers["shares"].items()))
                continue
            speed = numbers["tokens"] / numbers["seconds"]
            if peer == "trl":
                best = max(best or 0.0, speed)
            beside = f"x {speed / best:5.2f}  " if best else ""
            click.echo(
                f"{variant:8} {speed:7.1f} tokens/s  {beside}{numbers['tokens']:,} tokens, "
                f"{numbers['computed_tokens']:,} computed  {numbers['above']:.2f} GiB above the state  "
                f"first loss {numbers['loss']:.4f}, gradient {numbers['grad_norm']:.4f}"
                + (f", reference {numbers['reference_seconds']:.0f} s" if pairs else "")
            )


if __name__ == "__main__":
    main()
