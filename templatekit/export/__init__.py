"""Where prepared examples go: files of rows, and the form of a template that servers read."""

from __future__ import annotations

from collections.abc import Iterable

from templatekit.contracts import Exporter
from templatekit.export.rows import ArrowRows, JsonLines, ParquetRows
from templatekit.hookspecs import hookimpl


@hookimpl
def templatekit_exporters() -> Iterable[Exporter]:
    """JSON Lines, parquet, arrow."""
    return [JsonLines(), ParquetRows(), ArrowRows()]
