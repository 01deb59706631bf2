"""Finds a tokenizer by path or by name.

A folder with `tokenizer.json` is read as it is. Everything else (a `.gguf` file, a hub name, a model without
`tokenizer.json`) goes through transformers, which is imported only then. The tokenizer of a `.gguf` file is cached on
disk.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from templatekit.errors import TokenizerError, nearest
from templatekit.hooks.registry import Registry
from templatekit.tokens.disk_cache import TokenizerDescription, cached_description
from templatekit.tokens.tokenizer import SPECIAL_TOKEN_KEYS, TOKENIZER_FILE, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_tokenizer(address: str, registry: Registry) -> Tokenizer:
    """The tokenizer at a path, under a name that a plugin resolves, or on the hub. Raises `TokenizerError`."""
    path = resolve_model(address, registry)
    if path is not None:
        folder = path.parent if path.name == TOKENIZER_FILE else path
        if (folder / TOKENIZER_FILE).is_file():
            return Tokenizer.from_folder(folder)
    if path is not None and path.suffix == ".gguf":
        found = cached_description(path, lambda: _describe(load_transformers_tokenizer(path), address))
        return Tokenizer(**found._asdict(), name=address)
    return from_transformers(load_transformers_tokenizer(path or address), name=address)


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


def load_transformers_tokenizer(address: str | Path) -> PreTrainedTokenizerBase:
    """`AutoTokenizer` for a folder, a `.gguf` file or a hub name. Raises `TokenizerError` for whatever fails."""
    from transformers import AutoTokenizer

    path = Path(address)
    where: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(path.parent) if where else str(address), **where
            )
    except Exception as error:  # transformers raises anything from OSError to KeyError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TokenizerError(f"tokenizer {str(address)!r} cannot be loaded: {reason}") from error
    return tokenizer


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
