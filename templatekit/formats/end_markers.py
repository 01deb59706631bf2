"""The end marker: what the template writes behind an answer at which a server stops.

What stands behind a turn's last own character when the turn is the last of the conversation is its *closing*: the
template's own text, up to the first character from elsewhere. The marker is its beginning, and ends behind

1. the first stop text: one that the template's metadata names (`stop`), or the option `end_marker`;
2. else its special token, where it holds exactly one;
3. else, where it holds several, the last of those that the template writes whatever follows: they stand there as well
   when a user's turn follows, with the same text before them. `<|end|>` of Phi-3's `<|end|>\\n<|endoftext|>`, since a
   next turn takes the place of the second; all of `<tool_call_end><end_of_sentence>`, where it does not. A special
   token with which the whole text begins, alone or among others, opens turns: it and what comes behind it end none.

A closing that leaves it open, such as none at all, is an error that asks for the text, unless the metadata or the
option says `none`: an answer may then end without a marker.

Special tokens are those of the tokenizer, taken as it takes them: from the left, the longest first, and whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from templatekit.errors import TemplateError, shorten
from templatekit.formats.metadata import TemplateMetadata
from templatekit.types import SpecialTokens


@dataclass(frozen=True, slots=True)
class EndMarkers:
    """The texts that may end an assistant's turn."""

    pattern: re.Pattern[str] | None
    """Stop texts and special tokens."""
    stops: frozenset[str]
    required: bool

    @classmethod
    def of(cls, metadata: TemplateMetadata, tokens: SpecialTokens) -> EndMarkers:
        """The stop texts of the template and the special tokens of the tokenizer."""
        stops = frozenset(metadata.stop) - {""}
        texts = tokens.special.union(stops, [tokens.eos]) - {""}
        return cls(_any_of(texts), stops, required=metadata.end_marker == "required" and tokens.known)

    def length(self, closing: str, *, opening: str, followed: Callable[[], str | None], name: str) -> int:
        """How much of a closing is the end marker.

        `opening` is the template's text before the conversation's first character. `followed` gives what stands there
        in place of the closing when a user's turn follows; None where the template takes none.
        """
        found = self._found(closing)
        stop = next((end for _, end, text in found if text in self.stops), None)
        if stop is not None:
            return stop
        if len(found) > 1:
            opens = self._openers(opening)
            other = followed() or ""
            there = self._found(other)
            found = [*takewhile(lambda one: one[2] not in opens, found)]
            found = [one for one in found if one in there and other.startswith(closing[: one[0]])]
        if found:
            return found[-1][1]
        if not self.required:
            return 0
        expected = " or ".join(map(repr, sorted(self.stops))) or "a special token or a stop text"
        raise TemplateError(
            f"template {name!r} leaves open what ends an answer; found {shorten(closing)} behind it; expected "
            f"{expected}; name a text that stands there (--end-marker TEXT), or say that an answer may end without "
            "one (--end-marker none); where models are to learn to stop and nothing stands there, write "
            "{{ eos_token }} behind the answer in a template of yours, or name the text in its leading comment "
            '(stop: ["..."], or end_marker: none)'
        )

    def _openers(self, opening: str) -> set[str]:
        """The special tokens with which a text begins."""
        openers: set[str] = set()
        position = 0
        while self.pattern and (match := self.pattern.match(opening, position)):
            openers.add(match[0])
            position = match.end()
        return openers

    def _found(self, text: str) -> list[tuple[int, int, str]]:
        matches = self.pattern.finditer(text) if self.pattern else ()
        return [(match.start(), match.end(), match[0]) for match in matches]


@lru_cache(maxsize=64)
def _any_of(texts: frozenset[str]) -> re.Pattern[str] | None:
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
