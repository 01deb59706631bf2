"""Finds plugins and keeps what they offer, each under its name, with who offered it.

A plugin that fails to import, or whose hook raises, is left out and listed in `Registry.failures`. A plugin that breaks
a contract in a way that could silently change results (a misspelt hook, a name taken twice) is an error.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from templatekit import hookspecs
from templatekit.contracts import Adapter, Exporter, ModelResolver, Source, TemplateFile
from templatekit.errors import PluginError, UnknownNameError, nearest, shorten

T = TypeVar("T")
PLUGIN_DIR_VARIABLE = "TEMPLATEKIT_PLUGIN_DIR"
SELECT_VARIABLE = "TEMPLATEKIT_PLUGINS"
BUILT_IN = "templatekit"
"""The distribution whose plugins are always loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A loaded plugin."""

    name: str
    origin: str
    """The distribution with its version, or the file."""
    module: object
    built_in: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFailure:
    """A plugin that was left out, and why."""

    name: str
    origin: str
    reason: str


class Offers(Mapping[str, T], Generic[T]):
    """What the plugins offer of one kind, by name."""

    def __init__(self, kind: str, failures: list[PluginFailure]) -> None:
        self.kind = kind
        self._failures = failures
        self._items: dict[str, T] = {}
        self._owners: dict[str, Plugin] = {}

    def add(self, name: str, item: T, plugin: Plugin) -> None:
        """Takes an item; a name that is taken is an error that names both plugins."""
        if name in self._items:
            first = self._owners[name]
            raise PluginError(
                f"two plugins offer a {self.kind} named {name!r}: {first.name} ({first.origin}) and "
                f"{plugin.name} ({plugin.origin}); remove or rename one"
            )
        self._items[name] = item
        self._owners[name] = plugin

    def owner(self, name: str) -> Plugin:
        """The plugin that offers `name`."""
        return self._owners[name]

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            hint = "".join(f"; plugin {f.name!r} was left out: {f.reason}" for f in self._failures)
            raise UnknownNameError(self.kind, name, self._items, hint=hint) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Registry:
    """Plugins and what they offer. Made by `create_registry`; there is no global one."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self.failures: list[PluginFailure] = []

    def register(self, plugin: Plugin) -> None:
        """Takes a plugin in; raises `PluginError` for hooks that no host would call."""
        _check_hook_names(plugin, self._manager)
        if any(plugin.name == known.name for known in self.plugins):
            known = next(known for known in self.plugins if known.name == plugin.name)
            raise PluginError(
                f"two plugins are named {plugin.name!r}: {known.origin} and {plugin.origin}; remove or rename one"
            )
        try:
            self._manager.register(plugin.module, name=plugin.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {plugin.name!r} ({plugin.origin}): {error}") from error
        self.plugins.append(plugin)

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
        """Sources by name, plugins' before the built-in ones."""
        return self._collect("source", "templatekit_sources", Source, built_in_last=True)

    @cached_property
    def models(self) -> Offers[ModelResolver]:
        """Model resolvers by name."""
        return self._collect("model resolver", "templatekit_models", ModelResolver)

    @cached_property
    def exporters(self) -> Offers[Exporter]:
        """Exporters by name."""
        return self._collect("format", "templatekit_exporters", Exporter)

    def _collect(self, kind: str, hook: str, of: type[Any], *, built_in_last: bool = False) -> Offers[T]:
        offers: Offers[T] = Offers(kind, self.failures)
        for plugin in sorted(self.plugins, key=lambda plugin: built_in_last and plugin.built_in):
            others = [other.module for other in self.plugins if other is not plugin]
            try:
                answers = self._manager.subset_hook_caller(hook, remove_plugins=others)()
                items = [item for answer in answers for item in answer]
            except Exception as error:  # a stranger's code: whatever it raises, the others go on
                reason = f"{hook} raised {type(error).__name__}: {error}"
                self.failures.append(PluginFailure(name=plugin.name, origin=plugin.origin, reason=reason))
                continue
            for item in items:
                name = _checked_name(item, of, hook, plugin)
                offers.add(name, item, plugin)
        return offers


def _checked_name(item: object, of: type[Any], hook: str, plugin: Plugin) -> str:
    where = f"plugin {plugin.name!r} ({plugin.origin}): {hook}"
    if not isinstance(item, of):
        meant = f"; return an instance: {item.__name__}()" if isinstance(item, type) and issubclass(item, of) else ""
        raise PluginError(f"{where} returned {shorten(item)}; expected {of.__name__} objects{meant}")
    name = getattr(item, "name", None)
    if not isinstance(name, str) or not name:
        raise PluginError(f"{where} returned {type(item).__name__} with name={name!r}; expected a non-empty text")
    return name


def _check_hook_names(plugin: Plugin, manager: pluggy.PluginManager) -> None:
    known = [name for name in vars(hookspecs) if name.startswith(f"{hookspecs.PROJECT}_")]
    for name in dir(plugin.module):
        if not callable(getattr(plugin.module, name, None)):
            continue
        marked = manager.parse_hookimpl_opts(plugin.module, name) is not None
        where = f"plugin {plugin.name!r} ({plugin.origin})"
        if marked and name not in known:
            raise PluginError(f"{where}: there is no hook {name!r}; {nearest(name, known)}")
        if not marked and name.startswith(f"{hookspecs.PROJECT}_") and inspect.isfunction(getattr(plugin.module, name)):
            raise PluginError(f"{where}: {name} is not marked as a hook; put @templatekit.hookimpl above it")


def create_registry(
    *,
    plugin_dirs: Iterable[str | Path] = (),
    plugins: Iterable[object] = (),
    entry_points: bool = True,
    select: Iterable[str] | None = None,
) -> Registry:
    """Loads plugins: built-ins and installed ones by entry point, then folders of single files, then given objects.

    `select` names the installed plugins to load; an empty one loads the built-ins alone. Without it the variable
    `TEMPLATEKIT_PLUGINS` (`none`, or names parted by commas) decides, and `TEMPLATEKIT_PLUGIN_DIR` (parted as `PATH`
    is) adds folders.
    """
    registry = Registry()
    if entry_points:
        _load_entry_points(registry, _selection(select))
    extra = [folder for folder in os.environ.get(PLUGIN_DIR_VARIABLE, "").split(os.pathsep) if folder]
    for folder in [*extra, *plugin_dirs]:
        _load_folder(registry, Path(folder))
    for plugin in plugins:
        name = getattr(plugin, "__name__", type(plugin).__name__)
        registry.register(Plugin(name=name, origin="given by the caller", module=plugin))
    return registry


def _selection(select: Iterable[str] | None) -> set[str] | None:
    if select is not None:
        return set(select)
    value = os.environ.get(SELECT_VARIABLE)
    if value is None:
        return None
    return {name.strip() for name in value.split(",") if name.strip()} - {"none"}


def _load_entry_points(registry: Registry, select: set[str] | None) -> None:
    seen: dict[str, str] = {}
    found: set[str] = set()
    # Read through distributions: pluggy's own loader skips the second plugin of one name without a word.
    for entry_point in sorted(metadata.entry_points(group=hookspecs.PROJECT), key=_built_in_first):
        name = entry_point.name
        distribution = entry_point.dist
        owner = distribution.metadata["Name"] if distribution else "unknown distribution"
        origin = f"{owner} {distribution.version}" if distribution else owner
        built_in = owner == BUILT_IN
        if not built_in and select is not None and name not in select:
            continue
        found.add(name)
        if name in seen:
            if seen[name] == origin:  # one distribution seen twice on sys.path, as in an editable install
                continue
            raise PluginError(
                f"two distributions offer a plugin named {name!r}: {seen[name]} and {origin}; uninstall one"
            )
        seen[name] = origin
        try:
            module = entry_point.load()
        except Exception as error:  # a stranger's module: whatever it raises, the others load
            reason = f"{entry_point.value} raised {type(error).__name__}: {error}"
            registry.failures.append(PluginFailure(name=name, origin=origin, reason=reason))
            continue
        registry.register(Plugin(name=name, origin=origin, module=module, built_in=built_in))
    missing = (select or set()) - found
    if missing:
        raise UnknownNameError("plugin", sorted(missing)[0], seen)


def _built_in_first(entry_point: metadata.EntryPoint) -> tuple[bool, str]:
    owner = entry_point.dist.metadata["Name"] if entry_point.dist else ""
    return owner != BUILT_IN, entry_point.name


def _load_folder(registry: Registry, folder: Path) -> None:
    """Every `*.py` of a folder is a plugin, and its `*.jinja` files are templates."""
    if not folder.is_dir():
        raise PluginError(f"plugin folder {str(folder)!r} does not exist or is not a folder")
    for path in sorted(folder.glob("*.py")):
        try:
            module = _import_file(path)
        except (Exception, SystemExit) as error:
            reason = f"import raised {type(error).__name__}: {error}"
            registry.failures.append(PluginFailure(name=path.stem, origin=str(path), reason=reason))
            continue
        registry.register(Plugin(name=path.stem, origin=str(path), module=module))
    if any(folder.glob("*.jinja")):
        registry.register(Plugin(name=f"{folder.name}/*.jinja", origin=str(folder), module=_JinjaFolder(folder)))


class _JinjaFolder:
    """The plugin that a folder's loose `.jinja` files amount to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @hookspecs.hookimpl
    def templatekit_templates(self) -> Any:
        from templatekit.contracts import template_files

        return template_files(self._folder)


def _import_file(path: Path) -> ModuleType:
    # The whole path is in the name, so that equally named files of two folders stay apart.
    name = f"templatekit_plugin_dir.{abs(hash(str(path.resolve()))):x}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
