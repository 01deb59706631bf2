"""Records of a file to masked ids on disk, beside bare tokenization of the finished texts, as ratios of one run.

usage: python -m benchmarks.render [--shared FOLDER] [--repeat N] [--trl] [--save] [--memory ROWS ...]

`bare` is `tokenizers.encode_batch_fast` on the texts that templatekit rendered, ids thrown away: no reading, rendering,
masking or writing. Everything else goes from the records' file to a parquet file, workers' start included. With a
folder of real data and tokenizers beside the project the sets are Alpaca, ShareGPT and a tokenizer's own chat template;
without one, the bundled set many times over. Beside the rows a second stands the time of all cores a row, which says
more where the machine has other work; `--save` keeps it for README (`benchmarks.results`). `--memory 10000 1000000`
asks instead for the peak memory of so many rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.results import SetResult
from templatekit.config import DataOptions, RenderOptions
from templatekit.formats.plans import without_plans
from templatekit.packing import Sequences, packed
from templatekit.pipeline import Pipeline
from templatekit.registry import create_registry
from templatekit.sinks import Exporter
from templatekit.types import Example, Record, RenderedText
from templatekit.work import parts_by, parts_here
from templatekit.workers import local_workers

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROWS = 14_000


PEAK = """
import sys
from pathlib import Path
from templatekit.cli import main
try:
    main()
finally:
    print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""
"""The command, and how many KiB its process held at most; what the system itself reports counts the parent's too."""


class Set(NamedTuple):
    """What is rendered, and how."""

    name: str
    rows: list[Record]
    template: str
    tokenizer: str


def best_of(times: int, work: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds: what the machine's noise lengthened least."""
    return min(timed(work).seconds for _ in range(times))


class Cost(NamedTuple):
    """What a run took."""

    seconds: float
    cpu: float
    """Seconds of all cores, worker processes among them."""


def timed(work: Callable[[], object]) -> Cost:
    start, busy = time.perf_counter(), cpu_seconds()
    work()
    return Cost(time.perf_counter() - start, cpu_seconds() - busy)


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="a folder of real data and tokenizers")
    parser.add_argument("--repeat", type=int, default=1, help="each set so many times over")
    parser.add_argument("--trl", action="store_true", help="TRL's and transformers' preparation too")
    parser.add_argument("--save", action="store_true", help="keep the figures that README shows")
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS", help="peak memory instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        smollm2 = save_smollm2(Path(folder) / "smollm2")
        if options.memory:
            measure_memory(Path(folder), smollm2, options.memory)
            return
        found = [
            measure(one._replace(rows=one.rows * options.repeat), Path(folder), trl=options.trl)
            for one in sets(options.shared, smollm2)
        ]
        if options.save:
            results.save(found)


def save_smollm2(folder: Path) -> str:
    """The tokenizer of the small built-in model as tokenizer.json: to read it out of the model takes seconds."""
    from templatekit.tokens.load import load_transformers_tokenizer, resolve_model

    load_transformers_tokenizer(resolve_model("smollm2-135m-instruct", create_registry()) or "").save_pretrained(folder)
    return str(folder)


def sets(shared: Path, smollm2: str) -> Iterable[Set]:
    """The real sets, or the bundled one."""
    alpaca = [shared / "data" / "alpaca" / f"{name}.json" for name in ("alpaca_cleaned_short_12k", "alpaca_long_2000")]
    if not all(path.is_file() for path in alpaca):
        rows = starter(ROWS)
        return [Set("bundled, alpaca", rows, "alpaca", smollm2), Set("bundled, chatml", rows, "chatml", smollm2)]
    instructions = [row for path in alpaca for row in json.loads(path.read_text(encoding="utf-8"))]
    chats = json.loads((shared / "data" / "chat" / "sharegpt_fastchat_dummy_500.json").read_text(encoding="utf-8"))
    qwen = str(shared / "tokenizers" / "qwen3")
    return [
        Set("Alpaca, SmolLM2", instructions, "alpaca", smollm2),
        Set("ShareGPT, ChatML, SmolLM2", chats * 20, "chatml", smollm2),
        Set("Alpaca, Qwen 3's own template", instructions, "tokenizer", qwen),
    ]


def starter(count: int) -> list[Record]:
    pipeline = Pipeline(DataOptions(dataset="starter"), create_registry())
    rows = [record for record in pipeline.open() if not isinstance(record, Exception)]
    return list(itertools.islice(itertools.cycle(rows), count))


