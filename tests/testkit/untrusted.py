"""An untrusted chat template in its simplest form, an example, and its text."""

from __future__ import annotations

from templatekit import Example, Message, TemplateFile
from templatekit.formats.sandbox.untrusted import UntrustedTemplate
from templatekit.formats.sandbox.worker import Limits
from templatekit.types import SpecialTokens

TOKENS = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>"}))
EXAMPLE = Example(messages=(Message(role="user", content="Hello there"), Message(role="assistant", content="Hi you!")))
CHAT = (
    "{% for m in messages %}{{ '<s>' if m.role == 'user' else '' }}{{ m.content }}"
    "{{ '</s>' if m.role == 'assistant' else '|' }}{% endfor %}"
)
TEXT = "<s>Hello there|Hi you!</s>"
EXACT = Limits(seconds=1, megabytes=256)


def untrusted_template(source: str, name: str = "tried") -> UntrustedTemplate:
    return UntrustedTemplate(TemplateFile(name=name, source=source), strict=False)
