"""Rendering records from a file to masked ids on disk, compared with bare tokenization of the rendered texts.

usage: python -m benchmarks.render [--shared FOLDER] [--repeat N] [--trl] [--table FILE] [--save] [--memory ROWS ...]

`bare` is `tokenizers.encode_batch_fast` on the texts that templatekit rendered, with the ids thrown away: no reading,
rendering, masking or writing. All other contenders go from the records' file to a Parquet file. The tokenizer and the
template are loaded before the clock starts, for `bare` too, but nothing that is learnt from the data. Workers are
started while it runs.

With a folder of real data and tokenizers next to the project, the data sets are Alpaca, ShareGPT and Alpaca with a
tokenizer's own chat template; without it, the bundled set, repeated. The time of all cores for each row is shown with
the rows a second: it says more where the machine has other work. It is also shown stage by stage. `--table FILE` also
writes the figures as Markdown. `--save` saves the processor times for README (`benchmarks.results`). `--memory 10000
1000000` measures the peak memory of so many rows instead.
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
from benchmarks.clock import Report, measure_cost, shortest_seconds
from benchmarks.rows import bundled_rows, write_numbered
from templatekit.config.render_options import RenderOptions
from templatekit.engines.jobs import output_chunks
from templatekit.engines.processes import process_engine
from templatekit.errors import RecordError
from templatekit.formats.tracing.compiler import TracingCompiler
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


PEAK_PROGRAM = """
import sys
from pathlib import Path
from templatekit.cli import main
try:
    main()
finally:
    print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""
"""Runs the command and prints the peak KiB of its process. The system's own count includes the parent process."""


class DataSet(NamedTuple):
    """A data set, with the template and the tokenizer for it."""

    name: str
    rows: list[Record]
    template: str
    tokenizer: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="a folder of real data and tokenizers")
    parser.add_argument("--repeat", type=int, default=1, help="repeat each data set so many times")
    parser.add_argument("--trl", action="store_true", help="also measure the preparation of TRL and transformers")
    parser.add_argument("--table", type=Path, metavar="FILE", help="also write the figures as Markdown")
    parser.add_argument("--save", action="store_true", help="save the figures for README")
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS", help="measure peak memory instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        smollm2 = save_smollm2(Path(folder) / "smollm2")
        if options.memory:
            measure_memory(Path(folder), smollm2, options.memory)
            return
        reports = [
            measure_set(data_set._replace(rows=data_set.rows * options.repeat), Path(folder), trl=options.trl)
            for data_set in sets(options.shared, smollm2)
        ]
    if options.table:
        options.table.write_text("\n".join(report.markdown for report in reports), encoding="utf-8")
    if options.save:
        results.RENDER.save([report.result for report in reports], "python -m benchmarks.render --trl --save")


def save_smollm2(folder: Path) -> str:
    """Save the tokenizer of the small built-in model as tokenizer.json. Reading it from the model takes seconds."""
    from templatekit.tokens.load import load_transformers_tokenizer, resolve_model

    load_transformers_tokenizer(resolve_model("smollm2-135m-instruct", create_registry()) or "").save_pretrained(folder)
    return str(folder)


def sets(shared: Path, smollm2: str) -> Iterable[DataSet]:
    """The real data sets, or the bundled one."""
    alpaca = [shared / "data" / "alpaca" / f"{name}.json" for name in ("alpaca_cleaned_short_12k", "alpaca_long_2000")]
    if not all(path.is_file() for path in alpaca):
        rows = bundled_rows(ROWS)
        return [
            DataSet("bundled, alpaca", rows, "alpaca", smollm2),
            DataSet("bundled, chatml", rows, "chatml", smollm2),
        ]
    instructions = [row for path in alpaca for row in json.loads(path.read_text(encoding="utf-8"))]
    chats = json.loads((shared / "data" / "chat" / "sharegpt_fastchat_dummy_500.json").read_text(encoding="utf-8"))
    qwen = str(shared / "tokenizers" / "qwen3")
    return [
        DataSet("Alpaca, SmolLM2", instructions, "alpaca", smollm2),
        DataSet("ShareGPT, ChatML, SmolLM2", chats * 20, "chatml", smollm2),
        DataSet("Alpaca, Qwen 3's own template", instructions, "tokenizer", qwen),
    ]