def measure(one: Set, folder: Path, *, trl: bool) -> SetResult:
    """Prints a line a contender; gives what each cost."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in one.rows), encoding="utf-8")
    pipeline = pipeline_of(one, file)
    assert pipeline.tokenizer is not None
    prepared = [*pipeline.run(pipeline.open())]
    texts = [item.rendered.text for item in prepared]
    backend = pipeline.tokenizer.backend(control=True, prefix=True)
    bare = min(timed(lambda: backend.encode_batch_fast(texts, add_special_tokens=False)) for _ in range(3))
    tokens = round(pipeline.counts.tokens / len(texts))
    print(f"{one.name}: {len(one.rows):,} rows, {tokens} tokens a text")
    costs = {"bare encode_batch_fast": bare}
    contenders: dict[str, Callable[[], object]] = {
        "templatekit --no-reuse": lambda: write(one, file, folder, reuse=False),
        "templatekit": lambda: write(one, file, folder),
        "templatekit --pack-tokens 2048": lambda: write(one, file, folder, pack_tokens=2048),
        "templatekit --workers 2": lambda: write(one, file, folder, workers=2),
    }
    costs |= {name: min(timed(work) for _ in range(2)) for name, work in contenders.items()}
    if trl:
        costs |= measure_theirs(one, [halves(item.rendered) for item in prepared])
    for name, cost in costs.items():
        report(name, cost, bare, len(one.rows))
    compare_rendering(pipeline, [item.example for item in prepared])
    del costs["templatekit --workers 2"]  # they save time by the clock, at the price of their start
    micros = {name: round(cost.cpu / len(one.rows) * 1e6, 2) for name, cost in costs.items()}
    return SetResult(one.name, len(one.rows), tokens, micros)


def report(name: str, cost: Cost, bare: Cost, rows: int) -> None:
    print(
        f"  {name:28} {rows / cost.seconds:10,.0f} rows/s   {bare.seconds / cost.seconds:5.2f} × bare   "
        f"{cost.cpu / rows * 1e6:7.1f} µs of all cores a row",
        flush=True,
    )


def pipeline_of(one: Set, file: Path, **options: Any) -> Pipeline:
    values = {"dataset": str(file), "template": one.template, "tokenizer": one.tokenizer, **options}
    return Pipeline(RenderOptions.parse(values), create_registry())


def write(
    one: Set, file: Path, folder: Path, *, workers: int = 1, pack_tokens: int | None = None, **options: Any
) -> None:
    pipeline = pipeline_of(one, file, pack_tokens=pack_tokens, **options)
    exporter = pipeline.registry.exporters["parquet"]
    assert isinstance(exporter, Exporter)
    if pack_tokens is not None:
        columns = (batch.columns for batch in pipeline.prepared_batches() if batch.columns is not None)
        with (folder / "packs.parquet").open("wb") as output:
            exporter.write_packs(packed(map(Sequences.of, columns), pack_tokens), output)
        return
    if workers == 1:
        parts = parts_here(pipeline, exporter)
    else:
        parts = parts_by(local_workers(workers), pipeline, exporter)
    with (folder / "rows.parquet").open("wb") as output:
        exporter.write_converted((part.content for part in parts), output)


def render_all(pipeline: Pipeline, examples: list[Example]) -> None:
    """Texts, origins and targets, without a tokenizer's work."""
    for example in examples:
        for sample in pipeline.template.samples(example, pipeline.special_tokens):
            _ = sample.rendered.text, sample.rendered.spans, sample.rendered.target_spans


def compare_rendering(pipeline: Pipeline, examples: list[Example]) -> None:
    """Rendering alone: by plans, and each example as if it were the first."""
    planned = best_of(3, partial(render_all, pipeline, examples)) / len(examples)
    few = examples[: len(examples) // 10]
    with without_plans():
        anew = best_of(3, partial(render_all, pipeline, few)) / len(few)
    print(
        f"  rendering alone: {planned * 1e6:.1f} µs a row, without plans {anew * 1e6:.1f}, ratio {anew / planned:.1f}"
    )


def halves(rendered: RenderedText) -> tuple[str, str]:
    """The text as a prompt and its last answer, for those who want it so."""
    at = rendered.target_spans[-1].start
    return rendered.text[:at], rendered.text[at:]


def measure_theirs(one: Set, texts: list[tuple[str, str]]) -> dict[str, Cost]:
    """What TRL's trainer does to finished prompts and answers, and transformers to messages without a mask."""
    from datasets import Dataset, disable_progress_bars
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from templatekit.tokens.load import load_transformers_tokenizer

    tokenizer = load_transformers_tokenizer(one.tokenizer)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    disable_progress_bars()
    prompts, completions = zip(*texts, strict=True)
    data = Dataset.from_dict({"prompt": prompts, "completion": completions})
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(output_dir=folder, report_to="none", max_length=2048, use_cpu=True, bf16=False)

        def prepare() -> None:
            SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)

        costs = {"TRL, finished texts": timed(prepare)}
    if tokenizer.chat_template:
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for prompt, answer in texts
        ]

        def template() -> None:
            for chat in chats:
                tokenizer.apply_chat_template(chat, return_dict=True)

        costs["transformers, no mask"] = timed(template)
    return costs


def measure_memory(folder: Path, tokenizer: str, counts: list[int]) -> None:
    """Peak memory of the command for several sizes, in processes of their own."""
    rows = starter(1000)
    for count in counts:
        file = folder / "rows.jsonl"
        with file.open("w", encoding="utf-8") as output:
            for number, row in zip(range(count), itertools.cycle(rows), strict=False):
                changed = {**row, "output": f"{row['output']} {number}"}
                output.write(json.dumps(changed) + "\n")
        for workers in (1, 2):
            options = {"dataset": file, "tokenizer": tokenizer, "workers": workers, "output": folder / "rows.parquet"}
            named = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
            run = subprocess.run(
                [sys.executable, "-c", PEAK, "render", *named], check=True, stdout=subprocess.PIPE, encoding="utf-8"
            )
            peak = int(run.stdout.split()[-1]) / (1 << 20)
            print(f"{count:9,} rows, {workers} workers: {peak:.2f} GiB at most in the process that writes", flush=True)


if __name__ == "__main__":
    main()
