r"""The adapter `transcript`: a conversation as one text, `\n\nHuman: …\n\nAssistant: …` (Anthropic's HH-RLHF)."""

import re
from collections.abc import Iterable

from templatekit import Adapter, Example, Message, Record, RecordError, hookimpl, text_of

ROLES = {"Human": "user", "Assistant": "assistant"}
_NAMES = {role: name for name, role in ROLES.items()}
_MARKER = re.compile(r"\n\n(Human|Assistant):(?=\s|\Z)")


class Transcript(Adapter):
    r"""Reads `transcript`: one text in which every message starts with an empty line and `Human:` or `Assistant:`."""

    name = "transcript"
    description = "transcript: one text of Human: … Assistant: …"
    keys = ("transcript",)
    required = ("transcript",)

    def to_example(self, record: Record) -> Example:
        """Return every message in order."""
        return Example(messages=read_transcript(text_of(record, "transcript"), "transcript"))

    def to_record(self, example: Example) -> Record:
        """Return the joined messages."""
        return {"transcript": write_transcript(example.messages)}


def read_transcript(text: str, field: str) -> tuple[Message, ...]:
    r"""Return the messages of a transcript; raise `RecordError` if the text does not start with a marker.

    A marker is `\n\nHuman:` or `\n\nAssistant:` before whitespace or the end; anything else is text, such as a marker
    within a line. Two consecutive messages of one role stay two. A single space after the colon belongs to the marker;
    longer whitespace belongs to the text, so that joining the messages gives the same transcript.
    """
    padded = "\n\n" + text.lstrip()
    if not is_transcript(text):
        raise RecordError(
            f"no transcript; found {text!r:.60}; expected a text that begins with 'Human: ' or 'Assistant: '",
            field=field,
            reason="not_a_transcript",
        )
    markers = list(_MARKER.finditer(padded))
    ends = [marker.start() for marker in markers[1:]] + [len(padded)]
    return tuple(
        Message(role=ROLES[marker[1]], content=_content(padded[marker.end() : end]))
        for marker, end in zip(markers, ends, strict=True)
    )


def is_transcript(text: str) -> bool:
    """Return whether a text starts with a marker, perhaps after whitespace."""
    return _MARKER.match("\n\n" + text.lstrip()) is not None


def _content(text: str) -> str:
    return text[1:] if text[:1] == " " and text[1:2].strip() else text


def write_transcript(messages: Iterable[Message]) -> str:
    """Return the transcript of messages of the user and the assistant: the inverse of `read_transcript`."""
    texts = []
    for message in messages:
        space = " " if message.content[:1].strip() else ""
        texts.append(f"\n\n{_NAMES[message.role]}:{space}{message.content}")
    return "".join(texts)


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Transcript()]
