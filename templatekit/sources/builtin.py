"""Offers the built-in sources to the plugin manager, through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from templatekit.hooks.contracts import Source
from templatekit.hooks.specs import hookimpl
from templatekit.sources.arrow_records import ArrowSource
from templatekit.sources.csv_records import CsvSource
from templatekit.sources.datasets_records import HubSource, SavedSource
from templatekit.sources.folders import FolderSource, GlobSource
from templatekit.sources.json_records import JsonSource
from templatekit.sources.remote import RemoteSource
from templatekit.sources.starter import StarterSource
from templatekit.sources.stdin import StdinSource


@hookimpl
def templatekit_sources() -> Iterable[Source]:
    """The built-in sources, the most specific first: the first that accepts an address reads it."""
    return [
        StarterSource(),
        StdinSource(),
        RemoteSource(),
        SavedSource(),
        FolderSource(),
        GlobSource(),
        ArrowSource(),
        CsvSource(),
        JsonSource(),
        HubSource(),
    ]
