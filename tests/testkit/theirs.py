"""transformers' own rendering of chat templates, to compare with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from templatekit import Example, Message
from templatekit.types import SpecialTokens


def hugging_face(message: Message) -> dict[str, Any]:
    """A message as Hugging Face's chat templates receive it."""
    optional = {
        "name": message.name,
        "context": message.context,
        "reasoning_content": message.reasoning,
        "thinking": message.reasoning,
        "tool_calls": list(message.tool_calls),
    }
    return {"role": message.role, "content": message.content} | {key: value for key, value in optional.items() if value}


def as_transformers(source: str, example: Example, tokens: SpecialTokens, **more: Any) -> str:
    """The text of a conversation."""
    return rendered(source, map(hugging_face, example.messages), tokens, tools=list(example.tools) or None, **more)[0]


def rendered(
    source: str,
    messages: Iterable[dict[str, Any]],
    tokens: SpecialTokens,
    *,
    only: dict[str, str] | None = None,
    **more: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the extents of `{% generation %}` blocks where they are asked for.

    As transformers does, only the tokens that the tokenizer has are passed (`only`, where that is the point).
    """
    from transformers.utils import chat_template_utils

    render: Any = chat_template_utils.render_jinja_template
    names = {"bos_token": tokens.bos, "eos_token": tokens.eos, "pad_token": tokens.pad, "unk_token": tokens.unk}
    given = {name: text for name, text in names.items() if text} if only is None else only
    texts, generated = render([list(messages)], chat_template=source, **given, **more)
    return str(texts[0]), generated[0] if generated else []
