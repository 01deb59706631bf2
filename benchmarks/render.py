"""Records of a file to masked ids on disk, beside bare tokenization of the finished texts, as ratios of one run.

usage: python -m benchmarks.render [--shared FOLDER] [--repeat N] [--trl] [--table FILE] [--save] [--memory ROWS ...]

`bare` is `tokenizers.encode_batch_fast` on the texts that templatekit rendered, ids thrown away: no reading, rendering,
masking or writing. Everything else goes from the records' file to a parquet file. As for `bare` the tokenizer is there
before the clock runs, and so is the template, but nothing that is learnt from data; workers are started while it runs.
With a folder of real data and tokenizers beside the project the sets are Alpaca, ShareGPT and a tokenizer's own chat
template; without one, the bundled set many times over. Beside the rows a second stands the time of all cores a row,
which says more where the machine has other work, and then where it goes, stage by stage. `--table FILE` writes all that
as Markdown, too; `--save` keeps the processor times for README (`benchmarks.results`). `--memory 10000 1000000` asks
instead for the peak memory of so many rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks import results
from benchmarks.clock import Report, best_of, timed
from benchmarks.rows import starter, write_numbered
from templatekit.config.render_options import RenderOptions
from templatekit.engines.jobs import output_chunks
from templatekit.engines.processes import process_engine
from templatekit.errors import RecordError
from templatekit.formats.tracing.compiler import interpreting
from templatekit.hooks.exporters import Exporter
from templatekit.hooks.loading import create_registry
from templatekit.packing import pack_stream
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import BATCH_SIZE
from templatekit.pipeline.outputs import ExporterConverter
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.supervision import LazyLossSpans
from templatekit.types import Example, Record, RenderedText

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="a folder of real data and tokenizers")
    parser.add_argument("--repeat", type=int, default=1, help="each set so many times over")
    parser.add_argument("--trl", action="store_true", help="TRL's and transformers' preparation too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the figures as Markdown, too")
    parser.add_argument("--save", action="store_true", help="keep the figures that README shows")
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS", help="peak memory instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        smollm2 = save_smollm2(Path(folder) / "smollm2")
        if options.memory:
            measure_memory(Path(folder), smollm2, options.memory)
            return
        reports = [
            measure(one._replace(rows=one.rows * options.repeat), Path(folder), trl=options.trl)
            for one in sets(options.shared, smollm2)
        ]
    if options.table:
        options.table.write_text("\n".join(report.markdown for report in reports), encoding="utf-8")
    if options.save:
        results.RENDER.save([report.result for report in reports], "python -m benchmarks.render --trl --save")


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


def measure(one: Set, folder: Path, *, trl: bool) -> Report:
    """Prints a line a contender."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in one.rows), encoding="utf-8")
    pipeline = pipeline_of(one, file)
    assert pipeline.tokenizer is not None
    prepared = [*pipeline.run(pipeline.open())]
    texts = [item.rendered.text for item in prepared]
    backend = pipeline.tokenizer.backend(control=True, prefix=True)
    bare = min(timed(lambda: backend.encode_batch_fast(texts, add_special_tokens=False)) for _ in range(3))
    report = Report(one.name, len(one.rows), round(pipeline.counts.tokens / len(texts)), bare)
    for name, work in contenders(one, file, folder).items():
        report.add(name, min(timed(work()) for _ in range(2)))
    setup = timed(partial(pipeline_of, one, file))
    report.say(f"before the clock runs: {setup.seconds:.2f} s for the tokenizer, the template and the plugins")
    report.add_stages(min((stages(one, file, folder) for _ in range(2)), key=lambda found: sum(found.values())))
    compare_rendering(report, pipeline, [item.example for item in prepared])
    if trl:
        measure_theirs(report, one, [halves(item.rendered) for item in prepared])
    return report


def contenders(one: Set, file: Path, folder: Path) -> dict[str, Callable[[], Callable[[], object]]]:
    """Each makes all that is there before the clock runs, and returns the work."""
    kinds: dict[str, dict[str, Any]] = {
        "templatekit --no-reuse": {"reuse": False},
        "templatekit, tokenizers alone": {"quick": False},
        "templatekit": {},
        "templatekit --pack-tokens 2048": {"pack_tokens": 2048},
        "templatekit --workers 2": {"workers": 2},
    }
    return {name: partial(writing, one, file, folder, **kind) for name, kind in kinds.items()}


