"""Small templates, one for each way in which tool calls are written, and answers for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hypothesis import strategies as st

from templatekit import Message, Template, TemplateFile
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.formats.answers.parsing import ParsedAnswer
from templatekit.types import AnswerPiece, SpecialTokens
from testkit.answers import pieces_of, tools_for, written

_CHAT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n__ANSWER__<|end|>{% else %}<|{{ m.role }}|>\n"
    "{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_ROLES = ("<|user|>", "<|assistant|>", "<|end|>")
_THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
_QUOTED = (
    "{% macro value(v) %}{% if v is string %}<|q|>{{ v }}<|q|>{% elif v is mapping %}{{ '{' }}"
    "{% for k, x in v.items() %}{{ k }}:{{ value(x) }}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}"
    "{% elif v is none or v is boolean %}{{ v | tojson }}{% elif v is number %}{{ v }}{% else %}["
    "{% for x in v %}{{ value(x) }}{% if not loop.last %},{% endif %}{% endfor %}]{% endif %}{% endmacro %}"
)
_CALL_FOR = "{% for c in m.tool_calls or [] %}"


@dataclass(frozen=True)
class Form:
    """A template for one form of calls."""

    name: str
    answer: str
    special: tuple[str, ...] = ()
    """Its special tokens."""
    added: tuple[str, ...] = ()
    """Its control tokens that are not flagged as special."""
    chat: str = _CHAT
    has_thoughts: bool = False
    calls: int = 3
    """How many calls an answer may have."""
    with_content: bool = True
    """Whether an answer with calls may have content."""

    @cached_property
    def template(self) -> Template:
        return Template(TemplateFile(name=self.name, source=self.chat.replace("__ANSWER__", self.answer)), strict=False)

    @cached_property
    def tokens(self) -> SpecialTokens:
        special = frozenset({*_ROLES, *self.special})
        return SpecialTokens(
            eos="<|end|>", special=special, added=special | frozenset(self.added), stop_tokens=("<|end|>",)
        )

    @cached_property
    def grammar(self) -> AnswerGrammar:
        return self.template.grammar(self.tokens)

    def pieces(self, answer: Message) -> list[AnswerPiece]:
        """What the template writes for an answer, as a tokenizer gives it back."""
        rendered = written(self.template, self.tokens, answer)
        assert rendered is not None, f"{self.name} refuses {answer}"
        everything = SpecialTokens(special=self.tokens.added)
        return [
            AnswerPiece(piece.text, piece.is_control, piece.text in self.tokens.special)
            for piece in pieces_of(rendered, everything)
        ]

    def parse(self, pieces: list[AnswerPiece], answer: Message | None = None, *, as_text: bool = False) -> ParsedAnswer:
        """Read an answer; the message that was written gives arguments their types."""
        given = "".join(piece.text for piece in pieces) if as_text else pieces
        tools = tools_for(answer) if answer else ()
        return self.template.parse(given, self.tokens, tools=tools)


FORMS = {
    form.name: form
    for form in (
        Form(
            "object",
            _THOUGHT + "{{ m.content }}" + _CALL_FOR + "{% if m.content or not loop.first %}\n{% endif %}<tool_call>\n"
            "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>{% endfor %}",
            added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
            has_thoughts=True,
        ),
        Form(
            "list",
            "{{ m.content }}{% if m.tool_calls %}[CALLS] [" + _CALL_FOR + "{% if not loop.first %}, {% endif %}"
            "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{% endfor %}]{% endif %}",
            special=("[CALLS]",),
        ),
        Form(
            "name",
            _THOUGHT + "{{ m.content }}" + _CALL_FOR + "<|call|>{{ c.function.name }}<|sep|>"
            "{{ c.function.arguments | tojson }}<|call_end|>{% endfor %}",
            special=("<|call|>", "<|sep|>", "<|call_end|>"),
            added=("<think>", "</think>"),
            has_thoughts=True,
        ),
        Form(
            "id",
            "{{ m.content }}{% if m.tool_calls %}<|calls|>" + _CALL_FOR + "<|call|>{{ c.id }}<|sep|>"
            "{{ c.function.arguments | tojson }}<|call_end|>{% endfor %}<|calls_end|>{% endif %}",
            special=("<|calls|>", "<|call|>", "<|sep|>", "<|call_end|>", "<|calls_end|>"),
            calls=1,  # templatekit refuses several: only the ids name them
        ),
        Form(
            "tags",
            _THOUGHT + "{{ m.content }}" + _CALL_FOR + "{% if m.content or not loop.first %}\n{% endif %}<tool_call>\n"
            "<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n"
            "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}",
            added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
            has_thoughts=True,
        ),
        Form(
            "quotes",
            "{{ m.content }}" + _CALL_FOR + "<|call>call:{{ c.function.name }}{{ '{' }}"
            "{% for k, v in c.function.arguments.items() %}{{ k }}:{{ value(v) }}{% if not loop.last %},{% endif %}"
            "{% endfor %}{{ '}' }}<call|>{% endfor %}",
            special=("<|call>", "<call|>", "<|q|>"),
            chat=_QUOTED + _CHAT,
        ),
        Form(
            "channels",
            "{% if m.reasoning_content %}<|channel|>analysis<|message|>{{ m.reasoning_content }}<|stop|><|start|>"
            "{% endif %}{% if m.tool_calls %}" + _CALL_FOR + "<|channel|>commentary to=functions.{{ c.function.name }}"
            "<|message|>{{ c.function.arguments | tojson }}{% endfor %}{% else %}<|channel|>final<|message|>"
            "{{ m.content }}{% endif %}",
            special=("<|channel|>", "<|message|>", "<|stop|>", "<|start|>"),
            has_thoughts=True,
            calls=1,
            with_content=False,
        ),
        Form(
            "bare",
            "{% if m.tool_calls %}" + _CALL_FOR + '{"name": "{{ c.function.name }}", "parameters": '
            "{{ c.function.arguments | tojson }}}{% endfor %}{% else %}{{ m.content }}{% endif %}",
            calls=1,
            with_content=False,
        ),
    )
}

_SCRAPS = (
    "a word", "\n", "\n\n", " ", '"', "'", "\\", "{", "}", "[1, 2]", "<", ">", "</", "&", "ü", "日本", "🎉", "\u2028",
    "\0", "\U0010fffd", "\U00100000", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|end|>", "<|call|>",
    "<|q|>", "</parameter>", "true", "12", "1e5", "null", "NaN",
)  # fmt: skip


def texts(*, plain: bool = False) -> st.SearchStrategy[str]:
    """Texts of a few scraps, with those that spell literals; without them if `plain`."""
    scraps = [s for s in _SCRAPS if not plain or not s.strip().startswith(("<", "{"))]
    return st.lists(st.sampled_from(scraps), max_size=5).map("".join)


def values(*, plain: bool = False) -> st.SearchStrategy[Any]:
    """Values of arguments."""
    leaves = st.one_of(
        texts(plain=plain), st.integers(-999, 10**20), st.booleans(), st.none(), st.sampled_from([0.5, -2.25, 1e-7])
    )
    keys = st.sampled_from(["a", "key", "über", "x_1"])
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
    )


@st.composite
def answers(draw: st.DrawFn, form: Form, *, plain: bool = False) -> Message:
    """Answers that a form can write. Their texts have no blank space at the ends, where templates may remove it."""
    calls = []
    for index in range(draw(st.integers(0, form.calls))):
        name = draw(st.sampled_from(["now", "get_weather", "a.b-c"]))
        arguments = draw(
            st.dictionaries(st.sampled_from(["city", "n", "where", "x-y"]), values(plain=plain), max_size=3)
        )
        function = {"name": name, "arguments": arguments}
        calls.append({"id": f"functions.{name}:{index}", "type": "function", "function": function})
    has_content = form.with_content or not calls
    text = texts(plain=plain).map(str.strip)
    return Message(
        role="assistant",
        content=draw(text) if has_content else "",
        reasoning=draw(text) if form.has_thoughts else "",
        tool_calls=tuple(calls),
    )
