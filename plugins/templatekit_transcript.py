r"""Transcripts: a conversation as one text of `\n\nHuman: …\n\nAssistant: …`, as Anthropic's HH-RLHF data has them."""

import re
from collections.abc import Iterable

from templatekit import Adapter, Example, Message, Record, RecordError, hookimpl, text_of

ROLES = {"Human": "user", "Assistant": "assistant"}
_NAMES = {role: name for name, role in ROLES.items()}
_MARKER = re.compile(r"\n\n(Human|Assistant):(?=\s|\Z)")


class Transcript(Adapter):
    r"""`transcript`: one text, in which every message begins with an empty line and `Human:` or `Assistant:`."""

    name = "transcript"
    description = "transcript: one text of Human: … Assistant: …"
    keys = ("transcript",)
    required = ("transcript",)

    def to_example(self, record: Record) -> Example:
        """Every message in order."""
        return Example(messages=read_transcript(text_of(record, "transcript"), "transcript"))

    def to_record(self, example: Example) -> Record:
        """The messages joined."""
        return {"transcript": write_transcript(example.messages)}


def read_transcript(text: str, field: str) -> tuple[Message, ...]:
    r"""The messages of a transcript; raises `RecordError` for a text that does not begin with one.

    A marker is `\n\nHuman:` or `\n\nAssistant:` before whitespace or the end; anything else is text, such as a marker
    within a line. Two messages of one role in a row stay two. The blank behind the colon is the marker's, unless more
    whitespace follows: then all of it is text, so that joining gives the transcript back.
    """
    begun = "\n\n" + text.lstrip()
    if not is_transcript(text):
        raise RecordError(
            f"no transcript; found {text!r:.60}; expected a text that begins with 'Human: ' or 'Assistant: '",
            field=field,
            reason="not_a_transcript",
        )
    markers = list(_MARKER.finditer(begun))
    ends = [marker.start() for marker in markers[1:]] + [len(begun)]
    return tuple(
        Message(role=ROLES[marker[1]], content=_content(begun[marker.end() : end]))
        for marker, end in zip(markers, ends, strict=True)
    )


def is_transcript(text: str) -> bool:
    """Whether a text begins with a marker; whitespace before it is nobody's."""
    return _MARKER.match("\n\n" + text.lstrip()) is not None


def _content(text: str) -> str:
    return text[1:] if text[:1] == " " and text[1:2].strip() else text


def write_transcript(messages: Iterable[Message]) -> str:
    """The inverse, for messages of the user and the assistant."""
    texts = []
    for message in messages:
        blank = " " if message.content[:1].strip() else ""
        texts.append(f"\n\n{_NAMES[message.role]}:{blank}{message.content}")
    return "".join(texts)


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Transcript()]
