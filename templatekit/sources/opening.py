"""Finds the source that accepts an address, and reads its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from templatekit.errors import PluginError, RecordError, SourceError, TemplatekitError, shorten
from templatekit.hooks.contracts import Source
from templatekit.hooks.registry import Registry
from templatekit.sources.columns import map_columns
from templatekit.sources.files import suggest_paths
from templatekit.types import Record


def find_source(address: str, registry: Registry) -> Source:
    """The first source that accepts the address; raises `SourceError` if none does."""
    for name, source in registry.sources.items():
        try:
            accepted = source.accepts(address)
        except Exception as error:  # a plugin's code may raise anything
            raise _plugin_error(registry, name, "accepts", address, error) from error
        if accepted:
            return source
    raise SourceError(
        f"{address}: no data there; expected a file, a folder, a quoted pattern, a URL, a hub name "
        f"(organisation/name), 'starter' or '-'; {suggest_paths(address)}"
    )


def open_source(
    address: str, registry: Registry, *, columns: Mapping[str, str] = {}, limit: int | None = None
) -> Iterator[Record | RecordError]:
    """The first `limit` records at an address, with columns renamed (`{field: column}`).

    An item's index in the iteration is its row. A row that cannot be used is yielded as a `RecordError`, and counts as
    a row too. Raises `SourceError` at once if no source accepts the address, and during iteration if the data turn out
    to be unreadable.
    """
    return _read(find_source(address, registry), address, registry, columns, limit)


def _read(
    source: Source, address: str, registry: Registry, columns: Mapping[str, str], limit: int | None
) -> Iterator[Record | RecordError]:
    """The source's records; raises `PluginError`, which names the plugin, if the source breaks its contract."""
    try:
        for row, item in enumerate(islice(source.read(address), limit)):
            if not isinstance(item, (Mapping, RecordError)):
                raise TypeError(f"yielded {shorten(item)}; expected a mapping or a RecordError")
            try:
                record: Record | RecordError = item if isinstance(item, RecordError) else map_columns(item, columns)
            except RecordError as error:
                record = error
            yield record.at(address, row) if isinstance(record, RecordError) else record
    except TemplatekitError:
        raise
    except Exception as error:
        raise _plugin_error(registry, source.name, "read", address, error) from error


def _plugin_error(registry: Registry, name: str, method: str, address: str, error: Exception) -> PluginError:
    owner = registry.sources.owner(name)
    return PluginError(
        f"plugin {owner.name!r} ({owner.origin}): source {name!r} raised in {method}({address!r}): "
        f"{type(error).__name__}: {error}"
    )
