r"""An answer grammar in the declarative form of transformers (5.13 and later), `tokenizer.response_template`.

That form names a region of the text for each field of a message: regular expressions for its opening and its close, and
a parser for what stands between. The region without an opening is what stands in no other one: the content, where no
literal opens it. transformers reads a prompt from the `start_anchor` on, then the answer, so a thought that the prompt
opens is read as one.

An edge of the grammar holds both the close of one field and the opening of the next. The opening is what all edges to a
field end with; what remains is the close of the field before. Blank space at the ends of both may be missing.

Qwen 3's tool calls become `open_pattern: \n?<tool_call>\n?(?=\s*\{\s*")`, `content: json` and a close that only matches
behind a bracket and before another call or the end, so that a text may spell the opening, and an argument the close.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from templatekit.formats.answers.grammar import CALL_NODES, NUMBER, AnswerGrammar, CallObject, Edge, Node

Field: TypeAlias = dict[str, Any]

_MARKER = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|\w+|.", re.DOTALL)
"""A part of a literal that is not cut."""
_EMPTY_THOUGHT = re.compile(r"<([\w:]+)>\s*</\1>\s*")
_LAST_MARKER = re.compile(r"(?:<[^<>\s]+>|\[/?[A-Z_]+\])\s*\Z")
_SIGNS = frozenset(r"\.^$*+?{}[]|()")
_TEXTS = {"strip": False}
_BEFORE_CALLS: tuple[Node, ...] = ("start", "reasoning", "content")
_FUNCTION = {"name": "{name}", "arguments": "{content}"}


class ResponseTemplate(NamedTuple):
    """A response template of transformers, and what it does not say of the grammar."""

    template: dict[str, Any]
    losses: tuple[str, ...]
    """What is lost, a sentence each; empty if nothing is."""

    @classmethod
    def of(cls, grammar: AnswerGrammar, *, behind_tool: str = "") -> ResponseTemplate:
        """The grammar as a response template. What it cannot say is left out of the template, and named.

        `behind_tool` is what a prompt holds behind a tool's answer: some templates go on there without a header.
        """
        return _Writer(grammar).write(behind_tool)


class _NotSayableError(Exception):
    """A form of calls for which transformers has no parser."""


class _Writer:
    """Writes the response template of one grammar."""

    def __init__(self, grammar: AnswerGrammar) -> None:
        self.losses = [f"{field} are not read: {reason}" for field, reason in grammar.lacks.items()]
        self.grammar = grammar = _with_objects(grammar)
        self.edges = grammar.edges
        behind = [e for e in grammar.edges if e.target != "end" and any(stop in e.literal for stop in grammar.stops)]
        if behind:  # a server stops before
            self.losses.append("what the template writes behind a text that ends an answer")
            self.edges = tuple(edge for edge in grammar.edges if edge not in behind)
        self.header, self.thought = self._header()
        self.stop = _any_of(map(_core, grammar.stops))
        firsts = dict.fromkeys(e.target for e in self.edges if e.source in _BEFORE_CALLS and e.target in CALL_NODES)
        self.first: Node | None = next(iter(firsts), None)
        if len(firsts) > 1:
            self.losses.append(f"calls in more than one form: only those that begin with the {self.first} are read")
        self.openings = self._call_openings()

    def write(self, behind_tool: str) -> ResponseTemplate:
        """The template, with its losses."""
        fields: dict[str, Field] = {}
        content = self._content()
        if self.thought:
            fields["reasoning_content"] = self._reasoning(at_start="open_pattern" not in content)
        if self.first is not None:
            try:
                fields["tool_calls"] = self._calls()
            except _NotSayableError as error:
                self.losses.append(f"tool_calls are not read: {error}")
        fields["content"] = content
        anchors = [anchor] if (anchor := _anchor(self.header, self.grammar.stops)) else []
        if anchor and anchor not in behind_tool and (other := _LAST_MARKER.search(behind_tool)):
            anchors.append(other[0])
        return ResponseTemplate(
            {
                "defaults": {"role": "assistant"},
                # Without a header, the whole prompt is what the model was given, and the answer begins behind it.
                **(
                    {"start_anchor": anchors if len(anchors) > 1 else anchors[0]}
                    if anchors
                    else {"start_anchor_pattern": r"\Z"}
                ),
                "fields": fields,
            },
            tuple(self.losses),
        )

    def _literals(self, source: Node, target: Node) -> tuple[str, ...]:
        return tuple(edge.literal for edge in self.edges if (edge.source, edge.target) == (source, target))

    def _header(self) -> tuple[str, str]:
        """The prompt up to a thought that it opens, and the expression that opens a thought; empty without thoughts."""
        prompt = self.grammar.prompt
        literals = self._literals("start", "reasoning")
        if any(literal.strip() for literal in literals):
            return prompt, _any_of(_loose(literal) for literal in literals if literal.strip())
        if literals:
            closes = [edge.literal for edge in self.edges if edge.source == "reasoning"]
            for opening in dict.fromkeys(opening for literal in closes for opening in _openings_for(literal)):
                if prompt.rstrip().endswith(opening):
                    start = prompt.rindex(opening)
                    return prompt[:start], _loose(prompt[start:])
            return prompt, r"\A"
        # A template may print an empty thought, though it writes no other: a server may ask it to open one.
        for text in (prompt, *self._literals("start", "content")):
            if found := _EMPTY_THOUGHT.search(text):
                return (prompt[: found.start()] if text is prompt else prompt), rf"{_escaped(f'<{found[1]}>')}\s*"
        return prompt, ""

    def _reasoning(self, *, at_start: bool) -> Field:
        closes: list[str] = []
        for edge in self.edges:
            if edge.source == "reasoning":
                close = _without_end(edge.literal, self._opening_of(edge.target))
                # Where the content is empty, its opening may stand before the end.
                closes.append(_without_end(close, self._content_openings()) if edge.target == "end" else close)
        if not closes:
            found = _EMPTY_THOUGHT.search("\n".join([self.grammar.prompt, *self._literals("start", "content")]))
            assert found is not None
            patterns = [rf"\s*{_escaped(f'</{found[1]}>')}\s*"]
        else:
            patterns = [_loose(literal) for literal in _longest(closes) if literal.strip()]
        # A thought stands at the start. Where text is content as it stands, a later marker is part of that text.
        opening = rf"\A{self.thought}" if at_start and self.thought != r"\A" else self.thought
        return {
            "open_pattern": opening,
            "close_pattern": _any_of([*patterns, *self._stop_and_rest()]),
            "content": "text",
            "content_args": dict(_TEXTS),
        }

    def _stop_and_rest(self) -> list[str]:
        return [f"{self.stop}.*"] if self.stop else []

    def _opening_of(self, target: Node) -> Sequence[str]:
        """The literals that may open a field, the longest first; for the end, those that end an answer."""
        if target == "end":
            return sorted(self.grammar.stops, key=len, reverse=True)
        if target == "content":
            return self._content_openings()
        return self.openings

    def _content_edges(self) -> list[Edge]:
        """The edges to the content, but for those that lead to a thought too: what follows is read as a thought."""
        thoughts = {(edge.source, edge.literal) for edge in self.edges if edge.target == "reasoning"}
        return [e for e in self.edges if e.target == "content" and (e.source, e.literal) not in thoughts]

    def _content_openings(self) -> list[str]:
        """The literals that open the content; none if it needs no opening."""
        starts = [edge.literal for edge in self._content_edges() if edge.source == "start"]
        if not starts or any(not _EMPTY_THOUGHT.sub("", text).strip() for text in starts):
            return []
        if any(edge.target == "reasoning" and not edge.literal.strip() for edge in self.edges):
            return []  # the prompt opens a thought, and these close it
        opening = _common_end([edge.literal for edge in self._content_edges()])
        return [opening] if opening.strip() else []

    def _content(self) -> Field:
        content: Field = {"content": "text", "content_args": dict(_TEXTS)}
        if len(self._content_edges()) < sum(edge.target == "content" for edge in self.edges):
            self.losses.append("content that is written as a thought is, before a call, is read as a thought")
        starts = set(self._literals("start", "content"))
        if openings := self._content_openings():
            content["open_pattern"] = _any_of(map(_loose, openings))
        elif len(starts) == 1 and (blank := starts.pop()) and not blank.strip():
            if self.first is None and not self.thought:
                content["open_pattern"] = rf"\A{_optional_before(blank)}"
            else:
                content["content_args"] = {}
                self.losses.append("blank space at the ends of the content")
        ends = self._literals("content", "end")
        # A server may leave out the stop itself.
        closes = [*ends, *(_without_end(literal, self._opening_of("end")) for literal in ends), *self.grammar.stops]
        if found := [_loose(literal) for literal in _longest(closes) if literal.strip()]:
            content["close_pattern"] = f"{_any_of(found)}.*"  # nothing behind an end belongs to the answer
        if "open_pattern" in content and (ahead := self._next_call()):
            content["close_pattern"] = _any_of([content.get("close_pattern", ""), ahead])
        return content

    def _next_call(self) -> str:
        """What ends a content that has an opening, before a call."""
        literals = self._literals("content", self.first) if self.first else ()
        if len(self._content_edges()) < sum(edge.target == "content" for edge in self.edges):
            literals = ()  # what stands before a call is read as a thought
        rests = [(literal, _without_end(literal, self.openings)) for literal in literals if literal.strip()]
        return _any_of(_loose(rest) if rest.strip() else f"(?={_loose(literal)})" for literal, rest in rests)

    def _call_openings(self) -> list[str]:
        """The literals that open a call, those before the first call with the longest first."""
        if self.first is None:
            return []
        into = [edge for edge in self.edges if edge.target == self.first]
        outer = [self._behind_thought(edge) for edge in into if edge.source in _BEFORE_CALLS]
        found = [e.literal for e in into if e.source == "content"] if not self._content_openings() else []
        found.append(_common_end(outer))
        if len(outer) < len(into):
            found.append(_common_end([self._behind_thought(edge) for edge in into]))
        return _longest(found)

    def _behind_thought(self, edge: Edge) -> str:
        """An edge's literal without the end of a thought, or an empty one, that it begins with."""
        if edge.source in ("start", "reasoning"):
            for literal in self._literals(edge.source, "content"):
                if literal.strip() and edge.literal.startswith(literal):
                    return edge.literal[len(literal) :]
        return edge.literal

    def _calls(self) -> Field:
        first, call = self.first, self.grammar.call
        if first in ("call", "calls"):
            assert call is not None
            if call.id is not None:
                self.losses.append("the ids of calls")
            name, arguments = ".".join(call.name), ".".join(call.arguments)
            if not re.fullmatch(r"[\w.]+", f"{name}.{arguments}"):
                raise _NotSayableError("a key in a call is no word")
            prefix = "content." if first == "call" else ""
            function = {"name": f"{{{prefix}{name}}}", "arguments": f"{{{prefix}{arguments}}}"}
            bracket = r"\{\s*\"" if first == "call" else r"\[\s*\{\s*\""
            return {
                "open_pattern": self._object_opening(bracket, call),
                "close_pattern": self._object_close([first]),
                **({"repeats": True} if first == "call" else {"transform_each": True}),
                "content": "json",
                "transform": {"type": "function", "function": function},
            }
        if any(edge.target == "arguments" for edge in self.edges):
            return self._calls_with_arguments()
        if self._is_call_list():
            return self._call_list()
        return self._calls_with_each()

    def _object_opening(self, bracket: str, call: CallObject) -> str:
        """What opens a call that is an object: a literal before a bracket; without one, the object's own keys."""
        found = [rf"{_loose(text)}(?=\s*{bracket})" for text in self.openings if text.strip()]
        if any(not text.strip() for text in self.openings):
            if not call.first_key:
                raise _NotSayableError("nothing opens a call")
            keys = rf'{_escaped(call.first_key)}"\s*:'
            if (call.first_key,) == call.name and len(call.arguments) == 1:
                keys += rf'\s*"[^"]*"\s*,\s*"{_escaped(call.arguments[0])}"\s*:'
            found.append(rf"\A(?=\s*{bracket}{keys})")
        return _any_of(found)

    def _closes(self, nodes: Iterable[Node]) -> list[str]:
        """The literals that close a call behind one of these nodes."""
        found: dict[str, None] = {}
        for edge in self.edges:
            if edge.source in nodes and (edge.target in ("end", "content") or edge.target == self.first):
                found[_without_end(edge.literal, self._opening_of(edge.target))] = None
        return sorted(found, key=len, reverse=True)

    @property
    def _ends_calls(self) -> bool:
        """Whether no content stands behind calls, so that blank space there means nothing."""
        return not any(edge.source in CALL_NODES and edge.target == "content" for edge in self.edges)

    def _object_close(self, nodes: Iterable[Node]) -> str:
        """The close of an object: behind its bracket, and before what may follow a call."""
        closes = self._closes(nodes)
        ahead = self._ahead(self.openings)
        found = [f"{_core(text)}{ahead}{self._behind_calls(text)}" for text in closes if text.strip()]
        if any(not text.strip() for text in closes):
            found += self._stop_and_rest()
        return rf"(?<=[}}\]])\s*{_any_of(found)}" if found else r"\Z"

    def _ahead(self, openings: Iterable[str]) -> str:
        """Looks for what may follow a call: one of these openings or an end. It is empty where text may follow too."""
        follows = [
            *(_core(text) for text in _longest(openings) if text.strip()),
            *map(_core, self.grammar.stops),
            r"\Z",
        ]
        return rf"(?=\s*{_any_of(follows)})" if self._ends_calls else ""

    def _behind_calls(self, text: str) -> str:
        return r"\s*" if self._ends_calls else _optional_after(text[len(text.rstrip()) :])

    def _calls_with_arguments(self) -> Field:
        values = self.grammar.values
        if values is None or values.python:
            raise _NotSayableError("transformers has no parser for arguments in Python's notation")
        arguments: Field = {"content": "json"}
        if not values.is_json:
            if values.escapes:
                raise _NotSayableError(f"transformers does not read an escaped {values.quote}")
            arguments["content_args"] = {"unquoted_keys": True, "string_delims": [[values.quote] * 2]}
            self.losses.append(
                "calls with a key that is no word of letters, digits and `_`: transformers refuses the answer"
            )
        head, transform = self._call_head("arguments")
        return {
            "open_pattern": rf"{head}(?=\s*\{{)" if values.bare_keys else rf'{head}(?=\s*\{{\s*["}}])',
            "close_pattern": self._object_close(["arguments"]),
            "repeats": True,
            **arguments,
            "transform": transform,
        }

    def _call_head(self, target: Node) -> tuple[str, Field]:
        """The expression from a call's opening to a field behind its name, and the transform of what it captures."""
        literals = self._literals
        opening = _any_of(_loose(text) for text in self.openings if text.strip())
        transform: Field = {"type": "function", "function": dict(_FUNCTION)}
        if self.grammar.id_holds_name:
            name = r"(?P<id>(?:functions\.)?(?P<name>[^\s:]+):\d+)"
            behind = literals("id", target)
            transform = {"id": "{id}", **transform}
        else:
            name = r"(?P<name>\S+?)"
            behind = literals("name", target)
            if any(edge.target == "id" for edge in self.edges):
                self.losses.append("the ids of calls")
            if self.first == "id" and (between := literals("id", "name")):
                name = rf"\S+?{_any_of(map(_loose, between))}{name}"
            elif between := literals("name", "id"):
                after = _any_of(map(_loose, literals("id", target)))
                with_id = rf"{_any_of(map(_loose, between))}\S+?{after}"
                return rf"{opening}{name}{_any_of([with_id, *map(_loose, behind)])}", transform
        if not behind or not opening:
            raise _NotSayableError("nothing tells where a call or its name begins")
        return rf"{opening}{name}{_any_of(map(_loose, behind))}", transform

    def _is_call_list(self) -> bool:
        """Whether calls are written as a list of Python's calls with keywords."""
        values, literals = self.grammar.values, self._literals
        return (
            values is not None
            and (values.python or values.is_json)
            and set(literals("name", "key")) == {"("}
            and set(literals("key", "value")) == {"="}
            and all(text.strip() == "," for text in literals("value", "key"))
            and all(text.replace(" ", "") == ")," for text in literals("value", "name"))
            and all(text.startswith(")]") for text in literals("value", "end"))
            and all(text.rstrip().endswith("[") for text in self.openings if text.strip(", ()"))
        )

    def _call_list(self) -> Field:
        openings = [text.rstrip()[:-1] for text in self.openings if text.strip(", ()")]
        closes = [_without_end(text[2:], self._opening_of("end")) for text in self._literals("value", "end")]
        self.losses.append("calls, for a transformers that does not know `python-call-list`: 5.13 does not, 5.24 does")
        self.losses.append(
            "calls whose name or keys are no words of letters, digits, `_`, `-` and `.`, or with a line break or a "
            "lone backslash in a string: transformers refuses the answer"
        )
        ends = [
            f"{_core(text)}{self._ahead([])}{self._behind_calls(text)}" for text in _longest(closes) if text.strip()
        ]
        ends = ends or self._stop_and_rest()
        return {
            "open_pattern": rf"{_any_of(map(_loose, dict.fromkeys(openings)))}(?=\[\s*\w[\w.-]*\()",
            "close_pattern": rf"(?<=\])\s*{_any_of(ends)}" if ends else r"\Z",
            "content": "python-call-list",
            "transform_each": True,
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
        }

    def _calls_with_each(self) -> Field:
        """Calls of which every argument stands by itself, in tags of some kind."""
        literals = self._literals
        values: tuple[Node, ...] = ("value", "string")
        into_key = [text for node in ("name", *values) for text in literals(node, "key")]
        key = _common_end(into_key)
        between = [text for node in values for text in literals("key", node)]
        ends = {node: self._closes([node]) for node in ("name", *values)}
        close = _common_end([text.rstrip() for found in ends.values() for text in found])
        if not key.strip() or not close.strip() or not any(text.strip() for text in between):
            raise _NotSayableError("no literals tell arguments apart")
        name_close = {_without_end(text, [key]) for text in literals("name", "key")}
        name_close |= {_without_end(text, [close]) for text in ends["name"]}
        value_close = {_without_end(text, [close]) for node in values for text in ends[node]}
        value_close |= {_without_end(text, [key]) for node in values for text in literals(node, "key")}
        if "string" in {edge.target for edge in self.edges}:
            self.losses.append("marks of an argument's type: the schemas in `tools` tell it")
        elif self.grammar.values is None:
            self.losses.append("the types of arguments where no `tools` are given: each is a text then")
        else:
            self.losses.append("the notation of arguments where no `tools` are given: each is a text then")
        opening = _any_of(_loose(text) for text in self.openings if text.strip())
        if not opening:
            raise _NotSayableError("nothing opens a call")
        if any(edge.target == "id" for edge in self.edges):
            raise _NotSayableError("ids stand between the name and the arguments")
        behind_name = _any_of(_core(text) for text in name_close if text.strip())
        behind_value = _any_of(_loose(text) for text in sorted(value_close, key=len, reverse=True))
        next_key = _core(key)
        # An argument may spell the close of a call, so it counts only behind the close of an argument, or of a name.
        # What looks ahead stands first, and begins no search within blank space: so a search takes linear time.
        heads = _any_of(_core(text) for text in self.openings if text.strip())
        behind = _any_of([*(_core(text) for text in value_close if text.strip()), rf"{heads}\S+?{behind_name}"])
        return {
            "open_pattern": rf"{opening}(?P<name>\S+?){behind_name}(?=\s*(?:{next_key}|{_core(close)}))",
            "close_pattern": rf"(?<!\s)(?=\s*{_core(close)})(?<={behind})\s*{_core(close)}{self._behind_calls(close)}",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": rf"{next_key}{_blank_behind(key)}(?P<key>[^\n]+?){_any_of(map(_loose, between))}"
                rf"(?P<value>.*?){behind_value}(?=\s*(?:{next_key}|\Z))",
                "value_parser": {"name": "text", "args": dict(_TEXTS)},
            },
            "transform": {"type": "function", "function": dict(_FUNCTION)},
        }


