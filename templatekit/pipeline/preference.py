"""`PreferencePipeline`: both answers of each preference pair, for DPO; a pair is kept whole or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from templatekit.config.train_on import parse_train_on
from templatekit.errors import ConfigError, RecordError
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.pipeline import Pipeline, nothing_trained
from templatekit.tokens.assembly import EncoderInput
from templatekit.tokens.long_texts import PartialExample, length_of
from templatekit.tokens.supervision import loss_spans
from templatekit.tokens.truncation import LengthLimit
from templatekit.types import Example, Message, PreferenceExample, Sample, TokenizedExample, TokenizedPair


class PreferencePipeline(Pipeline):
    """A pipeline whose samples alternate: a pair's chosen answer, then its rejected one, each after the same prompt.

    Only the answers carry weight. A pair is dropped if a step refuses one of its answers, if the record is no pair, or
    if both answers are equal: nothing can be learned from equal answers. A prompt is shortened alike for both.
    """

    inseparable: ClassVar[int] = 2

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
        self.counts.add_example(example, both_answers=True)

    def _render_conversation(self, example: Example, row: int) -> tuple[Sample, ...]:
        samples = super()._render_conversation(example, row)
        if len(samples) != 1:
            raise RecordError(
                f"the answer is {len(samples)} texts in template {self.template.name!r}, which renders earlier turns "
                "otherwise than when they were last; expected one; use --train-on last, or answers of one turn",
                reason="answer_in_pieces",
            )
        return samples

    def _select(
        self,
        samples: Sequence[Sample],
        columns: TokenizedColumns,
        partial: Mapping[int, PartialExample],
        source: str | None,
        selected: dict[int, Sample | None],
    ) -> None:
        """The same for both samples of a pair, or for neither."""
        lengths, trained = columns.lengths.tolist(), columns.trained_tokens.tolist()
        for _, group in groupby(enumerate(samples), key=lambda item: _pair_of(item[1])):
            pair: list[int] = []
            for index, sample in group:
                if trained[index] or index in partial:
                    pair.append(index)
                else:
                    self._drop(nothing_trained(sample), sample, source)
            if len(pair) != 2:  # the other answer was dropped, and is counted
                continue
            compared, (first, second) = columns, pair
            replaced: Sequence[Sample | None] = (None, None)
            is_partial = not partial.keys().isdisjoint(pair)
            if self.limit is not None and (is_partial or max(lengths[first], lengths[second]) > self.limit.max_length):
                chosen, rejected = (
                    samples[index].with_tokens(partial[index] if index in partial else columns[index]) for index in pair
                )
                try:
                    replaced = fitted = self._fit_pair(self.limit, chosen, rejected)
                except RecordError as error:
                    self._drop_too_long(error, chosen, source)
                    continue
                compared, (first, second) = TokenizedColumns.of([_tokens_of(sample) for sample in fitted]), (0, 1)
            if np.array_equal(_ids(compared, first), _ids(compared, second)):
                equal = RecordError("both answers are the same", reason="equal_answers")
                self._drop(equal, samples[pair[0]], source)
                continue
            for index, shorter in zip(pair, replaced, strict=True):
                if shorter is not None:
                    self._count_truncated(shorter, source, before=columns[index])
                selected[index] = shorter
            self.counts.differing_prompts += not np.array_equal(_prompt(compared, first), _prompt(compared, second))

    def _partial_examples(self, texts: Sequence[EncoderInput]) -> dict[int, PartialExample]:
        """None where a prompt is shortened: the longer answer decides by how much, so both lengths have to be known."""
        return super()._partial_examples(texts) if self.options.truncation in ("drop", "error") else {}

    def _fit_pair(self, limit: LengthLimit, chosen: Sample, rejected: Sample) -> tuple[Sample, Sample]:
        """Both samples within the limit; the longer one decides how much of the prompt is left."""
        longer, shorter = sorted((chosen, rejected), key=lambda sample: length_of(_tokens_of(sample)), reverse=True)
        messages = (longer.example.messages, shorter.example.messages)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*messages, strict=False)))
        fitted = self._fit(limit, longer)
        if fitted.example is not longer.example:
            tail = longer.example.messages[common:]
            left = fitted.example.messages[: len(fitted.example.messages) - len(tail)]
            if not left or fitted.example.messages[len(left) :] != tail:
                raise RecordError("too long; nothing is left that both answers could follow", reason="too_long")
            shorter = self._with_prompt(left, shorter, common)
        other = self._fit(limit, shorter)
        if other.example is not shorter.example:
            raise RecordError("too long; the answers would follow different prompts", reason="too_long")
        return (fitted, other) if longer is chosen else (other, fitted)

    def _with_prompt(self, prompt: tuple[Message, ...], sample: Sample, common: int) -> Sample:
        """The sample with its first `common` messages replaced by a shortened prompt."""
        assert self.encoder is not None
        example = replace(sample.example, messages=prompt + sample.example.messages[common:])
        (found,) = self._render_conversation(example, sample.rendered.row)
        rendered = replace(found.rendered, sample=sample.rendered.sample, samples=sample.rendered.samples)
        tokenized = self.encoder.encode(rendered, loss_spans(rendered, self.options.train_on))
        tokenized = replace(tokenized, truncated=self.options.truncation)
        return Sample(example=found.example, rendered=tokenized.rendered, tokenized=tokenized)


def preference_pairs(samples: Iterable[Sample]) -> list[TokenizedPair]:
    """The pairs that the samples of a `PreferencePipeline` form, in their order."""
    tokenized = [sample.tokenized for sample in samples if sample.tokenized is not None]
    return [
        TokenizedPair(chosen=chosen, rejected=rejected)
        for chosen, rejected in zip(tokenized[::2], tokenized[1::2], strict=True)
    ]


def _pair_of(sample: Sample) -> tuple[int, int]:
    """The row and, as a row may hold several pairs, the pair's index in it."""
    return sample.rendered.row, sample.rendered.sample // 2


def _tokens_of(sample: Sample) -> TokenizedExample:
    assert sample.tokenized is not None
    return sample.tokenized


def _ids(columns: TokenizedColumns, index: int) -> NDArray[np.int32]:
    return columns.input_ids[columns.offsets[index] : columns.offsets[index + 1]]


def _prompt(columns: TokenizedColumns, index: int) -> NDArray[np.int32]:
    """The ids before the first token that carries loss."""
    ids = _ids(columns, index)
    trained = np.flatnonzero(columns.loss_weights[columns.offsets[index] : columns.offsets[index + 1]])
    return ids[: trained[0]] if len(trained) else ids
