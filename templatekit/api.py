"""What the command line does, as Python calls: `render` and `prepare`. Training's is `templatekit.training.run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

from templatekit.cache import prepared_batches, prepared_parts
from templatekit.config.options import DataOptions, RenderOptions
from templatekit.engines.processes import local_workers
from templatekit.errors import ConfigError, RecordError, shorten
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.registry import Registry, create_registry
from templatekit.packing import Sequences, pack_arrays, packed
from templatekit.packing.columns import TokenizedColumns, token_arrays
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.mixture import Mixture
from templatekit.pipeline.outputs import Part, in_packs
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources import map_columns
from templatekit.tokens.load import from_transformers
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Record, RenderedText, TokenizedExample

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

Address: TypeAlias = str | os.PathLike[str]


@overload
def render(
    records: Address | Iterable[Record] | None,
    *,
    adapter: str | Adapter | None = None,
    template: Address | Template = "alpaca",
    tokenizer: None = None,
    registry: Registry | None = None,
    **options: Any,
) -> Iterator[RenderedText]: ...


@overload
def render(
    records: Address | Iterable[Record] | None,
    *,
    adapter: str | Adapter | None = None,
    template: Address | Template = "alpaca",
    tokenizer: Address | Tokenizer | PreTrainedTokenizerBase,
    registry: Registry | None = None,
    **options: Any,
) -> Iterator[TokenizedExample]: ...


def render(
    records: Address | Iterable[Record] | None,
    *,
    adapter: str | Adapter | None = None,
    template: Address | Template = "alpaca",
    tokenizer: Address | Tokenizer | PreTrainedTokenizerBase | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> Iterator[TokenizedExample | RenderedText]:
    """Renders records, or the data set at an address, or with None the sets that `mix` names, one by one.

    Yields `TokenizedExample`s, or `RenderedText`s without a tokenizer. `options` are the other fields of
    `DataOptions`: `train_on`, `max_length`, `columns`, `on_error`, … What is wrong with them is raised at once, what
    is wrong with a record when its turn comes.
    """
    found = _records(records, adapter, template, tokenizer, registry, options)
    batches = prepared_batches(found.pipeline, read=found.read, given=found.given)
    return (item.result for batch in batches for item in batch)


def prepare(
    records: Address | Iterable[Record] | None,
    *,
    tokenizer: Address | Tokenizer | PreTrainedTokenizerBase,
    adapter: str | Adapter | None = None,
    template: Address | Template = "alpaca",
    registry: Registry | None = None,
    pack_tokens: int | None = None,
    workers: int | None = None,
    **options: Any,
) -> datasets.Dataset:
    """Records as a `datasets.Dataset` with `input_ids` and `labels`, which any trainer takes as it is.

    With `pack_tokens` a row is a pack of whole examples, with `position_ids` and `seq_lengths`. Where a weight is
    neither 0 nor 1 there is a column `loss_weights` too, for trainers that know it.

    So many `workers` are processes that begin by running the program anew up to this call, which therefore stands
    behind `if __name__ == "__main__":`, unless in a notebook. They find adapter and template by name.
    """
    import datasets
    import pyarrow as pa

    if tokenizer is None:
        raise ConfigError("tokenizer: found None; expected a folder, a name or a tokenizer")
    options |= {"pack_tokens": pack_tokens, "workers": workers}
    found = _records(records, adapter, template, tokenizer, registry, options, kind=RenderOptions)
    if workers not in (None, 1):
        _check_names(found.pipeline, adapter, template)
    parts = prepared_parts(found.pipeline, _rows, engine=local_workers(workers), read=found.read, given=found.given)
    weighted = False

    def content() -> Iterator[Any]:
        nonlocal weighted
        for part in parts:
            weighted |= part.content.is_weighted
            yield part.content.rows

    batches = list(
        content()
        if pack_tokens is None
        else map(pa.record_batch, map(pack_arrays, packed(content(), int(pack_tokens))))
    )
    table = pa.Table.from_batches(batches or [pa.record_batch(token_arrays(TokenizedColumns.of([])))])
    return datasets.Dataset(table if weighted else table.drop_columns("loss_weights"))


class _Rows(NamedTuple):
    """Some rows of a data set, or what packs are made of."""

    rows: Any
    is_weighted: bool


def _rows(batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[Part]:
    """A `Make`: the rows of a data set, and whether any of their weights is neither 0 nor 1."""
    import pyarrow as pa

    for batch in batches:
        assert batch.columns is not None
        rows = Sequences.of(batch.columns) if in_packs(pipeline) else pa.record_batch(token_arrays(batch.columns))
        yield Part(len(batch), _Rows(rows, batch.columns.is_weighted))


def _check_names(pipeline: Pipeline, adapter: Any, template: Any) -> None:
    """Raises `ConfigError` for what workers cannot find by its name."""
    if isinstance(template, Template):
        found = f"a Template object; expected its name, or the path of {template.name!r}"
    elif isinstance(adapter, Adapter) and pipeline.reader.adapter_name is None:
        found = f"an Adapter object named {adapter.name!r}; expected the name of one that a plugin offers"
    else:
        return
    raise ConfigError(f"workers find adapters and templates by their names; found {found}; or leave workers out")


class _Records(NamedTuple):
    """What a call is to prepare, and how."""

    pipeline: Pipeline
    read: Callable[[], Iterator[Record | RecordError]] | None = None
    """None for the options' data set."""
    given: Iterable[Any] | None = None


