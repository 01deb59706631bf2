"""`FilterExpression`: a condition on a record, written as a Python expression.

```
len(response) > 10 and category == 'qa'
instruction.lower().startswith(('name', 'list')) or row.get('score', 0) >= 0.5
```

Names are the record's columns, and `row` is the whole record. Python parses the expression, and this module compiles it
to its own functions; nothing is passed to `eval`. An expression can call only the functions and methods below. It has
no loops, no powers and no multiplication of text, so its time and memory grow only with the values that it reads.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from templatekit.errors import ConfigError, nearest, shorten
from templatekit.types import Record

ROW = "row"
"""The name of the record itself, unless the record has a column of this name."""

Evaluate = Callable[[Record], Any]

_MAX_LENGTH = 2000
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "min": min,
    "max": max,
    "sum": sum,
    "any": any,
    "all": all,
    "abs": abs,
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
}
_METHODS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("lower", "upper", "strip", "startswith", "endswith", "split", "isascii", "isdigit"), (str,)),
    "count": (str, list, tuple),
    "get": (Mapping,),
    "keys": (Mapping,),
    "values": (Mapping,),
}
"""The types that have each method."""
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class FilterExpression:
    """A condition on records. Raises `ConfigError` for a text that is not a condition."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _MAX_LENGTH:
            raise ConfigError(f"filter: {len(text):,} characters; expected at most {_MAX_LENGTH:,}")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            message = getattr(error, "msg", None) or str(error)
            raise ConfigError(
                f"filter {text!r}: {message}; expected a condition on the columns, such as len(response) > 10 and "
                "category == 'qa'"
            ) from None
        self._evaluate = _compile(tree.body, text)

    def holds(self, record: Record) -> bool:
        """Return whether the record meets the condition; raise `ValueError` if it cannot be evaluated on the record."""
        try:
            return bool(self._evaluate(record))
        except _MissingColumn:
            raise
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except Exception as error:  # comparisons and conversions of the record's values may raise anything
            raise ValueError(f"{type(error).__name__}: {error}") from None


class _MissingColumn(ValueError):
    pass


def _compile(node: ast.expr, text: str) -> Evaluate:
    """The function that evaluates a node of the syntax tree."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (str, bool, int, float)):
            return lambda record: value
        case ast.Name(id=name):
            return _compile_name(name)
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            items = [_compile(element, text) for element in elements]
            return lambda record: tuple(item(record) for item in items)
        case ast.BoolOp(op=op, values=values):
            operands = [_compile(value, text) for value in values]
            return _compile_and_or(bool if isinstance(op, ast.Or) else operator.not_, operands)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            unary, inner = _UNARY[type(op)], _compile(operand, text)
            return lambda record: unary(inner(record))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _compile_arithmetic(_ARITHMETIC[type(op)], _compile(left, text), _compile(right, text))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            chain = [(_COMPARE[type(op)], _compile(other, text)) for op, other in zip(ops, others, strict=True)]
            return _compile_comparison(_compile(left, text), chain)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            when, one, other = _compile(test, text), _compile(body, text), _compile(orelse, text)
            return lambda record: one(record) if when(record) else other(record)
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=None)):
            whole = _compile(value, text)
            first, last = (None if end is None else _compile(end, text) for end in (lower, upper))
            return lambda record: whole(record)[slice(first and first(record), last and last(record))]
        case ast.Subscript(value=value, slice=index) if not isinstance(index, ast.Slice):
            whole, key = _compile(value, text), _compile(index, text)
            return lambda record: whole(record)[key(record)]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            if name not in _FUNCTIONS:
                raise _refuse(text, f"no function named {name!r}; {nearest(name, _FUNCTIONS)}")
            function, operands = _FUNCTIONS[name], [_compile(argument, text) for argument in arguments]
            return lambda record: function(*[operand(record) for operand in operands])
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments, keywords=[]):
            if name not in _METHODS:
                raise _refuse(text, f"no method named {name!r}; {nearest(name, _METHODS)}")
            return _compile_method(name, _compile(value, text), [_compile(argument, text) for argument in arguments])
    raise _refuse(text, f"{ast.unparse(node)!r} is more than a condition may say")


def _refuse(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"filter {text!r}: {reason}; expected comparisons, and/or/not, in, arithmetic, {', '.join(_FUNCTIONS)} and the "
        f"methods {', '.join(_METHODS)}"
    )


def _compile_name(name: str) -> Evaluate:
    def value(record: Record) -> Any:
        if name in record:
            return record[name]
        if name == ROW:
            return record
        hint = nearest(name, map(str, record))
        raise _MissingColumn(f"no column {name!r}; {hint} (for one that may be missing: row.get({name!r}))")

    return value


def _compile_and_or(is_decisive: Callable[[Any], bool], operands: list[Evaluate]) -> Evaluate:
    """`and` and `or`: the first decisive operand, else the last one."""

    def value(record: Record) -> Any:
        result: Any = None
        for operand in operands:
            if is_decisive(result := operand(record)):
                break
        return result

    return value


def _compile_comparison(left: Evaluate, chain: list[tuple[Callable[[Any, Any], Any], Evaluate]]) -> Evaluate:
    def value(record: Record) -> bool:
        one = left(record)
        for holds, right in chain:
            other = right(record)
            if not holds(one, other):
                return False
            one = other
        return True

    return value


def _compile_arithmetic(compute: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    def value(record: Record) -> Any:
        one, other = left(record), right(record)
        for side in (one, other):
            # `'x' * 10**9` and `'%999999999d' % 1` would fill the memory.
            if not isinstance(side, (int, float)) and compute is not operator.add:
                raise TypeError(f"found {shorten(side)}; expected a number")
        return compute(one, other)

    return value


def _compile_method(name: str, owner: Evaluate, arguments: list[Evaluate]) -> Evaluate:
    def value(record: Record) -> Any:
        found = owner(record)
        if not isinstance(found, _METHODS[name]):
            raise TypeError(f"{type(found).__name__} {shorten(found)} has no {name}()")
        return getattr(found, name)(*[argument(record) for argument in arguments])

    return value