def _with_objects(grammar: AnswerGrammar) -> AnswerGrammar:
    """The same grammar with one object for the arguments, if it writes them as `{key:value,key:value}`."""
    literals = grammar.literals
    values = grammar.values
    if (
        values is None
        or any("string" in (edge.source, edge.target) for edge in grammar.edges)
        or not literals("name", "key")
        or not all(text.endswith("{") for text in literals("name", "key"))
        or any(text.strip() != ":" for text in literals("key", "value"))
        or any(text.strip() != "," for text in literals("value", "key"))
    ):
        return grammar
    found: dict[Edge, None] = {}
    for edge in grammar.edges:
        if "key" in (edge.source, edge.target):
            if edge.source == "name":
                found[replace(edge, target="arguments", literal=edge.literal[:-1])] = None
        elif edge.source == "value" and edge.literal.startswith("}"):
            found[replace(edge, source="arguments", literal=edge.literal[1:])] = None
        elif edge.source == "name":
            before, brackets, after = edge.literal.partition("{}")
            if not brackets:
                return grammar
            found[Edge(source="name", target="arguments", literal=before)] = None
            found[replace(edge, source="arguments", literal=after)] = None
        elif edge.source == "value":
            return grammar
        else:
            found[edge] = None
    return replace(grammar, edges=tuple(found))


