"""Chat-template kwargs: values for the variables that a template reads in addition to messages and tools.

They are written into the template as defaults: `{% set enable_thinking = enable_thinking | default(false) %}`. So they
are literals of the template, a server that is given this template prints the same, and values that the server sets
itself override them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import nodes

from templatekit.config.options import parse_pairs
from templatekit.config.strict_yaml import parse_yaml
from templatekit.errors import ConfigError, nearest, shorten
from templatekit.formats.environment import plain_environment
from templatekit.formats.source import CHAT_VARIABLES, COMMON_VARIABLES, INSTRUCTION_VARIABLES, parse
from templatekit.hooks.record_fields import strict_json

_SEPARATOR = re.compile(r",(?=\s*\w+\s*=)")
"""A comma between two kwargs; commas inside a value do not match."""
_LEADING_COMMENT = re.compile(r"\A\s*\{#.*?(?P<sign>[-+]?)#\}", re.DOTALL)
_ALWAYS_GIVEN = frozenset((*CHAT_VARIABLES, *INSTRUCTION_VARIABLES, *COMMON_VARIABLES))


def parse_kwargs(text: str) -> dict[str, Any]:
    """Parse `NAME=VALUE,NAME=VALUE`, whose values are YAML; raise `ConfigError` for anything else.

    A value that YAML reads as a date, a time or an octal number stays text.
    """
    expected = "NAME=VALUE, separated by commas, such as enable_thinking=false"
    pairs = parse_pairs(text, "chat_template_kwargs", expected, _SEPARATOR)
    return {name: _value(name, value) for name, value in pairs.items()}


def _value(name: str, text: str) -> Any:
    try:
        return strict_json(text)
    except ValueError:
        pass
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"chat_template_kwargs: {name}: found {text!r}; expected a YAML value: {error}") from None
    return value if value is None or isinstance(value, (bool, str, list, dict)) else text


def read_kwargs(source: str, name: str) -> frozenset[str]:
    """The variables that a template reads in addition to those it is always given."""
    tree, undeclared = parse(source, name)
    first: dict[str, str] = {}
    for variable in _in_order(tree):
        first.setdefault(variable.name, variable.ctx)
    read = {variable for variable, context in first.items() if context == "load"}
    # Jinja also reports names that the template itself sets in some branches, so both conditions must hold.
    return (undeclared & read) - _ALWAYS_GIVEN - set(plain_environment().globals)


def _in_order(node: nodes.Node) -> Iterator[nodes.Name]:
    """The names of a template in the order in which it reads and sets them."""
    if isinstance(node, nodes.Name):
        yield node
    children = list(node.iter_child_nodes())
    if isinstance(node, nodes.Assign):
        children.reverse()
    elif isinstance(node, nodes.For):
        children[:2] = reversed(children[:2])
    for child in children:
        yield from _in_order(child)


def with_defaults(source: str, kwargs: Mapping[str, Any], name: str) -> str:
    """The source with the kwargs as defaults at its start, after a leading comment, and otherwise unchanged.

    Raises `ConfigError` for a kwarg that the template does not read.
    """
    known = read_kwargs(source, name)
    for kwarg in kwargs:
        if kwarg in _ALWAYS_GIVEN:
            raise ConfigError(f"chat_template_kwargs: {kwarg!r} comes from the data or the tokenizer; leave it out")
        if kwarg not in known:
            reads = nearest(kwarg, known) if known else "it reads none beyond what every template is given"
            raise ConfigError(f"chat_template_kwargs: template {name!r} does not read {kwarg!r}; {reads}")
    sets = "".join(f"{{% set {kwarg} = {kwarg} | default({_literal(value)}) +%}}" for kwarg, value in kwargs.items())
    comment = _LEADING_COMMENT.match(source)
    if comment is not None:
        # The last block treats the whitespace after it as the comment did.
        return comment[0] + sets.removesuffix("+%}") + comment["sign"] + "%}" + source[comment.end() :]
    # Jinja removes this newline, so the template still starts on a new line, where spaces before a block are stripped.
    return (sets.removesuffix("+%}") + "%}\n" if source[:1].isspace() else sets) + source


def _literal(value: Any) -> str:
    """A JSON-like value as a Jinja expression, without braces, percent signs or `#` in its texts."""
    if isinstance(value, str):
        return re.sub("[{}%#]", lambda match: f"\\x{ord(match[0]):02x}", ascii(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    raise ConfigError(f"chat_template_kwargs: found {shorten(value)}; expected text, a number, true, false or null")
