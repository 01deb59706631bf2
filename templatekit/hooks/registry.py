"""Finds plugins and asks them what they offer.

A plugin that fails to import, or whose hook raises, or that asks for another version, is left out and listed in
`Registry.failures`. A plugin that breaks a contract in a way that could silently change results (a misspelt hook, a
value of another kind) is an error. What plugins print while they load goes to standard error: standard output is the
caller's. `TEMPLATEKIT_TRACE_HOOKS=1` writes there what is loaded and asked, in order, with the time it takes.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import pluggy

from templatekit import __version__
from templatekit.errors import PluginError, UnknownNameError, nearest, shorten
from templatekit.hooks import specs as hookspecs
from templatekit.hooks.contracts import Adapter, ModelResolver, Source, TemplateFile
from templatekit.hooks.exporters import Sink
from templatekit.hooks.offers import Offers, Plugin, PluginFailure

T = TypeVar("T")
PLUGIN_DIR_VARIABLE = "TEMPLATEKIT_PLUGIN_DIR"
SELECT_VARIABLE = "TEMPLATEKIT_PLUGINS"
TRACE_VARIABLE = "TEMPLATEKIT_TRACE_HOOKS"
REQUIRES = "TEMPLATEKIT_REQUIRES"
"""What a plugin's module may hold: the versions of templatekit that it is written for, as `>=0.1,<0.2`."""
BUILT_IN = "templatekit"
"""The distribution whose plugins are always loaded."""


class Loading(NamedTuple):
    """What another process finds the same plugins by: the arguments of `create_registry`, but for objects."""

    plugin_dirs: tuple[Path, ...] = ()
    entry_points: bool = True
    select: tuple[str, ...] | None = None

    def again(self) -> Registry:
        """A registry of these plugins."""
        return create_registry(**self._asdict())


class Registry:
    """Plugins and what they offer. Made by `create_registry`; there is no global one."""

    loading: Loading | None = None
    """How its plugins were found; None where some were given as objects."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self.failures: list[PluginFailure] = []

    def register(self, plugin: Plugin) -> None:
        """Takes a plugin in; raises `PluginError` for hooks that no host would call."""
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

    def fail(self, name: str, origin: str, what: str, error: BaseException) -> None:
        """Notes that a plugin, or what it offers of one kind, is left out for what it raised."""
        raised = f"{what} raised {type(error).__name__}"
        said = _one_line(error)
        self.leave_out(name, origin, f"{raised}: {said}" if said else raised)

    def leave_out(self, name: str, origin: str, reason: str) -> None:
        """Notes that a plugin, or what it offers of one kind, is left out."""
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
        """Sources by name, plugins' before the built-in ones."""
        return self._collect("source", "templatekit_sources", Source, built_in_last=True)

    @cached_property
    def models(self) -> Offers[ModelResolver]:
        """Model resolvers by name."""
        return self._collect("model resolver", "templatekit_models", ModelResolver)

    @cached_property
    def exporters(self) -> Offers[Sink]:
        """Exporters by name."""
        return self._collect("format", "templatekit_exporters", Sink)

    def _collect(self, kind: str, hook: str, of: type[Any], *, built_in_last: bool = False) -> Offers[T]:
        offers: Offers[T] = Offers(kind, self.failures)
        for plugin in sorted(self.plugins, key=lambda plugin: built_in_last and plugin.built_in):
            for item in self._ask(plugin, hook, of):
                offers.add(_checked_name(item, of, hook, plugin), item, plugin)
        return offers

    def _ask(self, plugin: Plugin, hook: str, of: type[Any]) -> list[Any]:
        """All that one plugin's hook returns; nothing where it raises."""
        others = [other.module for other in self.plugins if other is not plugin]
        items: list[Any] = []
        try:
            with redirect_stdout(sys.stderr), _trace(f"{hook} of {plugin.name} ({plugin.origin})"):
                for answer in self._manager.subset_hook_caller(hook, remove_plugins=others)():
                    if isinstance(answer, (str, Mapping)) or not isinstance(answer, Iterable):
                        items.append(answer)  # refused below, by its type
                    else:
                        items += answer
        except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises, the others go on
            self.fail(plugin.name, plugin.origin, hook, error)
            return []
        return items


