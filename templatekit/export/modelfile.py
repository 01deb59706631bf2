"""Exports a template as an Ollama Modelfile: its prompts as a Go template, and the texts that stop an answer.

Jinja cannot be translated to Go in general. Instead the template renders every short sequence of system, user and
assistant messages, and the origins of the characters show which text it writes between two messages. If that text
depends only on the roles of the two messages, as in nearly every format, it goes into `{{ range .Messages }}`. If not,
the template is refused. Where the template refuses a sequence of roles, the Go template makes Ollama fail too, rather
than answer a prompt that was never trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from os.path import commonprefix

from templatekit.errors import RecordError, TemplateError, shorten
from templatekit.export.serving import stops_of
from templatekit.formats.template import Template
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import NO_TOKENIZER, Example, Message, SpecialTokens

ROLES = ("system", "user", "assistant")
_MAX_MESSAGES = 5
"""Messages in the longest sequence that is rendered: enough for a second question after a system message."""
_START, _END = "", "end"
_CONTENT = "Zürich, {0}?\n\n  Two lines; it's {0}."
_UNSUPPORTED: Mapping[str, tuple[str, str]] = {
    "a question is printed as it is; the template trims it": ("user", " text\n"),
    "an answer is printed as it is; the template trims it": ("assistant", "\n text "),
    "reasoning in earlier answers stays; the template drops it": ("assistant", "<think>\nHm.\n</think>\n\nYes."),
    "an empty system message has its header; the template leaves it out": ("system", ""),
}
"""Operations on text that Ollama's Go templates lack, each with a message that shows whether a template needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoTemplate:
    """The texts that a template writes around messages, by role."""

    first: Mapping[str, str]
    """The text at the very start of a conversation whose first message has this role."""
    before: Mapping[str, str]
    """The text before a message."""
    after: Mapping[str, str]
    """The text after a message, unless the message is an answer that the model has to continue."""
    prompt: str
    """The text after the last message, which makes the model answer."""
    follows: Mapping[str, frozenset[str]]
    """For each role, the roles that may come before it ("" is the start). For "end", those that may be last."""
    notes: tuple[str, ...] = ()
    """How the Go template differs from the template."""

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation that does not end with an answer."""
        pieces = [f"{self.before[m.role]}{m.content}{self.after[m.role]}" for m in messages]
        return "".join([self.first[messages[0].role], *pieces, self.prompt])

    def source(self) -> str:
        """The template in Go's `text/template` language, for Ollama."""
        guarded = any(self._refused(role) for role in self.before)
        lines = ['{{- $before := "" }}'] if guarded else []
        lines += ["{{- range $i, $_ := .Messages }}", "{{- $last := eq (len (slice $.Messages $i)) 1 }}"]
        for index, role in enumerate(self.before):
            lines.append(f'{{{{- {"else if" if index else "if"} eq .Role "{role}" }}}}{self._branch(role)}')
        lines.append(f"{{{{- else }}}}{_refuse('no such role')}")
        lines.append("{{- end }}")
        if guarded:
            lines.append("{{- $before = .Role }}")
        if self.prompt:
            ends = '(ne .Role "assistant")' if "assistant" in self.before else ""
            lines.append(f"{{{{- if {f'and $last {ends}' if ends else '$last'} }}}}{_literal(self.prompt)}")
            lines.append("{{- end }}")
        return "\n".join([*lines, "{{- end }}"])

    def _branch(self, role: str) -> str:
        first = self.first.get(role, "")
        before = _literal(first + self.before[role], raw_end=True)
        if first and self.follows[role] != {_START}:
            before = f"{{{{ if not $i }}}}{_literal(first, raw_end=True)}{{{{ end }}}}"
            before += _literal(self.before[role], raw_end=True)
        after = _literal(self.after[role])
        if role == "assistant" and after:
            after = f"{{{{ if not $last }}}}{_literal(self.after[role], raw_end=True)}{{{{ end }}}}"
        return f"{self._guard(role)}{before}{{{{ .Content }}}}{after}"

    def _guard(self, role: str) -> str:
        refused = self._refused(role)
        names = " ".join(f'"{other}"' for other in refused)
        guard = f"{{{{ if eq $before {names} }}}}{_refuse('wrong order')}{{{{ end }}}}" if refused else ""
        if role != "assistant" and role not in self.follows[_END]:
            guard += f"{{{{ if $last }}}}{_refuse('no question')}{{{{ end }}}}"
        return guard

    def _refused(self, role: str) -> list[str]:
        """The roles that may not come directly before this one, except itself: Ollama joins messages of one role."""
        return [other for other in (_START, *self.before) if other not in (*self.follows[role], role)]


