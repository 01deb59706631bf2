"""templatekit turns data into tokenized, loss-masked training examples, and fine-tunes language models on them.

The public names are imported on first use, so that `import templatekit` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from templatekit.api import prepare, render
    from templatekit.config.data_options import DataOptions
    from templatekit.config.finetune_options import FinetuneOptions
    from templatekit.errors import (
        ConfigError,
        PluginError,
        RecordError,
        RunError,
        SourceError,
        TemplateError,
        TemplatekitError,
        TokenizerError,
        UnknownNameError,
    )
    from templatekit.formats import Template, load_template
    from templatekit.hooks.contracts import Adapter, ModelResolver, Source, TemplateFile, template_files
    from templatekit.hooks.exporters import Exporter, FolderExporter, RecordExporter
    from templatekit.hooks.loading import create_registry
    from templatekit.hooks.record_fields import WEIGHT_KEYS, as_function, objects_of, text_of, tools_of, weight_of
    from templatekit.hooks.registry import Registry
    from templatekit.hooks.specs import hookimpl
    from templatekit.tokens.tokenizer import Tokenizer
    from templatekit.training.run import Run, finetune
    from templatekit.types import (
        IGNORE_INDEX,
        Example,
        LossSpan,
        Message,
        Origin,
        PackedBatch,
        PreferenceExample,
        Record,
        RenderedText,
        Segment,
        Span,
        TargetSpan,
        TokenizedExample,
    )

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "api": ("prepare", "render"),
    "config.data_options": ("DataOptions",),
    "config.finetune_options": ("FinetuneOptions",),
    "errors": (
        "ConfigError",
        "PluginError",
        "RecordError",
        "RunError",
        "SourceError",
        "TemplateError",
        "TemplatekitError",
        "TokenizerError",
        "UnknownNameError",
    ),
    "formats": ("Template", "load_template"),
    "hooks.contracts": ("Adapter", "ModelResolver", "Source", "TemplateFile", "template_files"),
    "hooks.exporters": ("Exporter", "FolderExporter", "RecordExporter"),
    "hooks.loading": ("create_registry",),
    "hooks.record_fields": ("WEIGHT_KEYS", "as_function", "objects_of", "text_of", "tools_of", "weight_of"),
    "hooks.registry": ("Registry",),
    "hooks.specs": ("hookimpl",),
    "tokens.tokenizer": ("Tokenizer",),
    "training.run": ("Run", "finetune"),
    "types": (
        "IGNORE_INDEX",
        "Example",
        "LossSpan",
        "Message",
        "Origin",
        "PackedBatch",
        "PreferenceExample",
        "Record",
        "RenderedText",
        "Segment",
        "Span",
        "TargetSpan",
        "TokenizedExample",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}
"""The module of each public name."""

__all__ = [
    "IGNORE_INDEX",
    "WEIGHT_KEYS",
    "Adapter",
    "ConfigError",
    "DataOptions",
    "Example",
    "Exporter",
    "FinetuneOptions",
    "FolderExporter",
    "LossSpan",
    "Message",
    "ModelResolver",
    "Origin",
    "PackedBatch",
    "PluginError",
    "PreferenceExample",
    "Record",
    "RecordError",
    "RecordExporter",
    "Registry",
    "RenderedText",
    "Run",
    "RunError",
    "Segment",
    "Source",
    "SourceError",
    "Span",
    "TargetSpan",
    "Template",
    "TemplateError",
    "TemplateFile",
    "TemplatekitError",
    "TokenizedExample",
    "Tokenizer",
    "TokenizerError",
    "UnknownNameError",
    "__version__",
    "as_function",
    "create_registry",
    "finetune",
    "hookimpl",
    "load_template",
    "objects_of",
    "prepare",
    "render",
    "template_files",
    "text_of",
    "tools_of",
    "weight_of",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
