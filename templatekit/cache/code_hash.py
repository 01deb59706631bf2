"""Hashes the code that determines cached samples: that of this package, of plugins and of the modules they use."""

from __future__ import annotations

import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import templatekit

MAKE_NO_SAMPLES = ("audit", "cli", "export", "testing", "training")
"""Rooms of the package whose code does not affect samples. The code of every other room is part of the hash."""
_LIBRARIES = ("tokenizers", "jinja2", "pyarrow", "datasets", "kitoken")
"""Other packages that, if installed, affect records, texts or ids by their version."""


class NotCacheable(Exception):
    """The samples of a data set cannot be cached; the message says why."""


@lru_cache(maxsize=1)
def own_code() -> str:
    """The package's version, and a hash of all its modules that affect samples.

    The hash shows a changed module even if the version stays the same, as in an editable installation.
    """
    root = Path(templatekit.__file__).parent
    files = sorted(root.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root)
        if name.parts[0] not in MAKE_NO_SAMPLES:
            digest.update(f"{name.as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return f"{templatekit.__version__} {digest.hexdigest()[:32]}"


def libraries() -> dict[str, str]:
    """The versions of Python and of the packages that affect records, texts or ids."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_of(*classes: type) -> str:
    """A hash of the modules that define these classes and their bases, and of the modules that those use.

    Of an installed library that they use, only the version counts. Raises `NotCacheable` where a module has no file.
    """
    modules = {base.__module__ for kind in classes for base in kind.__mro__}
    digest = hashlib.sha256()
    for name, code in sorted(_code_by_module(modules).items()):
        digest.update(f"{name}\0".encode() + code + b"\0")
    return digest.hexdigest()[:32]


def _code_by_module(names: Iterable[str]) -> dict[str, bytes]:
    """The code, or the version, of these modules and of all that they use."""
    found: dict[str, bytes] = {}
    waiting = {name: name.partition(".")[0] for name in names}  # each module, with the package that uses it
    while waiting:
        name, user = waiting.popitem()
        top = name.partition(".")[0]
        if name in found or (top in sys.stdlib_module_names and top != "__main__") or top == "templatekit":
            continue
        module = sys.modules.get(name)
        if module is None:
            raise NotCacheable(f"module {name!r} is not loaded under its name")
        file = getattr(module, "__file__", None)
        if file is None and hasattr(module, "__path__"):
            continue  # a package without code of its own
        if file is None or not Path(file).is_file():
            raise NotCacheable(f"the code of {name!r} lies in no file")
        if top != user and _is_installed(Path(file)) and not top.startswith("templatekit_"):
            found[name] = str(getattr(sys.modules.get(top), "__version__", "")).encode()
            continue
        found[name] = Path(file).read_bytes()
        for used in _used_by(module):
            waiting.setdefault(used, top)
    return found


def _used_by(module: ModuleType) -> set[str]:
    """The modules that a module has imported, or has imported names from."""
    values = list(vars(module).values())
    imported = {value.__name__ for value in values if isinstance(value, ModuleType)}
    homes = {home for value in values if isinstance(home := getattr(value, "__module__", None), str)}
    return {name for name in imported | homes if name in sys.modules}


def _is_installed(file: Path) -> bool:
    """Whether a file belongs to an installed library, rather than to a folder that somebody edits."""
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    return any(file.is_relative_to(path) for path in paths)
