"""A template's source before it runs: what it reads, whether it is sound, and where its generation prompt ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.lexer import TOKEN_NAME, TOKEN_VARIABLE_BEGIN, TOKEN_VARIABLE_END, TOKEN_WHITESPACE

from templatekit.errors import TemplateError, nearest
from templatekit.formats.environment import plain_environment

INSTRUCTION_VARIABLES = ("system", "instruction", "context", "response")
"""What instruction formats receive: one turn, by field."""
CHAT_VARIABLES = ("messages", "tools", "documents")
"""What chat templates receive, as Hugging Face passes it."""
COMMON_VARIABLES = ("bos_token", "eos_token", "pad_token", "unk_token", "add_generation_prompt")
_HTML = frozenset({"e", "escape", "forceescape", "safe", "urlize", "xmlattr"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSource:
    """Checked source."""

    text: str
    """As it is compiled and exported: with a guard around the response."""
    kind: Literal["instruction", "chat"]
    variables: frozenset[str]
    """The names it reads from outside."""
    mentions: frozenset[str]
    """Every attribute that it reads and every text that it holds: what it mentions nowhere, it cannot print."""
    sought: frozenset[str]
    """Texts that it looks for in others, as `'</think>' in content` does."""
    marked: bool
    """It has `{% generation %}` blocks."""
    escapes: frozenset[str]
    """Filters that it uses and whose results are HTML to Jinja: what is joined to them is escaped."""


def check_source(text: str, name: str, *, strict: bool = True) -> TemplateSource:
    """Parses a template, tells its kind and sees that its generation prompt can be rendered.

    `strict` refuses names that nothing provides, unless the template provides for their absence. Templates that come
    with a tokenizer are taken as transformers takes them: unknown names print nothing.
    """
    tree, read = parse(text, name)
    variables = read - {"raise_exception", "strftime_now", "namespace"}
    kind: Literal["instruction", "chat"] = "chat" if "messages" in variables else "instruction"
    known = (*(CHAT_VARIABLES if kind == "chat" else INSTRUCTION_VARIABLES), *COMMON_VARIABLES)
    unknown = sorted(variables - set(known) - _provided_for(tree, kind, known) - set(plain_environment().globals))
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
        mentions=frozenset(_mentions(tree)),
        sought=frozenset(_sought(tree)),
        marked=next(tree.find_all(nodes.ExtensionAttribute), None) is not None,
        escapes=_HTML.intersection(filter.name for filter in tree.find_all(nodes.Filter)),
    )


def parse(text: str, name: str) -> tuple[nodes.Template, frozenset[str]]:
    """The tree, and the names it reads from outside: Jinja finds them, and unknown filters, by compiling."""
    try:
        tree = plain_environment().parse(text)
        return tree, frozenset(meta.find_undeclared_variables(tree))
    except Exception as error:  # constant expressions are evaluated here
        raise syntax_error(error, text, name) from None


def syntax_error(error: Exception, text: str, name: str) -> TemplateError:
    """What parser and compiler raise, with the line of the template."""
    if not isinstance(error, TemplateSyntaxError):
        return TemplateError(f"template {name!r} cannot be compiled: {type(error).__name__}: {error}")
    lines = text.splitlines() or [""]
    excerpt = lines[min(error.lineno, len(lines)) - 1].strip()
    return TemplateError(f"template {name!r}, line {error.lineno}: {error.message}; found {excerpt!r}")


def _mentions(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all((nodes.Getattr, nodes.Const)):
        if isinstance(node, nodes.Getattr):
            yield node.attr
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            yield node.value


def _sought(tree: nodes.Template) -> Iterator[str]:
    """The left side of `in`, and what is given to methods such as `split`, and to the filter `replace`."""
    for compare in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            yield from _texts(compare.expr)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr != "get":
            yield from (text for argument in call.args for text in _texts(argument))
    for filter in tree.find_all(nodes.Filter):
        if filter.name == "replace":
            yield from (text for argument in filter.args for text in _texts(argument))
    # What is searched for may be given a name first: then it is no plain word.
    yield from (text for assign in tree.find_all(nodes.Assign) for text in _texts(assign.node) if not text.isalnum())


def _texts(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Const) and isinstance(node.value, str) and node.value.strip():
        yield node.value


def _provided_for(tree: nodes.Template, kind: str, known: Sequence[str]) -> set[str]:
    """Names whose absence the template provides for, so that they are no slips of the pen.

    It asks for them (`x is defined`, `x | default(...)`), or sets them, if only in a branch. Published chat templates
    also look whether an option of theirs is true (`{% if add_vision_id %}`): what is not like a known name is one.
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
    looked_at = {name for condition in conditions for name in _truths(condition)}
    return names | {name for name in looked_at if not get_close_matches(name, known, n=1)}


def _truths(condition: nodes.Node) -> Iterator[str]:
    """The names of which a condition asks whether they are true."""
    if isinstance(condition, nodes.Name):
        yield condition.name
    elif isinstance(condition, nodes.Not):
        yield from _truths(condition.node)
    elif isinstance(condition, (nodes.And, nodes.Or)):
        yield from _truths(condition.left)
        yield from _truths(condition.right)


def _guard_response(text: str, tree: nodes.Template, name: str) -> str:
    """Source whose generation prompt ends where the response begins.

    A template that does not mention `add_generation_prompt` is a plain text with a `{{ response }}` in it. From there
    to its end it is put in `{% if not add_generation_prompt %}`: the same file then renders training and serving.
    """
    how = "guard it: {% if not add_generation_prompt %}{{ response }}…{% endif %}"
    uses = [node for node in tree.find_all(nodes.Name) if node.name == "response"]
    if len(uses) > 1:
        lines = ", ".join(str(node.lineno) for node in uses)
        raise TemplateError(
            f"template {name!r}: uses `response` {len(uses)} times, on lines {lines}; use it once, or {how}"
        )
    outputs = [node for node in tree.body if isinstance(node, nodes.Output)]
    if not any(use in output.find_all(nodes.Name) for use in uses for output in outputs):
        raise TemplateError(
            f"template {name!r}, line {uses[0].lineno}: `response` stands inside a block, so where the prompt ends "
            f"depends on the data; move it to the top level, or {how}"
        )
    start, trims = _offset_of_response(text)
    body = text[start:].removesuffix("\n")  # Jinja takes one newline off the end of a template
    # `+` keeps the whitespace that lstrip_blocks would take; `-` repeats what the expression's own `{{-` did.
    guard = "{%- if" if trims else "{%+ if"
    return f"{text[:start]}{guard} not add_generation_prompt %}}{body}{{%+ endif %}}"


def _offset_of_response(text: str) -> tuple[int, bool]:
    """Where the expression that prints the response begins, and whether it strips the whitespace before it."""
    position, begin, trims, found, last = 0, 0, False, False, ""
    for _, kind, value in plain_environment().lex(text):
        # The lexer leaves out whitespace that tags strip; everything else comes in order.
        position = text.index(value, position)
        if kind == TOKEN_VARIABLE_BEGIN:
            begin, trims, found = position, value.endswith("-"), False
        elif kind == TOKEN_NAME and value == "response" and last != ".":
            found = True
        elif kind == TOKEN_VARIABLE_END and found:
            return begin, trims
        last = value if kind != TOKEN_WHITESPACE else last
        position += len(value)
    raise AssertionError("the parser saw a response that the lexer does not")