def _anchor(header: str, stops: Sequence[str]) -> str:
    """The header of an answer: the last line of what stands before it, without the end of the message before."""
    blank = header[len(header.rstrip()) :]
    line = header.rstrip().rpartition("\n")[2] + blank
    for stop in stops:
        line = line.removeprefix(stop)
    return line.lstrip() if line.strip() else ""


def _openings_for(close: str) -> Iterator[str]:
    """What may have opened a thought that this literal closes."""
    for marker in _MARKER.findall(close):
        for end, start in (("/", ""), ("END", "START"), ("end", "start"), ("END", "BEGIN"), ("end", "begin")):
            if end in marker and len(marker) > 1:
                yield marker.replace(end, start, 1)


def _common_end(literals: Sequence[str]) -> str:
    """The longest text with which all literals end, without a part of a marker."""
    if not literals:
        return ""
    shortest = min(literals, key=len)
    for start in range(len(shortest) + 1):
        end = shortest[start:]
        if all(text.endswith(end) and len(text) - len(end) in _boundaries(text) for text in literals):
            return end
    return ""


def _boundaries(literal: str) -> set[int]:
    return {0, len(literal), *(match.start() for match in _MARKER.finditer(literal))}


def _without_end(literal: str, ends: Sequence[str]) -> str:
    """The literal without the first of these texts that it ends with, but for blank space."""
    for end in ends:
        if end.strip() and literal.rstrip().endswith(end.strip()):
            core = literal.rstrip().removesuffix(end.strip())
            blank = end[: len(end) - len(end.lstrip())]
            return core.removesuffix(blank)
    return literal


