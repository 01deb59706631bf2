from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from templatekit import sources
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry


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
