"""Decides where the end marker of an answer ends: the text that the template writes after it and a server stops at.

The *closing* of the last turn of a conversation is the literal directly after the turn's own last character, up to the
first character of another origin. The end marker is a prefix of the closing. It ends after

1. the first stop text in the closing, if there is one: a text that the template's metadata (`stop`) or the option
   `end_marker` names;
2. else the special token in the closing, if there is exactly one;
3. else, if there are several, the last special token that the template also writes, after the same characters, before a
   user's turn. In Phi-3's `<|end|>\\n<|endoftext|>` that is `<|end|>`, since the next turn replaces the second token.
   In `<tool_call_end><end_of_sentence>` it is the second token, which the next turn does not replace. A special token
   at the very start of the whole text, alone or with others, opens turns: neither it nor anything after it is part of
   an end marker.

Any other closing, such as an empty one, leaves open what ends the answer. The metadata or the option may say `none`: an
answer may then end without a marker. Else a server stops all the same, at its *stop tokens*: those of the model's
`generation_config.json`, else EOS. So one of them is the end marker, written after the answer: what the template writes
before the next turn, if it has a stop token, up to that token; else EOS, or the first stop token. Without stop tokens,
an open end is an error that asks for the text.

Special tokens are the tokenizer's, matched as it does: from left to right, the longest first, never overlapping.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from templatekit.errors import NoEndMarkerError, shorten
from templatekit.formats.metadata import TemplateMetadata
from templatekit.types import SpecialTokens


@dataclass(frozen=True, slots=True)
class EndMarkers:
    """The texts that may end an assistant's turn."""

    pattern: re.Pattern[str] | None
    """Matches any stop text or special token; None if there are none."""
    stops: frozenset[str]
    required: bool
    """Whether an answer must end with a marker."""
    stop_tokens: tuple[str, ...]
    """The tokens at which servers stop, EOS first."""

    @classmethod
    def of(cls, metadata: TemplateMetadata, tokens: SpecialTokens) -> EndMarkers:
        """The stop texts of a template and the special tokens of a tokenizer."""
        stops = frozenset(metadata.stop) - {""}
        texts = tokens.special.union(stops, [tokens.eos]) - {""}
        required = metadata.end_marker == "required" and tokens.known
        stop_tokens = tuple(sorted(tokens.stop_tokens, key=lambda token: token != tokens.eos))
        return cls(_any_of(texts), stops, required=required, stop_tokens=stop_tokens)

    def added_marker(self, closing: str, next_closing: str) -> str:
        """The end marker of an answer that the template leaves open; empty if it stays open.

        `next_closing` is the literal that the template writes in place of the closing before the next turn.
        """
        found = [next_closing.index(token) + len(token) for token in self.stop_tokens if token in next_closing]
        if found:
            return next_closing[: min(found)]
        # What closes a call or an answer belongs to it; blank space is the next turn's.
        return f"{closing.rstrip()}{self.stop_tokens[0]}" if self.stop_tokens else ""

    def marker_length(
        self, closing: str, *, opening: str, closing_before_user: Callable[[], str | None], name: str
    ) -> int:
        """The length of the end marker at the start of a closing.

        `opening` is the literal before the conversation's first character. `closing_before_user` returns the closing
        that the template writes before a user's turn, or None if no such turn can follow. `name` is the template's.
        """
        matches = self._matches(closing)
        for start, text in matches:
            if text in self.stops:
                return start + len(text)
        if len(matches) > 1:
            openers = self._openers(opening)
            other_closing = closing_before_user() or ""
            other_matches = self._matches(other_closing)
            matches = [
                (start, text)
                for start, text in takewhile(lambda match: match[1] not in openers, matches)
                if (start, text) in other_matches and other_closing.startswith(closing[:start])
            ]
        if matches:
            start, text = matches[-1]
            return start + len(text)
        if not self.required:
            return 0
        expected = " or ".join(map(repr, sorted(self.stops))) or "a special token or a stop text"
        raise NoEndMarkerError(
            f"template {name!r} leaves open what ends an answer; found {shorten(closing)} after it; expected "
            f"{expected}; name the text that ends it (--end-marker TEXT), or say that an answer may end without "
            "one (--end-marker none); if nothing ends it and models are to learn to stop, write {{ eos_token }} "
            "after the answer in a template of your own, or name the text in its leading comment "
            '(stop: ["..."], or end_marker: none)'
        )

    def _openers(self, opening: str) -> set[str]:
        """The special tokens at the start of a text, one directly after the other."""
        openers: set[str] = set()
        position = 0
        while self.pattern and (match := self.pattern.match(opening, position)):
            openers.add(match[0])
            position = match.end()
        return openers

    def _matches(self, text: str) -> list[tuple[int, str]]:
        """The stop texts and special tokens in a text, each with its start."""
        return [(match.start(), match[0]) for match in self.pattern.finditer(text)] if self.pattern else []


@lru_cache(maxsize=64)
def _any_of(texts: frozenset[str]) -> re.Pattern[str] | None:
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
