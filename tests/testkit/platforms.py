"""Marks of tests that need what not every system has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

not_on_windows = pytest.mark.skipif(sys.platform == "win32", reason="no forks, signals, locks or limits there")
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