def measure_set(data_set: DataSet, folder: Path, *, trl: bool) -> Report:
    """Measure every contender on a data set, and print a line for each."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data_set.rows), encoding="utf-8")
    pipeline = pipeline_of(data_set, file)
    assert pipeline.tokenizer is not None
    prepared = [*pipeline.run(pipeline.open())]
    texts = [item.rendered.text for item in prepared]
    backend = pipeline.tokenizer.backend(control=True, prefix=True)
    bare = min(measure_cost(lambda: backend.encode_batch_fast(texts, add_special_tokens=False)) for _ in range(3))
    report = Report(data_set.name, len(data_set.rows), round(pipeline.counts.tokens / len(texts)), bare)
    for name, work in contenders(data_set, file, folder).items():
        report.add(name, min(measure_cost(work()) for _ in range(2)))
    setup = measure_cost(partial(pipeline_of, data_set, file))
    report.say(f"before the clock runs: {setup.seconds:.2f} s for the tokenizer, the template and the plugins")
    report.add_stages(min((stages(data_set, file, folder) for _ in range(2)), key=lambda found: sum(found.values())))
    compare_rendering(report, pipeline, [item.example for item in prepared])
    if trl:
        measure_peers(report, data_set, [split_prompt(item.rendered) for item in prepared])
    return report


def contenders(data_set: DataSet, file: Path, folder: Path) -> dict[str, Callable[[], Callable[[], object]]]:
    """Each contender prepares what is needed before the clock starts, and returns the function to measure."""
    kinds: dict[str, dict[str, Any]] = {
        "templatekit --no-reuse": {"reuse": False},
        "templatekit, tokenizers alone": {"quick": False},
        "templatekit": {},
        "templatekit --pack-tokens 2048": {"pack_tokens": 2048},
        "templatekit --workers 2": {"workers": 2},
    }
    return {name: partial(writing, data_set, file, folder, **kind) for name, kind in kinds.items()}


def pipeline_of(data_set: DataSet, file: Path, **options: Any) -> Pipeline:
    values = {"dataset": str(file), "template": data_set.template, "tokenizer": data_set.tokenizer, **options}
    return Pipeline(RenderOptions.parse(values), create_registry())


def writing(
    data_set: DataSet, file: Path, folder: Path, *, workers: int = 1, quick: bool = True, **options: Any
) -> Callable[[], None]:
    """Return a function that writes the rows or packs; without `quick`, only the tokenizers library encodes."""
    pipeline = pipeline_of(data_set, file, **options)
    exporter = pipeline.registry.exporters["parquet"]
    assert isinstance(exporter, Exporter)

    reference_alone = partial(patch, "templatekit.tokens.word_table.load_fast_backend", return_value=None)

    def write() -> None:
        chunks = output_chunks(
            pipeline, ExporterConverter.of(exporter, pipeline.registry), engine=process_engine(workers)
        )
        content = (chunk.content for chunk in chunks)
        with (folder / "rows.parquet").open("wb") as output, nullcontext() if quick else reference_alone():
            if "pack_tokens" in options:
                exporter.write_packs(pack_stream(content, options["pack_tokens"]), output)
            else:
                exporter.write_converted(content, output)

    return write


def stages(data_set: DataSet, file: Path, folder: Path) -> dict[str, float]:
    """Processor seconds of each stage. Each stage runs over all rows before the next one starts."""
    pipeline = pipeline_of(data_set, file)
    exporter = pipeline.registry.exporters["parquet"]
    assert isinstance(exporter, Exporter) and pipeline.encoder is not None
    encoder, train_on, tokens = pipeline.encoder, pipeline.options.train_on, pipeline.special_tokens
    found: dict[str, float] = {}

    def run_stage(name: str, work: Callable[[], Any]) -> Any:
        gc.disable()  # all rows are in memory here, and garbage collections over them take longer than the work
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

    records = run_stage("reading", lambda: [row for row in pipeline.open() if not isinstance(row, RecordError)])
    examples = run_stage(
        "adapting", lambda: [example for record in records for example in pipeline.reader.examples(record)]
    )
    samples = run_stage(
        "rendering", lambda: [sample for e in examples for sample in pipeline.template.samples(e, tokens)]
    )
    texts = [sample.rendered for sample in samples]
    batches = run_stage("ids and weights", columns)
    converted = run_stage("columns", lambda: [*map(exporter.convert, batches)])
    with (folder / "rows.parquet").open("wb") as output:
        run_stage("writing", lambda: exporter.write_converted(converted, output))
    return found


def render_all(pipeline: Pipeline, examples: list[Example]) -> None:
    """Render texts, origins and targets, without a tokenizer."""
    for example in examples:
        for sample in pipeline.template.samples(example, pipeline.special_tokens):
            _ = sample.rendered.text, sample.rendered.spans, sample.rendered.target_spans


def compare_rendering(report: Report, pipeline: Pipeline, examples: list[Example]) -> None:
    """Compare rendering with compiled traces and interpreted rendering."""
    compiled = shortest_seconds(3, partial(render_all, pipeline, examples)) / len(examples)
    sample_examples = examples[: len(examples) // 10]
    with patch.object(TracingCompiler, "enabled", False):
        interpreted = shortest_seconds(3, partial(render_all, pipeline, sample_examples)) / len(sample_examples)
    report.say(
        f"rendering with texts and origins: {compiled * 1e6:.1f} µs a row, interpreted {interpreted * 1e6:.1f}, "
        f"ratio {interpreted / compiled:.1f}"
    )


def split_prompt(rendered: RenderedText) -> tuple[str, str]:
    """The text split into the prompt and the last answer."""
    at = rendered.target_spans[-1].start
    return rendered.text[:at], rendered.text[at:]


def measure_peers(report: Report, data_set: DataSet, texts: list[tuple[str, str]]) -> None:
    """Measure TRL's trainer on rendered prompts and answers, and transformers on messages without a mask."""
    from datasets import Dataset, disable_progress_bars
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from templatekit.tokens.load import load_transformers_tokenizer

    tokenizer = load_transformers_tokenizer(data_set.tokenizer)
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

        report.add("TRL, finished texts", measure_cost(prepare))
    if tokenizer.chat_template:
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for prompt, answer in texts
        ]

        def template() -> None:
            for chat in chats:
                tokenizer.apply_chat_template(chat, return_dict=True)

        report.add("transformers, no mask", measure_cost(template))


def measure_memory(folder: Path, tokenizer: str, counts: list[int]) -> None:
    """Print the peak memory of the command for several sizes, each in a separate process."""
    rows = bundled_rows(1000)
    for count in counts:
        file = folder / "rows.jsonl"
        write_numbered(file, rows, count)
        for workers in (1, 2):
            options = {"dataset": file, "tokenizer": tokenizer, "workers": workers, "output": folder / "rows.parquet"}
            arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
            run = subprocess.run(
                [sys.executable, "-c", PEAK_PROGRAM, "render", *arguments],
                check=True,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
            peak = int(run.stdout.split()[-1]) / (1 << 20)
            print(f"{count:9,} rows, {workers} workers: {peak:.2f} GiB at most in the process that writes", flush=True)


if __name__ == "__main__":
    main()
