"""Published chat templates at hand: TRL's wheel carries those of many models."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from templatekit.types import SpecialTokens

_FOLDER = next(iter(getattr(find_spec("trl"), "submodule_search_locations", None) or [""]))
TRL = sorted(path.stem for path in (Path(_FOLDER) / "chat_templates").glob("*.jinja")) if _FOLDER else []
"""Names: originals, and those with `{% generation %}` marks of TRL's own."""
ORIGINALS = [name for name in TRL if not name.endswith("_training")]
"""Those as their authors published them."""
OPEN_ENDED = {"glm4moe"}
"""Templates that write nothing behind the last answer: they are refused until their metadata names what stops it."""
_TOKEN = re.compile(r"<\|[^<>|{}\s]*\|?>|<[a-z_]*\|>|<｜[^｜<>]*｜>|</?[a-z_]+>|<[A-Z_]+>|\[/?[A-Z_]+\]")
"""What control tokens look like."""


def source_of(name: str) -> str:
    """The template; skips the test where TRL is absent."""
    if name not in TRL:
        pytest.skip("trl is not installed, or has no template of this name")
    return (Path(_FOLDER) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def tokens_of(name: str) -> SpecialTokens:
    """A tokenizer's special tokens that would fit the template."""
    special = frozenset({*_TOKEN.findall(source_of(name)), "<BOS>", "<EOS>"})
    return SpecialTokens(bos="<BOS>", eos="<EOS>", special=special)
