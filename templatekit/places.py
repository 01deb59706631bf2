"""Where this package keeps files of its own on a user's machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "TEMPLATEKIT_CACHE"


def cache_folder(named: Path | None = None) -> Path:
    """The folder that is named, else `TEMPLATEKIT_CACHE`, else `templatekit` in the user's folder of caches."""
    if named is not None:
        return named.expanduser()
    if found := os.environ.get(VARIABLE):
        return Path(found).expanduser()
    return user_caches() / "templatekit"


def user_caches() -> Path:
    """Where programs of this platform keep what they can make again; `XDG_CACHE_HOME` where that is set."""
    # The specification has relative paths ignored.
    if (found := os.environ.get("XDG_CACHE_HOME")) and Path(found).is_absolute():
        return Path(found)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"