def _refuse(why: str) -> str:
    """A call that fails, since Go templates cannot raise; Ollama's error shows its first twenty characters."""
    return f'{{{{ slice "{why}" 1 0 }}}}'


def go_template(template: Template, tokens: SpecialTokens = NO_TOKENIZER) -> GoTemplate:
    """The texts that a template writes around messages. Raises `TemplateError` if more than their roles decides."""
    if "strftime_now" in template.source:
        raise _inexpressible(template, "it prints the date")
    if not tokens.known and template.multi_turn and "eos_token" in template.variables:
        raise _inexpressible(template, "it prints the tokenizer's eos_token, and no tokenizer is given (--tokenizer)")
    gaps, refused = _gaps(template, tokens)
    found = _split_gaps(template, gaps)
    for roles in refused:
        if all(pair in gaps for pair in zip((_START, *roles), (*roles, _END), strict=True)):
            raise _inexpressible(
                template, f"it refuses the sequence {', '.join(roles)}, though it accepts each pair of it"
            )
    notes = [note for note, (role, text) in _UNSUPPORTED.items() if not _matches(template, tokens, found, role, text)]
    if "tools" in template.variables:
        notes.append("tools are left out")
    return replace(found, notes=tuple(notes))


def modelfile(template: Template, tokenizer: Tokenizer | None = None) -> str:
    """The text of a Modelfile. Without a tokenizer it has only the template's own stop texts."""
    go = go_template(template, tokenizer.special_tokens if tokenizer else NO_TOKENIZER)
    stops = list(template.metadata.stop)
    if tokenizer is not None:
        ids, strings = stops_of(template, tokenizer)
        stops = [*strings, *(tokenizer.decode([id]) for id in ids)]
    lines = [
        f"# Prompts as the template {template.name!r} writes them. FROM names the model: a folder, a file or a name.",
        *(f"# Unlike there: {note}." for note in go.notes),
        "FROM .",
        f'TEMPLATE """{go.source()}"""',
        *(f"PARAMETER stop {_quoted(stop, template)}" for stop in dict.fromkeys(stops)),
    ]
    if "system" in go.before:
        lines.append('# SYSTEM """You are a helpful assistant."""')
    return "\n".join(lines) + "\n"


def _inexpressible(template: Template, why: str) -> TemplateError:
    return TemplateError(
        f"template {template.name!r} cannot be written as a Modelfile: {why}; "
        "servers that read chat templates use it as it is (--format chat_template)"
    )


_Gaps = dict[tuple[str, str], str]


def _gaps(template: Template, tokens: SpecialTokens) -> tuple[_Gaps, list[tuple[str, ...]]]:
    """The text between every two adjacent roles, and the sequences of roles that the template refuses."""
    gaps: _Gaps = {}
    refused = []
    for roles in _role_sequences():
        try:
            texts = _texts_between(template, tokens, _messages(roles))
        except RecordError:
            refused.append(roles)
            continue
        for before, after, text in zip((_START, *roles), (*roles, _END), texts, strict=True):
            if gaps.setdefault((before, after), text) != text:
                position = f"before {after}" if after in ROLES else "at the end"
                raise _inexpressible(
                    template,
                    f"the text {position} after {before or 'nothing'} depends on other turns; found {shorten(text)} "
                    f"and {shorten(gaps[before, after])}",
                )
    if not gaps:
        raise _inexpressible(template, "it accepts no sequence of system, user and assistant messages")
    return gaps, refused


def _role_sequences() -> Iterator[tuple[str, ...]]:
    """Every short sequence of roles that asks for an answer, none twice in a row, since Ollama joins such messages."""
    for length in range(1, _MAX_MESSAGES + 1):
        for roles in product(ROLES, repeat=length):
            if roles[-1] != "assistant" and all(one != other for one, other in pairwise(roles)):
                yield roles


def _messages(roles: Iterable[str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=_CONTENT.format(index)) for index, role in enumerate(roles))


def _texts_between(template: Template, tokens: SpecialTokens, messages: tuple[Message, ...]) -> list[str]:
    """The texts before, between and after the messages, without the BOS that Ollama adds itself."""
    rendered = template.prompt(Example(messages=messages), tokens)
    texts, position = [], 0
    contents = [span for span in rendered.spans if span.origin.field == "content"]
    printed = [span.origin.message for span in contents]
    if len(set(printed)) < len(messages):
        raise RecordError("a message is not printed", reason="no_place_for_field")
    if printed != list(range(len(messages))):
        raise _inexpressible(template, "it does not print each message once, in their order")
    for span, message in zip(contents, messages, strict=True):
        if rendered.text[span.start : span.end] != message.content:
            raise _inexpressible(template, f"it changes a text; found {shorten(rendered.text[span.start : span.end])}")
        texts.append(rendered.text[position : span.start])
        position = span.end
    if tokens.bos and ("bos_token" in template.variables or tokens.adds_bos):
        texts[0] = texts[0].removeprefix(tokens.bos)
    return [*texts, rendered.text[position:]]


