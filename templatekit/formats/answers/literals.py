"""The literals that can follow each field of an answer, ready to be found in a text that comes in.

Blank space at the ends of a literal may be missing. At the end of a text that goes on, what may become a literal is
left for later, so that an answer is read alike in parts and at once.

In an answer in pieces, each control token is replaced by one character that no text of that answer holds. A literal is
then found by its characters, and a control token is never mistaken for text, nor text for a control token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

from templatekit.formats.answers.grammar import CALL_NODES, NUMBER, OBJECT_NODES, AnswerGrammar, Edge, Node
from templatekit.formats.answers.notation import Notation
from templatekit.types import AnswerPiece

_FIRST_MARK, _LAST_MARK = 0x100000, 0x10FFFF
_MARK = re.compile("[\U00100000-\U0010ffff]")
_DIGITS = 9
"""The most digits in the number of a call."""


class ControlMarks:
    """The characters that stand for control tokens in an answer in pieces.

    They are of Unicode's last plane, which is for private use. Where text holds one of that plane itself, it gets one
    as well.
    """

    def __init__(self, controls: Iterable[str]) -> None:
        """`controls` are the tokens that literals hold."""
        self._tokens = {token: chr(_FIRST_MARK + index) for index, token in enumerate(controls)}
        self._characters: dict[str, str] = {}
        self._texts = {mark: token for token, mark in self._tokens.items()}
        self._special: set[str] = set()

    def marked(self, piece: AnswerPiece) -> str:
        """The text of a piece with marks.

        A control token that is in no literal and not flagged as special is text: fields can hold it.
        """
        if not piece.is_control:
            return piece.text if piece.text.isascii() else _MARK.sub(self._mark_of_character, piece.text)
        mark = self._tokens.get(piece.text)
        if mark is None:
            if not piece.is_special:
                return self.marked(AnswerPiece(piece.text))
            mark = self._tokens[piece.text] = self._new(piece.text)
        if piece.is_special:
            self._special.add(mark)
        return mark

    def plain(self, text: str) -> str:
        """The text without marks."""
        return _MARK.sub(lambda match: self._texts[match[0]], text) if self._is_marked(text) else text

    def decode(self, text: str, notation: Notation, quote: str) -> Any:
        """The value that a text with marks spells; `quote` is the mark of the notation's own.

        Raises `ValueError` if it spells none.
        """
        if not self._is_marked(text):
            return notation.decode(text)
        if not notation.escapes:
            return self._plain_value(notation.with_quote(quote).decode(text))
        # An escape such as \udbc0\udc00 can spell a character that is a mark, so marks are replaced first.
        return notation.decode(_MARK.sub(lambda match: _escaped(self._texts[match[0]]), text))

    def special_at(self, text: str, position: int, allowed: str) -> int:
        """Where the next special token stands that is not the allowed one; the length of the text if none does."""
        if self._special:
            for match in _MARK.finditer(text, position):
                if match[0] in self._special and match[0] != allowed:
                    return match.start()
        return len(text)

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The runs of a text, and whether each is a special token."""
        start = 0
        while start < len(text):
            at = self.special_at(text, start, "")
            if at > start:
                yield text[start:at], False
            if at < len(text):
                yield text[at], True
            start = at + 1

    def _mark_of_character(self, match: re.Match[str]) -> str:
        mark = self._characters.get(match[0])
        if mark is None:
            mark = self._characters[match[0]] = self._new(match[0])
        return mark

    def _new(self, text: str) -> str:
        mark = chr(min(_FIRST_MARK + len(self._texts), _LAST_MARK))
        self._texts[mark] = text
        return mark

    def _is_marked(self, text: str) -> bool:
        return bool(self._texts) and not text.isascii() and _MARK.search(text) is not None

    def _plain_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.plain(value)
        if isinstance(value, dict):
            return {self.plain(key): self._plain_value(item) for key, item in value.items()}
        return [self._plain_value(item) for item in value] if isinstance(value, list) else value


def _escaped(text: str) -> str:
    """A text as it stands in a string of JSON or Python."""
    return re.sub(r"[\"'\\\x00-\x1f]", lambda match: f"\\u{ord(match[0]):04x}", text)


