"""What is kept of batches as they pass, in the process that makes them, and the files that are written of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from templatekit.cache.atomic_files import STATE, size_and_hash, staging, write_state
from templatekit.cache.example_json import NotPlain, origin_to_json
from templatekit.cache.tables import Tables
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.pipeline import Pipeline

TOKENS, TEXTS, EXAMPLES = "tokens.arrow", "texts.arrow", "examples.arrow"


class Kept:
    """A watcher that has all batches with tokens as tables, and knows what was counted for them."""

    def __init__(self) -> None:
        self.batches: list[Tables | SampleBatch] = []
        """What cannot be kept as it is stays a batch."""
        self.why = ""
        """What the first of those holds."""
        self.counts = Counts()
        """Without what others counted meanwhile: what an exporter refuses is its own affair."""

    def watch(self, batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[SampleBatch]:
        """The batches as they are."""
        iterator = iter(batches)
        while (batch := self._counted(iterator, pipeline)) is not None:
            try:
                self.batches.append(Tables.of(batch))
            except NotPlain as error:
                self.why = self.why or str(error)
                self.batches.append(batch)
            yield batch

    def merge(self, later: Kept) -> None:
        """Takes what follows these."""
        self.batches += later.batches
        self.why = self.why or later.why
        self.counts.merge(later.counts)

    def _counted(self, batches: Iterator[SampleBatch], pipeline: Pipeline) -> SampleBatch | None:
        if type(pipeline.counts) is not Counts:  # a mixture's, which counts by its sets, and is not kept
            return next(batches, None)
        whole, pipeline.counts = pipeline.counts, Counts()
        try:
            return next(batches, None)
        finally:
            new, pipeline.counts = pipeline.counts, whole
            whole.merge(new)
            self.counts.merge(new)


def write_part(target: Path, batches: Sequence[Tables], *, records: int, counts: Counts, adapter: str | None) -> None:
    """Writes a part, or leaves one that another process has written meanwhile: they are the same.

    Raises `RunError` where the disk takes no more, and leaves nothing then.
    """
    import pyarrow as pa

    found = Tables.join(batches)
    tables = {TOKENS: found.tokens, TEXTS: found.texts, EXAMPLES: found.examples}
    with staging(target) as folder:
        for name, table in tables.items():
            with (folder / name).open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_batch(table)
        state = {
            "records": records,
            "samples": len(found),
            "counts": counts.as_dict(),
            "adapter": adapter,
            "origins": [origin_to_json(origin) for origin in found.origins],
            "roles": list(found.roles),
            "files": {name: size_and_hash(folder / name) for name in tables},
        }
        write_state(folder / STATE, state)
