"""The Jinja environments in which templates run: the one that transformers builds, plain and with provenance tracking.

Both are an `ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`,
`tojson`, `raise_exception` and `strftime_now`. The provenance environment differs only in how text is concatenated and
in how constants get into the generated code, so both give the same text.
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
    TrackedDict,
    TrackedText,
    concat,
    inherit_origin,
    literal,
    mark_generation,
    with_provenance,
)

PRINTED_NONE = "the template prints None"


class TemplateRefusal(jinja2.TemplateError):
    """The error of `raise_exception` in a template: the template says in its own words why it refuses the input."""


class _GenerationExtension(Extension):
    """The `{% generation %}` block of Hugging Face chat templates."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration is a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Macro) -> str:
        text: str = caller()
        environment = self.environment
        return environment.mark_generation(text) if isinstance(environment, ProvenanceEnvironment) else text


class _Namespace(Namespace):
    """`namespace()` without underscore names, as transformers restricts it; its repr shows none of its values."""

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


def _public_attributes(kind: type, *excluded: str) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if not name.startswith("_")) - {*excluded}


_SAFE_TEXT_ATTRIBUTES = _public_attributes(str, "format", "format_map")
_SAFE_LOOP_ATTRIBUTES = _public_attributes(LoopContext)
_MAPPING_ATTRIBUTES = frozenset(dir(TrackedDict))


class PlainEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox that transformers renders chat templates in."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationExtension, LoopControlExtension])
        self.finalize = _refuse_none
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]  # random text

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return the attribute as the sandbox does, but skip its slow checks for names known to be safe."""
        kind = type(obj)
        if kind is TrackedDict or kind is dict:
            if attribute not in _MAPPING_ATTRIBUTES and attribute in obj:
                return obj[attribute]
        elif kind is LoopContext:
            if attribute in _SAFE_LOOP_ATTRIBUTES:
                return getattr(obj, attribute)
        elif (kind is TrackedText or kind is str) and attribute in _SAFE_TEXT_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Raise at once; Jinja returns an undefined value, which raises only when it is used further."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe.")

    def _load_template(self, name: object, globals: object) -> Any:
        raise SecurityError(f"a template is one file, and may not load {name!r}")


class ProvenanceCodeGenerator(CodeGenerator):
    """Generates code whose constants are tracked literals, made once per template."""

    environment: ProvenanceEnvironment

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._literals: dict[str, str] = {}

    def _literal_name(self, text: str) -> str:
        return self._literals.setdefault(text, f"literal_{len(self._literals)}")

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        super().visit_Template(node, frame)
        # Functions look globals up when they are called, so the literals may be defined after them.
        for text, name in self._literals.items():
            self.writeline(f"{name} = environment.literal({text!r})")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._literal_name("".join(group))

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        self.write(self._constant(node.as_const(frame.eval_ctx)))

    def _constant(self, value: Any) -> str:
        """The code of a constant whose texts are literals: Jinja folds the mapping in `{'a': 'b'}[role]` to one."""
        if isinstance(value, str):
            return self._literal_name(value)
        if isinstance(value, dict):
            items = (f"{self._constant(key)}: {self._constant(item)}, " for key, item in value.items())
            return f"{{{''.join(items)}}}"
        if isinstance(value, (list, tuple)):
            items = (f"{self._constant(item)}, " for item in value)
            return f"[{''.join(items)}]" if isinstance(value, list) else f"({''.join(items)})"
        return repr(value)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(self._literal_name(str(node.as_const(frame.eval_ctx))))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat_operands((")
        for operand in node.nodes:
            if isinstance(operand, nodes.Const):  # a number that the template wrote is a literal too
                self.write(self._literal_name(str(operand.value)))
            else:
                self.visit(operand, frame)
            self.write(", ")
        self.write("))")


class _ProvenanceFormatter(SandboxedFormatter):
    """`str.format` whose parts keep their origins."""

    def vformat(self, format_string: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        parts: list[str] = []
        next_index = 0
        for text, name, spec, conversion in self.parse(format_string):
            parts.append(inherit_origin(text, [format_string]))
            if name is None:
                continue
            if not name or name[0] in ".[":
                name, next_index = f"{next_index}{name}", next_index + 1
            value, _ = self.get_field(name, args, kwargs)
            value = self.convert_field(value, conversion)
            formatting = self.vformat(spec or "", args, kwargs)
            unchanged = isinstance(value, TrackedText) and not formatting
            parts.append(value if unchanged else inherit_origin(self.format_field(value, formatting), [value]))
        return concat(parts)


class ProvenanceEnvironment(PlainEnvironment):
    """The same sandbox over tracked values."""

    code_generator_class = ProvenanceCodeGenerator
    concat = staticmethod(concat)
    literal = staticmethod(literal)
    mark_generation = staticmethod(mark_generation)
    inherit_origin = staticmethod(inherit_origin)

    def __init__(self) -> None:
        super().__init__()
        for name, function in list(self.filters.items()):
            self.filters[name] = with_provenance(function)
        self.filters["join"] = with_provenance(_join)

    def concat_operands(self, operands: Iterable[Any]) -> TrackedText:
        """The `~` operator."""
        return self.concat([str(operand) for operand in operands])

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's `str.format`, with provenance if the format string is tracked."""
        wrapper = super().wrap_str_format(value)
        text = getattr(value, "__self__", None)
        if wrapper is None or not isinstance(text, TrackedText):
            return wrapper
        formatter = _ProvenanceFormatter(self)

        def tracked_format(*args: Any, **kwargs: Any) -> str:
            return formatter.vformat(text, args, kwargs)

        def tracked_format_map(mapping: Mapping[str, Any], /) -> str:
            return formatter.vformat(text, (), mapping)

        format = tracked_format_map if value.__name__ == "format_map" else tracked_format
        vars(format)["__self__"] = text  # where `call` finds the format string
        return format

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function for a template; a text that it returns gets the origin of the values it was made from."""
        result = super().call(__context, __obj, *args, **kwargs)
        # A macro returns rendered text, which already has origins. Any other function makes its text from its
        # arguments.
        if isinstance(result, str) and not isinstance(__obj, Macro):
            owner = getattr(__obj, "__self__", None)
            return __self.inherit_origin(result, [owner, *args, *kwargs.values()])
        return result


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    separator = str(d)
    texts = [text for item in value for text in (separator, str(item))]
    joined: str = context.environment.concat(texts[1:])
    return joined


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


def fixed_clock(now: datetime) -> Callable[[str], str]:
    """`strftime_now` for one instant, so that all texts of one rendering show the same time."""

    def strftime_now(format: str) -> str:
        return now.strftime(format)

    return strftime_now


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@cache
def plain_environment() -> PlainEnvironment:
    """The environment for the self-check and for parsing templates."""
    return PlainEnvironment()


@cache
def provenance_environment() -> ProvenanceEnvironment:
    """The environment of trusted templates."""
    return ProvenanceEnvironment()