def _longest(literals: Iterable[str]) -> list[str]:
    """Of literals that differ in blank space alone, the longest; longer ones first."""
    found: dict[str, str] = {}
    for literal in sorted(literals, key=len, reverse=True):
        found.setdefault(literal.strip(), literal)
    return list(found.values())


def _core(literal: str) -> str:
    """An expression for a literal without the blank space at its ends; that within may differ, and so may numbers."""
    parts = re.split(r"(\s+)", literal.strip())
    texts = [(r"\s*" if "\n" in part else r"\s+") if index % 2 else _escaped(part) for index, part in enumerate(parts)]
    return "".join(texts)


def _loose(literal: str) -> str:
    """An expression for a literal, of whose blank space at the ends any may be missing."""
    if not literal.strip():
        return _optional_before(literal)
    before = literal[: len(literal) - len(literal.lstrip())]
    return f"{_optional_before(before)}{_core(literal)}{_blank_behind(literal)}"


def _blank_behind(literal: str) -> str:
    return _optional_after(literal[len(literal.rstrip()) :])


def _optional_before(blank: str) -> str:
    """Matches any end of a run of blank space."""
    found = ""
    for character in blank:
        found = f"(?:{found}{_escaped(character)})?" if found else f"{_escaped(character)}?"
    return found


def _optional_after(blank: str) -> str:
    """Matches any start of a run of blank space."""
    found = ""
    for character in reversed(blank):
        found = f"(?:{_escaped(character)}{found})?" if found else f"{_escaped(character)}?"
    return found


def _escaped(text: str) -> str:
    """An expression for a text, without needless backslashes, and with one for line breaks."""
    signs = {"\n": r"\n", "\t": r"\t", "\r": r"\r", NUMBER: r"\d+"}
    return "".join(signs.get(sign) or (f"\\{sign}" if sign in _SIGNS else sign) for sign in text)


def _any_of(expressions: Iterable[str]) -> str:
    """An expression that matches what one of these does; empty without any."""
    found = list(dict.fromkeys(expression for expression in expressions if expression))
    return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})" if found else ""