def _checked_name(item: object, of: type[Any], hook: str, plugin: Plugin) -> str:
    where = f"plugin {plugin.name!r} ({plugin.origin}): {hook}"
    if not isinstance(item, of):
        meant = f"; return instances: [{item.__name__}()]" if isinstance(item, type) and issubclass(item, of) else ""
        raise PluginError(f"{where} returned {shorten(item)}; expected a list of {of.__name__} objects{meant}")
    name = getattr(item, "name", None)
    if not isinstance(name, str) or not name:
        raise PluginError(f"{where} returned {type(item).__name__} with name={name!r}; expected a non-empty text")
    for attribute in ("keys", "required", "suffixes"):
        value = getattr(item, attribute, ())
        if isinstance(value, str) or not all(isinstance(part, str) for part in value):
            # Forgotten parentheses or a comma: ("text") is no tuple.
            raise PluginError(f"{where}: {name!r} has {attribute}={value!r}; expected a tuple of texts")
    return name


def _check_hooks(plugin: Plugin, manager: pluggy.PluginManager) -> None:
    """Sees that every hook of a plugin is one that is called, with the arguments it takes."""
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
                # Without the prefix, which they all have and which makes everything look alike.
                close = get_close_matches(hook.removeprefix(prefix), [name.removeprefix(prefix) for name in known], 1)
                near = nearest(prefix + hook.removeprefix(prefix), [prefix + name for name in close] or known)
                raise PluginError(f"{where}: there is no hook {hook!r}; {near}")
            continue
        if options is None:
            raise PluginError(f"{where}: {name} is not marked as a hook; put @templatekit.hookimpl above it")
        needed = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]
        passed = list(inspect.signature(getattr(hookspecs, hook)).parameters)
        extra = [argument for argument in needed if argument not in passed]
        if extra:
            raise PluginError(
                f"{where}: {name} takes {', '.join(map(repr, extra))}; expected def {hook}({', '.join(passed)})"
            )


def _one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}…"


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
    plugins, dirs = tuple(plugins), tuple(map(Path, plugin_dirs))
    select = None if select is None else tuple(select)
    registry = Registry()
    if not plugins:
        registry.loading = Loading(dirs, entry_points, select)
    if entry_points:
        _load_entry_points(registry, _selection(select))
    extra = [folder for folder in os.environ.get(PLUGIN_DIR_VARIABLE, "").split(os.pathsep) if folder]
    folders = [folder.expanduser() for folder in (*map(Path, extra), *dirs)]
    for folder in {_resolved(folder): folder for folder in folders}.values():  # one named twice is read once
        _load_folder(registry, folder)
    for plugin in plugins:
        name = getattr(plugin, "__name__", type(plugin).__name__)
        registry.register(Plugin(name=name, origin="given by the caller", module=plugin))
    return registry


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # a loop of links: what is wrong with it is said where it is read
        return folder


def _selection(select: Iterable[str] | None) -> set[str] | None:
    if select is not None:
        return set(select)
    names = {name.strip() for name in os.environ.get(SELECT_VARIABLE, "").split(",")} - {""}
    return names - {"none"} if names else None


def _load_entry_points(registry: Registry, select: set[str] | None) -> None:
    seen: dict[str, tuple[str, str]] = {}
    every: set[str] = set()
    # Read through distributions: pluggy's own loader skips the second plugin of one name without a word.
    for entry_point in sorted(metadata.entry_points(group=hookspecs.PROJECT), key=_built_in_first):
        name = entry_point.name
        owner, origin = _distribution(entry_point)
        built_in = owner == BUILT_IN
        every.add(name)
        if not built_in and select is not None and name not in select:
            continue
        found = (origin, entry_point.value)
        if seen.setdefault(name, found) != found:
            raise PluginError(
                f"two distributions offer a plugin named {name!r}: {seen[name][0]} and {origin}; uninstall one, or "
                f"choose the plugins to load ({SELECT_VARIABLE}=none|NAME,…)"
            )
        if any(plugin.name == name for plugin in registry.plugins):  # seen twice on sys.path
            continue
        wanted = "" if built_in else _required_of(entry_point)
        if _left_out_for_version(registry, name, origin, wanted):
            continue
        try:
            with redirect_stdout(sys.stderr), _trace(f"import {entry_point.value} ({origin})"):
                module = entry_point.load()
        except (Exception, SystemExit) as error:  # a stranger's module: whatever it raises, the others load
            registry.fail(name, origin, f"importing {entry_point.value}", error)
            continue
        if not _left_out_for_version(registry, name, origin, getattr(module, REQUIRES, "")):
            registry.register(Plugin(name=name, origin=origin, module=module, built_in=built_in))
    missing = sorted((select or set()) - every)
    if missing:
        raise UnknownNameError("installed plugin", missing[0], every, hint=f" ({SELECT_VARIABLE} chooses them)")


