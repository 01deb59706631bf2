"""Finds the template that a user names, detects the adapter from a record's keys, and checks an end marker."""

from __future__ import annotations

from collections.abc import Mapping, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from templatekit.config.text_files import is_file
from templatekit.errors import ConfigError, RecordError, TemplateError
from templatekit.formats.sandbox.untrusted import UntrustedTemplate, load_template
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter, TemplateFile
from templatekit.hooks.registry import Registry
from templatekit.types import SpecialTokens

TOKENIZER_TEMPLATE = "tokenizer"
"""The template name that means the tokenizer's own chat template."""


def find_template(
    address: str, registry: Registry, *, chat_template: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> Template:
    """The template of this name or path, or `chat_template` for the name `tokenizer`.

    A name takes precedence over an equal path. `kwargs` are values for the variables that the template reads in
    addition to those it is always given.
    """
    if address == TOKENIZER_TEMPLATE:
        if chat_template is None:
            raise TemplateError(
                "template 'tokenizer' is the tokenizer's own chat template; this tokenizer has none; "
                f"choose one of {', '.join(sorted(registry.templates))}, or a .jinja file"
            )
        return UntrustedTemplate(
            TemplateFile(name=TOKENIZER_TEMPLATE, source=chat_template), strict=False, kwargs=kwargs
        )
    if _is_path(address, registry):
        return load_template(address, kwargs=kwargs)
    return Template(registry.templates[address], kwargs=kwargs)


def template_file(address: str, registry: Registry) -> Path | None:
    """The file of the template of this name or path; None for a template without one, such as the tokenizer's own."""
    if address == TOKENIZER_TEMPLATE:
        return None
    path = address if _is_path(address, registry) else registry.templates[address].path
    return None if path is None else Path(path)


def _is_path(address: str, registry: Registry) -> bool:
    """Whether a template is named by its path."""
    named = address.endswith((".jinja", ".jinja2", ".j2"))
    return named or (address not in registry.templates and is_file(Path(address)))


def check_end_marker(marker: str, template: Template, tokens: SpecialTokens) -> None:
    """Raise `ConfigError` for a text that can end no answer, because neither the template nor the tokenizer has it."""
    special = {tokens.eos, *tokens.special}
    # Compared by words, because a template may write a line break directly or as `\n`.
    if marker in special or all(word in template.source for word in marker.split()):
        return
    close_matches = get_close_matches(marker, sorted(special), n=3)
    hint = (
        f"did you mean {' or '.join(map(repr, close_matches))}?"
        if close_matches
        else "expected a text that it writes after an answer"
    )
    raise ConfigError(
        f"end_marker={marker!r}: template {template.name!r} does not write it, and it is no special token; "
        f"{hint} (`none`: an answer may end without one)"
    )


def choose_adapter(keys: Set[str], registry: Registry) -> Adapter:
    """The adapter that reads records with these keys.

    If several match, it is the one that reads the most keys; a tie is an error that names them.
    """
    matching = {name: adapter for name, adapter in registry.adapters.items() if adapter.matches(keys)}
    if not matching:
        shapes = "; ".join(
            f"{name}: {', '.join(adapter.required)}" for name, adapter in registry.adapters.items() if adapter.required
        )
        found = ", ".join(sorted(map(str, keys))) or "(none)"
        raise RecordError(
            f"no adapter reads records of this shape; found keys {found}; known shapes: {shapes}; "
            f"{_misspelling_hint(keys, registry) or 'map the keys (--columns instruction=…,response=…)'}, "
            "or name an adapter (--adapter)",
            reason="no_adapter",
        )
    scores = {name: len(keys & set(adapter.keys)) for name, adapter in matching.items()}
    best = [name for name, score in scores.items() if score == max(scores.values())]
    if len(best) > 1:
        raise RecordError(
            f"several adapters read records with keys {', '.join(sorted(keys))}: "
            f"{', '.join(best)}; name one (--adapter)",
            reason="no_adapter",
        )
    return matching[best[0]]


def _misspelling_hint(keys: Set[str], registry: Registry) -> str:
    """The option that maps misspelt keys to an adapter's, if each missing key has a close match; else ""."""
    for adapter in registry.adapters.values():
        missing = [key for key in adapter.required if key not in keys]
        close_matches = {key: get_close_matches(key, map(str, keys - set(adapter.keys)), n=1) for key in missing}
        if missing and all(close_matches.values()):
            columns = ",".join(f"{key}={matches[0]}" for key, matches in close_matches.items())
            return f"is {adapter.name!r} meant? then --columns {columns}"
    return ""
