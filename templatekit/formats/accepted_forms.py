"""Which forms of a message a chat template takes, found out by tiny probe renderings, each when first needed."""

from __future__ import annotations

from collections.abc import Callable, Container
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, TypeAlias

from templatekit.errors import RecordError, TemplatekitError

Variables: TypeAlias = dict[str, Any]
ContentForm: TypeAlias = Literal["text", "list", "either", "one part"]
"""How a template takes content: as text, as a list of text parts, as either, or as a list of which it prints one."""

ROLES = ("system", "user", "assistant")
"""Which every chat template is taken to know."""
_OTHER_ROLES = ("tool", "developer")
_MEANT = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "function": "tool"}
"""What other formats call the roles."""

_FIRST, _SECOND, _MARK, _KEY, _VALUE = "probe one", "probe two", "probe_mark", "probe_key", "probe_value"
_AS_TEXT = f'{{"{_KEY}": "{_VALUE}"}}'
_ID = "probe0001"  # nine letters and digits, which is what Mistral's templates ask of an id


class CallForm(NamedTuple):
    """How a template takes an assistant's tool calls."""

    arguments: Literal["object", "text"] = "object"
    content: Any = ""
    """What it takes as the content of a message that only calls tools."""


class Takes:
    """Answers for one template. `render` gives the text of variables, or raises one of our errors."""

    def __init__(self, render: Callable[[Variables], str]) -> None:
        self._render = render
        self._content: dict[str, ContentForm] = {}
        self._calls: CallForm | None = None

    def content(self, role: str) -> ContentForm:
        """The form of this role's content. Where neither is printed it is text, and the rendering itself tells why."""
        if role not in self._content:
            self._content[role] = self._probe_content(role)
        return self._content[role]

    @property
    def calls(self) -> CallForm:
        """The form of tool calls."""
        if self._calls is None:
            self._calls = self._probe_calls()
        return self._calls

    def _probe_content(self, role: str) -> ContentForm:
        text = _FIRST in self._printed(self._around(role, _FIRST))
        # The mark shows a list that is printed as such, which is no way to take it.
        parts = [{"type": "text", "text": _FIRST, _MARK: ""}, {"type": "text", "text": _SECOND}]
        printed = self._printed(self._around(role, parts))
        if _MARK in printed or _FIRST not in printed:
            return "text"
        if _SECOND in printed:
            return "either" if text else "list"
        return "text" if text else "one part"

    def _around(self, role: str, content: Any) -> list[Variables]:
        """A conversation in which a message of this role may stand."""
        message = {"role": role, "content": content}
        if role == "user":
            return [message]
        user = {"role": "user", "content": self._as_taken("user", "x")}
        if role in ("system", "developer"):
            return [message, user]
        if role == "tool":
            call = _calling(self.calls, _AS_TEXT if self.calls.arguments == "text" else {_KEY: _VALUE})
            return [user, call, message | {"name": "probe", "tool_call_id": _ID}]
        return [user, message]

    def _as_taken(self, role: str, text: str) -> Any:
        return text if self.content(role) in ("text", "either") else [{"type": "text", "text": text}]

    def _probe_calls(self) -> CallForm:
        user = {"role": "user", "content": self._as_taken("user", "x")}
        empty = self._as_taken("assistant", "")
        for content in (empty, None):
            printed = self._printed([user, _calling(CallForm(content=content), {_KEY: _VALUE})])
            if _KEY in printed and _VALUE in printed and repr(_KEY) not in printed:
                return CallForm("object", content)
            if _AS_TEXT in self._printed([user, _calling(CallForm(content=content), _AS_TEXT)]):
                return CallForm("text", content)
        return CallForm(content=empty)

    def _printed(self, messages: list[Variables]) -> str:
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
        try:
            return self._render(variables | dict.fromkeys(names, ""))
        except TemplatekitError:
            return ""


def _calling(form: CallForm, arguments: Any) -> Variables:
    call = {"id": _ID, "type": "function", "function": {"name": "probe", "arguments": arguments}}
    return {"role": "assistant", "content": form.content, "tool_calls": [call]}


def check_role(role: str, index: int, mentions: Container[str], *, printed: bool, name: str) -> None:
    """Sees that a template takes a role: it names it, or prints whatever it is given and this is no slip of the pen."""
    if role in ROLES or role in mentions:
        return
    known = (*ROLES, *_OTHER_ROLES)
    meant = _MEANT.get(role.casefold()) or next(iter(get_close_matches(role.casefold(), known, n=1, cutoff=0.75)), None)
    if printed and (meant is None or role == meant):
        return
    takes = [other for other in known if printed or other in ROLES or other in mentions]
    hint = f"; is {meant!r} meant?" if meant in takes else ""
    raise RecordError(
        f"template {name!r} does not know role {role!r}{hint}; expected one of {', '.join(takes)}",
        field=f"messages[{index}].role",
        reason="unknown_role",
    )
