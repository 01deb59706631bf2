"""The texts of every beginning of a conversation, from one rendering, for templates that treat messages one by one.

To render the first message, then the first two, the first three and so on takes time that grows with the square of
their number. Most templates are a loop over the messages, with something before and after it:

    BEFORE {% for m in messages %} BODY {% endfor %} AFTER

The text of the first messages is `BEFORE`, one `BODY` for each of them, and `AFTER`. So one rendering of the following
template has the parts of all those texts. The bars are marks, and `loop.last` is true in `LAST BODY` alone:

    BEFORE {% for m in messages %}|LAST BODY|AFTER|AFTER as a prompt|BODY{% endfor %}

That is right where `BEFORE` and `BODY` know nothing of the messages that follow, and where `BODY` and `AFTER` leave
nothing behind that a later part reads. `PrefixTemplate.of` returns None for any other template: each beginning of a
conversation is then rendered by itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar, cast

from jinja2 import Environment, nodes

Node = TypeVar("Node", bound=nodes.Node)

_MARK = secrets.token_hex(16)
"""Printed between the parts. No data holds it, since each process draws its own."""
_PAST = frozenset({"index", "index0", "first", "previtem", "depth", "depth0"})
"""What `loop` tells of the messages so far."""
_UNSUPPORTED = (
    nodes.Macro,
    nodes.Block,
    nodes.Extends,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Break,
    nodes.Continue,
)
_WORTHWHILE = 8
"""From this many messages on, one longer rendering takes less time than two for each answer."""
_PROMPT = "add_generation_prompt"
_YES, _NO = "templatekit_yes", "templatekit_no"
"""Variables that are true and false. Constants in their place would let Jinja compute, while it compiles, an expression
whose cost is to be counted."""


class PrefixTexts:
    """The texts of the beginnings of one conversation."""

    def __init__(self, before: str, parts: Sequence[str], *, skipped: int, fewest: int, repeated: bool) -> None:
        self._parts = parts
        self._skipped = skipped
        self.fewest = max(fewest, skipped + 1)
        """The number of messages of the shortest beginning."""
        bodies = parts[3::4] if repeated else parts[0::4]
        self._bodies = before + "".join(bodies)
        self._starts = [*accumulate(map(len, bodies), initial=len(before))]

    def text(self, count: int, prompt: bool) -> str:
        """The text of the first `count` messages, at least `fewest`; with `prompt`, as the prompt after them."""
        index = count - self._skipped - 1
        last_body, after, after_as_prompt = self._parts[4 * index : 4 * index + 3]
        return self._bodies[: self._starts[index]] + last_body + (after_as_prompt if prompt else after)


class PlainTexts:
    """The plain texts of the beginnings of one conversation, for comparison; a `targets.TextFunction`.

    Where the parts of the texts give both texts of the whole conversation, they give those of its beginnings.
    """

    def __init__(
        self,
        variables: dict[str, Any],
        render: Callable[[dict[str, Any]], str],
        print_parts: Callable[[dict[str, Any]], PrefixTexts | None],
    ) -> None:
        """`variables` are the template's for the whole conversation, without origins."""
        self._variables, self._render, self._print_parts = variables, render, print_parts

    def __call__(self, messages: Sequence[Any], prompt: bool) -> str:
        """The text of these first messages; with `prompt`, as the prompt after them."""
        if self._parts is not None and len(messages) >= self._parts.fewest:
            return self._parts.text(len(messages), prompt)
        beginning = self._variables["messages"][: len(messages)]
        return self._render({**self._variables, "messages": beginning, _PROMPT: prompt})

    @cached_property
    def _parts(self) -> PrefixTexts | None:
        """The parts of the texts; None where the texts are to be rendered one by one."""
        count = len(self._variables["messages"])
        if count < _WORTHWHILE:
            return None
        parts = self._print_parts(self._variables)
        if parts is None or count < parts.fewest:
            return None
        for prompt in (False, True):
            if parts.text(count, prompt) != self._render({**self._variables, _PROMPT: prompt}):
                return None
        return parts


