"""The facts that are the same for every row: template, tokenizer, template markers, end marker, stop tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass

from templatekit.audit.template_markers import TemplateMarker, ending_of, markers_of
from templatekit.config.data_options import DataOptions
from templatekit.errors import TokenizerError
from templatekit.formats.template import Template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.load import resolve_model
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import SpecialTokens

_STOP_TOKEN_FILES = ("generation_config.json", "config.json")
"""Files of a model's folder that may name its stop tokens; the first file that names any counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTokens:
    """The ids at which a server stops when it loads the tokenizer's folder."""

    ids: tuple[int, ...]
    source: str
    """The file or setting that names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditContext:
    """The facts that are the same for every row. Rules receive this context with each row."""

    options: DataOptions
    template: Template
    special_tokens: SpecialTokens
    tokenizer: Tokenizer | None
    markers: tuple[TemplateMarker, ...]
    end_marker: str
    """The text that the template writes after an answer; "" where it is unknown."""
    trailing: str
    """The text that the template writes after the last end marker."""
    stop_tokens: StopTokens | None


def audit_context(pipeline: Pipeline, options: DataOptions) -> AuditContext:
    """The context of a pipeline. `options` are the user's options, from which the pipeline's may differ."""
    template, special_tokens, tokenizer = pipeline.template, pipeline.special_tokens, pipeline.tokenizer
    end_marker, trailing = ending_of(template, special_tokens)
    return AuditContext(
        options=options,
        template=template,
        special_tokens=special_tokens,
        tokenizer=tokenizer,
        markers=markers_of(template, special_tokens, tokenizer),
        end_marker=end_marker,
        trailing=trailing,
        stop_tokens=_stop_tokens(pipeline, tokenizer) if tokenizer else None,
    )


def _stop_tokens(pipeline: Pipeline, tokenizer: Tokenizer) -> StopTokens:
    """The stop tokens that a file of the model names; without one the tokenizer's EOS, as servers do."""
    try:
        model = resolve_model(pipeline.options.tokenizer or tokenizer.name, pipeline.registry)
    except TokenizerError:
        model = None  # a tokenizer that was given as an object has no address
    if model is not None:
        folder = model.parent if model.is_file() else model
        for path in (folder / name for name in _STOP_TOKEN_FILES):
            try:
                ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            except FileNotFoundError:
                continue
            except (OSError, ValueError, AttributeError) as error:
                raise TokenizerError(f"{str(path)!r} cannot be read: {error}; expected an object of JSON") from None
            ids = ids if isinstance(ids, list) else [ids]
            if all(type(id) is int for id in ids):
                return StopTokens(ids=tuple(ids), source=path.name)
    eos = tokenizer.id_of(tokenizer.special_tokens.eos)
    source = "the tokenizer's eos_token (there is no generation_config.json beside it)"
    return StopTokens(ids=() if eos is None else (eos,), source=source)
