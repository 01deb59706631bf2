"""Finds the source that accepts an address, and reads its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TypeVar

from templatekit.config.addresses import Address, masked
from templatekit.errors import PluginError, RecordError, SourceError, TemplatekitError, shorten
from templatekit.hooks.contracts import Source
from templatekit.hooks.registry import Registry
from templatekit.sources.columns import map_columns
from templatekit.sources.files import suggest_paths
from templatekit.sources.limits import DEFAULT_LIMITS, LimitedSource, Limits, size_of, sized, told_size, too_large
from templatekit.types import Record

_Error = TypeVar("_Error", bound=TemplatekitError)


def find_source(address: str, registry: Registry) -> Source:
    """The first source that accepts the address; raises `SourceError` if none does."""
    address = Address(address)
    if not address:
        raise SourceError(
            "the address of the data is empty; expected a file, a folder, a URL, a hub name, 'starter' or '-'"
        )
    if address.lacks_secret():
        raise SourceError(f"{address}: *** stands where a password or token was; give the whole address (--dataset)")
    for name, source in registry.sources.items():
        try:
            accepted = source.accepts(address.whole)
        except Exception as error:  # a plugin's code may raise anything
            raise _plugin_error(registry, name, "accepts", address, error) from error
        if accepted:
            return source
    raise SourceError(
        f"{address}: no data there; expected a file, a folder, a quoted pattern, a URL, a hub name "
        f"(organisation/name), 'starter' or '-'; {suggest_paths(address)}"
    )


def open_source(
    address: str,
    registry: Registry,
    *,
    columns: Mapping[str, str] = {},
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Record | RecordError]:
    """The first `limit` records at an address, with columns renamed (`{field: column}`).

    An item's index in the iteration is its row. A row that cannot be used is yielded as a `RecordError`, and counts as
    a row too. Raises `SourceError` at once if no source accepts the address, and during iteration if the data turn out
    to be unreadable. No record is larger than `limits` allow, and no error shows a password or token of the address.
    """
    source = find_source(address, registry)
    if isinstance(source, LimitedSource):
        source = source.limited(limits)
    return _read(source, Address(address), registry, columns, limit, limits)


def _read(
    source: Source,
    address: Address,
    registry: Registry,
    columns: Mapping[str, str],
    limit: int | None,
    limits: Limits,
) -> Iterator[Record | RecordError]:
    """The source's records; raises `PluginError`, which names the plugin, if the source breaks its contract."""
    measured = not isinstance(source, LimitedSource)
    as_it_is = not measured and not columns
    try:
        for row, item in enumerate(islice(source.read(address.whole), limit)):
            if as_it_is and type(item) is dict:  # nearly every row, and the checks take a tenth of its time
                yield item
                continue
            if not isinstance(item, (Mapping, RecordError)):
                raise TypeError(f"yielded {shorten(item)}; expected a mapping or a RecordError")
            try:
                record: Record | RecordError = item if isinstance(item, RecordError) else map_columns(item, columns)
                if measured or record is not item:
                    record = _sized(record, size_of(item) if measured else told_size(item), limits)
            except RecordError as error:
                record = error
            yield _without_secrets(record.at(address, row), address) if isinstance(record, RecordError) else record
    except TemplatekitError as error:
        raise _without_secrets(error, address) from error.__cause__
    except Exception as error:
        raise _plugin_error(registry, source.name, "read", address, error) from error


def _sized(record: Record | RecordError, size: int, limits: Limits) -> Record | RecordError:
    if isinstance(record, RecordError):
        return record
    return too_large(size, limits) if size > limits.record else sized(record, size, limits)


def _without_secrets(error: _Error, address: Address) -> _Error:
    """The error, with the address in it as it may be shown; its cause would show it whole."""
    if address.whole == address:
        return error
    error.args = tuple(masked(part, address) if isinstance(part, str) else part for part in error.args)
    error.__cause__, error.__suppress_context__ = None, True
    if isinstance(error, RecordError):
        error.message = masked(error.message, address)
        error.source = masked(error.source, address) if error.source else error.source
    return error


def _plugin_error(registry: Registry, name: str, method: str, address: Address, error: Exception) -> PluginError:
    owner = registry.sources.owner(name)
    return PluginError(
        f"plugin {owner.name!r} ({owner.origin}): source {name!r} raised in {method}({address!r}): "
        f"{type(error).__name__}: {masked(str(error), address)}"
    )
