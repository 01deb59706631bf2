"""`Registry`: the loaded plugins, and what they offer.

A plugin whose hook raises is left out and listed in `Registry.failures`. A plugin that breaks a contract in a way that
could silently change results (a misspelt hook, a value of the wrong type) is an error. Everything that plugins print
goes to standard error, since standard output is the caller's. With `TEMPLATEKIT_TRACE_HOOKS=1` each import and hook
call is logged to standard error, in order, with its time.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pluggy

from templatekit.errors import PluginError, nearest, shorten
from templatekit.hooks import specs as hookspecs
from templatekit.hooks.contracts import Adapter, ModelResolver, Source, TemplateFile
from templatekit.hooks.exporters import BaseExporter
from templatekit.hooks.offers import Offers, Plugin, PluginFailure
from templatekit.views import visible

T = TypeVar("T")
TRACE_VARIABLE = "TEMPLATEKIT_TRACE_HOOKS"


class RegistryArguments(NamedTuple):
    """The arguments of `create_registry`, except plugin objects: with them another process loads the same plugins."""

    plugin_dirs: tuple[Path, ...] = ()
    entry_points: bool = True
    select: tuple[str, ...] | None = None


class Registry:
    """Plugins and what they offer. `create_registry` makes one; there is no global registry."""

    arguments: RegistryArguments | None = None
    """The arguments that load the same plugins in another process; None if some plugins were given as objects."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self.failures: list[PluginFailure] = []

    def register(self, plugin: Plugin) -> None:
        """Add a plugin; raise `PluginError` if it has a hook that is never called, or repeats another plugin."""
        _check_hooks(plugin, self._manager)
        for known in self.plugins:
            if known.name == plugin.name:
                raise PluginError(
                    f"two plugins are named {plugin.name!r}: {known.origin} and {plugin.origin}; remove or rename one"
                )
            if known.module is plugin.module:
                raise PluginError(
                    f"plugins {known.name!r} ({known.origin}) and {plugin.name!r} ({plugin.origin}) are one module; "
                    "keep one of the two names"
                )
        try:
            self._manager.register(plugin.module, name=plugin.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {plugin.name!r} ({plugin.origin}): {_one_line(error)}") from error
        self.plugins.append(plugin)

    def fail(self, name: str, origin: str, action: str, error: BaseException) -> None:
        """Record that a plugin, or what it offers of one kind, is left out because `action` raised an error."""
        raised = f"{action} raised {type(error).__name__}"
        message = _one_line(error)
        self.leave_out(name, origin, f"{raised}: {message}" if message else raised)

    def leave_out(self, name: str, origin: str, reason: str) -> None:
        """Record that a plugin, or what it offers of one kind, is left out."""
        failure = PluginFailure(name=name, origin=origin, reason=reason)
        if failure not in self.failures:
            self.failures.append(failure)

    @cached_property
    def adapters(self) -> Offers[Adapter]:
        """Adapters by name."""
        return self._collect("adapter", "templatekit_adapters", Adapter)

    @cached_property
    def templates(self) -> Offers[TemplateFile]:
        """Template files by name."""
        return self._collect("template", "templatekit_templates", TemplateFile)

    @cached_property
    def sources(self) -> Offers[Source]:
        """Sources by name; those of plugins come before the built-in ones."""
        return self._collect("source", "templatekit_sources", Source, built_in_last=True)

    @cached_property
    def models(self) -> Offers[ModelResolver]:
        """Model resolvers by name."""
        return self._collect("model resolver", "templatekit_models", ModelResolver)

    @cached_property
    def exporters(self) -> Offers[BaseExporter]:
        """Exporters by name."""
        return self._collect("format", "templatekit_exporters", BaseExporter)

    def _collect(self, kind: str, hook: str, expected: type[Any], *, built_in_last: bool = False) -> Offers[T]:
        offers: Offers[T] = Offers(kind, self.failures)
        for plugin in sorted(self.plugins, key=lambda plugin: built_in_last and plugin.built_in):
            where = f"plugin {plugin.name!r} ({plugin.origin}): {hook}"
            for value in self._call_hook(plugin, hook, expected, where):
                offers.add(_check_offer(value, expected, where), value, plugin)
        return offers

    def _call_hook(self, plugin: Plugin, hook: str, expected: type[Any], where: str) -> list[Any]:
        """The values that a plugin's hook returns; none if it raises. Raises `PluginError` if it returns no list."""
        others = [other.module for other in self.plugins if other is not plugin]
        values: list[Any] = []
        unlisted: list[Any] = []
        try:
            with redirect_stdout(sys.stderr), log_time(f"{hook} of {plugin.name} ({plugin.origin})"):
                for returned in self._manager.subset_hook_caller(hook, remove_plugins=others)():
                    if isinstance(returned, (str, Mapping, expected)) or not isinstance(returned, Iterable):
                        unlisted.append(returned)
                    else:
                        values += returned
        except (Exception, SystemExit) as error:  # third-party code may raise anything; the other plugins still load
            self.fail(plugin.name, plugin.origin, hook, error)
            return []
        if unlisted:
            raise _wrong_offer(unlisted[0], expected, where)
        return values


def _wrong_offer(value: object, expected: type[Any], where: str) -> PluginError:
    """The error for a value that a hook returned in place of a list, or in it."""
    hint = "; return a list, even of one" if isinstance(value, expected) else ""
    if isinstance(value, type) and issubclass(value, expected):
        hint = f"; return instances: [{value.__name__}()]"
    return PluginError(f"{where} returned {shorten(value)}; expected a list of {expected.__name__} objects{hint}")


def _check_offer(value: object, expected: type[Any], where: str) -> str:
    """The name of a value that a hook returned; raises `PluginError` if the value breaks the hook's contract."""
    if not isinstance(value, expected):
        raise _wrong_offer(value, expected, where)
    name = getattr(value, "name", None)
    if not isinstance(name, str) or not name:
        raise PluginError(f"{where} returned {type(value).__name__} with name={name!r}; expected a non-empty text")
    for attribute in ("keys", "required", "suffixes"):
        texts = getattr(value, attribute, ())
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            # Often a forgotten comma: ("text") is a string, not a tuple.
            raise PluginError(f"{where}: {name!r} has {attribute}={texts!r}; expected a tuple of texts")
    return name


def _check_hooks(plugin: Plugin, manager: pluggy.PluginManager) -> None:
    """Raise `PluginError` unless every hook of a plugin exists, is marked, and needs no arguments."""
    prefix = f"{hookspecs.PROJECT}_"
    known = [name for name in vars(hookspecs) if name.startswith(prefix)]
    where = f"plugin {plugin.name!r} ({plugin.origin})"
    for name in dir(plugin.module):
        function = getattr(plugin.module, name, None)
        if not inspect.isroutine(function):
            continue
        options = manager.parse_hookimpl_opts(plugin.module, name)
        hook = (options and options.get("specname")) or name
        if hook not in known:
            if options is not None or name.startswith(prefix):
                # Compared without the prefix: all hooks share it, so any two names would look alike.
                close = get_close_matches(hook.removeprefix(prefix), [name.removeprefix(prefix) for name in known], 1)
                hint = nearest(prefix + hook.removeprefix(prefix), [prefix + name for name in close] or known)
                raise PluginError(f"{where}: there is no hook {hook!r}; {hint}")
            continue
        if options is None:
            raise PluginError(f"{where}: {name} is not marked as a hook; put @templatekit.hookimpl above it")
        needed = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]
        if needed:
            raise PluginError(f"{where}: {name} takes {', '.join(map(repr, needed))}; expected def {hook}()")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}…"


@contextmanager
def log_time(action: str) -> Iterator[None]:
    """Print an action and its time to standard error, if `TEMPLATEKIT_TRACE_HOOKS` is set."""
    if os.environ.get(TRACE_VARIABLE, "0") in ("", "0"):
        yield
        return
    start = time.perf_counter()
    outcome = "raised"
    try:
        yield
        outcome = "took"
    finally:
        milliseconds = (time.perf_counter() - start) * 1e3
        print(visible(f"templatekit: {action} {outcome} {milliseconds:.1f} ms"), file=sys.stderr)
