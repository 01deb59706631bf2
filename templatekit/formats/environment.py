"""The Jinja environments templates run in: as transformers builds them, once plain and once with provenance.

Both are `ImmutableSandboxedEnvironment`s with `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`,
`tojson`, `raise_exception` and `strftime_now`. The traced one differs in where text is joined and in how constants
reach the generated code, and in nothing else, so both give the same text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from templatekit.formats.provenance import (
    Traced,
    TracedDict,
    attribute,
    concat,
    keeps_provenance,
    literal,
    mark_generation,
)

PRINTED_NONE = "the template prints None"


class TemplateRefusal(jinja2.TemplateError):
    """`raise_exception` in a template: the template's own words about what it does not take."""


class _Generation(Extension):
    """The `{% generation %}` block of Hugging Face chat templates."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration is a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Macro) -> str:
        text: str = caller()
        environment = self.environment
        return environment.mark_generation(text) if isinstance(environment, TracingEnvironment) else text


class _Namespace(Namespace):
    """`namespace()` without underscore names, as transformers restricts it; it prints nothing of what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        for name in dict(*rest, **kwargs):
            _refuse_underscore(name)
        Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not store {name!r} on a namespace")


def _public(kind: type, *besides: str) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if not name.startswith("_")) - {*besides}


_OF_TEXTS = _public(str, "format", "format_map")
_OF_LOOPS = _public(LoopContext)
_OF_MAPPINGS = frozenset(dir(TracedDict))


class PlainEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox that transformers renders chat templates in."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
        self.finalize = _refuse_none
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]  # random text

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox, which asks much of every value; what needs no asking is given at once."""
        kind = type(obj)
        if kind is TracedDict or kind is dict:
            if attribute not in _OF_MAPPINGS and attribute in obj:
                return obj[attribute]
        elif attribute in (_OF_LOOPS if kind is LoopContext else _OF_TEXTS if kind is Traced or kind is str else ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Refuses at once; Jinja's own prints nothing, until it is asked for more."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe.")

    def _load_template(self, name: object, globals: object) -> Any:
        raise SecurityError(f"a template is one file, and may not load {name!r}")


class TracingCodeGenerator(CodeGenerator):
    """Generates code whose constants are traced literals, made once a template."""

    environment: TracingEnvironment

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._literals: dict[str, str] = {}

    def _name_of(self, text: str) -> str:
        return self._literals.setdefault(text, f"literal_{len(self._literals)}")

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        super().visit_Template(node, frame)
        # Functions look globals up when called, so the literals may stand behind them.
        for text, name in self._literals.items():
            self.writeline(f"{name} = environment.literal({text!r})")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._name_of("".join(group))

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        self._write_constant(node.as_const(frame.eval_ctx))

    def _write_constant(self, value: Any) -> None:
        """A constant, with the texts in it traced: Jinja folds `{'user': '<|user|>'}[message.role]` to a mapping."""
        if isinstance(value, str):
            self.write(self._name_of(value))
        elif isinstance(value, dict):
            self.write("{")
            for key, item in value.items():
                self._write_constant(key)
                self.write(": ")
                self._write_constant(item)
                self.write(", ")
            self.write("}")
        elif isinstance(value, (list, tuple)):
            self.write("[" if isinstance(value, list) else "(")
            for item in value:
                self._write_constant(item)
                self.write(", ")
            self.write("]" if isinstance(value, list) else ")")
        else:
            self.write(repr(value))

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(self._name_of(str(node.as_const(frame.eval_ctx))))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat_operands((")
        for operand in node.nodes:
            if isinstance(operand, nodes.Const):  # a number that the template wrote is its text as well
                self.write(self._name_of(str(operand.value)))
            else:
                self.visit(operand, frame)
            self.write(", ")
        self.write("))")


class _TracingFormatter(SandboxedFormatter):
    """`str.format` whose pieces keep their origins."""

    def vformat(self, format_string: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        automatic = 0
        for text, name, spec, conversion in self.parse(format_string):
            pieces.append(attribute(text, [format_string]))
            if name is None:
                continue
            if not name or name[0] in ".[":
                name, automatic = f"{automatic}{name}", automatic + 1
            value, _ = self.get_field(name, args, kwargs)
            value = self.convert_field(value, conversion)
            how = self.vformat(spec or "", args, kwargs)
            asis = isinstance(value, Traced) and not how
            pieces.append(value if asis else attribute(self.format_field(value, how), [value]))
        return concat(pieces)


class TracingEnvironment(PlainEnvironment):
    """The same sandbox over traced values."""

    code_generator_class = TracingCodeGenerator
    concat = staticmethod(concat)
    literal = staticmethod(literal)
    mark_generation = staticmethod(mark_generation)

    def __init__(self) -> None:
        super().__init__()
        for name, function in list(self.filters.items()):
            self.filters[name] = keeps_provenance(function)
        self.filters["join"] = keeps_provenance(_join)

    def concat_operands(self, operands: Iterable[Any]) -> Traced:
        """The `~` operator."""
        return concat([str(operand) for operand in operands])

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `str.format`, with provenance where the format is traced."""
        wrapper = super().wrap_str_format(value)
        text = getattr(value, "__self__", None)
        if wrapper is None or not isinstance(text, Traced):
            return wrapper
        formatter = _TracingFormatter(self)

        def traced_format(*args: Any, **kwargs: Any) -> str:
            return formatter.vformat(text, args, kwargs)

        def traced_format_map(mapping: Mapping[str, Any], /) -> str:
            return formatter.vformat(text, (), mapping)

        format = traced_format_map if value.__name__ == "format_map" else traced_format
        vars(format)["__self__"] = text  # where `call` looks for what the text was made from
        return format

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls from a template; what they return as text is laid to what went in."""
        result = super().call(__context, __obj, *args, **kwargs)
        # A macro's text is rendered, and knows its origins; any other call's is made from what went in.
        if isinstance(result, str) and not isinstance(__obj, Macro):
            owner = getattr(__obj, "__self__", None)
            return attribute(result, [owner, *args, *kwargs.values()])
        return result


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    # A separator that is not traced (a number, the empty default) stays of computed origin.
    return (d if isinstance(d, Traced) else Traced(str(d))).join([str(item) for item in value])


def _refuse_none(value: Any) -> Any:
    if value is None:
        raise jinja2.TemplateRuntimeError(PRINTED_NONE)
    return value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateRefusal(str(message))


def clock(now: datetime) -> Callable[[str], str]:
    """`strftime_now` at one instant: all texts of one rendering must agree."""

    def strftime_now(format: str) -> str:
        return now.strftime(format)

    return strftime_now


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@cache
def plain_environment() -> PlainEnvironment:
    """The environment of the self-check, and of the rules that need a parsed template."""
    return PlainEnvironment()


@cache
def tracing_environment() -> TracingEnvironment:
    """The environment of every rendering that is used."""
    return TracingEnvironment()
