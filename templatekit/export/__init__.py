"""Where prepared examples go: files of rows, and the form of a template that servers read."""

from __future__ import annotations

from collections.abc import Iterable

from templatekit.export.folders import AxolotlFolder, DatasetFolder
from templatekit.export.rows import ArrowRows, JsonLines, ParquetRows
from templatekit.hooks.exporters import Sink
from templatekit.hooks.specs import hookimpl


@hookimpl
def templatekit_exporters() -> Iterable[Sink]:
    """Files of rows, and folders that other trainers read. Layouts of conversations are offered by their adapters."""
    return [JsonLines(), ParquetRows(), ArrowRows(), DatasetFolder(), AxolotlFolder()]
