"""The environment of foreign templates: what chat templates do, counted as it is done.

A sandbox keeps a template from the interpreter, not from looping without end or filling the memory. Here everything a
template makes is paid for out of an allowance that grows with the data: each pass of a loop, and each text and list at
its whole size. What is not known to cost as much as it is counted (`'A' * n`, `center`, `**`) is not done here at all.
A template that asks for it, or for more than its allowance, is `Uncounted`. That is no verdict: it is rendered anew in
a process whose limits the operating system keeps (`templatekit.formats.sandbox.worker`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, wraps
from typing import Any

import jinja2
from jinja2 import Undefined, nodes
from jinja2.compiler import Frame, operators, optimizeconst
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, Macro

from templatekit.formats.environment import PRINTED_NONE, TracingCodeGenerator, TracingEnvironment
from templatekit.formats.provenance import Traced, attribute, concat

LEAST, PER_CHARACTER = 1_000_000, 100
"""The allowance of a rendering: so many steps, and so many more for each character of the data.

A step is a part of an expression worked out once, a character copied or printed, an item looked at. Every million
takes about a second at most."""
SHORT = 256
"""Characters of a text that cost no more than the step that makes it."""


class Uncounted(BaseException):
    """A template asks for what is not counted, or for more than its allowance.

    It is no error, so nothing may treat it as one.
    """


_NESTED: Any = (dict, list, tuple, type({}.keys()), type({}.values()), type({}.items()))
_SIZED: Any = (str, range, *_NESTED)


def weight(value: Any, limit: float = float("inf")) -> int:
    """The size of a value written out: its characters, and one for each item.

    What stands in two places counts twice: a list of a list twice, of that list twice, and so on, weighs as much as
    it takes to print. Above `limit` counting stops.
    """
    total, waiting = 0, [value]
    while waiting and total <= limit:
        value = waiting.pop()
        total += 1
        if isinstance(value, (str, bytes, range)):
            total += len(value)
        elif isinstance(value, _NESTED):
            waiting += value
            if isinstance(value, dict):
                waiting += value.values()
    return total


def allowance(variables: Mapping[str, Any]) -> int:
    """How many steps and characters a rendering of these variables may take."""
    return LEAST + PER_CHARACTER * weight(variables)


def uncounted_constant(tree: nodes.Template) -> int | None:
    """The line of the first constant expression whose value Jinja would work out when it compiles, at any cost."""
    costly = (nodes.Mul, nodes.Pow, nodes.Mod, nodes.FloorDiv, nodes.Div, nodes.Filter)
    for node in tree.find_all((*costly, nodes.Const)):
        if isinstance(node, costly) and _is_constant(node):
            return node.lineno
        if isinstance(node, nodes.Const) and isinstance(node.value, int) and abs(node.value) >= _WORD:
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
"""What may be called, by its Python name: methods that give no more than they have (`join` and `replace` are reckoned
beforehand), and the environment's own functions."""
_WHOLE = _names("capitalize dictsort e escape list lower max min sort string title trim unique upper")
"""Filters that look at the whole of a value."""
_SURFACE = _names("count d default first items last length map reject rejectattr reverse safe select selectattr")
"""Filters that pass over a list once, and leave its items alone."""
_COMPARISONS = _names("in == eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le")
"""Tests that may look at the whole of a value."""
_WORD = 2**63
"""Numbers below it are one step each."""
_INDENT = 8
"""How far `tojson` may indent."""
_FEW = 8
"""So many texts may be joined before they are paid for."""


