"""The metered environment of untrusted templates: a rendering pays for each step out of a limited allowance.

A sandbox keeps a template away from the interpreter, but it does not keep it from looping forever or filling the
memory. Here everything that a template makes is charged to an allowance that grows with the data: each pass of a loop,
and each text and list at its full size. Operations whose cost is not known in advance (`'A' * n`, `center`, `**`) are
never run here. A template that needs one, or more than its allowance, raises `NeedsWorker`. That is not an error: it is
then rendered in a process that the operating system limits (`templatekit.formats.sandbox.worker`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial, update_wrapper
from typing import Any

import jinja2
from jinja2 import Undefined, nodes
from jinja2.compiler import Frame, optimizeconst
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, Macro

from templatekit.formats.environment import PRINTED_NONE, ProvenanceCodeGenerator, ProvenanceEnvironment
from templatekit.formats.provenance import TrackedText

BASE_ALLOWANCE, ALLOWANCE_PER_CHARACTER = 1_000_000, 100
"""The steps that a rendering may take: a base, and more for each character of the data.

A step is one evaluation of a part of an expression, one character copied or printed, or one item visited. A million
steps take about a second at most."""
FREE_LENGTH = 256
"""A text of up to this many characters costs nothing beyond the step that makes it."""


class NeedsWorker(BaseException):
    """A template needs an operation that is not metered, or more than its allowance, so the worker must render it.

    It is not an error and not an `Exception`, so that no code handles it as one.
    """


_CONTAINERS: Any = (dict, list, tuple, type({}.keys()), type({}.values()), type({}.items()))
_SIZED: Any = (str, range, *_CONTAINERS)


def written_size(value: Any, limit: float = float("inf")) -> int:
    """The size of a value when it is printed: its characters, plus one for each item.

    A value that occurs twice inside another counts twice, at every level, just as it is printed twice. Counting stops
    above `limit`.
    """
    total, pending = 0, [value]
    while pending and total <= limit:
        value = pending.pop()
        total += 1
        if isinstance(value, (str, bytes, range)):
            total += len(value)
        elif isinstance(value, _CONTAINERS):
            pending += value
            if isinstance(value, dict):
                pending += value.values()
    return total


def allowance(variables: Mapping[str, Any]) -> int:
    """The steps that a rendering of these variables may take, and the most characters of its text."""
    return BASE_ALLOWANCE + ALLOWANCE_PER_CHARACTER * written_size(variables)


def find_unmetered_constant(tree: nodes.Template) -> int | None:
    """The line of the first constant expression that Jinja would evaluate while compiling, at an unknown cost."""
    costly = (nodes.Mul, nodes.Pow, nodes.Mod, nodes.FloorDiv, nodes.Div, nodes.Filter)
    for node in tree.find_all((*costly, nodes.Const)):
        if isinstance(node, costly) and _is_constant(node):
            return node.lineno
        if isinstance(node, nodes.Const) and isinstance(node.value, int) and abs(node.value) >= _MAX_NUMBER:
            return node.lineno
    return None


def _is_constant(node: nodes.Node) -> bool:
    varies = (nodes.Name, nodes.Call)
    return not isinstance(node, varies) and next(node.find_all(varies), None) is None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CALLABLE = _names(
    "capitalize count cycle endswith find get index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper items join keys lower lstrip partition removeprefix removesuffix "
    "replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values "
    "safe_range _raise_exception _strftime_now strftime_now _Namespace _text"
)
"""The functions that may be called, by their Python names: the environment's own, and methods whose result is no larger
than their object. `join` and `replace` are charged before they run."""
_DEEP_FILTERS = _names("capitalize dictsort e escape list lower max min sort string title trim unique upper")
"""Filters that read a value at all levels."""
_SHALLOW_FILTERS = _names(
    "count d default first items last length map reject rejectattr reverse safe select selectattr"
)
"""Filters that go through a list once and do not look into its items."""
_COMPARING_TESTS = _names("in == eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le")
"""Tests that may read a value at all levels."""
_MAX_NUMBER = 2**63
"""An operation on numbers below this is one step."""
_MAX_INDENT = 8
"""The most that `tojson` may indent."""
_MAX_UNCHARGED_OPERANDS = 8
"""Fewer additions than this in one expression are charged together, when the result is printed or assigned."""


class _MeteredCodeGenerator(ProvenanceCodeGenerator):
    """Generates code that charges its steps as it runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wrapper_calls: dict[nodes.Node, str] = {}
        """The call to generate around an expression, by its node."""
        self._charged_later = False
        """Whether the value of the current expression is charged when it is printed or assigned."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, (nodes.Macro, nodes.CallBlock)):
            _charge_body(node)
        calls = self._wrapper_calls.pop(node, "") + _charge_of(node)
        self.write(calls)
        super().visit(node, *args, **kwargs)
        self.write(")" * calls.count("("))

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        self._wrapper_calls[node.iter] = f"environment.charge_loop({_steps(node)}, "
        super().visit_For(node, frame)

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        self._charged_later = True
        super().visit_Output(node, frame)
        self._charged_later = False

    def visit_Assign(self, node: nodes.Assign, frame: Frame) -> None:
        if isinstance(node.node, nodes.Add) or next(node.node.find_all(nodes.Add), None):
            self._wrapper_calls[node.node] = "environment.charge("
            self._charged_later = True
        super().visit_Assign(node, frame)
        self._charged_later = False

    @optimizeconst
    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        charged_later, self._charged_later = self._charged_later, False
        super().visit_Call(node, frame, forward_caller=forward_caller)
        self._charged_later = charged_later

    @optimizeconst
    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        if self._charged_later and sum(1 for _ in node.find_all((nodes.Add, nodes.Concat))) < _MAX_UNCHARGED_OPERANDS:
            super().visit_Add(node, frame)
        else:
            self._call("add(", node.left, node.right, frame)

    @optimizeconst
    def _visit_arithmetic(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._call(f"arithmetic({node.operator!r}, ", node.left, node.right, frame)

    visit_Mul = visit_Div = visit_FloorDiv = visit_Mod = visit_Pow = _visit_arithmetic

    @optimizeconst
    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, (nodes.Slice, nodes.Const, nodes.Sub, nodes.Neg)):
            super().visit_Getitem(node, frame)
        else:
            self._wrap(node.arg, "charge_lookup")
            self._call("getitem(", node.node, node.arg, frame)

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        self._wrap(node.expr, "charge_lookup" if node.op in ("in", "notin") else "charge")
        super().visit_Operand(node, frame)

    def _wrap(self, node: nodes.Node, charge: str) -> None:
        if not _is_constant(node):  # a constant is charged with the loop around it
            self._wrapper_calls[node] = f"environment.{charge}("

    def _call(self, call: str, left: nodes.Node, right: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{call}")
        self.visit(left, frame)
        self.write(", ")
        self.visit(right, frame)
        self.write(")")


def _charge_of(node: nodes.Node) -> str:
    """The call that charges what an expression makes: a collection at its full size, a slice by its length."""
    match node:
        case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
            call = "environment.charge("
        case nodes.Name(name="varargs" | "kwargs", ctx="load"):  # a macro's own lists
            call = "environment.charge("
        case nodes.Getitem(arg=nodes.Slice()):
            call = "environment.charge_length("
        case _:
            return ""
    return "" if _is_constant(node) else call  # a constant is charged with the loop around it


def _steps(node: nodes.Node) -> int:
    """The steps of one pass through a part of a template: one per node, and one per character of its literals."""
    steps = 1
    for part in node.find_all(nodes.Node):
        steps += 1
        if isinstance(part, nodes.TemplateData):
            steps += len(part.data)
        elif isinstance(part, nodes.Const) and isinstance(part.value, str):
            steps += len(part.value)
    return steps


def _charge_body(node: nodes.Macro | nodes.CallBlock) -> None:
    """Charge the body when it starts, by a node that no template syntax can produce."""
    charge = nodes.EnvironmentAttribute(f"spend({_steps(node)})", lineno=node.lineno)
    node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))


class _Meter(threading.local):
    """What is left of the allowance of the current rendering, in each thread."""

    remaining = 0
    variables: Mapping[str, Any] | None = None
    """The data; None once its part of the allowance is added."""


class MeteredEnvironment(ProvenanceEnvironment):
    """The provenance environment with an allowance for each rendering; raises `NeedsWorker`."""

    code_generator_class = _MeteredCodeGenerator

    def __init__(self) -> None:
        super().__init__()
        self._meter = _Meter()
        self.finalize = self._finalize
        special: dict[str, Callable[..., Any]]
        special = {"join": self._join, "replace": self._replace, "tojson": self._tojson}
        metered: Callable[..., Any]
        for name, function in self.filters.items():
            if name in special:
                metered = partial(special[name], function)
            elif name in _DEEP_FILTERS or name in _SHALLOW_FILTERS:
                charge = self.charge if name in _DEEP_FILTERS else self.charge_length
                # `_filter` adds the origin itself, after it charged the arguments.
                metered = partial(
                    self._filter, charge, hasattr(function, "jinja_pass_arg"), vars(function)["__wrapped__"]
                )
            else:
                metered = partial(_unmetered, name)
            self.filters[name] = update_wrapper(metered, function)
        tests: dict[str, Any] = self.tests
        tests |= {name: partial(self._test, tests[name]) for name in _COMPARING_TESTS}

    def refill(self, variables: Mapping[str, Any]) -> None:
        """Start a rendering of these variables in this thread, with a full allowance."""
        self._meter.remaining = BASE_ALLOWANCE
        self._meter.variables = variables

    def spend(self, amount: int) -> None:
        """Deduct steps from the allowance."""
        meter = self._meter
        remaining = meter.remaining = meter.remaining - amount
        if remaining < 0 and not self._add_data_allowance():
            raise NeedsWorker("the allowance is used up")

    def _add_data_allowance(self) -> bool:
        """Add the data's part of the allowance, once and only when it is needed; return whether that is enough."""
        meter = self._meter
        if meter.variables is not None:
            meter.remaining += allowance(meter.variables) - BASE_ALLOWANCE
            meter.variables = None
        return meter.remaining >= 0

    def charge(self, value: Any) -> Any:
        """The value, charged at its full size."""
        if isinstance(value, str):
            if len(value) > FREE_LENGTH:
                self.spend(len(value))
        elif isinstance(value, (bytes, *_SIZED)):
            size = written_size(value, self._meter.remaining)
            if size > self._meter.remaining and self._add_data_allowance():
                size = written_size(value, self._meter.remaining)
            self.spend(size)
        return value

    def charge_length(self, value: Any) -> Any:
        """The value, charged by its length."""
        if isinstance(value, _SIZED) and len(value) > FREE_LENGTH:
            self.spend(len(value))
        return value

    def charge_loop(self, steps: int, items: Any) -> Any:
        """The items of a loop, charged at this many steps each."""
        if isinstance(items, _SIZED):
            self.spend(steps * len(items))
            return items
        return self._charge_each(steps, items) if isinstance(items, Iterator) else items

    def _charge_each(self, steps: int, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(steps)
            yield item

    def charge_lookup(self, value: Any) -> Any:
        """The value, charged as a key or as a container searched; a text costs little, a mapping nothing."""
        if isinstance(value, str):
            if len(value) > 8 * FREE_LENGTH:
                self.spend(len(value) // 8)
        elif not isinstance(value, dict):
            self.charge(value)
        return value

    def _finalize(self, value: Any) -> Any:
        if type(value) is TrackedText and len(value) <= FREE_LENGTH:
            return value
        if value is None:
            raise jinja2.TemplateRuntimeError(PRINTED_NONE)
        return self.charge(value)

    def add(self, left: Any, right: Any) -> Any:
        """The `+` operator."""
        if isinstance(left, (int, float)):
            return self.arithmetic("+", left, right)
        self.charge(left)
        self.charge(right)
        return left + right

    def arithmetic(self, operator: str, left: Any, right: Any) -> Any:
        """The other arithmetic operators, on small numbers."""
        small = all(isinstance(value, (int, float)) and abs(value) < _MAX_NUMBER for value in (left, right))
        if not small or operator == "**":
            raise NeedsWorker(f"the operator {operator} on large numbers, or on other values")
        return self.binop_table[operator](left, right)

    def concat_operands(self, operands: Iterable[Any]) -> Any:
        """The `~` operator."""
        texts = [str(operand) for operand in operands]
        if (length := sum(map(len, texts))) > FREE_LENGTH:
            self.spend(length)
        return self.concat(texts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a macro or a metered function for a template."""
        if not isinstance(__obj, (Macro, Undefined)):
            name = getattr(__obj, "__name__", None)
            if name not in _CALLABLE:
                raise NeedsWorker(f"a call of {name or type(__obj).__name__}")
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, str):
                __self.charge(owner)
                if name == "replace":
                    __self._charge_replace(owner, *args)
                elif name == "join":
                    args = (__self._charge_join(owner, *args),)
                kwargs.pop("_loop_vars", None)  # Jinja adds these for functions that take its context
                kwargs.pop("_block_vars", None)
                result = __self.charge(__obj(*args, **kwargs))
                if not isinstance(result, str):
                    return result
                return __self.inherit_origin(result, (owner, *args, *kwargs.values()))
            __self.charge_length(owner)
        return __self.charge_length(super().call(__context, __obj, *args, **kwargs))

    def _charge_replace(self, text: str, old: object, new: object, *_: object) -> None:
        if isinstance(old, str) and isinstance(new, str):
            self.spend(text.count(old) * len(new))

    def _charge_join(self, separator: Any, items: Any, by: Any = None) -> Any:
        """The items to join, charged; those of an iterator in a new iterator."""
        collected = items if isinstance(items, _SIZED) else list(items)
        joined = collected if by is None else [*map(make_attrgetter(self, by), collected)]
        self.charge(joined)
        self.spend(len(collected) * len(str(separator)))
        return items if collected is items else iter(collected)

    def _filter(self, charge: Callable[[Any], Any], skipped: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A filter that is charged for its arguments, except those that Jinja passes first, and for its result."""
        result = function(*args, **kwargs)
        sources = args[skipped:] if skipped else args
        if kwargs:
            sources += tuple(kwargs.values())
        for value in sources:
            if type(value) is not TrackedText or len(value) > FREE_LENGTH:
                charge(value)
        if not isinstance(result, str):
            return charge(result)
        if len(result) > FREE_LENGTH:
            self.spend(len(result))
        return self.inherit_origin(result, sources)

    def _join(self, function: Any, context: Any, value: Any, /, d: Any = "", attribute: Any = None) -> Any:
        return self.charge(function(context, self._charge_join(d, value, attribute), d, attribute))

    def _replace(self, function: Any, context: Any, s: Any, /, old: Any, new: Any, count: Any = None) -> Any:
        self._charge_replace(str(self.charge(s)), str(old), str(new))
        return self.charge(function(context, s, old, new, count))

    def _tojson(self, function: Any, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        for option in (*args, *kwargs.values()):
            # Indents and separators are written once per item.
            if written_size(option) > _MAX_INDENT or (isinstance(option, int) and option > _MAX_INDENT):
                raise NeedsWorker(f"the filter tojson with {option!r}")
        return self.charge(function(self.charge(value), *args, **kwargs))

    def _test(self, function: Any, /, *values: Any) -> bool:
        for value in values:
            self.charge(value)
        return bool(function(*values))


def _unmetered(name: str, /, *_: Any, **__: Any) -> Any:
    raise NeedsWorker(f"the filter {name}")


class MeteredPlainEnvironment(MeteredEnvironment):
    """The same over plain text, for a text whose origins are not wanted."""

    concat: Any = staticmethod("".join)
    literal: Any = staticmethod(str)
    mark_generation: Any = staticmethod(str)
    inherit_origin: Any = staticmethod(lambda text, sources: text)


@cache
def metered_plain_environment() -> MeteredPlainEnvironment:
    """The environment of untrusted templates, without provenance."""
    return MeteredPlainEnvironment()


@cache
def metered_environment() -> MeteredEnvironment:
    """The environment of untrusted templates."""
    return MeteredEnvironment()
