"""Finds what is to be checked, by name, by file or as it is, and hands it to pytest check by check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from templatekit.errors import PluginError, TemplatekitError, UnknownNameError
from templatekit.formats.lookup import OWN_TEMPLATE, find_template
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.offers import Plugin
from templatekit.hooks.registry import Registry, create_registry, import_file
from templatekit.testing.runner import CHECKS, find_check
from templatekit.testing.subject import Subject
from templatekit.testing.tiny_tokenizers import MAIN, TINY, tiny_tokenizer
from templatekit.tokens.load import find_tokenizer
from templatekit.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pytest

Format: TypeAlias = str | os.PathLike[str] | Adapter | Template
"""An adapter, a template, or the name or the file of one."""


def subjects_of(
    format: Format, tokenizers: Iterable[str | os.PathLike[str] | Tokenizer] = MAIN, registry: Registry | None = None
) -> list[Subject]:
    """Each adapter and template that is meant, with each tokenizer.

    A name is an adapter's, a template's or a plugin's, which means all that it offers, and may be several of these; a
    `.jinja` file is a template, a `.py` file a plugin. Tokenizers are tiny ones by name, folders, models' names or
    objects. Where a template lists special tokens, the first tiny tokenizer is tried with them, too.
    """
    registry = registry or create_registry()
    found = [_tokenizer(each, registry) for each in tokenizers]
    subjects: list[Subject] = []
    for part in _parts(format, registry) if found else ():
        if part == OWN_TEMPLATE:
            own = ((find_template(OWN_TEMPLATE, registry, chat_template=each.chat_template), each) for each in found)
            subjects += [Subject(template=template, tokenizer=each, registry=registry) for template, each in own]
            continue
        first = Subject(
            adapter=part if isinstance(part, Adapter) else None,
            template=part if isinstance(part, Template) else None,
            tokenizer=found[0],
            registry=registry,
        )
        subjects += [first, *(first.with_tokenizer(each) for each in found[1:])]
        special = first.template.metadata.special_tokens if isinstance(part, Template) else ()
        missing = tuple(text for text in special if text not in first.tokenizer.control_tokens)
        if missing and first.tokenizer.name in TINY:
            subjects.append(first.with_tokenizer(tiny_tokenizer(first.tokenizer.name, missing)))
    return subjects


def _parts(format: Format, registry: Registry) -> Iterator[Adapter | Template | str]:
    """The adapters and templates that are meant; the name of one that depends on the tokenizer stays a name."""
    if isinstance(format, (Adapter, Template)):
        yield format
        return
    name = os.fspath(format)
    if name.endswith(".py"):
        yield from _offered_by(Path(name))
        return
    plugin = next((plugin for plugin in registry.plugins if plugin.name == name), None)
    adapters = [each for each in registry.adapters if each == name or _offers(plugin, registry.adapters, each)]
    templates = [each for each in registry.templates if each == name or _offers(plugin, registry.templates, each)]
    yield from (registry.adapters[each] for each in adapters)
    if name == OWN_TEMPLATE:
        yield name
    elif templates:
        yield from (find_template(each, registry) for each in templates)
    elif name.endswith((".jinja", ".jinja2", ".j2")) or Path(name).is_file():
        yield find_template(name, registry)
    elif not adapters:
        if plugin is not None:
            raise UnknownNameError(
                "adapter or template",
                name,
                [*registry.adapters, *registry.templates],
                hint=f"; the plugin {name!r} offers neither",
            )
        names = {*registry.adapters, *registry.templates, *(plugin.name for plugin in registry.plugins)}
        raise UnknownNameError("adapter, template or plugin", name, names)


def _offered_by(path: Path) -> list[Adapter | Template]:
    """What a plugin's file offers, whether or not the plugin is installed as well."""
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


def _offers(plugin: Plugin | None, offers: Any, name: str) -> bool:
    return plugin is not None and offers.owner(name) is plugin


def _tokenizer(each: str | os.PathLike[str] | Tokenizer, registry: Registry) -> Tokenizer:
    if isinstance(each, Tokenizer):
        return each
    name = os.fspath(each)
    return tiny_tokenizer(name) if name in TINY else find_tokenizer(name, registry)


def parametrize_with_checks(
    formats: Iterable[Format | Subject],
    *,
    tokenizers: Iterable[str | os.PathLike[str] | Tokenizer] = MAIN,
    checks: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] = {},
    registry: Registry | None = None,
) -> pytest.MarkDecorator:
    """A pytest decorator: the test is called with `subject` and `check` for each format, tokenizer and check.

    `expected_failures` maps names of checks to the reason why the format may fail them; one that holds is reported as a
    failure, so that the list stays true.
    """
    import pytest

    chosen = [find_check(name) for name in (CHECKS if checks is None else checks)]
    for name in expected_failures:
        find_check(name)
    known = registry or create_registry()
    subjects = [
        subject
        for each in formats
        for subject in ([each] if isinstance(each, Subject) else subjects_of(each, tuple(tokenizers), known))
    ]
    return pytest.mark.parametrize(
        ("subject", "check"),
        [
            pytest.param(
                subject,
                check,
                id=f"{subject.label}-{check.name}",
                marks=[pytest.mark.xfail(reason=expected_failures[check.name], raises=AssertionError, strict=True)]
                if check.name in expected_failures
                else [],
            )
            for subject in subjects
            for check in chosen
        ],
    )