class Crossing(NamedTuple):
    """Where a literal leads."""

    target: Node
    form: Literal["whole", "marker", "no_marker", "cut"] = "whole"
    """What stands there of the literal: all, the end marker alone, all but the end marker, or nothing: the text ends.

    Only literals that end an answer can be incomplete.
    """
    begins_call: bool = False
    may_end: bool = False
    """Whether the answer may also end there, since the template writes the same literal at the end."""


class Found(NamedTuple):
    """A literal in a text."""

    start: int
    end: int
    crossing: Crossing


@dataclass(frozen=True, slots=True)
class _Spelling:
    """A literal with some of the blank space at its ends, and the text behind it that tells where it leads."""

    text: str
    behind: str
    crossing: Crossing

    @property
    def whole(self) -> str:
        return self.text + self.behind


class LiteralTable:
    """The literals that may follow one field."""

    def __init__(self, spellings: Iterable[_Spelling], without_marker: Iterable[str] = ()) -> None:
        """`without_marker` are literals that end an answer, without their end marker."""
        self._by_text: dict[str, _Spelling] = {}
        for spelling in spellings:
            self._by_text.setdefault(spelling.whole, spelling)
        ordered = sorted(self._by_text, key=len, reverse=True)
        self._numbered = [
            (re.compile(_expression(text)), re.compile(_partial_expression(text)), self._by_text[text])
            for text in ordered
            if NUMBER in text
        ]
        self._pattern = re.compile("|".join(map(_expression, ordered))) if ordered else None
        self._beginnings = frozenset(text[:length] for text in ordered for length in range(1, len(text)))
        self._first = frozenset(text[0] for text in ordered)
        self._longest = max((len(text) + _DIGITS * text.count(NUMBER) for text in ordered), default=1)
        endings = sorted(without_marker, key=len, reverse=True)
        self._ending = re.compile("|".join(map(_expression, endings))) if endings else None

    def find(self, text: str, position: int, *, final: bool, no_call_before: int = 0) -> Found | int:
        """The first literal from a position on, or the position up to which the text certainly holds none.

        `final` says that no more text comes in. Literals that begin a call count only from `no_call_before` on.
        """
        match = self._search(text, position, no_call_before)
        certain = len(text) if final else self._certain(text, position)
        if match and (final or match.start() < certain):
            return self._found(match)
        return (final and self._cut_ending(text, position)) or certain

    def _cut_ending(self, text: str, position: int) -> Found | None:
        """The literal at the end of a cut text that has all which ends an answer, but for the end marker."""
        for match in self._ending.finditer(text, max(position, len(text) - self._longest)) if self._ending else ():
            if match.end() == len(text) or self.may_become(text[match.start() :]):
                return Found(match.start(), len(text), Crossing("end", "no_marker"))
        return None

    def match(self, text: str, position: int, *, no_call_before: int = 0) -> Found | None:
        """The literal at a position; one that begins a call only from `no_call_before` on."""
        pattern = self._pattern if position >= no_call_before else self._without_calls
        match = pattern.match(text, position) if pattern else None
        return self._found(match) if match else None

    def _search(self, text: str, position: int, no_call_before: int) -> re.Match[str] | None:
        if self._pattern is None or position >= no_call_before:
            return self._pattern and self._pattern.search(text, position)
        later = self._pattern.search(text, no_call_before)
        other = self._without_calls.search(text, position) if self._without_calls else None
        found = [match for match in (later, other) if match is not None]
        return min(found, key=lambda match: (match.start(), -match.end()), default=None)

    @cached_property
    def _without_calls(self) -> re.Pattern[str] | None:
        """The literals that do not begin a call."""
        texts = [text for text, spelling in self._by_text.items() if spelling.crossing.target not in CALL_NODES]
        return re.compile("|".join(map(_expression, sorted(texts, key=len, reverse=True)))) if texts else None

    def closing(self, text: str) -> int:
        """How long the literal is that begins a text and would end an answer, without the end marker; 0 for none."""
        match = self._ending.match(text) if self._ending else None
        return match.end() if match else 0

    def is_in(self, text: str) -> bool:
        """Whether a text holds one of the literals."""
        return bool(self._pattern and self._pattern.search(text))

    def may_become(self, text: str) -> bool:
        """Whether a text is the beginning of a literal that is longer."""
        return len(text) < self._longest and (
            text in self._beginnings or any(partial.fullmatch(text) for _, partial, _ in self._numbered)
        )

    def _certain(self, text: str, position: int) -> int:
        for start in range(max(position, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and self.may_become(text[start:]):
                return start
        return len(text)

    def _found(self, match: re.Match[str]) -> Found:
        spelling = self._by_text.get(match[0])
        if spelling is None:
            spelling = next(found for whole, _, found in self._numbered if whole.fullmatch(match[0]))
        return Found(match.start(), match.end() - len(spelling.behind), spelling.crossing)


def _expression(text: str) -> str:
    """A regular expression for a literal, in which `NUMBER` stands for any number."""
    return re.escape(text).replace(re.escape(NUMBER), f"[0-9]{{1,{_DIGITS}}}")


def _partial_expression(text: str) -> str:
    """A regular expression for the beginnings of a literal, and for itself if more digits may follow."""
    lengths = range(len(text) if text.endswith(NUMBER) else len(text) - 1, 0, -1)
    return "|".join(_expression(text[:length]) for length in lengths)


def _spellings(literal: str) -> Iterator[str]:
    """A literal, then the same with less blank space at its ends."""
    core = literal.strip()
    start = literal.index(core)
    before, after = literal[:start], literal[start + len(core) :]
    for first in range(len(before) + 1):
        for last in range(len(after), -1, -1):
            yield before[first:] + core + after[:last]


class Start(NamedTuple):
    """How an answer begins behind a prompt."""

    table: LiteralTable
    blank: str
    """Where none of the literals stands, a field begins behind this blank space."""
    field: Node


class GrammarTables:
    """The literals of one grammar, by the field that they follow."""

    def __init__(self, grammar: AnswerGrammar, *, pieces: bool) -> None:
        self.grammar = grammar
        self._tokens = sorted(grammar.controls, key=len, reverse=True) if pieces else []
        self._stops = tuple(map(self._marked, (*grammar.stops, *grammar.turn_tokens)))
        self.quote = self._marked(grammar.values.quote) if grammar.values else ""
        self.values = grammar.values and grammar.values.with_quote(self.quote)
        self._openings = {edge.target for edge in grammar.edges if edge.source not in CALL_NODES} & {*CALL_NODES}
        nodes: set[Node] = {"reasoning", "content", *(edge.source for edge in grammar.edges)}
        self.by_node = {node: self._table(node) for node in nodes if node != "start"}
        self._starts: dict[tuple[tuple[str, Node], ...], Start] = {}

    @cached_property
    def thought(self) -> LiteralTable:
        """The literals that open a thought."""
        return LiteralTable(
            _Spelling(spelling, "", Crossing("reasoning"))
            for literal in map(self._marked, self.grammar.literals("start", "reasoning"))
            if literal.strip()
            for spelling in _spellings(literal)
        )

    def marks(self) -> ControlMarks:
        """The marks for one answer."""
        return ControlMarks(self._tokens)

    def start(self, prompt: str | None) -> Start:
        """How an answer begins behind a prompt."""
        literals = tuple(_remaining(self.grammar, prompt))
        if literals not in self._starts:
            blank = {target: literal for literal, target in literals if not literal.strip()}
            fields: tuple[Node, ...] = ("reasoning", "content", "name")
            field: Node = next((field for field in fields if field in blank), "content")
            edges = [Edge(source="start", target=target, literal=literal) for literal, target in literals]
            table = LiteralTable(self._all_spellings("start", edges))
            self._starts[literals] = Start(table, blank.get(field, ""), field)
        return self._starts[literals]

    def _table(self, node: Node) -> LiteralTable:
        edges = self.grammar.targets(node)
        literals = [self._marked(edge.literal) for edge in edges if edge.target == "end"]
        without = filter(str.strip, map(self._without_marker, literals))
        return LiteralTable(
            self._all_spellings(node, edges), [spelling for literal in without for spelling in _spellings(literal)]
        )

    def _without_marker(self, literal: str) -> str:
        """A literal that ends an answer, up to its end marker; empty if it has none."""
        literal = literal.rstrip()
        return next((literal.removesuffix(stop) for stop in self._stops if literal.endswith(stop)), "")

    def _all_spellings(self, source: Node, edges: Iterable[Edge]) -> Iterator[_Spelling]:
        """What can be found behind a field; of equal texts, the first tells where it leads."""
        edges = sorted(edges, key=lambda edge: edge.target == "end")
        ends = {edge.literal for edge in edges if edge.target == "end"}
        for edge in edges:
            literal, target = self._marked(edge.literal), edge.target
            crossing = Crossing(
                target,
                begins_call=self._begins_call(source, target),
                may_end=target != "end" and edge.literal in ends,
            )
            if literal.strip():
                yield from (_Spelling(spelling, "", crossing) for spelling in _spellings(literal))
            elif target in OBJECT_NODES:
                yield from (_Spelling(literal, behind, crossing) for behind in self._object_beginnings(target))
            elif literal and (source in OBJECT_NODES or source in ("id", "name", "key")):
                yield _Spelling(literal, "", crossing)
        for edge in edges:
            literal = self._marked(edge.literal)
            closing = self._without_marker(literal) or literal.rstrip()
            if edge.target == "end" and closing.strip() and closing not in self._stops:
                for stop in self._stops:  # another one than the template writes
                    yield from (_Spelling(spelling, "", Crossing("end")) for spelling in _spellings(closing + stop))
        yield from (_Spelling(stop, "", Crossing("end", "marker")) for stop in self._stops if stop)

    def _begins_call(self, source: Node, target: Node) -> bool:
        """Whether a literal between these fields begins a call.

        A call has an id and a name in either order: the second of them does not begin the next call.
        """
        if source in ("id", "name") and target in ("id", "name") and source != target:
            return source not in self._openings
        return target in self._openings

    def _object_beginnings(self, node: Node) -> Iterator[str]:
        """How an object begins where no literal says that one does."""
        if node == "arguments":
            yield "{"
        elif self.grammar.call and self.grammar.call.first_key:
            for blank in ("", "\n", " "):
                yield f"{'[' if node == 'calls' else ''}{{{blank}{json.dumps(self.grammar.call.first_key)}"

    def _marked(self, text: str) -> str:
        for index, token in enumerate(self._tokens):
            text = text.replace(token, chr(_FIRST_MARK + index))
        return text


def _remaining(grammar: AnswerGrammar, prompt: str | None) -> Iterator[tuple[str, Node]]:
    """What is left to write of each literal that begins an answer behind a prompt, which may have written some of it.

    The prompt may be its end alone. For one that ends as no prompt of the template does, a literal at its end that
    closes a thought tells that the content begins.
    """
    edges = grammar.targets("start")
    if not prompt or _is_behind(prompt, grammar.prompt):
        yield from ((edge.literal, edge.target) for edge in edges)
        return
    begun: list[tuple[int, str, Node]] = []
    for edge in edges:
        whole = grammar.prompt + edge.literal
        lengths = (length for length in range(len(whole), 0, -1) if _is_behind(prompt, whole[:length]))
        if length := next(lengths, 0):
            begun.append((length, whole[length:], edge.target))
    best = max((length for length, _, _ in begun), default=0)
    if any(prompt.endswith(literal.rstrip()) for literal in grammar.literals("reasoning", "content")):
        yield "", "content"
    elif any(
        opens and prompt.rstrip().endswith(opens) for opens in map(str.strip, grammar.literals("start", "reasoning"))
    ):
        yield "", "reasoning"
    elif best >= len(grammar.prompt.rstrip()):
        yield from ((literal, target) for length, literal, target in begun if length == best or not literal)
    else:
        yield from ((edge.literal, edge.target) for edge in edges)


def _is_behind(prompt: str, text: str) -> bool:
    """Whether a prompt, of which only the end may be known, ends in this text."""
    return prompt.endswith(text) or (len(prompt) < len(text) and text.endswith(prompt))


@lru_cache(maxsize=256)
def tables_of(grammar: AnswerGrammar, *, pieces: bool) -> GrammarTables:
    """The tables of a grammar, for an answer as text or in pieces."""
    return GrammarTables(grammar, pieces=pieces)