def pipeline_of(one: Set, file: Path, **options: Any) -> Pipeline:
    values = {"dataset": str(file), "template": one.template, "tokenizer": one.tokenizer, **options}
    return Pipeline(RenderOptions.parse(values), create_registry())


def writing(
    one: Set, file: Path, folder: Path, *, workers: int = 1, quick: bool = True, **options: Any
) -> Callable[[], None]:
    """The work of writing the set's rows, or packs of them; without `quick`, with the reference as encoder alone."""
    pipeline = pipeline_of(one, file, **options)
    exporter = pipeline.registry.exporters["parquet"]
    assert isinstance(exporter, Exporter)

    reference_alone = partial(patch, "templatekit.tokens.word_table.load_fast_backend", return_value=None)

    def write() -> None:
        parts = output_chunks(
            pipeline, ExporterConverter.of(exporter, pipeline.registry), engine=process_engine(workers)
        )
        content = (part.content for part in parts)
        with (folder / "rows.parquet").open("wb") as output, nullcontext() if quick else reference_alone():
            if "pack_tokens" in options:
                exporter.write_packs(pack_stream(content, options["pack_tokens"]), output)
            else:
                exporter.write_converted(content, output)

    return write


def stages(one: Set, file: Path, folder: Path) -> dict[str, float]:
    """Seconds of this process for each stage, one after another for all rows."""
    pipeline = pipeline_of(one, file)
    exporter = pipeline.registry.exporters["parquet"]
    assert isinstance(exporter, Exporter) and pipeline.encoder is not None
    encoder, train_on, tokens = pipeline.encoder, pipeline.options.train_on, pipeline.special_tokens
    found: dict[str, float] = {}

    def lap(name: str, work: Callable[[], Any]) -> Any:
        gc.disable()  # here all rows are held, which to look through again and again takes longer than the work
        start = time.process_time()
        result = work()
        found[name] = time.process_time() - start
        gc.enable()
        return result

    def columns() -> list[TokenizedColumns]:
        return [
            encoder.encode_columns((text, LazyLossSpans(text, train_on)) for text in texts[at : at + BATCH_SIZE])
            for at in range(0, len(texts), BATCH_SIZE)
        ]

    records = lap("reading", lambda: [row for row in pipeline.open() if not isinstance(row, RecordError)])
    examples = lap("adapting", lambda: [example for record in records for example in pipeline.reader.examples(record)])
    samples = lap("rendering", lambda: [one for e in examples for one in pipeline.template.samples(e, tokens)])
    texts = [sample.rendered for sample in samples]
    batches = lap("ids and weights", columns)
    parts = lap("columns", lambda: [*map(exporter.convert, batches)])
    with (folder / "rows.parquet").open("wb") as output:
        lap("writing", lambda: exporter.write_converted(parts, output))
    return found


def render_all(pipeline: Pipeline, examples: list[Example]) -> None:
    """Texts, origins and targets, without a tokenizer's work."""
    for example in examples:
        for sample in pipeline.template.samples(example, pipeline.special_tokens):
            _ = sample.rendered.text, sample.rendered.spans, sample.rendered.target_spans


def compare_rendering(report: Report, pipeline: Pipeline, examples: list[Example]) -> None:
    """Rendering alone: with compiled traces, and interpreted."""
    compiled = best_of(3, partial(render_all, pipeline, examples)) / len(examples)
    few = examples[: len(examples) // 10]
    with interpreting():
        interpreted = best_of(3, partial(render_all, pipeline, few)) / len(few)
    report.say(
        f"rendering with texts and origins: {compiled * 1e6:.1f} µs a row, interpreted {interpreted * 1e6:.1f}, "
        f"ratio {interpreted / compiled:.1f}"
    )


def halves(rendered: RenderedText) -> tuple[str, str]:
    """The text as a prompt and its last answer, for those who want it so."""
    at = rendered.target_spans[-1].start
    return rendered.text[:at], rendered.text[at:]


def measure_theirs(report: Report, one: Set, texts: list[tuple[str, str]]) -> None:
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

        report.add("TRL, finished texts", timed(prepare))
    if tokenizer.chat_template:
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for prompt, answer in texts
        ]

        def template() -> None:
            for chat in chats:
                tokenizer.apply_chat_template(chat, return_dict=True)

        report.add("transformers, no mask", timed(template))


def measure_memory(folder: Path, tokenizer: str, counts: list[int]) -> None:
    """Peak memory of the command for several sizes, in processes of their own."""
    rows = starter(1000)
    for count in counts:
        file = folder / "rows.jsonl"
        write_numbered(file, rows, count)
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
