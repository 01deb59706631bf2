"""Finds equal and similar rows in another data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from templatekit.audit.report import ComparedDataset
from templatekit.audit.row_batches import BatchErrors, row_batches, text_and_prompt_keys
from templatekit.audit.rows import MatchingRow
from templatekit.errors import ConfigError
from templatekit.pipeline.deduplication import NearTextIndex, conversation_text
from templatekit.pipeline.first_rows import FirstRows
from templatekit.pipeline.outputs import continued_in_next
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Sample


class OtherDataset:
    """Another data set, stored as hashes of its texts and prompts."""

    def __init__(self, pipeline: Pipeline, dataset: str, *, similarity: float | None) -> None:
        """Read the data set at the address `dataset`, with the options of `pipeline`.

        With `similarity`, rows that are at least this similar are found too.
        """
        self._texts, self._prompts = FirstRows(), FirstRows()
        self._near = None if similarity is None else NearTextIndex(similarity)
        self._near_rows: list[int] = []
        """The row of each text in the index."""
        options = pipeline.options.model_copy(update={"dataset": dataset, "limit": None})
        reader = Pipeline(options, pipeline.registry, template=pipeline.template, tokenizer=pipeline.tokenizer)
        reader.encoder = None  # texts are enough
        counts = reader.counts = BatchErrors()
        for batch in row_batches(reader, counts, reader.open()):
            self._add(batch.samples)
            counts.finish_batch()
        if not counts.rows_out:
            first = next(iter(counts.first_dropped.values()), "it is empty")
            raise ConfigError(f"--against {dataset!r}: expected rows to compare with; found none; the first: {first}")
        self.summary = ComparedDataset(dataset=dataset, rows=counts.rows_in, unusable=counts.dropped.total())

    def _add(self, samples: Sequence[Sample]) -> None:
        longest = [s for s, continued in zip(samples, continued_in_next(samples), strict=True) if not continued]
        rows = [sample.rendered.row for sample in longest]
        texts, prompts = text_and_prompt_keys(longest)
        self._texts.add(texts, rows)
        self._prompts.add(prompts, rows)
        if self._near is not None:
            indices = range(len(self._near_rows), len(self._near_rows) + len(rows))
            self._near.store(_conversation_texts(longest), list(indices))
            self._near_rows += rows

    def find(
        self, texts: Sequence[int], prompts: Sequence[int]
    ) -> Iterator[tuple[MatchingRow | None, MatchingRow | None]]:
        """For each text the row with the same text; if there is none, the row with the same prompt."""
        for text, prompt in zip(self._texts.find(texts), self._prompts.find(prompts), strict=True):
            yield self._matching(text), self._matching(prompt) if text is None else None

    def find_similar(self, samples: Sequence[Sample]) -> list[MatchingRow | None]:
        """For each sample the row with the most similar messages; text that the template adds does not count."""
        if self._near is None:
            return [None] * len(samples)
        dataset, rows = self.summary.dataset, self._near_rows
        return [
            None if near is None else MatchingRow(dataset, rows[near.id], near.similarity)
            for near in self._near.find(_conversation_texts(samples))
        ]

    def _matching(self, row: int | None) -> MatchingRow | None:
        return None if row is None else MatchingRow(self.summary.dataset, row)


def _conversation_texts(samples: Iterable[Sample]) -> list[str]:
    return [conversation_text([sample.example]) for sample in samples]
