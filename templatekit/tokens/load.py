"""Finds a tokenizer by path or by name.

A folder with `tokenizer.json` is read as it is. Everything else (a `.gguf` file, a hub name, a model without
`tokenizer.json`) goes through transformers, which is imported only then. The tokenizer of a `.gguf` file is cached on
disk.

Folders and hub names may hold Python of their own (`auto_map` in their configurations), for classes that transformers
does not have. transformers would ask on standard input whether to run it; here it is run only if the caller says so.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from templatekit.errors import TokenizerError, nearest, shorten
from templatekit.hooks.registry import Registry
from templatekit.tokens.disk_cache import TokenizerDescription, cached_description
from templatekit.tokens.tokenizer import SPECIAL_TOKEN_KEYS, TOKENIZER_FILE, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CONFIGURATIONS = ("config.json", "tokenizer_config.json")
"""The files of a folder whose `auto_map` names Python of its own."""


def find_tokenizer(address: str, registry: Registry, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer at a path, under a name that a plugin resolves, or on the hub. Raises `TokenizerError`.

    With `trust_remote_code`, Python of the folder is run if it says that its tokenizer needs that.
    """
    path = resolve_model(address, registry)
    if path is not None:
        folder = path.parent if path.name == TOKENIZER_FILE else path
        if (folder / TOKENIZER_FILE).is_file():
            return Tokenizer.from_folder(folder)
    if path is not None and path.suffix == ".gguf":
        found = cached_description(path, lambda: _describe(load_transformers_tokenizer(path), address))
        return Tokenizer(**found._asdict(), name=address)
    found_there = load_transformers_tokenizer(path or address, trust_remote_code=trust_remote_code)
    return from_transformers(found_there, name=address)


def resolve_model(address: str, registry: Registry) -> Path | None:
    """The path of a model or tokenizer on this machine; None for a name that only the hub may know."""
    path = Path(address).expanduser()
    if path.exists():
        return path
    for resolver in registry.models.values():
        found = resolver.resolve(address)
        if found is not None:
            return found
    if address.count("/") != 1 or address.startswith((".", "/", "~")) or path.suffix in (".gguf", ".json"):
        near = nearest(address, registry.models)
        raise TokenizerError(f"{address!r} is neither a folder, nor a .gguf file, nor a model's name; {near}")
    return None


def load_transformers_tokenizer(address: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """`AutoTokenizer` for a folder, a `.gguf` file or a hub name. Raises `TokenizerError` for whatever fails."""
    from transformers import AutoTokenizer

    path = Path(address)
    where: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    trusted = trust_remote_code and not where  # Python beside a .gguf file does not belong to it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(path.parent) if where else str(address), trust_remote_code=trusted, **where
            )
    except Exception as error:  # transformers raises anything from OSError to KeyError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not trusted and (code := own_code_at(address, error)):
            reason = code
        raise TokenizerError(f"tokenizer {str(address)!r} cannot be loaded: {reason}") from error
    if type(tokenizer).__module__.startswith("transformers."):
        tokenizer.init_kwargs.pop("auto_map", None)  # it names Python that was not used, and is not saved with it
    return tokenizer


def own_code_at(address: str | Path, error: Exception) -> str:
    """What to say where loading failed since Python was not run; empty if it failed otherwise."""
    if "trust_remote_code" not in str(error):
        return ""
    found = []
    for name in _CONFIGURATIONS:
        try:
            names = json.loads((Path(address) / name).read_text(encoding="utf-8"))["auto_map"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        values = names.values() if isinstance(names, dict) else [names]
        classes = [each for value in values for each in (value if isinstance(value, list) else [value]) if each]
        found.append(f"{name} names {shorten(', '.join(map(str, classes)))}")
    return (  # of a hub name there may be no files here
        f"it needs Python of its own, which is not run ({'; '.join(found) or 'auto_map'}); read that code, and if you "
        "trust it, say --trust-remote-code"
    )


def from_transformers(tokenizer: PreTrainedTokenizerBase, *, name: str | None = None) -> Tokenizer:
    """The same tokenizer as a `Tokenizer`. Raises `TokenizerError` for one without a `tokenizers` backend."""
    return Tokenizer(**_describe(tokenizer, name)._asdict(), name=name or tokenizer.name_or_path)


def _describe(tokenizer: PreTrainedTokenizerBase, name: str | None) -> TokenizerDescription:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(f"tokenizer {name!r} has no {TOKENIZER_FILE} form; convert it with transformers first")
    config = {key: value for key in SPECIAL_TOKEN_KEYS if (value := getattr(tokenizer, key, None)) is not None}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return TokenizerDescription(backend.to_str(), config, template)