class PrefixTemplate(NamedTuple):
    """A template that prints the parts of every beginning of a conversation."""

    tree: nodes.Template
    fewest: int
    """How many messages a beginning has at least."""
    repeated: bool
    """Whether each message's body is printed twice: as the last one, and as one that others follow."""

    @classmethod
    def of(cls, environment: Environment, source: str) -> PrefixTemplate | None:
        """The template of the parts of a template's texts; None where a part may depend on what follows it."""
        tree, again = environment.parse(source), environment.parse(source)
        loops = [index for index, node in enumerate(tree.body) if isinstance(node, nodes.For)]
        if len(loops) != 1 or next(tree.find_all(_UNSUPPORTED), None):
            return None
        (index,) = loops
        loop, second = cast("nodes.For", tree.body[index]), cast("nodes.For", again.body[index])
        before, after = tree.body[:index], tree.body[index + 1 :]
        lists = _MessageLists(before)
        if not isinstance(loop.target, nodes.Name) or loop.test or loop.recursive or not lists.are_messages(loop.iter):
            return None
        if not _is_independent(before, loop, after):
            return None
        repeated = any(_loop_attribute(node) == "last" for node in _outside_loops(loop.body))
        if repeated and next(_all(loop.body, nodes.NSRef), None):
            return None
        fewest = 1 + sum(map(_number, tree.find_all(nodes.Getitem)))
        current = loop.target.name
        after = _rewritten(after, partial(lists.in_after, message=current, asked=_NO))
        as_prompt = _rewritten(again.body[index + 1 :], partial(lists.in_after, message=current, asked=_YES))
        body = _rewritten(loop.body, partial(_with_last, last=_NO), into_loops=False)
        last_body = _rewritten(second.body, partial(_with_last, last=_YES), into_loops=False)
        if not lists.are_all_uses_known([*before, *body, *last_body, *after, *as_prompt], loop.iter):
            return None
        line = loop.lineno
        mark = nodes.Output([nodes.TemplateData(_MARK, lineno=line)], lineno=line)
        ends = [mark, nodes.Scope(after, lineno=line), mark, nodes.Scope(as_prompt, lineno=line), mark]
        loop.body = [mark, nodes.Scope(last_body, lineno=line), *ends, *body] if repeated else [mark, *body, *ends]
        tree.body = [*before, loop]
        return cls(cast("nodes.Template", tree.set_environment(environment)), fewest, repeated)

    def texts(self, render: Callable[[dict[str, Any]], str], variables: dict[str, Any]) -> PrefixTexts | None:
        """The texts of the beginnings of `messages` in these variables, with which `render` renders this template.

        None if it has not printed all the parts.
        """
        before, *parts = render({**variables, _YES: True, _NO: False}).split(_MARK)
        count, rounds = len(variables["messages"]), len(parts) // 4
        if not 0 < rounds <= count or len(parts) % 4:
            return None
        return PrefixTexts(before, parts, skipped=count - rounds, fewest=self.fewest, repeated=self.repeated)


class _MessageLists:
    """The names of `messages` and of its ends (`{% set rest = messages[1:] %}`), and which uses of them are known."""

    def __init__(self, before: Sequence[nodes.Node]) -> None:
        self.names = {"messages"}
        self._known: set[int] = set()
        for assign in _all(before, nodes.Assign):
            if isinstance(assign.target, nodes.Name) and self.are_messages(assign.node):
                self.names.add(assign.target.name)
                self._known |= {id(assign.target), *_list_names(assign.node)}

    def are_messages(self, node: nodes.Node) -> bool:
        """Whether an expression gives the messages from some number on, whatever follows them."""
        if isinstance(node, nodes.CondExpr):
            return node.expr2 is not None and self.are_messages(node.expr1) and self.are_messages(node.expr2)
        if isinstance(node, nodes.Getitem):
            arg = node.arg
            is_end = isinstance(arg, nodes.Slice) and arg.stop is None and arg.step is None and _is_number(arg.start)
            return is_end and self.are_messages(node.node)
        return isinstance(node, nodes.Name) and node.name in self.names

    def are_all_uses_known(self, part: Sequence[nodes.Node], iterated: nodes.Node) -> bool:
        """Whether the lists are only assigned, iterated over once, and asked for messages counted from the start."""
        known = self._known.union(_list_names(iterated))
        for item in _all(part, nodes.Getitem):
            if _is_number(item.arg) and self.are_messages(item.node):
                known |= _list_names(item.node)
        return all(id(name) in known for name in _all([*part, iterated], nodes.Name) if name.name in self.names)

    def in_after(self, node: nodes.Node, *, message: str, asked: str) -> nodes.Node | None:
        """What stands for a node after the loop, within it: the last of the messages is the current one."""
        if isinstance(node, nodes.Name) and node.name == _PROMPT:
            return nodes.Name(asked, "load", lineno=node.lineno)
        if isinstance(node, nodes.Getitem) and node.arg == nodes.Neg(nodes.Const(1)) and self.are_messages(node.node):
            return nodes.Name(message, "load", lineno=node.lineno)
        return None


