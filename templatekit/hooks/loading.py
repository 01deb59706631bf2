"""`create_registry`: finds plugins, imports them and registers them.

A plugin that fails to import, or that requires another version of templatekit, is left out and listed in
`Registry.failures`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from types import ModuleType

from templatekit import __version__
from templatekit.errors import PluginError, UnknownNameError
from templatekit.hooks import specs as hookspecs
from templatekit.hooks.contracts import TemplateFile, template_files
from templatekit.hooks.offers import Plugin
from templatekit.hooks.registry import Registry, RegistryArguments, log_time

PLUGIN_DIR_VARIABLE = "TEMPLATEKIT_PLUGIN_DIR"
SELECT_VARIABLE = "TEMPLATEKIT_PLUGINS"
REQUIRES = "TEMPLATEKIT_REQUIRES"
"""A plugin's module may hold the versions of templatekit that it supports under this name, such as `>=0.1,<0.2`."""
BUILT_IN = "templatekit"
"""The distribution whose plugins are always loaded."""


def create_registry(
    *,
    plugin_dirs: Iterable[str | Path] = (),
    plugins: Iterable[object] = (),
    entry_points: bool = True,
    select: Iterable[str] | None = None,
) -> Registry:
    """Load plugins: built-in and installed ones by entry point, then folders of single files, then the given objects.

    `select` names the installed plugins to load; an empty `select` loads the built-in ones alone. Without it the
    variable `TEMPLATEKIT_PLUGINS` decides (`none`, or names separated by commas). `TEMPLATEKIT_PLUGIN_DIR` adds
    folders, separated as in `PATH`.
    """
    plugins, dirs = tuple(plugins), tuple(map(Path, plugin_dirs))
    select = None if select is None else tuple(select)
    registry = Registry()
    if not plugins:
        registry.arguments = RegistryArguments(dirs, entry_points, select)
    if entry_points:
        _load_entry_points(registry, _selected(select))
    extra = [folder for folder in os.environ.get(PLUGIN_DIR_VARIABLE, "").split(os.pathsep) if folder]
    folders = [folder.expanduser() for folder in (*map(Path, extra), *dirs)]
    for folder in {os.path.realpath(folder): folder for folder in folders}.values():  # each folder once
        _load_folder(registry, folder)
    for plugin in plugins:
        name = getattr(plugin, "__name__", type(plugin).__name__)
        registry.register(Plugin(name=name, origin="given by the caller", module=plugin))
    return registry


def _selected(select: Iterable[str] | None) -> set[str] | None:
    """The names of the installed plugins to load; None for all."""
    if select is not None:
        return set(select)
    names = {name.strip() for name in os.environ.get(SELECT_VARIABLE, "").split(",")} - {""}
    return names - {"none"} if names else None


def _load_entry_points(registry: Registry, selected: set[str] | None) -> None:
    seen: dict[str, tuple[str, str]] = {}
    installed: set[str] = set()
    # The built-in plugin first. Not with pluggy's own loader: it silently skips the second plugin of a name.
    for entry_point in sorted(
        metadata.entry_points(group=hookspecs.PROJECT), key=lambda one: (_distribution(one)[0] != BUILT_IN, one.name)
    ):
        name = entry_point.name
        distribution, origin = _distribution(entry_point)
        built_in = distribution == BUILT_IN
        installed.add(name)
        if not built_in and selected is not None and name not in selected:
            continue
        found = (origin, entry_point.value)
        if seen.setdefault(name, found) != found:
            raise PluginError(
                f"two distributions offer a plugin named {name!r}: {seen[name][0]} and {origin}; uninstall one, or "
                f"choose the plugins to load ({SELECT_VARIABLE}=none|NAME,…)"
            )
        if any(plugin.name == name for plugin in registry.plugins):  # sys.path has its folder twice
            continue
        required = "" if built_in else _required_version(entry_point)
        if not _fits_version(registry, name, origin, required):
            continue
        try:
            with redirect_stdout(sys.stderr), log_time(f"import {entry_point.value} ({origin})"):
                module = entry_point.load()
        except (Exception, SystemExit) as error:  # third-party code may raise anything; the other plugins still load
            registry.fail(name, origin, f"importing {entry_point.value}", error)
            continue
        if _fits_version(registry, name, origin, getattr(module, REQUIRES, "")):
            registry.register(Plugin(name=name, origin=origin, module=module, built_in=built_in))
    missing = sorted((selected or set()) - installed)
    if missing:
        raise UnknownNameError("installed plugin", missing[0], installed, hint=f" ({SELECT_VARIABLE} chooses them)")


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    """The name of the distribution that an entry point belongs to, and the name with the version."""
    facts = entry_point.dist.metadata if entry_point.dist else None
    if facts is None or "Name" not in facts:
        return "", "an unknown distribution"
    return facts["Name"], f"{facts['Name']} {facts['Version']}" if "Version" in facts else facts["Name"]


def _required_version(entry_point: metadata.EntryPoint) -> str:
    """The versions of templatekit that a plugin's distribution requires; pip checks them only when it installs."""
    lines = (entry_point.dist.requires if entry_point.dist else None) or ()
    if not any(line.lower().startswith(BUILT_IN) for line in lines):
        return ""
    from packaging.requirements import Requirement

    required = (Requirement(line) for line in lines if line.lower().startswith(BUILT_IN))
    return str(next((one.specifier for one in required if one.name.lower() == BUILT_IN and not one.marker), ""))


def _fits_version(registry: Registry, name: str, origin: str, required: object) -> bool:
    """Whether a plugin supports this version of templatekit; if not, the registry records that it is left out."""
    if not required:
        return True
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        fits = SpecifierSet(str(required)).contains(__version__, prereleases=True)
        reason = f"it needs templatekit {required}; this is {__version__}; install a version of either that fits"
    except InvalidSpecifier:
        fits, reason = False, f"{REQUIRES}={required!r} is no version specifier; expected something like '>=0.1,<0.2'"
    if not fits:
        registry.leave_out(name, origin, reason)
    return fits


def _load_folder(registry: Registry, folder: Path) -> None:
    """Register each `*.py` of a folder as a plugin, unless its name starts with `_` or `.`, and offer its templates."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise PluginError(
            f"plugin folder {str(folder)!r} cannot be read: {error.strerror}; expected a folder"
        ) from None
    for path in (folder / name for name in names if name.endswith(".py") and not name.startswith(("_", "."))):
        try:
            with redirect_stdout(sys.stderr), log_time(f"import {path}"):
                module = import_file(path)
        except (Exception, SystemExit) as error:
            registry.fail(path.stem, str(path), "importing it", error)
            continue
        if _fits_version(registry, path.stem, str(path), getattr(module, REQUIRES, "")):
            registry.register(Plugin(name=path.stem, origin=str(path), module=module))
    if any(name.endswith(".jinja") for name in names):
        registry.register(Plugin(name=f"{folder}/*.jinja", origin=str(folder), module=_JinjaFolder(folder)))


class _JinjaFolder:
    """A plugin that offers the `.jinja` files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @hookspecs.hookimpl
    def templatekit_templates(self) -> list[TemplateFile]:
        return template_files(self._folder)


def import_file(path: Path) -> ModuleType:
    """Import a file as a module whose name no other file has."""
    # The name holds a checksum of the whole path, so that files of one name in two folders are two modules.
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
