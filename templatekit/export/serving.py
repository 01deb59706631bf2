"""Exports a template for servers: as a Hugging Face chat template, with the tokens and texts that stop an answer."""

from __future__ import annotations

from typing import NamedTuple

from templatekit.formats.template import Template
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example, Message, SpecialTokens

# Sets the variables of an instruction format from the messages of one turn. Text for which the format has no place is
# refused, because a server must not drop a client's text silently.
_ONE_TURN = """\
{%- set turn = namespace(system='', instruction=none, context='', response='', roles='') -%}
{%- for message in messages -%}
{%- set turn.roles = turn.roles ~ message.role ~ ' ' -%}
{%- if message.role == 'system' -%}{%- set turn.system = message.content -%}
{%- elif message.role == 'user' -%}{%- set turn.instruction = message.content -%}
{%- if message.context -%}{%- set turn.context = message.context -%}{%- endif -%}
{%- elif message.role == 'assistant' -%}{%- set turn.response = message.content -%}
{%- endif -%}
{%- endfor -%}
{%- if turn.roles not in ['user ', 'system user ', 'user assistant ', 'system user assistant '] -%}
{{- raise_exception('this format holds one turn, a user\\'s and an assistant\\'s; found ' ~ turn.roles) -}}
{%- endif -%}
"""
_REFUSE = """\
{%%- if turn.%(field)s -%%}{{- raise_exception('this format has no place for a %(what)s') -}}{%%- endif -%%}
"""
_NAMES = {"system": "system message", "context": "context"}


class Stops(NamedTuple):
    """The tokens and texts at which a server stops generating."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]


def chat_template(template: Template, tokens: SpecialTokens) -> str:
    """The template as a chat template for transformers and vLLM, which gives the same text.

    Chat templates are not changed. An instruction format gets a head that reads its fields from `messages`, with the
    input in the user message's `context`. If the tokenizer puts BOS before plain text, so does the head.
    """
    if template.kind == "chat":
        return template.source
    parts = [_ONE_TURN]
    for field, what in _NAMES.items():
        if field in template.variables:
            parts.append(f"{{%- set {field} = turn.{field} -%}}\n")
        else:
            parts.append(_REFUSE % {"field": field, "what": what})
    parts.append("{%- set instruction = turn.instruction -%}\n")
    if tokens.adds_bos and "bos_token" not in template.variables:
        parts.append("{{- bos_token -}}\n")
    # `+` keeps a newline at the start of the format.
    parts.append("{%- set response = turn.response +%}")
    return "".join(parts) + template.source


def stops_of(template: Template, tokenizer: Tokenizer) -> Stops:
    """The stops of a template: the tokens and texts of its end marker, its stop texts, and EOS."""
    special = tokenizer.special_tokens
    probe = Example(messages=(Message(role="user", content="a"), Message(role="assistant", content="b")))
    rendered = template.render(probe, special)
    # There are no markers if the template's own `{% generation %}` blocks leave the answer out. Of several tokens in a
    # marker, the last one ends the answer.
    markers = [rendered.text[target.marker_start : target.end].rstrip() for target in rendered.target_spans]
    special_texts = [text for text, token in tokenizer.control_tokens.items() if token.special]
    texts = [text for text in special_texts if any(marker.endswith(text) for marker in markers)]
    texts += [*template.metadata.stop, special.eos]
    ids = {token.id for text in texts if (token := tokenizer.control_tokens.get(text)) is not None}
    strings = [text for text in texts if text and text not in tokenizer.control_tokens]
    return Stops(ids=tuple(sorted(ids)), strings=tuple(dict.fromkeys(strings)))
