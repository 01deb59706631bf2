"""Chat-template kwargs: values for the variables that a template reads beyond messages and tools.

They are written into the template as defaults, `{% set enable_thinking = enable_thinking | default(false) %}`: so they
are text of the template, as a server that is given this template prints them, and a server's own values go before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from jinja2 import nodes

from templatekit.errors import ConfigError, nearest, shorten
from templatekit.formats.environment import plain_environment
from templatekit.formats.source import CHAT_VARIABLES, COMMON_VARIABLES, INSTRUCTION_VARIABLES, parse

_NEXT = re.compile(r",(?=\s*\w+\s*=)")
"""A comma that parts two kwargs: a value may have commas of its own."""
_LEADING_COMMENT = re.compile(r"\A\{#.*?(?P<sign>[-+]?)#\}", re.DOTALL)
_GIVEN = frozenset((*CHAT_VARIABLES, *INSTRUCTION_VARIABLES, *COMMON_VARIABLES))


def parse_kwargs(text: str) -> dict[str, Any]:
    """The kwargs that `NAME=VALUE,NAME=VALUE` writes, values being YAML scalars; raises `ConfigError`.

    What YAML would take for a date, a time or an octal number stays text.
    """
    kwargs: dict[str, Any] = {}
    for part in _NEXT.split(text) if text.strip() else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ConfigError(
                f"chat_template_kwargs: found {part!r}; expected NAME=VALUE, parted by commas, such as "
                "enable_thinking=false"
            )
        if name in kwargs:
            raise ConfigError(f"chat_template_kwargs: {name!r} twice; keep one")
        kwargs[name] = _value(name, value)
    return kwargs


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"chat_template_kwargs: {name}: found {text!r}; expected a YAML value: {error}") from None
    return value if value is None or isinstance(value, (bool, str, list, dict)) else text


def read_kwargs(source: str, name: str) -> frozenset[str]:
    """The variables that a template reads beyond those it is always given."""
    tree, undeclared = parse(source, name)
    first: dict[str, str] = {}
    for variable in _in_order(tree):
        first.setdefault(variable.name, variable.ctx)
    read = {variable for variable, context in first.items() if context == "load"}
    # Jinja alone counts names as read from outside that the template sets, but only in some branches.
    return (undeclared & read) - _GIVEN - set(plain_environment().globals)


def _in_order(node: nodes.Node) -> Iterator[nodes.Name]:
    """The names of a template in the order in which they are read and set."""
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
    """The template with the kwargs as defaults in front, byte for byte the same otherwise; a leading comment stays.

    Raises `ConfigError` for a kwarg that the template does not read.
    """
    known = read_kwargs(source, name)
    for kwarg in kwargs:
        if kwarg in _GIVEN:
            raise ConfigError(f"chat_template_kwargs: {kwarg!r} comes from the data or the tokenizer; leave it out")
        if kwarg not in known:
            reads = nearest(kwarg, known) if known else "it reads none beyond what every template is given"
            raise ConfigError(f"chat_template_kwargs: template {name!r} does not read {kwarg!r}; {reads}")
    sets = "".join(f"{{% set {kwarg} = {kwarg} | default({_literal(value)}) +%}}" for kwarg, value in kwargs.items())
    comment = _LEADING_COMMENT.match(source)
    if comment is not None:
        # What the comment did to the whitespace behind it, the last block does.
        return comment[0] + sets.removesuffix("+%}") + comment["sign"] + "%}" + source[comment.end() :]
    # Jinja takes this newline, and sees the template begin on a line of its own: it strips spaces before a block there.
    return (sets.removesuffix("+%}") + "%}\n" if source[:1].isspace() else sets) + source


def _literal(value: Any) -> str:
    """A JSON-like value as Jinja writes it, free of braces and percent signs in texts."""
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
