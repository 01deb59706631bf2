"""Checks a template's source before it runs: which variables it reads, and where its generation prompt ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from jinja2 import meta, nodes
from jinja2.lexer import TOKEN_NAME, TOKEN_VARIABLE_BEGIN, TOKEN_VARIABLE_END, TOKEN_WHITESPACE

from templatekit.errors import TemplateError, nearest
from templatekit.formats.environment import plain_environment
from templatekit.formats.template_errors import syntax_error

INSTRUCTION_VARIABLES = ("system", "instruction", "context", "response")
"""The variables of instruction formats: one turn, by field."""
CHAT_VARIABLES = ("messages", "tools", "documents")
"""The variables of chat templates, as Hugging Face passes them."""
COMMON_VARIABLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "add_generation_prompt")
"""The variables of both."""
_HTML_FILTERS = frozenset({"e", "escape", "forceescape", "safe", "urlize", "xmlattr"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSource:
    """The checked source of a template."""

    text: str
    """The source to compile and export; an instruction format has a guard around its response."""
    kind: Literal["instruction", "chat"]
    variables: frozenset[str]
    """The names that it reads from outside."""
    mentions: frozenset[str]
    """Every attribute that it reads and every text that it holds. It cannot print a field that it does not mention."""
    has_generation_blocks: bool
    """Whether it has `{% generation %}` blocks."""
    html_filters: frozenset[str]
    """The filters in it whose results Jinja takes for HTML, so that it escapes any text joined to them."""


def check_source(text: str, name: str, *, strict: bool = True) -> TemplateSource:
    """Parse a template, detect its kind and check that its generation prompt can be rendered.

    `strict` refuses names that nothing provides, except those that may be missing (see `_optional_names`). A template
    that comes with a tokenizer is not checked for that: unknown names print nothing, as in transformers.
    """
    tree, undeclared = parse(text, name)
    variables = undeclared - {"raise_exception", "strftime_now", "namespace"}
    kind: Literal["instruction", "chat"] = "chat" if "messages" in variables else "instruction"
    known = (*(CHAT_VARIABLES if kind == "chat" else INSTRUCTION_VARIABLES), *COMMON_VARIABLES)
    unknown = sorted(variables - set(known) - _optional_names(tree, kind, known) - set(plain_environment().globals))
    if strict and unknown:
        line = next((node.lineno for node in tree.find_all(nodes.Name) if node.name == unknown[0]), 1)
        raise TemplateError(
            f"template {name!r}, line {line}: unknown variable {unknown[0]!r}; {nearest(unknown[0], known)}; "
            f"{'a chat' if kind == 'chat' else 'an instruction'} template receives {', '.join(known)}"
        )
    if kind == "instruction" and "response" not in variables:
        raise TemplateError(
            f"template {name!r}: nothing to train: it reads neither `response` nor `messages`; "
            "write {{ response }} where the answer belongs"
        )
    if kind == "instruction" and "add_generation_prompt" not in variables:
        text = _guard_response(text, tree, name)
    return TemplateSource(
        text=text,
        kind=kind,
        variables=variables,
        mentions=_mentions(tree),
        has_generation_blocks=next(tree.find_all(nodes.ExtensionAttribute), None) is not None,
        html_filters=_HTML_FILTERS.intersection(filter.name for filter in tree.find_all(nodes.Filter)),
    )


def parse(text: str, name: str) -> tuple[nodes.Template, frozenset[str]]:
    """The syntax tree of a template, and the names that it reads from outside."""
    try:
        tree = plain_environment().parse(text)
        return tree, frozenset(meta.find_undeclared_variables(tree))
    except Exception as error:  # Jinja compiles it to find the names, and evaluates constant expressions
        raise syntax_error(error, text, name) from None


def _mentions(tree: nodes.Template) -> frozenset[str]:
    texts = (constant.value for constant in tree.find_all(nodes.Const) if isinstance(constant.value, str))
    return frozenset(node.attr for node in tree.find_all(nodes.Getattr)).union(texts)


def _optional_names(tree: nodes.Template, kind: str, known: Sequence[str]) -> set[str]:
    """The names that may be missing, which therefore do not count as misspelt.

    The template tests whether they are there (`x is defined`, `x | default(...)`), or sets them, if only in a branch.
    Published chat templates also test whether an option is true (`{% if add_vision_id %}`): a name in such a test is
    taken for an option unless it is similar to a known name.
    """
    names = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    for test in tree.find_all((nodes.Test, nodes.Filter)):
        if test.name in ("defined", "undefined", "default", "d") and isinstance(test.node, nodes.Name):
            names.add(test.node.name)
    if kind != "chat":
        return names
    conditions = [
        *(each.test for each in tree.find_all(nodes.If)),
        *(each.test for each in tree.find_all(nodes.CondExpr)),
    ]
    tested = {name for condition in conditions for name in _names_tested_for_truth(condition)}
    return names | {name for name in tested if not get_close_matches(name, known, n=1)}


def _names_tested_for_truth(condition: nodes.Node) -> Iterator[str]:
    """The names that a condition tests for truth."""
    if isinstance(condition, nodes.Name):
        yield condition.name
    elif isinstance(condition, nodes.Not):
        yield from _names_tested_for_truth(condition.node)
    elif isinstance(condition, (nodes.And, nodes.Or)):
        yield from _names_tested_for_truth(condition.left)
        yield from _names_tested_for_truth(condition.right)


def _guard_response(text: str, tree: nodes.Template, name: str) -> str:
    """The source with a guard, so that the generation prompt ends where the response starts.

    A template that does not mention `add_generation_prompt` is a plain text with a `{{ response }}` in it. The guard
    `{% if not add_generation_prompt %}` encloses the text from there to the end, so that one file renders training and
    serving.
    """
    advice = "guard it: {% if not add_generation_prompt %}{{ response }}…{% endif %}"
    uses = [node for node in tree.find_all(nodes.Name) if node.name == "response"]
    if len(uses) > 1:
        lines = ", ".join(str(node.lineno) for node in uses)
        raise TemplateError(
            f"template {name!r}: uses `response` {len(uses)} times, on lines {lines}; use it once, or {advice}"
        )
    outputs = [node for node in tree.body if isinstance(node, nodes.Output)]
    if not any(use in output.find_all(nodes.Name) for use in uses for output in outputs):
        raise TemplateError(
            f"template {name!r}, line {uses[0].lineno}: `response` stands inside a block, so where the prompt ends "
            f"depends on the data; move it to the top level, or {advice}"
        )
    start, strips = _offset_of_response(text)
    body = text[start:].removesuffix("\n")  # Jinja removes one newline at the end of a template
    # `+` keeps the whitespace that lstrip_blocks would strip; `-` strips it as the expression's own `{{-` did.
    guard = "{%- if" if strips else "{%+ if"
    return f"{text[:start]}{guard} not add_generation_prompt %}}{body}{{%+ endif %}}"


def _offset_of_response(text: str) -> tuple[int, bool]:
    """The start of the expression that prints the response, and whether it strips the whitespace before it."""
    position, start, strips, found, last = 0, 0, False, False, ""
    for _, kind, value in plain_environment().lex(text):
        # The lexer leaves out the whitespace that tags strip; everything else comes in order.
        position = text.index(value, position)
        if kind == TOKEN_VARIABLE_BEGIN:
            start, strips, found = position, value.endswith("-"), False
        elif kind == TOKEN_NAME and value == "response" and last != ".":
            found = True
        elif kind == TOKEN_VARIABLE_END and found:
            return start, strips
        last = value if kind != TOKEN_WHITESPACE else last
        position += len(value)
    raise AssertionError("the parser saw a response that the lexer does not")
