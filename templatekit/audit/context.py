"""The facts that are the same for every row: template, tokenizer, template markers, end marker, stop tokens."""

from __future__ import annotations

from dataclasses import dataclass

from templatekit.audit.template_markers import TemplateMarker, ending_of, markers_of
from templatekit.config.data_options import DataOptions
from templatekit.errors import TokenizerError
from templatekit.formats.template import Template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.load import resolve_model
from templatekit.tokens.tokenizer import StopTokens, Tokenizer, stop_tokens_in
from templatekit.types import SpecialTokens


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
        found = stop_tokens_in(model.parent if model.is_file() else model)
        if found is not None:
            return found
    eos = tokenizer.id_of(tokenizer.special_tokens.eos)
    source = "the tokenizer's eos_token (there is no generation_config.json beside it)"
    return StopTokens(ids=() if eos is None else (eos,), source=source)