def _required_of(entry_point: metadata.EntryPoint) -> str:
    """The versions of templatekit that a plugin's distribution asks for: pip checks that once, not ever after."""
    lines = (entry_point.dist.requires if entry_point.dist else None) or ()
    if not any(line.lower().startswith(BUILT_IN) for line in lines):
        return ""
    from packaging.requirements import Requirement

    asked = (Requirement(line) for line in lines if line.lower().startswith(BUILT_IN))
    return str(next((each.specifier for each in asked if each.name.lower() == BUILT_IN and not each.marker), ""))


def _left_out_for_version(registry: Registry, name: str, origin: str, wanted: object) -> bool:
    """Whether a plugin is written for other versions than this one; it is then noted as left out."""
    if not wanted:
        return False
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        fits = SpecifierSet(str(wanted)).contains(__version__, prereleases=True)
        reason = f"it needs templatekit {wanted}; this is {__version__}; install a version of either that fits"
    except InvalidSpecifier:
        fits, reason = False, f"{REQUIRES}={wanted!r} is no version specifier; expected something like '>=0.1,<0.2'"
    if not fits:
        registry.leave_out(name, origin, reason)
    return not fits


@contextmanager
def _trace(what: str) -> Iterator[None]:
    """Writes what was done, and how long it took, where `TEMPLATEKIT_TRACE_HOOKS` asks for it."""
    if os.environ.get(TRACE_VARIABLE, "0") in ("", "0"):
        yield
        return
    began = time.perf_counter()
    outcome = "raised"
    try:
        yield
        outcome = "took"
    finally:
        print(f"templatekit: {what} {outcome} {(time.perf_counter() - began) * 1e3:.1f} ms", file=sys.stderr)


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    """The name of the distribution that an entry point belongs to, and the same with its version."""
    facts = entry_point.dist.metadata if entry_point.dist else None
    if facts is None or "Name" not in facts:
        return "", "an unknown distribution"
    return facts["Name"], f"{facts['Name']} {facts['Version']}" if "Version" in facts else facts["Name"]


def _built_in_first(entry_point: metadata.EntryPoint) -> tuple[bool, str]:
    return _distribution(entry_point)[0] != BUILT_IN, entry_point.name


def _load_folder(registry: Registry, folder: Path) -> None:
    """Every `*.py` of a folder is a plugin, but for names that begin with `_` or `.`; its `*.jinja` are templates."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise PluginError(
            f"plugin folder {str(folder)!r} cannot be read: {error.strerror}; expected a folder"
        ) from None
    for path in (folder / name for name in names if name.endswith(".py") and not name.startswith(("_", "."))):
        try:
            with redirect_stdout(sys.stderr), _trace(f"import {path}"):
                module = import_file(path)
        except (Exception, SystemExit) as error:
            registry.fail(path.stem, str(path), "importing it", error)
            continue
        if not _left_out_for_version(registry, path.stem, str(path), getattr(module, REQUIRES, "")):
            registry.register(Plugin(name=path.stem, origin=str(path), module=module))
    if any(name.endswith(".jinja") for name in names):
        registry.register(Plugin(name=f"{folder}/*.jinja", origin=str(folder), module=_JinjaFolder(folder)))


class _JinjaFolder:
    """The plugin that a folder's loose `.jinja` files amount to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @hookspecs.hookimpl
    def templatekit_templates(self) -> Any:
        from templatekit.hooks.contracts import template_files

        return template_files(self._folder)


def import_file(path: Path) -> ModuleType:
    """The module that a file holds, under a name that no other file's has."""
    # The whole path is in the name, so that equally named files of two folders stay apart.
    name = f"templatekit_plugin_dir.{zlib.crc32(str(path.resolve()).encode(errors='replace')):x}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
