"""Training steps compared: TRL's trainer, LitGPT, padded batches, plain packs, packs with shared prefixes, LoRA.

Of our variants, `again` is the shared packs with activation checkpointing, `compiled` is them with compiled layers
(compiled before the clock starts), `8bit` with the optimizer's moments in eight bits, `qlora` is `lora` over frozen
weights in four bits. All except `lora` and `qlora` train every weight of the small built-in model on the same rows, the
same steps and the same targets. Each variant runs in its own process, so that its peak memory is its own. The loss and
the gradient norm of the first step are shown with the speed: they show that the work is the same.

`trl-4` is TRL with 4 rows a pass, and as many passes a step as give the same effective batch. `trl+free-4` puts them in
one row without padding, `+compile` compiles the model, `+liger` and `+flash` use the kernels of those packages, for
GPUs. `litgpt-4` is the same for LitGPT (left out if `pip install litgpt` was not run). All variants are compared with
the fastest of TRL's.

Memory is the peak above weights, gradients and the optimizer's state. It takes two steps to show, since the first one
starts without them. `of a product` compares the time with that of six operations for each weight and token, computed or
shared, at the speed of the fastest large matrix product on the device. A few steps do not show all of a run: the first
ones allocate its memory, and later ones have rows of other lengths. `--profile` profiles one more step after them.

`--device` selects a GPU. `--shape` uses random weights in the shape of a larger model. Several `--rows` are measured
one after the other, each with its own `--count` if several are given. `--save` saves the results for README
(`benchmarks.results`).

With `--pairs`, the steps are of direct preference optimization, in TRL too. The log-probabilities of the starting
weights are computed once and timed separately. Variants compute each answer with its own prompt, or answers that share
it.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from typing import Any

import click
from transformers import PreTrainedModel

from benchmarks import results
from benchmarks.memory import gradient_and_optimizer_gib, watch_peak_memory
from benchmarks.models import SHAPES, SMALL, load_benchmark_model, matmul_flops
from templatekit.config.data_options import DataOptions
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.pipeline.preference import PreferencePipeline, preference_pairs
from templatekit.types import TokenizedExample, TokenizedPair

TEMPLATE = "alpaca"
RATE = 1e-5
PEERS = {"trl": "TRL", "litgpt": "LitGPT"}
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
COMPARED, PAIRED = "trl-1,trl-4,trl-8,litgpt-8,padded,packed,shared,again,lora", "trl-1,trl-4,packed,shared"
LONGEST_ANSWER = 1024
"""Maximum tokens of a prompt with its answer. Longer pairs are left out."""


def examples_of(rows: str | None, count: int) -> list[TokenizedExample]:
    """The first `count` of the shuffled rows, tokenized."""
    registry = create_registry()
    pipeline = Pipeline(DataOptions(dataset=rows or "starter", template=TEMPLATE, tokenizer=SMALL), registry)
    records = list(pipeline.open())
    random.Random(0).shuffle(records)
    return [item.tokenized for item in pipeline.run(records[:count]) if item.tokenized is not None]


def pairs_from(path: str, count: int) -> list[TokenizedPair]:
    """The first `count` of the shuffled pairs that are not too long, tokenized."""
    options = DataOptions(dataset=path, template="chatml", tokenizer=SMALL, max_length=LONGEST_ANSWER, on_error="skip")
    pipeline = PreferencePipeline(options, create_registry())
    records = list(pipeline.open())
    random.Random(0).shuffle(records)
    return preference_pairs(pipeline.run(records))[:count]


def run_ours(
    options: FinetuneOptions, model: PreTrainedModel, items: Sequence[Any], *, profiled: bool
) -> dict[str, Any]:
    """Run our own training step once over the examples or pairs."""
    import torch

    from benchmarks.profile import time_shares
    from templatekit.training.dpo import REFERENCE, DPOObjective, precompute_reference
    from templatekit.training.forward_pass import ForwardPass
    from templatekit.training.kernels.memory import keep_freed_memory, limit_kernel_cache
    from templatekit.training.lora import attach_lora
    from templatekit.training.objective import Objective
    from templatekit.training.optimizer import make_optimizer
    from templatekit.training.quantization import quantize
    from templatekit.training.step import train_step

    if options.quantize:
        quantize(model)
    if options.lora:
        model = attach_lora(model, rank=options.lora_rank, alpha=options.lora_alpha, seed=options.seed)
    keep_freed_memory()
    limit_kernel_cache(options.pack_tokens)
    peak = watch_peak_memory(model.device)
    forward_pass = ForwardPass.of(model, options)
    objective = Objective(forward_pass)
    examples: list[Any] = list(items)
    steps = [
        list(range(start, min(start + options.batch_size, len(examples))))
        for start in range(0, len(examples), options.batch_size)
    ]
    more = {}
    start = time.perf_counter()
    if options.method == "dpo":
        objective = DPOObjective(forward_pass, options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / REFERENCE
            examples = list(
                precompute_reference(objective, examples, path=path, identity={}, warn=click.echo, steps=steps)
            )
        more = {"reference_seconds": time.perf_counter() - start}
    model.train()
    optimizer = make_optimizer(model, options)

    def step(documents: list[int]) -> dict[str, float]:
        return train_step(objective, optimizer, examples, documents, clip_norm=1.0)

    if profiled:
        for documents in steps:  # the first steps allocate memory and create kernels
            step(documents)
        return {"shares": time_shares(lambda: step(steps[-1]))}
    start = time.perf_counter()
    numbers = [step(documents) for documents in steps]
    if forward_pass.model.device.type == "cuda":
        torch.cuda.synchronize()
    return {
        **more,
        "seconds": time.perf_counter() - start,
        "computed_tokens": sum(step["computed_tokens"] for step in numbers),
        "loss": numbers[0]["loss"],
        "grad_norm": numbers[0]["grad_norm"],
        "above": peak() - gradient_and_optimizer_gib(model),
    }


def parse_variant(variant: str) -> tuple[str | None, list[str], str]:
    """Return the library of a variant (None for ours), its settings, and its rows a pass."""
    library, _, pass_rows = variant.partition("-")
    peer, *settings = library.split("+")
    return (peer, settings, pass_rows) if peer in PEERS else (None, [], "")


def run_variant(
    variant: str, options: FinetuneOptions, model: PreTrainedModel, items: Sequence[Any], *, profiled: bool
) -> dict[str, Any]:
    """Run one variant in this process."""
    peer, settings, pass_rows = parse_variant(variant)
    if peer is None:
        return run_ours(options, model, items, profiled=profiled)
    from benchmarks import peers

    rows = int(pass_rows or options.batch_size)
    if peer == "litgpt":
        return peers.run_litgpt(options, model, items, rows)
    return peers.run_trl(options, model, items, rows, settings)


def run_in_process(variant: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Run a variant in a separate process and return its figures; print the reason if it fails."""
    command = [sys.executable, "-m", "benchmarks.train", *arguments, "--variants", variant, "--alone"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        click.echo(f"{variant:10} failed: {done.stderr.strip().splitlines()[-1]}")
        return None
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def compare(
    variants: Sequence[str], size: int, arguments: Sequence[str], *, profiled: bool
) -> dict[str, dict[str, Any]]:
    """Run each variant and print it, compared with the fastest of TRL's so far."""
    found: dict[str, dict[str, Any]] = {}
    best = None
    fastest = math.inf
    for variant in variants:
        peer, _, pass_rows = parse_variant(variant)
        if peer is not None and (profiled or size % int(pass_rows or size)):
            continue
        if peer is not None and find_spec(peer) is None:
            click.echo(f"{variant:10} left out: pip install {peer}")
            continue
        numbers = run_in_process(variant, arguments)
        if numbers is None:
            continue
        found[variant] = numbers
        if profiled:
            click.echo(f"{variant}\n" + "\n".join(f"  {s:6.1%} {kind}" for kind, s in numbers["shares"].items()))
            continue
        if peer == "trl":
            best = max(best or 0.0, numbers["tokens"] / numbers["seconds"])
        fastest = min(fastest, numbers["product_seconds"])  # other work may have slowed down one measurement
        click.echo(result_line(variant, numbers, best, fastest))
    return found


def result_line(variant: str, numbers: dict[str, Any], best: float | None, product_seconds: float) -> str:
    """A line of figures; `product_seconds` is the time that matrix products alone would take for a token."""
    speed = numbers["tokens"] / numbers["seconds"]
    return (
        f"{variant:10} {speed:7.1f} tokens/s  "
        + (f"x {speed / best:5.2f}  " if best else "")
        + f"{numbers['tokens']:,} tokens, {numbers['computed_tokens']:,} computed  "
        f"{numbers['above']:.2f} GiB above the state  {speed * product_seconds:.0%} of a product  "
        f"first loss {numbers['loss']:.4f}, gradient {numbers['grad_norm']:.4f}"
        + (f", reference {numbers['reference_seconds']:.0f} s" if "reference_seconds" in numbers else "")
    )


def readme_name(variant: str) -> str:
    """The name of a variant in README."""
    peer, settings, pass_rows = parse_variant(variant)
    if peer is not None:
        return f"{'+'.join([PEERS[peer], *settings])}, {pass_rows or 'all'} row{'' if pass_rows == '1' else 's'} a pass"
    switches = {"packed": "--no-share", "again": "--activation-checkpointing", "compiled": "--compile"}
    return " ".join([results.OURS, *([switches.get(variant, variant)] if variant != "shared" else [])])


def readme_result(name: str, found: dict[str, dict[str, Any]]) -> results.TrainResult:
    """The figures of a data set for README."""
    first = next(iter(found.values()))
    return results.TrainResult(
        name=name,
        rows=first["examples"],
        tokens=round(first["tokens"] / first["examples"]),
        speeds={
            readme_name(variant): round(numbers["tokens"] / numbers["seconds"], 1) for variant, numbers in found.items()
        },
        memory={readme_name(variant): round(numbers["above"], 2) for variant, numbers in found.items()},
        losses={readme_name(variant): round(numbers["loss"], 5) for variant, numbers in found.items()},
    )


@click.command(help=__doc__)
@click.option("--rows", multiple=True, help="A file of records; by default the bundled set.")
@click.option("--pairs", help="A file of preference pairs: DPO, on `--count` of them.")
@click.option("--count", multiple=True, type=int, default=[96], show_default=True, help="Rows to train on.")
@click.option("--batch-size", default="8", show_default=True, help="Rows a step; several are given as 8,32,96.")
@click.option(
    "--variants",
    help="Among trl, trl-N, trl+free-N, litgpt, litgpt-N, padded, packed, shared, again, compiled, 8bit, lora, qlora; "
    "with --pairs among trl, trl-N, packed, shared, again, compiled.",
)
@click.option("--device", default="auto", show_default=True)
@click.option("--shape", type=click.Choice(list(SHAPES)), help=f"Random weights of this shape; by default {SMALL}.")
@click.option("--pack-tokens", default=2048, show_default=True, help="Token budget of one pass.")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--profile",
    "profiled",
    is_flag=True,
    help="Show the time of a step by kind of operation instead, for our variants.",
)
@click.option("--save", is_flag=True, help="Save the figures for README.")
@click.option("--alone", is_flag=True, hidden=True, help="Run the one variant in this process and print its figures.")
def main(
    rows: tuple[str, ...],
    pairs: str | None,
    count: tuple[int, ...],
    batch_size: str,
    variants: str | None,
    device: str,
    shape: str | None,
    pack_tokens: int,
    precision: str,
    threads: int,
    profiled: bool,
    save: bool,
    alone: bool,
) -> None:
    variants = variants or (PAIRED if pairs else COMPARED)
    sizes = batch_size.split(",")
    if alone:
        import torch

        torch.set_num_threads(threads)
        values: dict[str, Any] = {
            "device": device,
            "batch_size": int(sizes[-1]),
            "lora": False,
            "precision": precision,
            "pack_tokens": pack_tokens,
        }
        values["method"] = "dpo" if pairs else "sft"
        options = FinetuneOptions.parse({**values, "learning_rate": RATE, **OURS.get(variants, {})})
        model = load_benchmark_model(shape, device)
        parameters = sum(weight.numel() for weight in model.parameters())
        path = rows[-1] if rows else None
        items: list[Any] = [*(pairs_from(pairs, count[-1]) if pairs else examples_of(path, count[-1]))]
        numbers = run_variant(variants, options, model, items, profiled=profiled)
        numbers["product_seconds"] = 6 * parameters / matmul_flops(device, bf16=precision == "bf16")
        tokens = sum(len(i.chosen) + len(i.rejected) if isinstance(i, TokenizedPair) else len(i) for i in items)
        click.echo(json.dumps({"tokens": tokens, "examples": len(items), **numbers}))
        return
    saved = []
    sets = rows or (None,)
    if len(count) not in (1, len(sets)):
        raise click.UsageError(f"{len(count)} counts of {len(sets)} sets: expected one, or one each")
    for (path, number), size in product(zip(sets, cycle(count), strict=False), sizes):
        label = f"{pairs}, {number} pairs" if pairs else f"{path or 'starter'}, {number} rows"
        click.echo(f"{label}, {size} a step, {precision}, {threads} threads")
        arguments = [*sys.argv[1:], "--batch-size", size, "--count", str(number), *(["--rows", path] if path else [])]
        found = compare(variants.split(","), int(size), arguments, profiled=profiled)
        if found and not profiled:
            saved.append(readme_result(Path(path).stem if path else "starter", found))
    if save:
        results.TRAIN.save(saved, " ".join(["python -m benchmarks.train", *(Path(word).name for word in sys.argv[1:])]))


if __name__ == "__main__":
    main()
