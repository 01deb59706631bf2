"""The tokenizer that is saved with the model, and the check that a server prompts as training did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RunError, TemplateError
from templatekit.export.serving import Stops, chat_template
from templatekit.formats.template import Template
from templatekit.formats.variables import chat_variables, untracked
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Sample

if TYPE_CHECKING:
    from templatekit.tokens.tokenizer import Tokenizer


def add_special_tokens(options: FinetuneOptions, pipeline: Pipeline, served: PreTrainedTokenizerBase) -> list[int]:
    """Add the special tokens that the template lists, if the options ask for this. Returns the ids that are new."""
    if not options.add_special_tokens:
        return []
    tokens = pipeline.template.metadata.special_tokens
    if not tokens:
        raise ConfigError(f"--add-special-tokens: template {pipeline.template.name!r} lists no special tokens")
    known = len(served)
    served.add_tokens(list(tokens), special_tokens=True)
    return list(range(known, len(served)))


def set_templates(served: PreTrainedTokenizerBase, template: Template, tokenizer: Tokenizer) -> None:
    """Give the tokenizer the chat template of the run, and the response template by which transformers reads answers.

    A response template that came with the same chat template stays.
    """
    tokens = tokenizer.special_tokens
    before, served.chat_template = served.chat_template, chat_template(template, tokens)
    if served.chat_template != before or getattr(served, "response_template", None) is None:
        served.response_template = None
        with suppress(TemplateError):  # it writes no answer that could be read back
            served.response_template = template.response_template(tokens)


def check_prompts(served: PreTrainedTokenizerBase, pipeline: Pipeline, samples: Sequence[Sample]) -> None:
    """Raise `RunError` where transformers would prompt the model with other ids than it is trained on."""
    for sample in samples:
        example, messages = sample.example, sample.example.messages
        if len(messages) < 2 or any(m.tool_calls for m in messages) or example.tools or example.documents:
            continue
        if pipeline.template.kind == "chat":
            if any(message.context for message in messages):
                continue
            chat = untracked(chat_variables(messages[:-1], example, pipeline.template.accepted_forms)["messages"])
        else:
            chat = [
                {"role": m.role, "content": m.content} | ({"context": m.context} if m.context else {})
                for m in messages[:-1]
            ]
        ids = served.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        ours = pipeline.prompt_ids(example)
        if tuple(ids) != ours and not _has_control_text(pipeline, sample):
            raise RunError(
                f"row {sample.rendered.row}: transformers would prompt the model with other ids than it is trained on; "
                f"found {list(ids)[:20]}, expected {list(ours)[:20]}"
            )


def _has_control_text(pipeline: Pipeline, sample: Sample) -> bool:
    """Whether a message has the text of a control token, which transformers would encode as the token itself."""
    assert pipeline.tokenizer is not None
    texts = [field for m in sample.example.messages for field in (m.role, m.content, m.context)]
    return any(token in text for text in texts for token in pipeline.tokenizer.control_tokens)


def pad_id(tokenizer: Tokenizer, stops: Stops) -> int | None:
    """The tokenizer's own padding token, else the first stop token. Labels never depend on it."""
    pad = tokenizer.special_tokens.pad
    return tokenizer.id_of(pad) if pad else next(iter(stops.ids), None)
