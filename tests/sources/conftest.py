from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from templatekit import sources
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.sources import arrow_records
from templatekit.sources.limits import Limits


@pytest.fixture
def registry() -> Registry:
    return create_registry(entry_points=False, plugins=[sources])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Write a file into the test's folder and return its address."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[pa.RecordBatch]:
    """The batches whose rows were made to Python objects."""
    seen: list[pa.RecordBatch] = []
    to_python = arrow_records._to_python

    def record(batch: pa.RecordBatch, limits: Limits) -> Any:
        seen.append(batch)
        return to_python(batch, limits)

    monkeypatch.setattr(arrow_records, "_to_python", record)
    return seen
