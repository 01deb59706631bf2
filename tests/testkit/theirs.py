"""transformers' own rendering of chat templates, to compare with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from templatekit import Example, Message
from templatekit.types import SpecialTokens


class Form(NamedTuple):
    """How a user of transformers has to write messages for a template."""

    lists: bool = False
    """Content as a list of parts, since text is not printed."""
    arguments_as_text: bool = False
    """Arguments of tool calls as JSON text, since the template cannot print objects."""
    without_content: bool = False
    """Null beside tool calls, since the template prints either content or calls."""


AS_IT_IS = Form()


@cache
def form_of(source: str) -> Form:
    """The first form in which transformers prints all of a small conversation with this template."""
    tokens = SpecialTokens(bos="<BOS>", eos="<EOS>")
    question, answer = Message(role="user", content="Alpha?"), Message(role="assistant", content="Beta.")
    call = {"type": "function", "function": {"name": "find", "arguments": {"place": "Gamma"}}}
    calling = Message(role="assistant", tool_calls=(call,))

    def prints(form: Form, *messages: Message) -> bool:
        try:
            text = rendered(source, [hugging_face(message, form) for message in messages], tokens)[0]
        except Exception:
            return False
        wanted = [*(message.content for message in messages), *(["place", "Gamma"] if messages[-1].tool_calls else [])]
        return all(text_ in text for text_ in wanted) and "'place'" not in text

    lists = not prints(AS_IT_IS, question, answer) and prints(Form(lists=True), question, answer)
    forms = [Form(lists, as_text, without) for without in (False, True) for as_text in (False, True)]
    return next((form for form in forms if prints(form, question, calling)), Form(lists))


def hugging_face(message: Message, form: Form = AS_IT_IS) -> dict[str, Any]:
    """A message as Hugging Face's chat templates receive it."""
    content: Any = [dict(part) for part in message.parts] or message.content
    if form.lists and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if form.without_content and message.tool_calls and not message.content:
        content = None
    calls: list[Any] = [dict(call) for call in message.tool_calls]
    if form.arguments_as_text:
        calls = [call | {"function": call["function"] | _as_text(call["function"]["arguments"])} for call in calls]
    optional = {
        "name": message.name,
        "context": message.context,
        "reasoning_content": message.reasoning,
        "thinking": message.reasoning,
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
    }
    return {"role": message.role, "content": content} | {key: value for key, value in optional.items() if value}


def _as_text(arguments: Any) -> dict[str, str]:
    return {"arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)}


def as_transformers(source: str, example: Example, tokens: SpecialTokens, form: Form = AS_IT_IS, **more: Any) -> str:
    """The text of a conversation."""
    messages = [hugging_face(message, form) for message in example.messages]
    beside: dict[str, Any] = {"tools": list(example.tools) or None, "documents": list(example.documents) or None}
    return rendered(source, messages, tokens, **{**beside, **more})[0]


def rendered(
    source: str,
    messages: Iterable[dict[str, Any]],
    tokens: SpecialTokens,
    *,
    only: dict[str, str] | None = None,
    **more: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the extents of `{% generation %}` blocks where they are asked for.

    As in transformers, only the tokens that the tokenizer has are passed (`only`, for tests of this rule).
    """
    from transformers.utils import chat_template_utils

    render: Any = chat_template_utils.render_jinja_template
    names = {f"{name}_token": getattr(tokens, name) for name in ("bos", "eos", "pad", "unk", "sep")}
    given = {name: text for name, text in names.items() if text} if only is None else only
    texts, generated = render([list(messages)], chat_template=source, **given, **more)
    return str(texts[0]), generated[0] if generated else []


def alike(one: str, other: str) -> int:
    """The number of characters with which two texts begin alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


_MARKS = re.compile(r"(?:\s|<[^<>\s]+>|\[/?[A-Z_ ]+\])*")
_OPEN_THOUGHT = re.compile(r"<[a-z_]*think[a-z_]*>\s*$")
_CUT_MARK = re.compile(r"[<\[][^<>\[\]\s]*$")


def is_served_answer(answer: str, prompt: str, finished: str, *, thought: str = "", header: str = "") -> bool:
    """Whether an answer is what a server continues a prompt with; `finished` is the whole text by transformers.

    Where that text does not start with the prompt, or leaves open the thought that the prompt opens, the answer is the
    one in it, but for a thought that it lacks, and for marks: those that the text has before its answer and the prompt
    has not, and those that close what the prompt opens. The answer starts where the two texts begin to differ, or
    behind a header.
    """
    if finished.startswith(prompt):
        if finished.startswith(answer, len(prompt)):
            return "</" in answer or not _OPEN_THOUGHT.search(prompt)
        if thought and finished.startswith(answer.replace(thought, "", 1), len(prompt)) and "</" in answer:
            return True  # in the empty thought of the text
        if not _OPEN_THOUGHT.search(prompt):
            return False
    same = alike(prompt, finished)
    if cut := _CUT_MARK.search(finished[:same]):
        same = cut.start()
    starts = [same, *(found.end() for found in re.finditer(re.escape(header), finished) if header)]
    marks = [end for at in starts for end in range(at, len(finished) + 1) if _MARKS.fullmatch(finished, at, end)]
    return any(
        _MARKS.fullmatch(answer[: len(answer) - length].replace(thought, "", 1)) is not None
        for start in marks
        for length in range(len(answer), 0, -1)
        if finished.startswith(answer[len(answer) - length :], start)
    )
