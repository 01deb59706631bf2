"""Data to training examples: adapters and templates as plugins, exact loss masks, and a loop that never changes.

The public names, loaded when first used, so that `import templatekit` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from templatekit.api import prepare, render
    from templatekit.config.options import DataOptions, FinetuneOptions
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
    from templatekit.hooks.contracts import (
        WEIGHT_KEYS,
        Adapter,
        ModelResolver,
        Source,
        TemplateFile,
        as_function,
        objects_of,
        template_files,
        text_of,
        tools_of,
        weight_of,
    )
    from templatekit.hooks.exporters import Exporter, FolderExporter, RecordExporter
    from templatekit.hooks.registry import Registry, create_registry
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

_HOMES = {
    "config.options": ("DataOptions", "FinetuneOptions"),
    "hooks.contracts": (
        "WEIGHT_KEYS",
        "Adapter",
        "ModelResolver",
        "Source",
        "TemplateFile",
        "as_function",
        "objects_of",
        "template_files",
        "text_of",
        "tools_of",
        "weight_of",
    ),
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
    "hooks.specs": ("hookimpl",),
    "api": ("prepare", "render"),
    "hooks.registry": ("Registry", "create_registry"),
    "hooks.exporters": ("Exporter", "FolderExporter", "RecordExporter"),
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
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

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
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
