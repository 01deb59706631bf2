"""templatekit turns data into tokenized, loss-masked training examples, and fine-tunes language models on them.

The public names are imported on first use, so that `import templatekit` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from templatekit.api import parse as parse
    from templatekit.api import prepare as prepare
    from templatekit.api import render as render
    from templatekit.config.data_options import DataOptions as DataOptions
    from templatekit.config.finetune_options import FinetuneOptions as FinetuneOptions
    from templatekit.errors import ConfigError as ConfigError
    from templatekit.errors import PluginError as PluginError
    from templatekit.errors import RecordError as RecordError
    from templatekit.errors import RunError as RunError
    from templatekit.errors import SourceError as SourceError
    from templatekit.errors import TemplateError as TemplateError
    from templatekit.errors import TemplatekitError as TemplatekitError
    from templatekit.errors import TokenizerError as TokenizerError
    from templatekit.errors import UnknownNameError as UnknownNameError
    from templatekit.formats import Template as Template
    from templatekit.formats import load_template as load_template
    from templatekit.formats.answers.grammar import AnswerGrammar as AnswerGrammar
    from templatekit.formats.answers.parsing import AnswerEvent as AnswerEvent
    from templatekit.formats.answers.parsing import AnswerParser as AnswerParser
    from templatekit.formats.answers.parsing import ParsedAnswer as ParsedAnswer
    from templatekit.hooks.contracts import Adapter as Adapter
    from templatekit.hooks.contracts import ModelResolver as ModelResolver
    from templatekit.hooks.contracts import Source as Source
    from templatekit.hooks.contracts import TemplateFile as TemplateFile
    from templatekit.hooks.contracts import template_files as template_files
    from templatekit.hooks.exporters import Exporter as Exporter
    from templatekit.hooks.exporters import FolderExporter as FolderExporter
    from templatekit.hooks.exporters import RecordExporter as RecordExporter
    from templatekit.hooks.loading import create_registry as create_registry
    from templatekit.hooks.record_fields import WEIGHT_KEYS as WEIGHT_KEYS
    from templatekit.hooks.record_fields import as_function as as_function
    from templatekit.hooks.record_fields import objects_of as objects_of
    from templatekit.hooks.record_fields import strict_json as strict_json
    from templatekit.hooks.record_fields import text_of as text_of
    from templatekit.hooks.record_fields import tools_of as tools_of
    from templatekit.hooks.record_fields import weight_of as weight_of
    from templatekit.hooks.registry import Registry as Registry
    from templatekit.hooks.specs import hookimpl as hookimpl
    from templatekit.serving import Branch as Branch
    from templatekit.serving import Bridge as Bridge
    from templatekit.serving import Dialogue as Dialogue
    from templatekit.serving import Divergence as Divergence
    from templatekit.tokens.tokenizer import Tokenizer as Tokenizer
    from templatekit.training.run import Run as Run
    from templatekit.training.run import finetune as finetune
    from templatekit.types import IGNORE_INDEX as IGNORE_INDEX
    from templatekit.types import Example as Example
    from templatekit.types import LossSpan as LossSpan
    from templatekit.types import Message as Message
    from templatekit.types import Origin as Origin
    from templatekit.types import PackedBatch as PackedBatch
    from templatekit.types import PreferenceExample as PreferenceExample
    from templatekit.types import Record as Record
    from templatekit.types import RenderedText as RenderedText
    from templatekit.types import Segment as Segment
    from templatekit.types import Span as Span
    from templatekit.types import TargetSpan as TargetSpan
    from templatekit.types import TokenizedExample as TokenizedExample

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "api": "parse prepare render",
    "config.data_options": "DataOptions",
    "config.finetune_options": "FinetuneOptions",
    "errors": (
        "ConfigError PluginError RecordError RunError SourceError TemplateError TemplatekitError TokenizerError "
        "UnknownNameError"
    ),
    "formats": "Template load_template",
    "formats.answers.grammar": "AnswerGrammar",
    "formats.answers.parsing": "AnswerEvent AnswerParser ParsedAnswer",
    "hooks.contracts": "Adapter ModelResolver Source TemplateFile template_files",
    "hooks.exporters": "Exporter FolderExporter RecordExporter",
    "hooks.loading": "create_registry",
    "hooks.record_fields": "WEIGHT_KEYS as_function objects_of strict_json text_of tools_of weight_of",
    "hooks.registry": "Registry",
    "hooks.specs": "hookimpl",
    "serving": "Branch Bridge Dialogue Divergence",
    "tokens.tokenizer": "Tokenizer",
    "training.run": "Run finetune",
    "types": (
        "IGNORE_INDEX Example LossSpan Message Origin PackedBatch PreferenceExample Record RenderedText Segment "
        "Span TargetSpan TokenizedExample"
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC_NAMES.items() for name in names.split()}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_MODULE_OF, "__version__"])


if not TYPE_CHECKING:  # mypy takes a list that is computed for an empty one
    __all__ = __dir__()
