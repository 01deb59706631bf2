"""What decides about the examples that come of a data set, and its hash: the name under which they are kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from templatekit.cache.atomic_files import hash_file
from templatekit.cache.code_hash import NoCode, code_of, libraries, own_code
from templatekit.config.options import DataOptions
from templatekit.errors import SourceError
from templatekit.hooks.contracts import Adapter
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources import find_source

FORMAT = 1
"""Of the files; a new one begins a folder of its own."""
BY_CONTENT = frozenset({"tokenizer", "template", "adapter"})
"""Options whose value is an address: what lies there counts."""
WITHOUT_EFFECT = frozenset({"cache", "cache_dir", "workers"})
"""Options that change nothing in the examples. All others count, so that a new one is never forgotten."""
_CLOCK = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")
_OF_THE_DAY = set("aAbBdjmuUVwWyYGgxDFe%-")


class NotCached(Exception):
    """Why the examples of a data set are not kept."""


def parts_of(pipeline: Pipeline, records: Iterable[Any] | None = None) -> dict[str, Any]:
    """All that decides about the examples, as JSON can hold it. `records` are those of a caller, with no address.

    Raises `NotCached` where anything has a part in them that cannot be told.
    """
    if type(pipeline) is not Pipeline:
        raise NotCached("mixed sets and pairs of answers are not kept")
    if pipeline.tokenizer is None:
        raise NotCached("without a tokenizer there is little to keep")
    try:
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
    except NoCode as error:
        raise NotCached(str(error)) from None


def key_of(parts: Mapping[str, Any]) -> str:
    """The name of what is kept."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _options(options: DataOptions) -> dict[str, Any]:
    """Those of the data: a run's others come later. The address is among them, since messages name it."""
    values = options.model_dump(mode="json", include=set(DataOptions.model_fields))
    return {name: value for name, value in values.items() if name not in BY_CONTENT | WITHOUT_EFFECT}


def _data(pipeline: Pipeline, records: Iterable[Any] | None) -> dict[str, Any]:
    if records is not None:
        fingerprint = getattr(records, "_fingerprint", None)
        if type(records).__module__.partition(".")[0] != "datasets" or not isinstance(fingerprint, str):
            raise NotCached("records that come from the caller's own objects are not kept; save them to a file")
        return {"fingerprint": fingerprint}
    address = pipeline.options.dataset
    source = find_source(address, pipeline.registry)
    files = source.files(address)
    if files is None:
        raise NotCached(f"nobody can tell whether {address!r} still holds the same (source {source.name!r})")
    code = code_of(type(source))
    return {"source": source.name, "code": code, "files": [[path.name, _hash(path)] for path in files]}


def stamp_of(pipeline: Pipeline, records: Iterable[Any] | None = None) -> tuple[Any, ...]:
    """What changes with the data's files: cheap, and no proof that they are the same; with the day.

    The time of the last change of a file's state is among it, which no program can set.
    """
    files = (
        []
        if records is not None
        else find_source(pipeline.options.dataset, pipeline.registry).files(pipeline.options.dataset)
    )
    return date.today(), *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(_stat, files or ()))


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _adapter(pipeline: Pipeline) -> dict[str, Any]:
    """The adapter that is named, or all that the records' keys may choose from."""
    registry, adapter = pipeline.registry, pipeline.adapter
    offered = dict(registry.adapters.items())
    if pipeline.options.adapter is None and (adapter is None or adapter in offered.values()):
        return {"any of": {name: code_of(type(one)) for name, one in sorted(offered.items())}}
    assert adapter is not None
    return {"name": adapter.name, "code": code_of(type(adapter)), "state": _state(adapter)}


def _state(adapter: Adapter) -> Any:
    """What an adapter object holds beside its class."""
    try:
        return json.loads(json.dumps(vars(adapter), sort_keys=True))
    except (TypeError, ValueError):
        raise NotCached(f"adapter {adapter.name!r} holds more than plain values; nobody can tell them apart") from None


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
    """The day, where a template prints it; raises `NotCached` where it may print the time."""
    if "strftime_now" not in source:
        return None
    calls = [match[2] for match in _CLOCK.finditer(source)]
    printed = {directive for text in calls for directive in re.findall(r"%(-?.)", text)}
    if len(calls) != len(re.findall(r"strftime_now\s*\(", source)) or any(not set(d) <= _OF_THE_DAY for d in printed):
        raise NotCached("the template prints the time")
    return date.today().isoformat()