def _is_independent(before: Sequence[nodes.Node], loop: nodes.For, after: Sequence[nodes.Node]) -> bool:
    """Whether no part knows whether this is a prompt before it ends, or leaves something behind for another part."""
    started, ended = ({name.name for name in _all(part, nodes.Name)} for part in ([*before, loop], after))
    written = [name.name for name in _all([loop], nodes.Name) if name.ctx == "store"]
    asks = any(name.name == _PROMPT and name.ctx == "store" for name in _all(after, nodes.Name))
    if _PROMPT in started or asks or {"cycler", "joiner", _YES, _NO} & (started | ended) or ended.intersection(written):
        return False
    if written.count(cast("nodes.Name", loop.target).name) > 1:  # after the loop, it would not be the message
        return False
    if next(_all(after, nodes.NSRef), None) or any(map(_is_loop, _outside_loops(after))):
        return False
    inside = [*_outside_loops(loop.body)]
    return sum(map(_is_loop, inside)) == sum(_loop_attribute(node) in {*_PAST, "last"} for node in inside)


def _is_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "loop"


def _loop_attribute(node: nodes.Node) -> str | None:
    """The attribute of `loop` that an expression is."""
    return node.attr if isinstance(node, nodes.Getattr) and _is_loop(node.node) else None


def _with_last(node: nodes.Node, *, last: str) -> nodes.Node | None:
    return nodes.Name(last, "load", lineno=node.lineno) if _loop_attribute(node) == "last" else None


def _outside_loops(part: Iterable[nodes.Node]) -> Iterator[nodes.Node]:
    """The nodes in which `loop` is the loop around them."""
    for node in part:
        yield node
        yield from _outside_loops([node.iter] if isinstance(node, nodes.For) else node.iter_child_nodes())


def _rewritten(
    part: Iterable[nodes.Node], rewrite: Callable[[nodes.Node], nodes.Node | None], *, into_loops: bool = True
) -> list[nodes.Node]:
    """The nodes, in which `rewrite` has put others in their places."""
    done = []
    for node in part:
        new = rewrite(node)
        for name, value in node.iter_fields() if new is None else ():
            if isinstance(node, nodes.For) and name != "iter" and not into_loops:
                continue
            if isinstance(value, nodes.Node):
                setattr(node, name, _rewritten([value], rewrite, into_loops=into_loops)[0])
            elif isinstance(value, list):
                setattr(node, name, _rewritten(value, rewrite, into_loops=into_loops))
        done.append(node if new is None else new)
    return done


def _all(part: Iterable[nodes.Node], kind: type[Node]) -> Iterator[Node]:
    """All nodes of a kind, also the given ones."""
    return nodes.Template([*part]).find_all(kind)


def _list_names(node: nodes.Node) -> set[int]:
    """The names that stand for lists in an expression that gives messages."""
    if isinstance(node, nodes.CondExpr):
        return _list_names(node.expr1) | _list_names(cast("nodes.Expr", node.expr2))
    return _list_names(node.node) if isinstance(node, nodes.Getitem) else {id(node)}


def _is_number(node: nodes.Node | None) -> bool:
    """Whether a node counts from the start: a number that is not negative."""
    return isinstance(node, nodes.Const) and type(node.value) is int and node.value >= 0


def _number(item: nodes.Getitem) -> int:
    """The number that an index or the start of a slice counts from the start; 0 for others."""
    arg = item.arg.start if isinstance(item.arg, nodes.Slice) else item.arg
    return int(cast("nodes.Const", arg).value) if _is_number(arg) else 0