def _records(
    records: Any,
    adapter: Any,
    template: Any,
    tokenizer: Any,
    registry: Registry | None,
    options: Mapping[str, Any],
    *,
    kind: type[DataOptions] = DataOptions,
) -> _Records:
    """The pipeline for records: the calls take names and paths, or the things themselves."""
    named = {"dataset": records, "adapter": adapter, "template": template, "tokenizer": tokenizer}
    addresses = {key: os.fspath(value) for key, value in named.items() if isinstance(value, (str, os.PathLike))}
    parsed = kind.parse({**options, **addresses})
    if parsed.mix and records is not None:
        raise ConfigError(f"records: found {shorten(records)} beside mix; expected None, as mix names its sets")
    if not parsed.mix and (isinstance(records, Mapping) or not isinstance(records, (str, os.PathLike, Iterable))):
        raise ConfigError(
            f"records: found {type(records).__name__}; expected an address, or a list or another "
            "iterable of records (of a DatasetDict, one split)"
        )
    if not isinstance(adapter, (str, Adapter, type(None))):
        raise ConfigError(f"adapter: found {shorten(adapter)}; expected a name or an Adapter object")
    if not isinstance(template, (str, os.PathLike, Template)):
        raise ConfigError(f"template: found {shorten(template)}; expected a name, a .jinja file or a Template object")
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike, Tokenizer)):
        tokenizer = from_transformers(tokenizer)
    template = template if isinstance(template, Template) else None
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None
    registry = registry or create_registry()
    if records is None and parsed.mix:
        return _Records(Mixture(parsed, registry, template=template, tokenizer=tokenizer))
    adapter = adapter if isinstance(adapter, Adapter) else None
    pipeline = Pipeline(parsed, registry, adapter=adapter, template=template, tokenizer=tokenizer)
    if isinstance(records, (str, os.PathLike)):
        return _Records(pipeline)
    return _Records(pipeline, lambda: pipeline.reader.gathered(_mapped(records, parsed.columns)), records)


def _mapped(records: Iterable[object], columns: Mapping[str, str]) -> Iterator[Record | RecordError]:
    for record in records:
        if not isinstance(record, Mapping):
            yield RecordError(f"found {shorten(record)}; expected a mapping with named fields", reason="not_an_object")
            continue
        try:
            yield map_columns(record, columns)
        except RecordError as error:
            yield error
