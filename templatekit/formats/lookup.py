"""Finds the template, the end marker and the adapter that a user names, or tells the adapter by the records' keys."""

from __future__ import annotations

from collections.abc import Mapping, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from templatekit.errors import ConfigError, RecordError, TemplateError
from templatekit.formats.sandbox.untrusted import ForeignTemplate, load_template
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter, TemplateFile
from templatekit.hooks.registry import Registry
from templatekit.types import SpecialTokens

OWN_TEMPLATE = "tokenizer"
"""The name under which a tokenizer's own chat template is asked for."""


def find_template(
    address: str, registry: Registry, *, chat_template: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> Template:
    """A template by name, by path, or, as `tokenizer`, the chat template given. A name goes before an equal path.

    `kwargs` are values for variables that the template reads beyond those it is always given.
    """
    if address == OWN_TEMPLATE:
        if chat_template is None:
            raise TemplateError(
                "template 'tokenizer' is the tokenizer's own chat template; this tokenizer has none; "
                f"choose one of {', '.join(sorted(registry.templates))}, or a .jinja file"
            )
        return ForeignTemplate(TemplateFile(name=OWN_TEMPLATE, source=chat_template), strict=False, kwargs=kwargs)
    if address.endswith((".jinja", ".jinja2", ".j2")) or (address not in registry.templates and _is_file(address)):
        return load_template(address, kwargs=kwargs)
    return Template(registry.templates[address], kwargs=kwargs)


def _is_file(address: str) -> bool:
    try:
        return Path(address).is_file()
    except OSError:  # longer than a path may be
        return False


def check_end_marker(marker: str, template: Template, tokens: SpecialTokens) -> None:
    """Raises `ConfigError` for a text that can end no answer, since neither template nor tokenizer have it."""
    special = {tokens.eos, *tokens.special}
    # By words: a template may write a line break as it is, or as `\\n`.
    if marker in special or all(word in template.source for word in marker.split()):
        return
    close = get_close_matches(marker, sorted(special), n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "expected what it writes behind an answer"
    raise ConfigError(
        f"end_marker={marker!r}: template {template.name!r} does not write it, and it is no special token; "
        f"{hint} (`none`: an answer may end without one)"
    )


def choose_adapter(keys: Set[str], registry: Registry) -> Adapter:
    """The adapter whose shape records with these keys have.

    Where several match, the one that reads the most of the keys; a tie is an error that names them.
    """
    matching = {name: adapter for name, adapter in registry.adapters.items() if adapter.matches(keys)}
    if not matching:
        shapes = "; ".join(
            f"{name}: {', '.join(adapter.required)}" for name, adapter in registry.adapters.items() if adapter.required
        )
        found = ", ".join(sorted(map(str, keys))) or "(none)"
        raise RecordError(
            f"no adapter reads records of this shape; found keys {found}; known shapes: {shapes}; "
            f"{_misspelt(keys, registry) or 'map the keys (--columns instruction=…,response=…)'}, "
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


def _misspelt(keys: Set[str], registry: Registry) -> str:
    """What would map misspelt keys to an adapter's, where a few near misses are all that is wrong; else ""."""
    for adapter in registry.adapters.values():
        missing = [key for key in adapter.required if key not in keys]
        near = {key: get_close_matches(key, map(str, keys - set(adapter.keys)), n=1) for key in missing}
        if missing and all(near.values()):
            columns = ",".join(f"{key}={matches[0]}" for key, matches in near.items())
            return f"is {adapter.name!r} meant? then --columns {columns}"
    return ""
