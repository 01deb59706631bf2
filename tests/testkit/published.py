"""Published chat templates at hand: TRL's wheel carries those of many models, and tokenizers have their own."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from templatekit import Example, Message, Template, TemplateFile
from templatekit.types import SpecialTokens
from testkit.at_hand import Tokenizers

_FOLDER = next(iter(getattr(find_spec("trl"), "submodule_search_locations", None) or [""]))
TRL = sorted(path.stem for path in (Path(_FOLDER) / "chat_templates").glob("*.jinja")) if _FOLDER else []
"""The names of the templates in TRL's wheel: originals, and copies with TRL's `{% generation %}` marks."""
ORIGINALS = [name for name in TRL if not name.endswith("_training")]
"""The templates that are as their authors published them."""
OWN = ["llama3-own", "qwen3-own", "smollm2-own"]
"""The templates that come with tokenizers."""
OPEN_ENDED = {"glm4moe"}
"""Templates that write nothing after the last answer: refused until a user names the text that ends an answer."""
_TOKEN = re.compile(r"<\|[^<>|{}\s]*\|?>|<[a-z_]*\|>|<｜[^｜<>]*｜>|</?[a-z_]+>|<[A-Z_]+>|\[/?[A-Z_]+\]")
"""Matches texts that look like control tokens."""


def source_of(name: str) -> str:
    """The template; skips the test where TRL is absent."""
    if name not in TRL:
        pytest.skip("trl is not installed, or has no template of this name")
    return (Path(_FOLDER) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def token_texts(name: str) -> list[str]:
    """The texts in a template that look like control tokens."""
    return _TOKEN.findall(source_of(name))


def tokens_of(name: str) -> SpecialTokens:
    """A tokenizer's special tokens that would fit the template."""
    special = frozenset({*token_texts(name), "<BOS>", "<EOS>"})
    return SpecialTokens(bos="<BOS>", eos="<EOS>", special=special)


class Published(NamedTuple):
    """A template with what it needs of its tokenizer."""

    name: str
    source: str
    tokens: SpecialTokens

    @property
    def template(self) -> Template:
        """The template, loaded once."""
        return _loaded(self.name, self.source)


def published(name: str, tokenizer_of: Tokenizers) -> Published:
    """A template by name; skips the test where it is absent."""
    if name not in OWN:
        return Published(name, source_of(name), tokens_of(name))
    tokenizer = tokenizer_of(name.removesuffix("-own"))
    assert tokenizer.chat_template is not None
    return Published(name, tokenizer.chat_template, tokenizer.special_tokens)


@cache
def _loaded(name: str, source: str) -> Template:
    return Template(TemplateFile(name=name, source=source), strict=False)


GET = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where?"}},
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, **more: Any) -> Message:
    return Message(role="assistant", content=text, **more)


def tool(text: str) -> Message:
    return Message(role="tool", content=text, name="get_weather")


def conversation(*messages: Message, tools: bool = False) -> Example:
    return Example(messages=messages, tools=(GET,) if tools else ())
