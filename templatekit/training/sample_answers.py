"""Sample answers: what the model answers to held-out prompts before training and after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.training.run_folder import write_json
from templatekit.types import Example, Sample

SAMPLES = "samples.json"


@dataclass(kw_only=True)
class SampledAnswer:
    """A held-out prompt with its reference answer and the model's answers before and after training."""

    prompt: str
    reference: str
    before: str = ""
    after: str = ""


def answers_before_training(
    folder: Path, options: FinetuneOptions, held_out: Sequence[Sample], ask: Callable[[Example], str]
) -> list[SampledAnswer]:
    """Answer the first held-out prompts before training. A resumed run reads the answers of its first start."""
    if options.resume:
        with suppress(OSError, ValueError, TypeError):  # there is no readable file
            return [SampledAnswer(**sample) for sample in json.loads((folder / SAMPLES).read_text(encoding="utf-8"))]
    answers = []
    for sample in islice(samples_with_prompt(held_out), options.samples):
        question, reference = sample.example.messages[-2:]
        prompt = question.content + (f"\n\n{question.context}" if question.context else "")
        answers.append(SampledAnswer(prompt=prompt, reference=reference.content, before=ask(sample.example)))
    write_samples(folder, answers)
    return answers


def write_samples(folder: Path, answers: list[SampledAnswer]) -> None:
    """Write the sample answers; before training these are only the untrained model's answers."""
    write_json(folder / SAMPLES, [asdict(each) for each in answers])


def samples_with_prompt(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples that have a message before the last answer."""
    return (sample for sample in samples if len(sample.example.messages) > 1)
