"""Where records come from: files, folders, the hub, and the sets that ship with the package.

```
address ──Source.accepts──▶ source ──read──▶ Record | RecordError ──map_columns──▶ Record | RecordError
```

| module | what it reads |
| --- | --- |
| `json_records`, `json_lines`, `json_array`, `json_values` | JSON in every shape, strictly, in bounded memory |
| `csv_records` | CSV and TSV, every value as text |
| `arrow_records` | Parquet, Arrow, Feather |
| `datasets_records` | folders made by `save_to_disk`, data sets on the hub |
| `folders` | a folder of files of one kind, or those that a pattern names |
| `remote` | URLs, through fsspec |
| `stdin` | JSON from standard input |
| `starter` | the bundled sets |

`files` opens what is local, `compression` takes gzip, zstd, bzip2 and xz off any stream. `gather` brings together
the records that make one example, where an adapter says so.

This is a plugin like any other. Importing it loads none of the libraries that the readers need.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice

from templatekit.errors import PluginError, RecordError, SourceError, TemplatekitError, shorten
from templatekit.hooks.contracts import Source
from templatekit.hooks.registry import Registry
from templatekit.hooks.specs import hookimpl
from templatekit.sources.arrow_records import ArrowSource
from templatekit.sources.columns import map_columns, parse_columns
from templatekit.sources.csv_records import CsvSource
from templatekit.sources.datasets_records import HubSource, SavedSource
from templatekit.sources.files import siblings
from templatekit.sources.folders import FolderSource, GlobSource
from templatekit.sources.json_records import JsonSource
from templatekit.sources.remote import RemoteSource
from templatekit.sources.starter import StarterSource
from templatekit.sources.stdin import StdinSource
from templatekit.types import Record

__all__ = ["find_source", "map_columns", "open_source", "parse_columns"]


@hookimpl
def templatekit_sources() -> Iterable[Source]:
    """The built-in sources, the pickiest first."""
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


def find_source(address: str, registry: Registry) -> Source:
    """The first source that accepts the address; raises `SourceError` where none does."""
    for name, source in registry.sources.items():
        try:
            accepted = source.accepts(address)
        except Exception as error:  # a plugin's code may raise anything
            raise _broke(registry, name, "accepts", address, error) from error
        if accepted:
            return source
    raise SourceError(
        f"{address}: no data there; expected a file, a folder, a quoted pattern, a URL, a hub name "
        f"(organisation/name), 'starter' or '-'; {siblings(address)}"
    )


def open_source(
    address: str, registry: Registry, *, columns: Mapping[str, str] = {}, limit: int | None = None
) -> Iterator[Record | RecordError]:
    """The records at an address, with columns renamed (`{field: column}`), at most `limit` of them.

    The place of an item in the iteration, counted from 0, is its row number; rows that cannot be used come as
    `RecordError`s and count too. Raises `SourceError` at once where no source takes the address, and while iterating
    where the place turns out to be unreadable.
    """
    source = find_source(address, registry)
    return _records(source, address, registry, columns, limit)


def _records(
    source: Source, address: str, registry: Registry, columns: Mapping[str, str], limit: int | None
) -> Generator[Record | RecordError, None, None]:
    items = _checked(source, address, registry)
    with closing(items):
        for row, item in enumerate(islice(items, limit)):
            if isinstance(item, RecordError):
                yield item.at(address, row)
                continue
            try:
                record = map_columns(item, columns)
            except RecordError as error:
                yield error.at(address, row)
                continue
            yield record


def _checked(source: Source, address: str, registry: Registry) -> Generator[Record | RecordError, None, None]:
    """The source's items; what no source may do is a `PluginError` that names the plugin."""
    try:
        for item in source.read(address):
            if not isinstance(item, (Mapping, RecordError)):
                raise TypeError(f"yielded {shorten(item)}; expected a mapping or a RecordError")
            yield item
    except TemplatekitError:
        raise
    except Exception as error:
        raise _broke(registry, source.name, "read", address, error) from error


def _broke(registry: Registry, name: str, method: str, address: str, error: Exception) -> PluginError:
    owner = registry.sources.owner(name)
    return PluginError(
        f"plugin {owner.name!r} ({owner.origin}): source {name!r} raised in {method}({address!r}): "
        f"{type(error).__name__}: {error}"
    )
