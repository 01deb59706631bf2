"""Exporters of prepared examples (files of rows, folders for other trainers), and templates in the forms of servers."""

from __future__ import annotations

from collections.abc import Iterable

from templatekit.export.folders import AxolotlFolder, DatasetFolder
from templatekit.export.rows import ArrowRows, JsonLines, ParquetRows
from templatekit.hooks.exporters import BaseExporter
from templatekit.hooks.specs import hookimpl


@hookimpl
def templatekit_exporters() -> Iterable[BaseExporter]:
    """Files of rows, and folders that other trainers read. Adapters offer the layouts of conversations."""
    return [JsonLines(), ParquetRows(), ArrowRows(), DatasetFolder(), AxolotlFolder()]
