"""Exporters that write folders which other trainers read directly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from templatekit.errors import ConfigError, RecordError
from templatekit.hooks.exporters import NOT_EXPRESSIBLE, FolderExporter, write_json_lines
from templatekit.sources.chunked import chunked
from templatekit.types import Sample, TokenizedExample

if TYPE_CHECKING:
    import pyarrow as pa

    from templatekit.packing import Packs
    from templatekit.packing.columns import TokenizedColumns

_BATCH_ROWS = 1024
_ROWS_FILE = "train.jsonl"


class _TokenFolder(FolderExporter):
    """A folder of ids and labels, which cannot express loss weights other than 0 and 1."""

    def admit(self, sample: Sample) -> TokenizedExample:
        """The tokenized example, or a `ConfigError` without one; a `RecordError` for a weight other than 0 and 1."""
        tokenized = sample.tokenized
        if tokenized is None:
            raise ConfigError(f"format {self.name!r} holds token ids; found no tokenizer; expected --tokenizer too")
        other = next((weight for weight in tokenized.loss_weights if weight not in (0, 1)), None)
        if other is not None:
            raise RecordError(
                f"format {self.name!r} has no place for a loss weight of {other:g}: labels are trained or not",
                reason=NOT_EXPRESSIBLE,
            )
        return tokenized

    def admits_all(self, columns: TokenizedColumns) -> bool:
        """Whether every weight is 0 or 1."""
        return not columns.is_weighted


class DatasetFolder(_TokenFolder):
    """A folder for `datasets.load_from_disk`, with the columns `input_ids`, `labels`, `attention_mask`.

    Packs have `input_ids`, `labels`, `position_ids`, `seq_lengths`.
    """

    name = "datasets"
    description = "a folder of datasets' save_to_disk, for TRL and Hugging Face's Trainer"
    takes_packs = True

    def write_folder(self, items: Iterable[TokenizedExample], folder: Path) -> int:
        """Write record batches, so that memory use does not grow with the data."""
        import pyarrow as pa

        ids = pa.list_(pa.int32())
        schema = pa.schema({"input_ids": ids, "labels": ids, "attention_mask": pa.list_(pa.int8())})
        return self._save(_batches(items, schema), schema, folder)

    def write_packs(self, packs: Iterable[Packs], folder: Path) -> int:
        """Write a record batch for each window of packs."""
        import pyarrow as pa

        from templatekit.packing import pack_arrays

        batches = (pa.record_batch(pack_arrays(window)).drop_columns("loss_weights") for window in packs)
        first = next(batches)
        return self._save(chain([first], batches), first.schema, folder)

    def _save(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, folder: Path) -> int:
        import datasets
        import pyarrow as pa

        rows = folder / "rows" / "rows.arrow"  # datasets refuses to save into the folder that it reads
        rows.parent.mkdir()
        with pa.ipc.new_stream(str(rows), schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        dataset = datasets.Dataset.from_file(str(rows))
        shown = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            dataset.save_to_disk(str(folder))
        finally:
            if shown:
                datasets.enable_progress_bars()
        rows.unlink()
        rows.parent.rmdir()
        return len(dataset)


class AxolotlFolder(_TokenFolder):
    """axolotl's pre-tokenized layout: JSON Lines of ids, labels and attention mask, and the lines for its config."""

    name = "axolotl"
    description = "a folder for axolotl: pre-tokenized rows, and a config that names them"

    def write_folder(self, items: Iterable[TokenizedExample], folder: Path) -> int:
        """Write a line for each example."""
        with (folder / _ROWS_FILE).open("wb") as file:
            count = write_json_lines(map(_columns, items), file)
        (folder / "axolotl.yaml").write_text(
            f"# Beside the model and its options. No type: the rows are tokenized.\ndatasets:\n  - path: {_ROWS_FILE}\n"
            "    ds_type: json\n    type:\n",
            encoding="utf-8",
        )
        return count


def _bytes(item: TokenizedExample) -> int:
    return 8 * len(item)


def _columns(item: TokenizedExample) -> dict[str, list[int]]:
    return {
        "input_ids": list(item.input_ids),
        "labels": list(item.labels),
        "attention_mask": [1] * len(item.input_ids),
    }


def _batches(items: Iterable[TokenizedExample], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for chunk, error in chunked(items, _BATCH_ROWS, _bytes):
        if error is not None:
            raise error
        rows: list[dict[str, Any]] = [_columns(item) for item in chunk]
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