class _CountingCodeGenerator(TracingCodeGenerator):
    """Generates code that pays as it goes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._around: dict[nodes.Node, str] = {}
        """Expressions with the call that is to stand around them."""
        self._paid_later = False
        """Whether what the present expression gives is paid for when it is printed or assigned."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        call = self._around.pop(node, "")
        self.write(call)
        super().visit(node, *args, **kwargs)
        self.write(")" if call else "")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        self._around[node.iter] = f"environment.passes({_steps(node)}, "
        super().visit_For(node, frame)

    def visit_Macro(self, node: nodes.Macro, frame: Frame) -> None:
        _pay(node)
        super().visit_Macro(node, frame)

    def visit_CallBlock(self, node: nodes.CallBlock, frame: Frame) -> None:
        _pay(node)
        super().visit_CallBlock(node, frame)

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        self._paid_later = True
        super().visit_Output(node, frame)
        self._paid_later = False

    def visit_Assign(self, node: nodes.Assign, frame: Frame) -> None:
        if isinstance(node.node, nodes.Add) or next(node.node.find_all(nodes.Add), None):
            self._around[node.node] = "environment.paid("
            self._paid_later = True
        super().visit_Assign(node, frame)
        self._paid_later = False

    @optimizeconst
    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        later, self._paid_later = self._paid_later, False
        super().visit_Call(node, frame, forward_caller=forward_caller)
        self._paid_later = later

    @optimizeconst
    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        if self._paid_later and sum(1 for _ in node.find_all((nodes.Add, nodes.Concat))) < _FEW:
            super().visit_Add(node, frame)
        else:
            self._binary("add(", node, frame)

    @optimizeconst
    def _visit_arithmetic(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._binary(f"arithmetic({node.operator!r}, ", node, frame)

    visit_Mul = visit_Div = visit_FloorDiv = visit_Mod = visit_Pow = _visit_arithmetic

    def _binary(self, call: str, node: nodes.BinExpr, frame: Frame) -> None:
        self.write(f"environment.{call}")
        self.visit(node.left, frame)
        self.write(", ")
        self.visit(node.right, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._through("paid", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._through("paid", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._through("paid", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Name(self, node: nodes.Name, frame: Frame) -> None:
        if node.ctx == "load" and node.name in ("varargs", "kwargs"):  # a macro's own lists
            self._through("paid", super().visit_Name, node, frame)
        else:
            super().visit_Name(node, frame)

    @optimizeconst
    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._through("passed", super().visit_Getitem, node, frame)
        elif isinstance(node.arg, (nodes.Const, nodes.Sub, nodes.Neg)):
            super().visit_Getitem(node, frame)
        else:
            self.write("environment.getitem(")
            self.visit(node.node, frame)
            self.write(", ")
            self._through("looked_up", self.visit, node.arg, frame)
            self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        if _is_constant(node.expr):
            super().visit_Operand(node, frame)
            return
        self.write(f" {operators[node.op]} ")
        self._through("looked_up" if node.op in ("in", "notin") else "paid", self.visit, node.expr, frame)

    def _through(self, call: str, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        if _is_constant(node):  # paid for with the loop that it stands in
            visit(node, frame)
            return
        self.write(f"environment.{call}(")
        visit(node, frame)
        self.write(")")


def _steps(node: nodes.Node) -> int:
    """What a part of a template costs as it is written: a step for each node, and the literals that it prints."""
    steps = 1
    for part in node.find_all(nodes.Node):
        steps += 1
        if isinstance(part, nodes.TemplateData):
            steps += len(part.data)
        elif isinstance(part, nodes.Const) and isinstance(part.value, str):
            steps += len(part.value)
    return steps


def _pay(node: nodes.Macro | nodes.CallBlock) -> None:
    """Has the body pay when it begins, by a node that a template cannot spell."""
    payment = nodes.EnvironmentAttribute(f"spend({_steps(node)})", lineno=node.lineno)
    node.body.insert(0, nodes.ExprStmt(payment, lineno=node.lineno))


class _Meter(threading.local):
    left = 0
    variables: Mapping[str, Any] | None = None
    """Until the allowance for them is used."""


class CountingEnvironment(TracingEnvironment):
    """The tracing environment, in which a rendering has an allowance; raises `Uncounted`."""

    code_generator_class = _CountingCodeGenerator

    def __init__(self) -> None:
        super().__init__()
        self._meter = _Meter()
        self.finalize = self._printed
        special = {"join": self._counted_join, "replace": self._counted_replace, "tojson": self._counted_tojson}
        for name, function in self.filters.items():
            if name in special:
                self.filters[name] = special[name](function)
            elif name in _WHOLE or name in _SURFACE:
                self.filters[name] = self._counted(name, function)
            else:
                self.filters[name] = self._uncounted(name, function)
        for name in _COMPARISONS:
            self.tests[name] = self._counted_test(self.tests[name])

    def refill(self, variables: Mapping[str, Any]) -> None:
        """Begins a rendering, in this thread."""
        self._meter.left = LEAST
        self._meter.variables = variables

    def spend(self, amount: int) -> None:
        """Takes from the allowance."""
        meter = self._meter
        left = meter.left = meter.left - amount
        if left < 0 and not self._reckoned():
            raise Uncounted("the allowance is used up")

    def _reckoned(self) -> bool:
        """Whether there is more, now that the data's part is added: it is reckoned where it is needed, once."""
        meter = self._meter
        if meter.variables is not None:
            meter.left += allowance(meter.variables) - LEAST
            meter.variables = None
        return meter.left >= 0

    def paid(self, value: Any) -> Any:
        """The value, paid for as a whole."""
        if isinstance(value, str):
            if len(value) > SHORT:
                self.spend(len(value))
        elif isinstance(value, (bytes, *_SIZED)):
            size = weight(value, self._meter.left)
            if size > self._meter.left and self._reckoned():
                size = weight(value, self._meter.left)
            self.spend(size)
        return value

    def passed(self, value: Any) -> Any:
        """The value, paid for by its length."""
        if isinstance(value, _SIZED) and len(value) > SHORT:
            self.spend(len(value))
        return value

    def passes(self, steps: int, items: Any) -> Any:
        """What a loop goes through, paid for at so many steps an item."""
        if isinstance(items, _SIZED):
            self.spend(steps * len(items))
            return items
        return self._paying(steps, items) if isinstance(items, Iterator) else items

    def _paying(self, steps: int, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(steps)
            yield item

    def looked_up(self, value: Any) -> Any:
        """The value, paid for as a key, or as what is searched, which is fast in texts and at once in mappings."""
        if isinstance(value, str):
            if len(value) > 8 * SHORT:
                self.spend(len(value) // 8)
        elif not isinstance(value, dict):
            self.paid(value)
        return value

    def _printed(self, value: Any) -> Any:
        if type(value) is Traced and len(value) <= SHORT:
            return value
        if value is None:
            raise jinja2.TemplateRuntimeError(PRINTED_NONE)
        return self.paid(value)

    def add(self, left: Any, right: Any) -> Any:
        """The `+` operator."""
        if isinstance(left, (int, float)):
            return self.arithmetic("+", left, right)
        self.paid(left)
        self.paid(right)
        return left + right

    def arithmetic(self, operator: str, left: Any, right: Any) -> Any:
        """The other operators, on small numbers."""
        small = all(isinstance(value, (int, float)) and abs(value) < _WORD for value in (left, right))
        if not small or operator == "**":
            raise Uncounted(f"the operator {operator} on large numbers, or on what is no number")
        return self.binop_table[operator](left, right)

    def concat_operands(self, operands: Iterable[Any]) -> Traced:
        """The `~` operator."""
        texts = [str(operand) for operand in operands]
        if (length := sum(map(len, texts))) > SHORT:
            self.spend(length)
        return concat(texts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls from a template: of its macros, and of what is counted."""
        if not isinstance(__obj, (Macro, Undefined)):
            name = getattr(__obj, "__name__", None)
            if name not in _CALLABLE:
                raise Uncounted(f"a call of {name or type(__obj).__name__}")
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, str):
                __self.paid(owner)
                if name == "replace":
                    __self._reckon_replace(owner, *args)
                elif name == "join":
                    args = (__self._reckon_join(owner, *args),)
                kwargs.pop("_loop_vars", None)  # the context's, which no method of a text takes
                kwargs.pop("_block_vars", None)
                result = __self.paid(__obj(*args, **kwargs))
                return attribute(result, (owner, *args, *kwargs.values())) if isinstance(result, str) else result
            __self.passed(owner)
        return __self.passed(super().call(__context, __obj, *args, **kwargs))

    def _reckon_replace(self, text: str, old: object, new: object, *_: object) -> None:
        if isinstance(old, str) and isinstance(new, str):
            self.spend(text.count(old) * len(new))

    def _reckon_join(self, separator: Any, items: Any, by: Any = None) -> Any:
        """The items, to be joined; those of an iterator in a new one."""
        held = items if isinstance(items, _SIZED) else list(items)
        joined = held if by is None else [*map(make_attrgetter(self, by), held)]
        self.paid(joined)
        self.spend(len(held) * len(str(separator)))
        return items if held is items else iter(held)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays for what it gets before it works, and for what it gives."""
        pay = self.paid if name in _WHOLE else self.passed
        passed = int(hasattr(function, "jinja_pass_arg"))
        work: Callable[..., Any] = vars(function)["__wrapped__"]  # without the origins: they are kept below

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = work(*args, **kwargs)
            sources = args[passed:] if passed else args
            if kwargs:
                sources += tuple(kwargs.values())
            for value in sources:
                if type(value) is not Traced or len(value) > SHORT:
                    pay(value)
            if not isinstance(result, str):
                return pay(result)
            if len(result) > SHORT:
                self.spend(len(result))
            return attribute(result, sources)

        return counted

    def _uncounted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def uncounted(*_: Any, **__: Any) -> Any:
            raise Uncounted(f"the filter {name}")

        return uncounted

    def _counted_join(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def join(context: nodes.EvalContext, value: Any, d: Any = "", attribute: Any = None) -> Any:
            return self.paid(function(context, self._reckon_join(d, value, attribute), d, attribute))

        return join

    def _counted_replace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def replace(context: nodes.EvalContext, s: Any, old: Any, new: Any, count: Any = None) -> Any:
            self._reckon_replace(str(self.paid(s)), str(old), str(new))
            return self.paid(function(context, s, old, new, count))

        return replace

    def _counted_tojson(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def tojson(value: Any, *args: Any, **kwargs: Any) -> Any:
            for option in (*args, *kwargs.values()):
                # Indents and separators stand before each item.
                if weight(option) > _INDENT or (isinstance(option, int) and option > _INDENT):
                    raise Uncounted(f"the filter tojson with {option!r}")
            return self.paid(function(self.paid(value), *args, **kwargs))

        return tojson

    def _counted_test(self, test: Any) -> Callable[..., bool]:
        def counted(*values: Any) -> bool:
            for value in values:
                self.paid(value)
            return bool(test(*values))

        return counted


@cache
def counting_environment() -> CountingEnvironment:
    """The environment of foreign templates."""
    return CountingEnvironment()
