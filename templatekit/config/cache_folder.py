"""`cache_folder`: where this package caches files on a user's machine."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

VARIABLE = "TEMPLATEKIT_CACHE"


def cache_folder(named: Path | None = None) -> Path:
    """Return the given folder, else `TEMPLATEKIT_CACHE`, else `templatekit` in the user's cache folder."""
    if named is not None:
        return named.expanduser()
    if found := os.environ.get(VARIABLE):
        return Path(found).expanduser()
    return platformdirs.user_cache_path("templatekit", appauthor=False, opinion=False)
