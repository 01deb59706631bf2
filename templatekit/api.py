"""The Python calls `render`, `prepare` and `parse`, which do what the command line does; `finetune`: `training.run`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from templatekit.cache.preparation import prepare_batches, prepare_output
from templatekit.config.data_options import DataOptions
from templatekit.config.render_options import RenderOptions
from templatekit.engines.processes import process_engine
from templatekit.errors import ConfigError, shorten
from templatekit.formats.answers.parsing import ParsedAnswer
from templatekit.formats.lookup import find_template
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.loading import create_registry
from templatekit.hooks.record_fields import tools_of
from templatekit.hooks.registry import Registry
from templatekit.packing import Sequences, pack_arrays, pack_stream
from templatekit.packing.columns import TokenizedColumns, token_arrays
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.mixture import Mixture
from templatekit.pipeline.outputs import OutputChunk, is_packed
from templatekit.pipeline.pipeline import Pipeline
from templatekit.serving.answers import read_answer
from templatekit.tokens.load import find_tokenizer, from_transformers
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
    """Render records: an iterable of records, the data set at an address, or None for the data sets of `mix`.

    Yields `TokenizedExample`s, or `RenderedText`s without a tokenizer. `options` are the other fields of `DataOptions`:
    `train_on`, `max_length`, `columns`, `on_error`, … A wrong option raises an error immediately; a bad record raises
    one when the iterator reaches it.
    """
    pipeline, given = _set_up(records, adapter, template, tokenizer, registry, options)
    batches = prepare_batches(pipeline, records=given)
    return (sample.result for batch in batches for sample in batch)


def parse(
    answer: str | Iterable[int],
    *,
    template: Address | Template,
    tokenizer: Address | Tokenizer | PreTrainedTokenizerBase | None = None,
    prompt: str | Iterable[int] | None = None,
    tools: Iterable[Any] = (),
    registry: Registry | None = None,
) -> ParsedAnswer:
    """Read what a model wrote, as text or ids, as a message: reasoning, content and tool calls.

    Ids need the tokenizer. They are read exactly, since a control token among them is not mistaken for text. `prompt`
    is what the model was given, or its end; `tools` are the functions that it was offered. See `Template.parse`.
    """
    registry = registry or create_registry()
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = find_tokenizer(os.fspath(tokenizer), registry)
    elif tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = from_transformers(tokenizer)
    if not isinstance(template, Template):
        chat_template = None if tokenizer is None else tokenizer.chat_template
        template = find_template(os.fspath(template), registry, chat_template=chat_template)

    return read_answer(answer, template, tokenizer, prompt=prompt, tools=tools_of({"tools": list(tools)}))


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
    """Return records as a `datasets.Dataset` with `input_ids` and `labels`, which any trainer accepts.

    With `pack_tokens` each row is a pack of whole examples, with `position_ids` and `seq_lengths`. If any weight is
    neither 0 nor 1, there is also a column `loss_weights`, for trainers that support it.

    `workers` is the number of processes. Each of them first runs the program again up to this call, so the call must be
    inside `if __name__ == "__main__":`, except in a notebook. The processes find adapter and template by name.
    """
    import datasets
    import pyarrow as pa

    if tokenizer is None:
        raise ConfigError("tokenizer: found None; expected a folder, a name or a tokenizer")
    options |= {"pack_tokens": pack_tokens, "workers": workers}
    pipeline, given = _set_up(records, adapter, template, tokenizer, registry, options, kind=RenderOptions)
    if workers not in (None, 1):
        _check_names(pipeline, adapter, template)
    chunks = prepare_output(pipeline, _rows, engine=process_engine(workers), records=given)
    weighted = False

    def rows() -> Iterator[Any]:
        nonlocal weighted
        for chunk in chunks:
            found, is_weighted = chunk.content
            weighted |= is_weighted
            yield found

    batches = list(
        rows() if pack_tokens is None else map(pa.record_batch, map(pack_arrays, pack_stream(rows(), int(pack_tokens))))
    )
    table = pa.Table.from_batches(batches or [pa.record_batch(token_arrays(TokenizedColumns.of([])))])
    return datasets.Dataset(table if weighted else table.drop_columns("loss_weights"))


def _rows(batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[OutputChunk]:
    """Convert batches to rows of a data set, in the process that tokenized them.

    The content of a chunk is a `pyarrow.RecordBatch`, or the `Sequences` to pack, and whether they are weighted.
    """
    import pyarrow as pa

    for batch in batches:
        assert batch.columns is not None
        rows = Sequences.of(batch.columns) if is_packed(pipeline) else pa.record_batch(token_arrays(batch.columns))
        yield OutputChunk(len(batch), (rows, batch.columns.is_weighted))


def _check_names(pipeline: Pipeline, adapter: Any, template: Any) -> None:
    """Raise `ConfigError` for an adapter or a template that workers cannot find by name."""
    if isinstance(template, Template):
        found = f"a Template object; expected its name, or the path of {template.name!r}"
    elif isinstance(adapter, Adapter) and pipeline.reader.adapter_name is None:
        found = f"an Adapter object named {adapter.name!r}; expected the name of one that a plugin offers"
    else:
        return
    raise ConfigError(f"workers find adapters and templates by their names; found {found}; or leave workers out")


def _set_up(
    records: Any,
    adapter: Any,
    template: Any,
    tokenizer: Any,
    registry: Registry | None,
    options: Mapping[str, Any],
    *,
    kind: type[DataOptions] = DataOptions,
) -> tuple[Pipeline, Iterable[Any] | None]:
    """Check the arguments of a call; return its pipeline, and the given records (None: the options' data set).

    Each argument may be a name, a path or an object.
    """
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
        return Mixture(parsed, registry, template=template, tokenizer=tokenizer), None
    adapter = adapter if isinstance(adapter, Adapter) else None
    pipeline = Pipeline(parsed, registry, adapter=adapter, template=template, tokenizer=tokenizer)
    return pipeline, None if isinstance(records, (str, os.PathLike)) else records
