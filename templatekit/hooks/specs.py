"""The hooks a plugin may implement.

Each returns values; nothing is registered by side effect, so the host always knows who offered what. Mark an
implementation with `@templatekit.hookimpl`. All are called once a process, when something of the kind is first needed,
on every plugin; an empty list means that the plugin has nothing of the kind. An exception leaves out what the plugin
offers, and is reported under its name. What a plugin prints goes to standard error.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from templatekit.hooks.contracts import Adapter, ModelResolver, Source, TemplateFile
from templatekit.hooks.exporters import Sink

PROJECT = "templatekit"
"""The name of the entry-point group, and the prefix of every hook."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def templatekit_adapters() -> Iterable[Adapter]:
    """Offer adapters: `--adapter NAME`, or chosen by the keys of the records.

    Two adapters of one name are an error that names both plugins.
    """
    raise NotImplementedError


@hookspec
def templatekit_templates() -> Iterable[TemplateFile]:
    """Offer prompt templates: `--template NAME`.

    `templatekit.template_files(folder)` offers every `.jinja` file of a folder. The source is compiled when the
    template is used, so a template with an error in it harms nobody else.
    """
    raise NotImplementedError


@hookspec
def templatekit_sources() -> Iterable[Source]:
    """Offer places to read records from: `--dataset ADDRESS`.

    The sources are asked in order of registration, plugins' before the built-in ones, and the first whose `accepts`
    says yes reads the address.
    """
    raise NotImplementedError


@hookspec
def templatekit_models() -> Iterable[ModelResolver]:
    """Offer ways to find a model by name: `--model NAME`.

    Asked only for names that are no local path. The first that does not answer None is taken; where all answer None
    the name goes to the Hugging Face hub.
    """
    raise NotImplementedError


@hookspec
def templatekit_exporters() -> Iterable[Sink]:
    """Offer formats for prepared examples: `render --format NAME`.

    An `Exporter` writes a file of texts and ids, a `RecordExporter` conversations in an adapter's shape, a
    `FolderExporter` a folder.
    """
    raise NotImplementedError
