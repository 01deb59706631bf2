"""What is the same for every row, found once: the template's markers, its end marker, the stop tokens of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from templatekit.audit.markers import ending_of, markers_of
from templatekit.audit.values import Setup, StopTokens
from templatekit.config.options import DataOptions
from templatekit.errors import TokenizerError
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.load import resolve_model
from templatekit.tokens.tokenizer import Tokenizer

_FILES = ("generation_config.json", "config.json")
"""Where a model's folder says at which tokens generation stops, the first of them first."""


def setup_of(pipeline: Pipeline, options: DataOptions) -> Setup:
    """The setup of a pipeline, with the options as the user gave them."""
    template, special, tokenizer = pipeline.template, pipeline.special_tokens, pipeline.tokenizer
    ending = ending_of(template, special)
    stops = None
    if tokenizer is not None:
        address = pipeline.options.tokenizer or tokenizer.name
        stops = _stops_beside(_folder(address, pipeline)) or _stops_of(tokenizer)
    return Setup(
        options=options,
        template=template,
        special=special,
        tokenizer=tokenizer,
        markers=markers_of(template, special, tokenizer),
        end_marker=ending.marker,
        trailing=ending.trailing,
        stops=stops,
    )


def _folder(address: str, pipeline: Pipeline) -> Path | None:
    try:
        path = resolve_model(address, pipeline.registry)
    except TokenizerError:
        return None  # a tokenizer that was handed over has no address
    return path.parent if path is not None and path.is_file() else path


def _stops_beside(folder: Path | None) -> StopTokens | None:
    for name in _FILES if folder is not None else ():
        assert folder is not None
        path = folder / name
        try:
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError) as error:
            raise TokenizerError(f"{str(path)!r} cannot be read: {error}; expected an object of JSON") from None
        if (found := _ids(ids)) is not None:
            return StopTokens(ids=found, where=name)
    return None


def _ids(value: Any) -> tuple[int, ...] | None:
    values = value if isinstance(value, list) else [value]
    return tuple(values) if all(type(item) is int for item in values) else None


def _stops_of(tokenizer: Tokenizer) -> StopTokens:
    """Without a model's files, what servers fall back to."""
    id = tokenizer.id_of(tokenizer.special_tokens.eos)
    ids = () if id is None else (id,)
    return StopTokens(ids=ids, where="the tokenizer's eos_token (there is no generation_config.json beside it)")
