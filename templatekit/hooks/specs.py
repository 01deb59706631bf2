"""The hooks that a plugin may implement. Mark an implementation with `@templatekit.hookimpl`.

A hook returns values and registers nothing, so that the host always knows which plugin offers which value. Each hook is
called once in a process, on every plugin, when a value of its kind is first needed. An empty list means that the plugin
offers nothing of the kind; a value that is no list, even a single one, is an error. If a hook raises, its values are
left out and the error is reported with the plugin's name. Everything that a plugin prints goes to standard error.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from templatekit.hooks.contracts import Adapter, ModelResolver, Source, TemplateFile
from templatekit.hooks.exporters import BaseExporter

PROJECT = "templatekit"
"""The name of the entry-point group, and the prefix of every hook."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def templatekit_adapters() -> Iterable[Adapter]:
    """Offer adapters, for `--adapter NAME` or chosen by the keys of the records.

    Two adapters with the same name are an error that names both plugins.
    """
    raise NotImplementedError


@hookspec
def templatekit_templates() -> Iterable[TemplateFile]:
    """Offer prompt templates, for `--template NAME`.

    `templatekit.template_files(folder)` returns every `.jinja` file of a folder. A template is compiled only when it is
    used, so an error in one does not affect the others.
    """
    raise NotImplementedError


@hookspec
def templatekit_sources() -> Iterable[Source]:
    """Offer sources, which read records from addresses: `--dataset ADDRESS`.

    The first source whose `accepts` returns True reads the address. Sources are tried in the order of registration,
    those of plugins before the built-in ones.
    """
    raise NotImplementedError


@hookspec
def templatekit_models() -> Iterable[ModelResolver]:
    """Offer model resolvers, which find a model by name: `--model NAME`.

    They are called only if the name is not a local path. The first result that is not None is used; if all are None,
    the name is looked up on the Hugging Face hub.
    """
    raise NotImplementedError


@hookspec
def templatekit_exporters() -> Iterable[BaseExporter]:
    """Offer exporters, which write prepared examples: `render --format NAME`.

    An `Exporter` writes a file of texts and ids, a `RecordExporter` writes conversations as an adapter's records, and a
    `FolderExporter` writes a folder.
    """
    raise NotImplementedError
