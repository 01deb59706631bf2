"""A model's answers to held-out prompts, before training and after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from transformers import PreTrainedModel

from templatekit.config.options import FinetuneOptions
from templatekit.export.serving import Stops
from templatekit.pipeline.pipeline import Pipeline
from templatekit.training.generation import generate
from templatekit.training.run_folder import SampledAnswer, read_samples, write_samples
from templatekit.types import Example, Sample


def samples_before(
    folder: Path,
    options: FinetuneOptions,
    items: Sequence[Sample],
    model: PreTrainedModel,
    pipeline: Pipeline,
    stops: Stops,
) -> list[SampledAnswer]:
    """Answers to the first held-out prompts before training; those of the first start where the run is resumed."""
    if options.resume and (known := read_samples(folder)) is not None:
        return known
    samples = []
    for item in islice(with_prompt(items), options.samples):
        before, last = item.example.messages[-2], item.example.messages[-1]
        prompt = before.content + (f"\n\n{before.context}" if before.context else "")
        now = answer(model, pipeline, item.example, stops, options.max_new_tokens)
        samples.append(SampledAnswer(prompt=prompt, reference=last.content, before=now))
    write_samples(folder, samples)
    return samples


def with_prompt(items: Iterable[Sample]) -> Iterator[Sample]:
    """Those in which something comes before the last answer."""
    return (item for item in items if len(item.example.messages) > 1)


def answer(model: PreTrainedModel, pipeline: Pipeline, example: Example, stops: Stops, longest: int) -> str:
    """What the model answers to the example's prompt, in at most `longest` tokens."""
    assert pipeline.tokenizer is not None
    found = generate(
        model,
        pipeline.prompt_ids(example),
        decode=pipeline.tokenizer.decode,
        max_new_tokens=longest,
        stop_ids=stops.ids,
        stop_strings=stops.strings,
    )
    return found.text.strip()
