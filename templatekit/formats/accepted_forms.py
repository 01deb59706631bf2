"""Finds out which forms of content, tool calls and roles a chat template accepts.

It renders tiny probe conversations, each when its result is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from difflib import get_close_matches
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

from templatekit.errors import RecordError, TemplatekitError

Variables: TypeAlias = dict[str, Any]
"""The variables that a template receives, by name."""
ContentForm: TypeAlias = Literal["text", "list", "either", "one part", "unknown"]
"""The form in which a template accepts content: text, a list of text parts, either, or a list of which it prints one
part. It is unknown where the template refuses every short text, since it asks for more, such as languages."""

ROLES = ("system", "user", "assistant")
"""The roles that every chat template is assumed to know."""
_OTHER_ROLES = ("tool", "developer")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "function": "tool"}
"""The roles by the names that other formats give them."""

_FIRST, _SECOND, _MARK, _KEY, _VALUE = "probe one", "probe two", "probe_mark", "probe_key", "probe_value"
_ARGUMENTS_TEXT = f'{{"{_KEY}": "{_VALUE}"}}'
_CALL_ID = "probe0001"  # nine letters and digits, as Mistral's templates require


class CallForm(NamedTuple):
    """The form in which a template accepts an assistant's tool calls."""

    arguments: Literal["object", "text"] = "object"
    content: Any = ""
    """The content of a message that only calls tools."""


class AcceptedForms:
    """The forms that one template accepts.

    `render` returns the text for the variables given, or raises a `TemplatekitError`. `reads_tools` says whether the
    template looks at `tools`.
    """

    def __init__(self, render: Callable[[Variables], str], *, reads_tools: bool) -> None:
        self._render = render
        self._reads_tools = reads_tools
        self.content = cache(self._probe_content)

    def _probe_content(self, role: str) -> ContentForm:
        """The form of this role's content; "text" if the template prints no form, so that rendering gives the error."""
        printed_text = self._printed(self._conversation_with(role, _FIRST))
        text = _FIRST in printed_text
        # A template that does not accept lists prints the whole list, with the mark.
        parts = [{"type": "text", "text": _FIRST, _MARK: ""}, {"type": "text", "text": _SECOND}]
        printed = self._printed(self._conversation_with(role, parts))
        if not printed_text and not printed:
            return "unknown"
        if _MARK in printed or _FIRST not in printed:
            return "text"
        if _SECOND in printed:
            return "either" if text else "list"
        return "text" if text else "one part"

    def _conversation_with(self, role: str, content: Any) -> list[Variables]:
        """A conversation in which a message of this role is valid."""
        message = {"role": role, "content": content}
        if role == "user":
            return [message]
        user = {"role": "user", "content": self._in_accepted_form("user", "x")}
        if role in ("system", "developer"):
            return [message, user]
        if role == "tool":
            call = _call_message(self.calls, _ARGUMENTS_TEXT if self.calls.arguments == "text" else {_KEY: _VALUE})
            return [user, call, message | {"name": "probe", "tool_call_id": _CALL_ID}]
        return [user, message]

    def _in_accepted_form(self, role: str, text: str) -> Any:
        return text if self.content(role) in ("text", "either", "unknown") else [{"type": "text", "text": text}]

    @cached_property
    def no_tools(self) -> list[Any] | None:
        """What stands for no tools: None, as servers pass it, but an empty list for a template that fails on None."""
        if not self._reads_tools:
            return None
        user = {"role": "user", "content": self._in_accepted_form("user", "x")}
        try:
            self._render(_variables([user]))
        except TemplatekitError as error:
            if isinstance(error.__cause__, TypeError) and self._printed([user], tools=[]):
                return []
        return None

    @cached_property
    def calls(self) -> CallForm:
        """The form of tool calls."""
        user = {"role": "user", "content": self._in_accepted_form("user", "x")}
        empty = self._in_accepted_form("assistant", "")
        for content in (empty, None):
            printed = self._printed([user, _call_message(CallForm(content=content), {_KEY: _VALUE})])
            if _KEY in printed and _VALUE in printed and repr(_KEY) not in printed:
                return CallForm("object", content)
            if _ARGUMENTS_TEXT in self._printed([user, _call_message(CallForm(content=content), _ARGUMENTS_TEXT)]):
                return CallForm("text", content)
        return CallForm(content=empty)

    def _printed(self, messages: list[Variables], *, tools: list[Any] | None = None) -> str:
        """The text of these messages; empty if the template refuses them."""
        try:
            return self._render(_variables(messages, tools))
        except TemplatekitError:
            return ""


def _variables(messages: list[Variables], tools: list[Any] | None = None) -> Variables:
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token")
    variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": False}
    return variables | dict.fromkeys(names, "")


def _call_message(form: CallForm, arguments: Any) -> Variables:
    call = {"id": _CALL_ID, "type": "function", "function": {"name": "probe", "arguments": arguments}}
    return {"role": "assistant", "content": form.content, "tool_calls": [call]}


def check_role(role: str, index: int, mentions: Container[str], *, printed: bool, name: str) -> None:
    """Raise `RecordError` if a template does not accept the role of the message at this index.

    A template accepts the roles that its source mentions. If it prints the role, it accepts any role that does not look
    like a misspelt one.
    """
    if role in ROLES or role in mentions:
        return
    known = (*ROLES, *_OTHER_ROLES)
    meant = _OTHER_NAMES.get(role.casefold())
    meant = meant or next(iter(get_close_matches(role.casefold(), known, n=1, cutoff=0.75)), None)
    if printed and (meant is None or role == meant):
        return
    accepted = [other for other in known if printed or other in ROLES or other in mentions]
    hint = f"; is {meant!r} meant?" if meant in accepted else ""
    raise RecordError(
        f"template {name!r} does not know role {role!r}{hint}; expected one of {', '.join(accepted)}",
        field=f"messages[{index}].role",
        reason="unknown_role",
    )
