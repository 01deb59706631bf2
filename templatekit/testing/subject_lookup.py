"""Finds the subjects to check, by name or file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from templatekit.errors import PluginError, TemplatekitError, UnknownNameError
from templatekit.formats.lookup import TOKENIZER_TEMPLATE, find_template
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.loading import create_registry, import_file
from templatekit.hooks.offers import Plugin
from templatekit.hooks.registry import Registry
from templatekit.testing.subject import Subject
from templatekit.testing.tiny_tokenizers import MAIN, TINY, tiny_tokenizer
from templatekit.tokens.load import find_tokenizer
from templatekit.tokens.tokenizer import Tokenizer

Format: TypeAlias = str | os.PathLike[str] | Adapter | Template
"""An adapter, a template, or the name or file of one."""


def subjects_of(
    format: Format,
    tokenizers: Iterable[str | os.PathLike[str] | Tokenizer] = MAIN,
    registry: Registry | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[Subject]:
    """The subjects of a format: each of its adapters and templates with each tokenizer.

    `format` is an object, the name of an adapter, a template or a plugin (or of several of these), a `.jinja` template
    or a `.py` plugin. A plugin stands for all that it offers. `tokenizers` are names of tiny tokenizers, folders, model
    names or objects; Python of such a folder is run only with `trust_remote_code`. For a template that lists special
    tokens, the first tiny tokenizer is also tried with them added.
    """
    registry = registry or create_registry()
    loaded = [_tokenizer(each, registry, trust_remote_code=trust_remote_code) for each in tokenizers]
    subjects: list[Subject] = []
    for offer in _adapters_and_templates(format, registry) if loaded else ():
        if offer == TOKENIZER_TEMPLATE:
            for each in loaded:
                template = find_template(TOKENIZER_TEMPLATE, registry, chat_template=each.chat_template)
                subjects.append(Subject(template=template, tokenizer=each, registry=registry))
            continue
        first = Subject(
            adapter=offer if isinstance(offer, Adapter) else None,
            template=offer if isinstance(offer, Template) else None,
            tokenizer=loaded[0],
            registry=registry,
        )
        subjects += [first, *(first.with_tokenizer(each) for each in loaded[1:])]
        special = first.template.metadata.special_tokens if isinstance(offer, Template) else ()
        missing = tuple(text for text in special if text not in first.tokenizer.control_tokens)
        if missing and first.tokenizer.name in TINY:
            subjects.append(first.with_tokenizer(tiny_tokenizer(first.tokenizer.name, missing)))
    return subjects


def _adapters_and_templates(format: Format, registry: Registry) -> Iterator[Adapter | Template | str]:
    """The adapters and templates of a format; the tokenizer's own template as its name."""
    if isinstance(format, (Adapter, Template)):
        yield format
        return
    name = os.fspath(format)
    if name.endswith(".py"):
        yield from _offered_by(Path(name))
        return
    plugin = next((plugin for plugin in registry.plugins if plugin.name == name), None)
    adapters, templates = (
        [each for each in offers if each == name or (plugin is not None and offers.owner(each) is plugin)]
        for offers in (registry.adapters, registry.templates)
    )
    yield from (registry.adapters[each] for each in adapters)
    if name == TOKENIZER_TEMPLATE:
        yield name
    elif templates:
        yield from (find_template(each, registry) for each in templates)
    elif name.endswith((".jinja", ".jinja2", ".j2")) or Path(name).is_file():
        yield find_template(name, registry)
    elif not adapters:
        names = {*registry.adapters, *registry.templates}
        if plugin is not None:
            raise UnknownNameError("adapter or template", name, names, hint=f"; the plugin {name!r} offers neither")
        names.update(plugin.name for plugin in registry.plugins)
        raise UnknownNameError("adapter, template or plugin", name, names)


def _offered_by(path: Path) -> list[Adapter | Template]:
    """The adapters and templates of a plugin file, whether or not the plugin is installed too."""
    alone = Registry()
    try:
        alone.register(Plugin(name=path.stem, origin=str(path), module=import_file(path)))
    except TemplatekitError:
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise PluginError(f"plugin file {str(path)!r}: importing it raised {type(error).__name__}: {error}") from error
    found: list[Adapter | Template] = [*alone.adapters.values()]
    found += [find_template(name, alone) for name in alone.templates]
    if not found:
        failed = "".join(f"; {failure.reason}" for failure in alone.failures)
        raise PluginError(
            f"plugin file {str(path)!r} offers neither an adapter nor a template{failed}; expected a function "
            "templatekit_adapters or templatekit_templates, marked @templatekit.hookimpl"
        )
    return found


def _tokenizer(each: str | os.PathLike[str] | Tokenizer, registry: Registry, *, trust_remote_code: bool) -> Tokenizer:
    if isinstance(each, Tokenizer):
        return each
    name = os.fspath(each)
    if name in TINY:
        return tiny_tokenizer(name)
    return find_tokenizer(name, registry, trust_remote_code=trust_remote_code)
