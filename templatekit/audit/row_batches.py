"""Runs records through the pipeline batch by batch, and hashes the texts of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from templatekit.errors import ConfigError, RecordError
from templatekit.pipeline.batches import BATCH_SIZE
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.first_rows import text_key
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Record, RenderedText, Sample


@dataclass(kw_only=True)
class BatchErrors(Counts):
    """Pipeline counts that store the errors of the current batch, but not the row numbers of the whole data set."""

    errors: dict[int, RecordError] = field(default_factory=dict)

    def drop(self, error: RecordError) -> None:
        """Count a dropped row, and store its error until the batch is finished."""
        self.dropped[error.reason] += 1
        self.first_dropped.setdefault(error.reason, str(error))
        if error.row is not None:
            self.errors[error.row] = error

    def finish_batch(self) -> None:
        """Remove everything that would grow with the number of rows."""
        self.errors.clear()
        self.unread_keys.clear()


class RowBatch(NamedTuple):
    """Consecutive rows after the pipeline."""

    rows: range
    unread: Mapping[int, Mapping[str, Any]]
    """By row, the keys that the adapter does not read, with their values."""
    samples: list[Sample]


def row_batches(pipeline: Pipeline, counts: BatchErrors, records: Iterable[Record | RecordError]) -> Iterator[RowBatch]:
    """The records after the pipeline, batch by batch."""
    records = iter(records)
    first = 0
    while batch := list(islice(records, BATCH_SIZE)):
        samples: list[Sample] = []
        try:
            samples += pipeline.run(batch, source=pipeline.options.dataset, first_row=first)
        except ConfigError:
            # The pipeline refuses a data set without any usable row; an audit reports the reasons instead.
            if counts.rows_out:
                raise
        unread: dict[int, Mapping[str, Any]] = {
            row: found
            for row, record in enumerate(batch, first)
            if not isinstance(record, RecordError) and (found := pipeline.reader.unread(record))
        }
        yield RowBatch(range(first, first + len(batch)), unread, samples)
        first += len(batch)


def text_and_prompt_keys(samples: Iterable[Sample]) -> tuple[list[int], list[int]]:
    """The hash of each text, and the hash of each text up to its last answer."""
    all_rendered = [sample.rendered for sample in samples]
    texts = [text_key(rendered.text) for rendered in all_rendered]
    return texts, [text_key(rendered.text[: _last_answer_start(rendered)]) for rendered in all_rendered]


def _last_answer_start(rendered: RenderedText) -> int | None:
    """The start of the last answer; None where there is no answer."""
    if not rendered.target_spans:
        return None
    last = rendered.target_spans[-1].message
    return next(target.start for target in rendered.target_spans if target.message == last)
