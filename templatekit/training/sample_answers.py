"""Sample answers: what the model answers to held-out prompts before training and after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.export.serving import Stops
from templatekit.pipeline.pipeline import Pipeline
from templatekit.training.generation import generate
from templatekit.training.run_folder import SampledAnswer, read_samples, write_samples
from templatekit.types import Example, Sample


def answers_before_training(
    folder: Path,
    options: FinetuneOptions,
    held_out: Sequence[Sample],
    model: PreTrainedModel,
    pipeline: Pipeline,
    stops: Stops,
) -> list[SampledAnswer]:
    """Answer the first held-out prompts before training. A resumed run reads the answers of its first start."""
    if options.resume and (known := read_samples(folder)) is not None:
        return known
    answers = []
    for sample in islice(samples_with_prompt(held_out), options.samples):
        question, reference = sample.example.messages[-2:]
        prompt = question.content + (f"\n\n{question.context}" if question.context else "")
        before = answer(model, pipeline, sample.example, stops, options.max_new_tokens)
        answers.append(SampledAnswer(prompt=prompt, reference=reference.content, before=before))
    write_samples(folder, answers)
    return answers


def samples_with_prompt(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples that have a message before the last answer."""
    return (sample for sample in samples if len(sample.example.messages) > 1)


def answer(model: PreTrainedModel, pipeline: Pipeline, example: Example, stops: Stops, max_new_tokens: int) -> str:
    """The model's answer to the prompt of an example."""
    assert pipeline.tokenizer is not None
    found = generate(
        model,
        pipeline.prompt_ids(example),
        decode=pipeline.tokenizer.decode,
        max_new_tokens=max_new_tokens,
        stop_ids=stops.ids,
        stop_strings=stops.strings,
    )
    return found.text.strip()
