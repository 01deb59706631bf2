"""Streams the rows of a data set, with the facts about each row that rules need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress, count
from operator import attrgetter

from templatekit.audit.other_dataset import OtherDataset
from templatekit.audit.round_trip import RoundTrip
from templatekit.audit.row_batches import BatchErrors, row_batches, text_and_prompt_keys
from templatekit.audit.rows import AuditedRow, AuditedSample, EncodingDifference
from templatekit.errors import RecordError
from templatekit.pipeline.first_rows import FirstRows
from templatekit.pipeline.outputs import continued_in_next
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import loss_spans
from templatekit.tokens.truncation import LengthLimit
from templatekit.types import Record, Sample, TokenizedExample


class RowStream:
    """The rows of a pipeline's data set."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        compare_encodings: bool,
        round_trips: bool,
        limit: LengthLimit | None,
        against: Sequence[str],
        similarity: float | None,
    ) -> None:
        """Prepare to read the rows.

        `compare_encodings` also encodes every text as a whole, `round_trips` decodes every text again, and `limit`
        shortens samples that are too long. The data sets at the addresses `against` are read immediately, to find their
        rows in this data set; with `similarity`, rows that are at least this similar are found too.
        """
        self.pipeline = pipeline
        self._limit = limit
        self.counts = pipeline.counts = BatchErrors()
        control = pipeline.options.control_tokens
        self._whole_text_encoder = (
            Encoder(pipeline.tokenizer, control_tokens=control) if compare_encodings and pipeline.tokenizer else None
        )
        self._round_trip = RoundTrip(pipeline.tokenizer) if round_trips and pipeline.tokenizer else None
        self._texts, self._prompts = FirstRows(), FirstRows()
        self.others = [OtherDataset(pipeline, dataset, similarity=similarity) for dataset in against]

    def rows(self, records: Iterable[Record | RecordError]) -> Iterator[AuditedRow]:
        """Every row, in order."""
        for batch in row_batches(self.pipeline, self.counts, records):
            samples: dict[int, list[AuditedSample]] = {}
            for sample in self._audited(batch.samples):
                samples.setdefault(sample.rendered.row, []).append(sample)
            for number in batch.rows:
                yield AuditedRow(
                    number=number,
                    unread=batch.unread.get(number, {}),
                    samples=tuple(samples.get(number, ())),
                    error=self.counts.errors.get(number),
                )
            self.counts.finish_batch()

    def _audited(self, samples: Sequence[Sample]) -> list[AuditedSample]:
        differences = self._encoding_differences(samples)
        continued = continued_in_next(samples)
        audited = [
            self._audited_sample(sample, differences.get(index), continued=continued[index])
            for index, sample in enumerate(samples)
        ]
        self._add_matching_rows(audited, samples)
        if self._round_trip is not None:
            for index, difference in self._round_trip.differences([sample.example for sample in samples]):
                known = audited[index].round_trip_differences
                audited[index] = replace(audited[index], round_trip_differences=(*known, difference))
        return audited

    def _add_matching_rows(self, audited: list[AuditedSample], samples: Sequence[Sample]) -> None:
        """Compare the longest sample of each row with earlier rows and with the other data sets."""
        longest = [index for index, sample in enumerate(audited) if not sample.continued]
        compared = [samples[index] for index in longest]
        rows = [sample.rendered.row for sample in compared]
        texts, prompts = text_and_prompt_keys(compared)
        earlier = zip(self._texts.add(texts, rows), self._prompts.add(prompts, rows), strict=True)
        for index, (text, prompt) in zip(longest, earlier, strict=True):
            audited[index] = replace(audited[index], same_text=text, same_prompt=prompt if text is None else None)
        for other in self.others:
            for index, (same_text, same_prompt) in zip(longest, other.find(texts, prompts), strict=True):
                sample = audited[index]
                audited[index] = replace(
                    sample,
                    shared_text=sample.shared_text or same_text,
                    shared_prompt=sample.shared_prompt or same_prompt,
                )
        for index, *found in zip(longest, *(other.find_similar(compared) for other in self.others), strict=True):
            similar = max(filter(None, found), key=attrgetter("similarity"), default=None)
            if similar is not None and audited[index].shared_text is None:
                audited[index] = replace(audited[index], nearly_shared=similar)

    def _audited_sample(
        self, sample: Sample, difference: EncodingDifference | None, *, continued: bool
    ) -> AuditedSample:
        """The sample with the facts that need no other row."""
        tokenized = sample.tokenized
        if tokenized is None:
            spans = loss_spans(sample.rendered, self.pipeline.options.train_on)
            length = len(sample.rendered.text)
            trained = [position for span in spans if span.weight > 0 for position in (span.start, span.end - 1)]
        else:
            spans, length = tokenized.loss_spans, len(tokenized)
            trained = list(compress(count(), tokenized.loss_weights))
        return AuditedSample(
            example=sample.example,
            rendered=sample.rendered,
            loss_spans=spans,
            length=length,
            trained_range=(trained[0], trained[-1]) if trained else None,
            encoding_difference=difference,
            shortened=self._shortened(sample),
            continued=continued,
        )

    def _shortened(self, sample: Sample) -> TokenizedExample | None:
        if self._limit is None or sample.tokenized is None:
            return None
        try:
            tokenized = self._limit.fit(sample.example, sample.tokenized).tokenized
        except RecordError:
            return None
        return tokenized if tokenized.truncated else None

    def _encoding_differences(self, samples: Sequence[Sample]) -> dict[int, EncodingDifference]:
        """By index, the samples whose ids differ between the two values of the option `boundary`."""
        if self._whole_text_encoder is None:
            return {}
        tokenized = [sample.tokenized for sample in samples if sample.tokenized is not None]
        joint = self.pipeline.options.boundary == "joint"
        others = self._whole_text_encoder.encode_batch(
            [(each.rendered, each.loss_spans if joint else ()) for each in tokenized]
        )
        return {
            index: EncodingDifference(cut=other.input_ids, whole=own.input_ids)
            if joint
            else EncodingDifference(cut=own.input_ids, whole=other.input_ids)
            for index, (own, other) in enumerate(zip(tokenized, others, strict=True))
            if own.input_ids != other.input_ids
        }
