"""The cache key: a hash of everything that determines the samples of a data set."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from templatekit.cache.atomic_files import hash_file
from templatekit.cache.code_hash import NotCacheable, code_of, libraries, own_code
from templatekit.config.data_options import DataOptions
from templatekit.errors import SourceError
from templatekit.hooks.contracts import Adapter
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources import find_source

T = TypeVar("T")
FORMAT = 3
"""Version of the files; each has a folder of its own."""
BY_CONTENT = frozenset({"tokenizer", "template", "adapter"})
"""Options whose value is an address; instead of the address, the content there is part of the key."""
WITHOUT_EFFECT = frozenset({"cache", "cache_dir", "workers", "trust_remote_code"})
"""Options that do not change the samples. All others are in the key, so that no new option is forgotten."""
_CLOCK = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")
_OF_THE_DAY = set("aAbBdjmuUVwWyYGgxDFe%-")


def key_values(pipeline: Pipeline, records: Iterable[Any] | None = None) -> dict[str, Any]:
    """Everything that determines the samples, as JSON values. `records` are a caller's own, without an address.

    Raises `NotCacheable` if something determines the samples that cannot be compared.
    """
    if type(pipeline) is not Pipeline:
        raise NotCacheable("mixed sets and pairs of answers are not cached")
    if pipeline.tokenizer is None:
        raise NotCacheable("without a tokenizer there is little to cache")
    return {
        "format": FORMAT,
        "templatekit": own_code(),
        "libraries": libraries(),
        "data": _data(pipeline, records),
        "adapter": _adapter(pipeline),
        "template": _template(pipeline),
        "tokenizer": pipeline.tokenizer.fingerprint,
        "options": _options(pipeline.options),
    }


def cache_key(values: Mapping[str, Any]) -> str:
    """The key of these values: the name of the cache entry."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _options(options: DataOptions) -> dict[str, Any]:
    """The data options that are part of the key. The data set's address is one of them, since messages name it."""
    values = options.model_dump(mode="json", include=set(DataOptions.model_fields))
    return {name: value for name, value in values.items() if name not in BY_CONTENT | WITHOUT_EFFECT}


def _data(pipeline: Pipeline, records: Iterable[Any] | None) -> dict[str, Any]:
    if records is not None:
        fingerprint = getattr(records, "_fingerprint", None)
        if type(records).__module__.partition(".")[0] != "datasets" or not isinstance(fingerprint, str):
            raise NotCacheable("records that come from the caller's own objects are not cached; save them to a file")
        return {"fingerprint": fingerprint}
    address = pipeline.options.dataset
    source = find_source(address, pipeline.registry)
    files = source.files(address)
    if files is None:
        raise NotCacheable(f"source {source.name!r} cannot tell whether {address!r} has changed")
    code = code_of(type(source))
    return {"source": source.name, "code": code, "files": [[path.name, _of_file(hash_file, path)] for path in files]}


def data_stamp(pipeline: Pipeline, records: Iterable[Any] | None = None) -> tuple[Any, ...]:
    """The day, and for each file of the data its inode, size and times: cheap to compare, but no proof of equality.

    No program can set the last of these times, at which the file's metadata last changed.
    """
    address = pipeline.options.dataset
    files = find_source(address, pipeline.registry).files(address) if records is None else None
    stats = [_of_file(os.stat, path) for path in files or ()]
    return date.today(), *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


def _of_file(function: Callable[[Path], T], path: Path) -> T:
    try:
        return function(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _adapter(pipeline: Pipeline) -> dict[str, Any]:
    """The named adapter, or all adapters of which the records' keys may choose one."""
    registry, adapter = pipeline.registry, pipeline.adapter
    offered = dict(registry.adapters.items())
    if pipeline.options.adapter is None and (adapter is None or adapter in offered.values()):
        return {"any of": {name: code_of(type(each)) for name, each in sorted(offered.items())}}
    assert adapter is not None
    return {"name": adapter.name, "code": code_of(type(adapter)), "state": _state(adapter)}


def _state(adapter: Adapter) -> Any:
    """The attributes of an adapter object."""
    try:
        return json.loads(json.dumps(vars(adapter), sort_keys=True))
    except (TypeError, ValueError):
        raise NotCacheable(
            f"adapter {adapter.name!r} has attributes that are not plain values, which cannot be compared"
        ) from None


def _template(pipeline: Pipeline) -> dict[str, Any]:
    template = pipeline.template
    kind = type(template)
    return {
        "name": template.name,
        "kind": f"{kind.__module__}.{kind.__qualname__}",
        "code": code_of(kind),
        "text": template.original,
        "source": template.source,
        "metadata": template.metadata.model_dump(mode="json"),
        "today": _today(template.source),
    }


def _today(source: str) -> str | None:
    """The day, if the template prints it; raises `NotCacheable` if the template may print the time."""
    if "strftime_now" not in source:
        return None
    calls = [match[2] for match in _CLOCK.finditer(source)]
    printed = {directive for text in calls for directive in re.findall(r"%(-?.)", text)}
    if len(calls) != len(re.findall(r"strftime_now\s*\(", source)) or any(not set(d) <= _OF_THE_DAY for d in printed):
        raise NotCacheable("the template prints the time")
    return date.today().isoformat()
