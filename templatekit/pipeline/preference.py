"""Preference pairs through the stages: both answers of each record, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, takewhile

from templatekit.config.train_on import parse_train_on
from templatekit.errors import ConfigError, RecordError
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Example, Message, PreferenceExample, Sample, TokenizedExample, TokenizedPair


class PairPipeline(Pipeline):
    """A pipeline whose samples are a pair's chosen and rejected answer, in turn, each behind the prompt.

    Of the texts only the answers carry weight. A pair that one of the stages refuses an answer of is dropped and
    counted, and so are rows that are no pair and pairs whose answers are the same: nothing can be learned from them.
    Where a prompt is shortened it is shortened alike for both.
    """

    def _conversations(self, example: Example) -> tuple[Example, ...]:
        base, weight, named = parse_train_on(self.options.train_on)
        if base == "all" or named or weight != 1:
            raise ConfigError(
                f"train_on={self.options.train_on!r}: preferences are between answers; "
                "expected response, content or last"
            )
        if not isinstance(example, PreferenceExample):
            raise RecordError(
                "one answer; expected a chosen and a rejected one; train on single answers with --method sft",
                reason="no_pair",
            )
        prompt = tuple(replace(message, weight=0.0) for message in example.messages)
        example = replace(example, messages=prompt)
        return example.conversation("chosen"), example.conversation("rejected")

    def _count(self, example: Example) -> None:
        self.counts.add(example, both=True)

    def _samples(self, example: Example, row: int) -> tuple[Sample, ...]:
        samples = super()._samples(example, row)
        if len(samples) != 1:
            raise RecordError(
                f"the answer is {len(samples)} texts in template {self.template.name!r}, which renders earlier turns "
                "otherwise than when they were last; expected one; use --train-on last, or answers of one turn",
                reason="answer_in_pieces",
            )
        return samples

    def _finish(self, items: list[Sample], source: str | None) -> Iterator[SampleBatch]:
        return self._finish_one_by_one(items, source)

    def _fit(self, items: Iterable[Sample], source: str | None) -> Iterator[Sample]:
        for _, answers in groupby(items, key=lambda item: (item.rendered.row, item.rendered.sample // 2)):
            found = list(answers)
            if len(found) != 2:  # the other one is counted already, with the reason
                continue
            try:
                chosen, rejected = self._fitted_pair(*found)
            except RecordError as error:
                self._too_long(error, found[0], source)
                continue
            if _ids(chosen) == _ids(rejected):
                self._drop(RecordError("both answers are the same", reason="equal_answers"), chosen, source)
                continue
            for whole, fitted in zip(found, (chosen, rejected), strict=True):
                self._count_shortened(whole, fitted, source)
            self.counts.differing_prompts += _prompt(chosen) != _prompt(rejected)
            yield chosen
            yield rejected

    def _fitted_pair(self, chosen: Sample, rejected: Sample) -> tuple[Sample, Sample]:
        """Both within the limit: the longer decides what is left of the prompt."""
        longer, shorter = sorted((chosen, rejected), key=lambda item: len(_ids(item)), reverse=True)
        messages = (longer.example.messages, shorter.example.messages)
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(*messages, strict=False))
        common = sum(1 for _ in alike)
        fitted = self._fitted(longer)
        if fitted.example is not longer.example:
            tail = longer.example.messages[common:]
            left = fitted.example.messages[: len(fitted.example.messages) - len(tail)]
            if not left or fitted.example.messages[len(left) :] != tail:
                raise RecordError("too long; nothing is left that both answers could follow", reason="too_long")
            shorter = self._behind(left, shorter, common)
        other = self._fitted(shorter)
        if other.example is not shorter.example:
            raise RecordError("too long; the answers would follow different prompts", reason="too_long")
        return (fitted, other) if longer is chosen else (other, fitted)

    def _behind(self, prompt: tuple[Message, ...], item: Sample, common: int) -> Sample:
        """An answer behind a shortened prompt."""
        example = replace(item.example, messages=prompt + item.example.messages[common:])
        (sample,) = self._samples(example, item.rendered.row)
        rendered = replace(sample.rendered, sample=item.rendered.sample, samples=item.rendered.samples)
        (encoded,) = self._encode([Sample(example=sample.example, rendered=rendered)], None)
        assert encoded.tokenized is not None
        return replace(encoded, tokenized=replace(encoded.tokenized, truncated=self.options.truncation))


def pairs_of(items: Iterable[Sample]) -> list[TokenizedPair]:
    """The pairs of a `PairPipeline`'s samples, as they came."""
    tokenized = [item.tokenized for item in items if item.tokenized is not None]
    return [
        TokenizedPair(chosen=chosen, rejected=rejected)
        for chosen, rejected in zip(tokenized[::2], tokenized[1::2], strict=True)
    ]


def _ids(item: Sample) -> tuple[int, ...]:
    assert item.tokenized is not None
    return item.tokenized.input_ids


def _prompt(item: Sample) -> tuple[int, ...]:
    assert item.tokenized is not None
    return _before_weights(item.tokenized)


def _before_weights(example: TokenizedExample) -> tuple[int, ...]:
    first = next((place for place, weight in enumerate(example.loss_weights) if weight), len(example))
    return example.input_ids[:first]
