"""What the command line does, as Python calls: `render` and `prepare`. Training's is `templatekit.training.run`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from templatekit.cache import prepared_batches
from templatekit.columns import TokenizedColumns, token_arrays
from templatekit.config import DataOptions, RenderOptions
from templatekit.contracts import Adapter
from templatekit.errors import ConfigError, RecordError, shorten
from templatekit.formats.template import Template
from templatekit.mixture import Mixture
from templatekit.packing import Sequences, pack_arrays, packed
from templatekit.pipeline import Pipeline
from templatekit.prepared import Batch
from templatekit.registry import Registry, create_registry
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
    batches = _batches(records, adapter, template, tokenizer, registry, options)
    return (item.result for batch in batches for item in batch)


def prepare(
    records: Address | Iterable[Record] | None,
    *,
    tokenizer: Address | Tokenizer | PreTrainedTokenizerBase,
    adapter: str | Adapter | None = None,
    template: Address | Template = "alpaca",
    registry: Registry | None = None,
    pack_tokens: int | None = None,
    **options: Any,
) -> datasets.Dataset:
    """Records as a `datasets.Dataset` with `input_ids` and `labels`, which any trainer takes as it is.

    With `pack_tokens` a row is a pack of whole examples, with `position_ids` and `seq_lengths`. Where a weight is
    neither 0 nor 1 there is a column `loss_weights` too, for trainers that know it.
    """
    import datasets
    import pyarrow as pa

    if tokenizer is None:
        raise ConfigError("tokenizer: found None; expected a folder, a name or a tokenizer")
    options["pack_tokens"] = pack_tokens
    found = _batches(records, adapter, template, tokenizer, registry, options, kind=RenderOptions)
    weighted = False

    def columns() -> Iterator[TokenizedColumns]:
        nonlocal weighted
        for batch in found:
            assert batch.columns is not None
            weighted |= batch.columns.is_weighted
            yield batch.columns

    if pack_tokens is None:
        rows = map(token_arrays, columns())
    else:
        rows = map(pack_arrays, packed(map(Sequences.of, columns()), int(pack_tokens)))
    batches = [pa.record_batch(row) for row in rows] or [pa.record_batch(token_arrays(TokenizedColumns.of([])))]
    table = pa.Table.from_batches(batches)
    return datasets.Dataset(table if weighted else table.drop_columns("loss_weights"))


def _batches(
    records: Any,
    adapter: Any,
    template: Any,
    tokenizer: Any,
    registry: Registry | None,
    options: Mapping[str, Any],
    *,
    kind: type[DataOptions] = DataOptions,
) -> Iterator[Batch]:
    """What comes of the records: the calls take names and paths, or the things themselves."""
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
    if records is None and parsed.mix:
        return Mixture(
            parsed,
            registry or create_registry(),
            template=template if isinstance(template, Template) else None,
            tokenizer=tokenizer if isinstance(tokenizer, Tokenizer) else None,
        ).prepared_batches()
    pipeline = Pipeline(
        parsed,
        registry or create_registry(),
        adapter=adapter if isinstance(adapter, Adapter) else None,
        template=template if isinstance(template, Template) else None,
        tokenizer=tokenizer if isinstance(tokenizer, Tokenizer) else None,
    )
    if isinstance(records, (str, os.PathLike)):
        return prepared_batches(pipeline)
    return prepared_batches(
        pipeline, read=lambda: pipeline.reader.gathered(_mapped(records, parsed.columns)), given=records
    )


def _mapped(records: Iterable[object], columns: Mapping[str, str]) -> Iterator[Record | RecordError]:
    for record in records:
        if not isinstance(record, Mapping):
            yield RecordError(f"found {shorten(record)}; expected a mapping with named fields", reason="not_an_object")
            continue
        try:
            yield map_columns(record, columns)
        except RecordError as error:
            yield error