def _split_gaps(template: Template, gaps: _Gaps) -> GoTemplate:
    """Split the text between two messages into a part that belongs to the first one and a part of the second one.

    `len(after[a]) + len(before[b])` is the length of the text between a and b. This leaves one length undetermined for
    each set of connected roles; the text before a message is then made as long as possible.
    """
    longest = {role: _common_end(text for (_, other), text in gaps.items() if other == role) for _, role in gaps}
    after: dict[str, int] = {}
    before: dict[str, int] = {}
    inner = {pair: len(text) for pair, text in gaps.items() if pair[0] != _START}
    for role in ROLES:
        if role in after or not any(pair[0] == role for pair in inner):
            continue
        joined_after = {role: 0}
        joined_before: dict[str, int] = {}
        for _ in inner:  # enough rounds to reach every pair
            for (one, other), length in inner.items():
                if one in joined_after:
                    joined_before.setdefault(other, length - joined_after[one])
                elif other in joined_before:
                    joined_after[one] = length - joined_before[other]
        spare = min(len(longest[other]) - length for other, length in joined_before.items())
        before |= {other: length + spare for other, length in joined_before.items()}
        after |= {other: length - spare for other, length in joined_after.items()}
    own = {role: text[len(text) - before.get(role, len(text)) :] for role, text in longest.items()}
    own_after = {one: text.removesuffix(own[other]) for (one, other), text in gaps.items() if one != _START}
    for (one, other), text in gaps.items():
        if min(*before.values(), *after.values(), 0) < 0 or (one != _START and text != own_after[one] + own[other]):
            raise _inexpressible(
                template, f"the text between {one} and {other} cannot be divided between the two; found {shorten(text)}"
            )
    roles = [role for role in ROLES if role in own]
    return GoTemplate(
        first={role: text.removesuffix(own[role]) for (one, role), text in gaps.items() if one == _START},
        before={role: own[role] for role in roles},
        after={role: own_after.get(role, "") for role in roles},
        prompt=own[_END],
        follows={role: frozenset(one for one, other in gaps if other == role) for role in (*roles, _END)},
    )


def _common_end(texts: Iterable[str]) -> str:
    return commonprefix([text[::-1] for text in texts])[::-1]  # noqa: RUF071  (it compares characters, as is meant here)


def _matches(template: Template, tokens: SpecialTokens, found: GoTemplate, role: str, content: str) -> bool:
    """Whether the Go template gives the same prompt for a message with this content, or the template refuses it."""
    if role not in found.before:
        return True
    roles = {"system": ("system", "user"), "user": ("user",), "assistant": ("user", "assistant", "user")}[role]
    messages = tuple(Message(role=other, content=content if other == role else _CONTENT.format(0)) for other in roles)
    try:
        text = template.prompt(Example(messages=messages), tokens).text
    except RecordError:
        return True
    return text.endswith(found.text(messages))


def _literal(text: str, *, raw_end: bool = False) -> str:
    """Text in a Go template.

    Quotes enclose whitespace that the next line's `{{-` would remove, braces that the `{{` of the next action would
    join (Go reads the first two of `{{{`), and text that Go or the Modelfile would interpret.
    """
    if "{{" in text or '"""' in text or not all(char == "\n" or char.isprintable() for char in text):
        return f'{{{{ "{"".join(map(_escaped, text))}" }}}}'
    kept = (text if raw_end else text.rstrip()).rstrip("{")
    ending = text[len(kept) :]
    return f'{kept}{{{{ "{"".join(map(_escaped, ending))}" }}}}' if ending else kept


def _escaped(char: str) -> str:
    if char == "\n":
        return "\\n"
    if char in '"\\{' or not char.isprintable():
        return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
    return char


def _quoted(stop: str, template: Template) -> str:
    """The value of a parameter. A Modelfile has no escapes, and drops characters that are not printable."""
    quote = '"""' if '"' in stop or "\n" in stop else '"'
    if '"""' in stop or stop.endswith('"') or not all(char == "\n" or char.isprintable() for char in stop):
        raise _inexpressible(template, f"no Modelfile can hold its stop text {stop!r}")
    return f"{quote}{stop}{quote}"
