"""The answer grammar: the form in which a template writes an answer, as literals between fields.

It is a graph. Its nodes are the fields of an answer, with a start and an end; an edge is the literal that the template
writes between two fields. Qwen 3's begins so:

```
start      --"<think>\\n"-->                        reasoning
reasoning  --"\\n</think>\\n\\n"-->                   content
content    --"\\n<tool_call>\\n"-->                  call
call       --"\\n</tool_call>\\n<tool_call>\\n"-->    call
call       --"\\n</tool_call><|im_end|>"-->          end
```

The start is where the generation prompt ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from templatekit.formats.answers.notation import JSON, Notation
from templatekit.types import SpecialTokens

Node: TypeAlias = Literal[
    "start", "reasoning", "content", "id", "name", "key", "value", "string", "arguments", "call", "calls", "end"
]
"""A field of an answer, or its start or end.

- `id`, `name`: of a tool call
- `arguments`: all arguments of a call, in one object
- `key`, `value`, `string`: of one argument; a template that marks texts as such writes them as `string`
- `call`: a whole call, in one object of JSON; `calls`: all calls, in one list
"""

CALL_NODES: tuple[Node, ...] = ("id", "name", "key", "value", "string", "arguments", "call", "calls")
OBJECT_NODES: tuple[Node, ...] = ("arguments", "call", "calls")
"""Fields that end where their own brackets do. Others end where a literal begins."""

NUMBER = "\0"
"""Stands in a literal for the number of a call."""

Path: TypeAlias = tuple[str, ...]
"""The keys that lead to a value in an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The literal that a template writes between two fields of an answer."""

    source: Node
    target: Node
    literal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallObject:
    """Where the parts of a call stand in the object that a template writes for it."""

    name: Path
    arguments: Path
    id: Path | None = None
    first_key: str = ""
    """The key that stands first: an object that begins with it is a call where no literal says so."""

    def name_of(self, call: Any) -> Any:
        """The name of the function; raises `LookupError` or `TypeError` where there is none."""
        return _at(call, self.name)

    def has_arguments(self, call: Any) -> bool:
        """Whether the object says what the arguments are, if only that there are none."""
        try:
            _at(call, self.arguments)
        except (LookupError, TypeError):
            return False
        return True

    def arguments_of(self, call: Any) -> Any:
        """The arguments; an empty object where there are none."""
        return _at(call, self.arguments) if self.has_arguments(call) else {}

    def id_of(self, call: Any) -> Any:
        """The call's id; None where there is none."""
        try:
            return None if self.id is None else _at(call, self.id)
        except (LookupError, TypeError):
            return None


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """Two messages that a template writes alike, so that no parser can tell which one was meant."""

    first: Mapping[str, Any]
    """The one that is read."""
    second: Mapping[str, Any]
    text: str
    """What the template writes for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A message that is not read as it was written."""

    message: Mapping[str, Any]
    text: str
    """What the template writes for it."""
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerGrammar:
    """The form in which one template writes answers."""

    name: str
    """The template's name."""
    prompt: str
    """What the template writes last in a prompt, behind the text of the last message."""
    edges: tuple[Edge, ...]
    stops: tuple[str, ...] = ()
    """The texts that end an answer wherever they stand."""
    turn_tokens: tuple[str, ...] = ()
    """The control tokens with which the template begins turns: a model that writes one has ended its answer too."""
    controls: tuple[str, ...] = ()
    """The control tokens that its literals hold."""
    values: Notation | None = JSON
    """The notation of arguments; None where texts stand without quotes."""
    call: CallObject | None = None
    """For `call` and `calls` nodes."""
    id_holds_name: bool = False
    """Whether the template prints a call's id in place of its name, as in `functions.NAME:0`."""
    writes: frozenset[str] = frozenset({"content"})
    """The fields that the template writes: `reasoning`, `content`, `tool_calls`."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """The fields that the template writes and the grammar does not read, each with the reason."""
    alike: tuple[Alike, ...] = ()
    """Examples of messages that the template writes alike."""
    unread: tuple[Unread, ...] = ()
    """Examples of messages that the template writes in a way of their own, which the grammar does not read."""

    @property
    def is_full(self) -> bool:
        """Whether it reads every field that the template writes."""
        return not self.lacks

    def ended_as(self, tokens: SpecialTokens) -> AnswerGrammar:
        """The same with the control tokens of a tokenizer, and the texts that end an answer wherever they stand.

        These are the special tokens behind answers. Where there are none, it is what the template writes behind the
        content. A literal between two calls that holds the end marker of a plain answer is left out: no model goes on
        with calls behind it.
        """
        special = sorted({*tokens.special, *tokens.stop_tokens, tokens.eos} - {""}, key=len, reverse=True)

        def last_token(literal: str) -> str:
            return next((token for token in special if literal.rstrip().endswith(token)), "")

        plain = {last_token(literal) for literal in self.literals("content", "end")} - {""}
        edges = tuple(
            edge
            for edge in self.edges
            if not {edge.source, edge.target} <= {*CALL_NODES} or not any(token in edge.literal for token in plain)
        )
        ends = [edge.literal for edge in edges if edge.target == "end"]
        inner = [edge.literal for edge in edges if edge.target != "end"]
        found = dict.fromkeys(token for token in (*map(last_token, ends), *tokens.stop_tokens) if token)
        stops = [token for token in found if not any(token in literal for literal in inner)]
        if not stops:
            stops = [marker for literal in self.literals("content", "end") if (marker := literal.strip())]
        texts = [*ends, *inner, *stops, self.values.quote if self.values else ""]
        controls = sorted(token for token in tokens.special | tokens.added if any(token in text for text in texts))
        return replace(self, edges=edges, stops=tuple(stops), controls=tuple(controls))

    def stopped_at(self, tokens: Iterable[str]) -> AnswerGrammar:
        """The same with these `turn_tokens`, but for those that a literal between two fields holds."""
        inner = [edge.literal for edge in self.edges if edge.target != "end"]
        more = tuple(t for t in tokens if t not in self.stops and not any(t in literal for literal in inner))
        return replace(self, turn_tokens=more, controls=tuple(sorted({*self.controls, *more})))

    def targets(self, source: Node) -> tuple[Edge, ...]:
        """The edges from a node, those with the longest literals first."""
        found = [edge for edge in self.edges if edge.source == source]
        return tuple(sorted(found, key=lambda edge: -len(edge.literal)))

    def literals(self, source: Node, target: Node) -> tuple[str, ...]:
        """The literals between two fields."""
        return tuple(edge.literal for edge in self.edges if (edge.source, edge.target) == (source, target))

    def __str__(self) -> str:
        return "\n".join(f"{edge.source:9} --{edge.literal!r}--> {edge.target}" for edge in self.edges)
