"""Reads a data set through the pipeline in batches, and knows of each row what only the whole stream can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, islice, zip_longest
from typing import Any

from templatekit.audit.roundtrip import RoundTrip
from templatekit.audit.values import Against, AuditedSample, Edge, Elsewhere, Row
from templatekit.errors import ConfigError, RecordError
from templatekit.pipeline.batches import BATCH
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.deduplication import NearTexts, conversation_text
from templatekit.pipeline.first_rows import FirstRows, text_key
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import loss_spans
from templatekit.tokens.truncation import Limit
from templatekit.types import Record, RenderedText, Sample, TokenizedExample


@dataclass(kw_only=True)
class Refusals(Counts):
    """The pipeline's counts, which here keep the errors of the batch at hand and no row numbers of the whole set."""

    errors: dict[int, RecordError] = field(default_factory=dict)

    def drop(self, error: RecordError) -> None:
        """Keeps a row's error until its batch is done."""
        self.dropped[error.reason] += 1
        self.first_dropped.setdefault(error.reason, str(error))
        if error.row is not None:
            self.errors[error.row] = error

    def forget(self) -> None:
        """A batch is done: what grows with the rows goes."""
        self.errors.clear()
        self.unread_keys.clear()


class Stream:
    """The rows of a pipeline's data set."""

    def __init__(
        self, pipeline: Pipeline, *, edges: bool = True, lossy: bool = True, limit: Limit | None = None
    ) -> None:
        """`edges` and `lossy` say whether to find out where texts encode otherwise, and which do not come back.

        `limit` tells what would become of samples that are too long.
        """
        self.pipeline = pipeline
        self._limit = limit
        self.counts = pipeline.counts = Refusals()
        control = pipeline.options.control_tokens
        self._whole = Encoder(pipeline.tokenizer, control_tokens=control) if edges and pipeline.tokenizer else None
        self._round_trip = RoundTrip(pipeline.tokenizer) if lossy and pipeline.tokenizer else None
        self._texts, self._prompts = FirstRows(), FirstRows()
        self._others: list[Other] = []

    def compare_with(self, dataset: str, *, near: float | None = None) -> Against:
        """Reads another data set, whose rows are then known as `Elsewhere`, with `near` also by texts that similar."""
        other = Other(self.pipeline, dataset, near=near)
        self._others.append(other)
        return other.result

    def rows(self, records: Iterable[Record | RecordError]) -> Iterator[Row]:
        """Every row, in order."""
        for numbers, unread, items in batches(self.pipeline, self.counts, records):
            samples: dict[int, list[AuditedSample]] = {}
            for sample in self._samples(items):
                samples.setdefault(sample.rendered.row, []).append(sample)
            for number in numbers:
                yield Row(
                    number=number,
                    unread=unread.get(number, {}),
                    samples=tuple(samples.get(number, ())),
                    error=self.counts.errors.get(number),
                )
            self.counts.forget()

    def _samples(self, items: Sequence[Sample]) -> Iterator[AuditedSample]:
        edges = self._edges(items)
        on = going_on(items)
        samples = [
            replace(
                _sample(item, self.pipeline),
                edge=edges.get(place),
                fitted=self._fitted(item),
                goes_on=on[place],
            )
            for place, item in enumerate(items)
        ]
        longest = [place for place, goes_on in enumerate(on) if not goes_on]
        rows = [items[place].rendered.row for place in longest]
        texts = [text_key(items[place].rendered.text) for place in longest]
        prompts = prompt_keys([items[place] for place in longest])
        same = zip(self._texts.add(texts, rows), self._prompts.add(prompts, rows), strict=True)
        for place, (text, prompt) in zip(longest, same, strict=True):
            samples[place] = replace(samples[place], same_text=text, same_prompt=prompt if text is None else None)
        for other in self._others:
            for place, shared, asked in zip(longest, *other.find(texts, prompts), strict=True):
                sample = samples[place]
                samples[place] = replace(
                    sample, shared_text=sample.shared_text or shared, shared_prompt=sample.shared_prompt or asked
                )
            for place, like in zip(longest, other.find_near([items[place] for place in longest]), strict=True):
                samples[place] = _nearest(samples[place], like)
        if self._round_trip is not None:
            for index, lossy in self._round_trip.lossy([item.example for item in items]):
                samples[index] = replace(samples[index], lossy=(*samples[index].lossy, lossy))
        yield from samples

    def _fitted(self, item: Sample) -> TokenizedExample | None:
        if self._limit is None or item.tokenized is None:
            return None
        try:
            tokenized = self._limit.fit(item.example, item.tokenized).tokenized
        except RecordError:
            return None
        return tokenized if tokenized.truncated else None

    def _edges(self, items: Sequence[Sample]) -> dict[int, Edge]:
        """The items whose whole text encodes otherwise, by their place."""
        if self._whole is None:
            return {}
        tokenized = [item.tokenized for item in items if item.tokenized is not None]
        joint = self.pipeline.options.boundary == "joint"
        others = self._whole.encode_batch([(one.rendered, one.loss_spans if joint else ()) for one in tokenized])
        pairs = [(one.input_ids, other.input_ids) for one, other in zip(tokenized, others, strict=True)]
        return {
            index: Edge(cut=other, whole=own) if joint else Edge(cut=own, whole=other)
            for index, (own, other) in enumerate(pairs)
            if own != other
        }


