"""The bundled templates, grouped by their capabilities; tests over all bundled templates use these lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping

ONE_TURN = ("alpaca", "alpaca-lora", "chapter7", "seed", "dolly", "phi3-chapter7")
MISTRAL = ("mistral-v1", "mistral-v3", "mistral-v3-tekken", "mistral-v7", "mistral")
CHAT = ("chatml", "gemma", "gemma3", "llama2", "llama3", *MISTRAL, "phi3", "qwen3", "vicuna", "zephyr")
BUNDLED = (*ONE_TURN, "text", *CHAT)
"""All bundled templates; `text` is an instruction format without a prompt: the answer is the whole text."""

ANY_ORDER = ("chatml", "llama3", "phi3", "qwen3", "zephyr")
"""Chat templates that print turns in any order; the others require user and assistant to alternate, and say so."""
ANY_ROLE = ("chatml", "llama3")
"""Chat templates that print any role."""
WITHOUT_SYSTEM = ("gemma",)
"""Chat templates that refuse a system message."""
REWRITES: Mapping[str, str] = {
    "mistral-v3": "the system message stands in the last user turn",
    "mistral-v3-tekken": "the system message stands in the last user turn",
    "qwen3": "earlier answers have no thinking block",
}
"""Chat templates that print a turn differently once others follow."""
_STRIP: Mapping[str, Callable[[str], str]] = {
    **dict.fromkeys(("gemma", "gemma3", "llama2", "llama3"), str.strip),
    # mistral-common's tokenizers from v2 on drop the blanks behind an answer.
    **dict.fromkeys(MISTRAL[1:], lambda text: text.rstrip(" ")),
    "qwen3": lambda text: text.lstrip("\n"),
}


def own_answer(template: str, answer: str) -> str:
    """The last answer's text as a template prints it, apart from the thinking in it."""
    return _STRIP.get(template, str)(answer)