def batches(
    pipeline: Pipeline, counts: Refusals, records: Iterable[Record | RecordError]
) -> Iterator[tuple[range, Mapping[int, Mapping[str, Any]], list[Sample]]]:
    """Row numbers, what is not read of the rows, and what came of them, a batch at a time."""
    records = iter(records)
    first = 0
    while batch := list(islice(records, BATCH)):
        items: list[Sample] = []
        try:
            items += pipeline.run(batch, source=pipeline.options.dataset, first_row=first)
        except ConfigError:
            # The pipeline refuses a set of which nothing is left; an audit says why.
            if counts.rows_out:
                raise
        unread: dict[int, Mapping[str, Any]] = {
            row: found
            for row, record in enumerate(batch, first)
            if not isinstance(record, RecordError) and (found := pipeline.reader.unread(record))
        }
        yield range(first, first + len(batch)), unread, items
        first += len(batch)


class Other:
    """Another data set, as hashes of its texts and prompts."""

    def __init__(self, pipeline: Pipeline, dataset: str, *, near: float | None = None) -> None:
        self._texts, self._prompts = FirstRows(), FirstRows()
        self._near = None if near is None else NearTexts(near)
        self._near_rows: list[int] = []
        """Of the texts in it, by their places."""
        options = pipeline.options.model_copy(update={"dataset": dataset, "limit": None})
        reader = Pipeline(options, pipeline.registry, template=pipeline.template, tokenizer=pipeline.tokenizer)
        reader.encoder = None  # texts are enough
        counts = reader.counts = Refusals()
        for _, _, prepared in batches(reader, counts, reader.open()):
            items = [item for item, goes_on in zip(prepared, going_on(prepared), strict=True) if not goes_on]
            rows = [item.rendered.row for item in items]
            self._texts.add([text_key(item.rendered.text) for item in items], rows)
            self._prompts.add(prompt_keys(items), rows)
            if self._near is not None:
                self._near.keep(_said(items), list(range(len(self._near_rows), len(self._near_rows) + len(rows))))
                self._near_rows += rows
            counts.forget()
        if not counts.rows_out:
            first = next(iter(counts.first_dropped.values()), "it is empty")
            raise ConfigError(f"--against {dataset!r}: expected rows to compare with; found none; the first: {first}")
        self.result = Against(dataset=dataset, rows=counts.rows_in, unusable=counts.dropped.total())

    def find(
        self, texts: Sequence[int], prompts: Sequence[int]
    ) -> tuple[list[Elsewhere | None], list[Elsewhere | None]]:
        """Where each text stands there; and each prompt whose text does not."""
        same_text = self._texts.find(texts)
        same_prompt = [
            None if text is not None else prompt
            for text, prompt in zip(same_text, self._prompts.find(prompts), strict=True)
        ]
        return self._elsewhere(same_text), self._elsewhere(same_prompt)

    def find_near(self, items: Sequence[Sample]) -> list[Elsewhere | None]:
        """The most similar row there, by what is said and not by what the template writes around it."""
        if self._near is None:
            return [None] * len(items)
        dataset, rows = self.result.dataset, self._near_rows
        return [
            None if like is None else Elsewhere(dataset, rows[like.place], like.similarity)
            for like in self._near.find(_said(items))
        ]

    def _elsewhere(self, rows: Sequence[int | None]) -> list[Elsewhere | None]:
        return [None if row is None else Elsewhere(self.result.dataset, row) for row in rows]


def _said(items: Iterable[Sample]) -> list[str]:
    return [conversation_text([item.example]) for item in items]


def _nearest(sample: AuditedSample, like: Elsewhere | None) -> AuditedSample:
    """The sample with the more similar of two rows elsewhere; with none where its very text is there."""
    known = sample.nearly_shared
    if sample.shared_text is not None:
        like = None
    elif like is None or (known is not None and (known.similarity or 0) >= (like.similarity or 0)):
        return sample
    return replace(sample, nearly_shared=like)


def going_on(items: Sequence[Sample]) -> list[bool]:
    """Of each item, whether the next is of the same row and holds its messages and more."""
    pairs = zip_longest(items, items[1:])
    return [
        after is not None
        and after.rendered.row == item.rendered.row
        and after.example.messages[: len(item.example.messages)] == item.example.messages
        for item, after in pairs
    ]


def _sample(item: Sample, pipeline: Pipeline) -> AuditedSample:
    tokenized = item.tokenized
    if tokenized is None:
        losses = loss_spans(item.rendered, pipeline.options.train_on)
        trained = [(span.start, span.end) for span in losses if span.weight > 0]
        ends = (trained[0][0], trained[-1][1] - 1) if trained else None
        return AuditedSample(
            example=item.example, rendered=item.rendered, losses=losses, length=len(item.rendered.text), trained=ends
        )
    return AuditedSample(
        example=item.example,
        rendered=item.rendered,
        losses=tokenized.loss_spans,
        length=len(tokenized),
        trained=_ends(tokenized.loss_weights),
    )


def _ends(weights: Sequence[float]) -> tuple[int, int] | None:
    """The places of the first and the last weight that is not 0."""
    first = next(compress(range(len(weights)), weights), None)
    if first is None:
        return None
    return first, next(compress(range(len(weights) - 1, -1, -1), reversed(weights)))


def prompt_keys(items: Iterable[Sample]) -> list[int]:
    """The hash of each text up to its last answer."""
    return [text_key(item.rendered.text[: _last_boundary(item.rendered)]) for item in items]


def _last_boundary(rendered: RenderedText) -> int | None:
    """Where the last answer begins; None where there is none."""
    if not rendered.target_spans:
        return None
    last = rendered.target_spans[-1].message
    return next(target.start for target in rendered.target_spans if target.message == last)
