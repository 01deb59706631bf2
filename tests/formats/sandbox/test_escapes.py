"""No template reaches Python's own objects or files, or changes the data it is given, in any environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError

from templatekit.formats.environment import PlainEnvironment, plain_environment, provenance_environment
from templatekit.formats.provenance import track
from templatekit.formats.sandbox.metering import NeedsWorker, metered_environment
from templatekit.formats.tracing.symbolic_text import SymbolicText
from templatekit.types import field_origin

ENVIRONMENTS: Mapping[str, PlainEnvironment] = {
    "plain": plain_environment(),
    "provenance": provenance_environment(),
    "metered": metered_environment(),
}
MESSAGE = {"role": "user", "content": "Hi {0.__class__}", "tool_calls": [{"arguments": {"a": 1}}]}


@pytest.fixture(params=ENVIRONMENTS)
def environment(request: pytest.FixtureRequest) -> PlainEnvironment:
    return ENVIRONMENTS[request.param]


def data(environment: PlainEnvironment) -> dict[str, Any]:
    if environment is plain_environment():
        return {"messages": [copy.deepcopy(MESSAGE)]}
    return {"messages": [{key: track(value, field_origin(key, 0)) for key, value in MESSAGE.items()}]}


def render(environment: PlainEnvironment, source: str, variables: dict[str, Any] | None = None) -> str:
    if environment is metered_environment():
        metered_environment().refill({})
    return environment.from_string(source).render(data(environment) if variables is None else variables)


REFUSED = {
    # Published escapes of Jinja's sandbox.
    "CVE-2016-10745 str.format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "CVE-2016-10745 str.format with the data's own text": "{{ messages[0].content.format(messages) }}",
    "CVE-2016-10745 str.format with an index": "{{ '{x[0].__class__}'.format(x=messages) }}",
    "CVE-2016-10745 str.format in a width": "{{ '{0:{1.__class__}}'.format(1, messages) }}",
    "CVE-2019-10906 str.format_map": "{{ '{x.__class__.__mro__}'.format_map({'x': messages}) }}",
    "CVE-2024-56326 format, indirectly": "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    "CVE-2024-56326 format through a macro": "{% macro m(f) %}{{ f(messages) }}{% endmacro %}"
    "{{ m('{0.__class__}'.format) }}",
    "CVE-2024-56326 format through a filter": "{{ ['{0.__class__}'.format] | map('string') | first ~ "
    "(['{0.__class__}'.format] | first)(messages) }}",
    "CVE-2025-27516 format by the filter attr": "{{ ('{0.__class__}' | attr('format'))(messages) }}",
    "CVE-2025-27516 format_map by the filter attr": "{{ ('{x.__class__}' | attr('format_map'))({'x': messages}) }}",
    "format by an index": "{{ '{0.__class__}'['format'](messages) }}",
    "format by map": "{{ (['{0.__class__}'] | map(attribute='format') | first)(messages) }}",
    "format of text that was joined": "{{ ('{0.__cla' ~ 'ss__}').format(messages) }}",
    "format of text that was cut": "{{ '{0.__class__}x'[:-1].format(messages) }}",
    # The usual chains.
    "a text's class": "{{ ''.__class__.__mro__ }}",
    "a text's class by an index": "{{ ''['__class__'] }}",
    "a text's class by attr": "{{ ('' | attr('__class__')).__mro__ }}",
    "a message's class": "{{ messages[0].__class__ }}",
    "a field's class": "{{ messages[0].content.__class__.__subclasses__() }}",
    "a field's class by a joined name": "{{ messages[0].content['__cl' ~ 'ass__'] }}",
    "a tool call's class": "{{ messages[0].tool_calls[0].arguments.__class__ }}",
    "a list's class by map": "{{ messages | map(attribute='__class__') | list | string }}",
    "a list's class by map and the filter attr": "{{ messages | map('attr', '__class__') | join }}",
    "a class by sort": "{{ (messages * 2) | sort(attribute='__class__.__name__') }}",
    "a class by groupby": "{{ messages | groupby('__class__') }}",
    "a class by unique": "{{ messages | unique(attribute='__class__') | list }}",
    "a class by sum": "{{ messages | sum(attribute='__class__') }}",
    "a class by join": "{{ messages | join(attribute='__class__') }}",
    "a class by selectattr": "{{ messages | selectattr('__class__.__mro__') | list }}",
    "a method's globals": "{{ messages[0].content.strip.__globals__.x }}",
    "a method's owner": "{{ messages[0].content.strip.__self__.__class__ }}",
    "a method's function": "{{ messages[0].content.strip.__func__.__globals__ }}",
    "a cycler's globals": "{{ cycler.__init__.__globals__ }}",
    "a joiner's globals": "{{ joiner().__init__.__globals__ }}",
    "a namespace's globals": "{{ namespace.__init__.__globals__ }}",
    "a namespace's attributes": "{{ namespace(a=1)._Namespace__attrs.x }}",
    "underscores on a namespace": "{{ namespace(__class__=1) }}",
    "underscores set on a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "a macro's function": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "a macro's environment": "{% macro m() %}{% endmacro %}{{ m._environment.globals }}",
    "a caller's function": "{% macro m() %}{{ caller.__init__.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "a loop's class": "{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
    "a loop's iterator": "{% for m in messages %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "a loop's function": "{% for m in messages recursive %}{{ loop._recurse.__globals__ }}{% endfor %}",
    "varargs": "{% macro m() %}{{ varargs.__class__ }}{% endmacro %}{{ m(1) }}",
    "kwargs": "{% macro m() %}{{ kwargs.__class__ }}{% endmacro %}{{ m(a=1) }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "a block": "{% block b %}{{ self.b.__init__.__globals__ }}{% endblock %}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "a function's code": "{{ strftime_now.__code__ }}",
    "range's class": "{{ range(1).__class__ }}",
    "dict's bases": "{{ dict.mro() }}",
    "an undefined name's class": "{{ nothing.__class__ }}",
    "a generator's frame": "{{ (messages | map('string')).gi_frame.f_globals }}",
    "a number's class": "{{ (1).__class__.__base__ }}",
    # Attributes that tracked texts and values add.
    "a text's runs": "{{ messages[0].content._runs[0][1].kind }}",
    "a text's cut": "{{ messages[0].content._cut(0, 1) }}",
    "a mapping's origin": "{{ messages[0].tool_calls[0]._origin.kind }}",
    "a mapping's origin by an index": "{{ messages[0].tool_calls[0]['_origin'].kind }}",
    "a list's origin by attr": "{{ (messages[0].tool_calls | attr('_origin')).kind }}",
    "a tracked format's owner": "{{ '{}'.format.__self__.__class__ }}",
    "a tracked format's closure": "{{ '{}'.format.__closure__[0].cell_contents }}",
    "a tracked format's globals": "{{ '{}'.format.__globals__ }}",
    "what a format wraps": "{{ '{0.__class__}'.format.__wrapped__(messages) }}",
    # Other files.
    "include": "{% include '/etc/passwd' %}",
    "include, ignoring what is missing": "{% include '/etc/passwd' ignore missing %}",
    "include of a list": "{% include ['/etc/passwd', 'b'] %}",
    "import": "{% import '/etc/passwd' as x %}",
    "from import": "{% from '/etc/passwd' import x %}",
    "extends": "{% extends '/etc/passwd' %}",
    # Changes of the data.
    "append": "{{ messages.append(1) }}",
    "append by attr": "{{ (messages | attr('append'))(1) }}",
    "append by an index": "{{ messages['append'](1) }}",
    "append by map": "{{ ([messages] | map(attribute='append') | first)(1) }}",
    "pop": "{{ messages.pop() }}",
    "extend": "{{ messages[0].tool_calls.extend([1]) }}",
    "sort in place": "{{ messages[0].tool_calls.sort() }}",
    "update": "{{ messages[0].update({'role': 'x'}) }}",
    "setdefault": "{{ messages[0].tool_calls[0].setdefault('x', 1) }}",
    "popitem": "{{ messages[0].tool_calls[0].arguments.popitem() }}",
    "clear": "{{ messages[0].clear() }}",
    "clear by format": "{{ '{0.clear}'.format(messages[0]) }}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, environment: PlainEnvironment) -> None:
    with pytest.raises((SecurityError, jinja2.UndefinedError, NeedsWorker)) as caught:
        render(environment, REFUSED[name])
    # The metered environment leaves operations that are not metered to the worker, where provenance refuses them.
    assert not isinstance(caught.value, NeedsWorker) or environment is metered_environment()


def test_the_escapes_work_without_a_sandbox() -> None:
    """The negative control: without a sandbox these chains reach their goal."""
    unsafe = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    for name in ("a text's class", "a message's class", "CVE-2016-10745 str.format", "a cycler's globals", "append"):
        assert unsafe.from_string(REFUSED[name]).render(messages=[copy.deepcopy(MESSAGE)])


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name].startswith("{{ messages")])
def test_the_data_stay_as_they_are(name: str, environment: PlainEnvironment) -> None:
    variables = data(environment)
    with pytest.raises((SecurityError, jinja2.UndefinedError, NeedsWorker)):
        render(environment, REFUSED[name], variables)
    assert variables == {"messages": [MESSAGE]}


GENERATED = ("environment", "literal", "literal_0", "concat", "concat_operands", "context", "resolve", "undefined",
             "missing", "name", "blocks", "debug_info", "root", "t_1", "l_0_messages", "Markup", "Macro", "LoopContext",
             "TemplateReference", "__builtins__", "__name__", "identity", "str_join", "charge", "spend")  # fmt: skip


@pytest.mark.parametrize("name", GENERATED)
def test_names_of_the_generated_code_are_no_names_of_a_template(name: str, environment: PlainEnvironment) -> None:
    source = "{% set kept = 'x' ~ messages[0].role %}{{ NAME is defined }}{{ NAME }}{{ 'y' | trim }}"
    assert render(environment, source.replace("NAME", name)) == "Falsey"


@pytest.mark.parametrize("source", ["{{ {'a b': 1} | xmlattr }}", "{{ {'a/onclick=': 1} | xmlattr }}"])
def test_cve_2024_22195_and_34064_xmlattr(source: str, environment: PlainEnvironment) -> None:
    with pytest.raises((ValueError, NeedsWorker)):
        render(environment, source)


def test_cve_2024_56201_the_name_of_a_template_is_not_compiled(environment: PlainEnvironment) -> None:
    code = environment.compile("{{ 1 }}", name="{__import__('os')}'\n", filename="{__import__('os')}")
    assert "os" not in code.co_names


def test_markup_does_not_unlock_format(environment: PlainEnvironment) -> None:
    with pytest.raises((SecurityError, jinja2.UndefinedError, NeedsWorker)):
        render(environment, "{{ ('{0.__class__}' | safe).format(messages) }}")


OBJECTS = ("messages", "messages[0]", "messages[0].content", "messages[0].tool_calls", "''", "range", "namespace()",
           "cycler", "loop", "m", "self", "raise_exception", "'{}'.format", "messages | map('string')", "1", "none",
           "messages[0].items()", "m.name", "strftime_now")  # fmt: skip
STEPS = ("NAME.ATTRIBUTE", "NAME['ATTRIBUTE']", "(NAME | attr('ATTRIBUTE'))", "([NAME] | map(attribute='ATTRIBUTE') | "
         "first)", "'{0.ATTRIBUTE}'.format(NAME)", "'{x[ATTRIBUTE]}'.format_map({'x': NAME})")  # fmt: skip
PRIVATE = ("__class__", "__init__", "__globals__", "__self__", "__func__", "__dict__", "__doc__", "_runs", "_origin",
           "_func", "_environment", "_cut", "_ends", "__closure__", "__module__", "__getitem__")  # fmt: skip


@given(st.sampled_from(OBJECTS), st.sampled_from(STEPS), st.sampled_from(PRIVATE), st.sampled_from([*ENVIRONMENTS]))
def test_no_private_attribute_of_anything(name: str, step: str, attribute: str, where: str) -> None:
    expression = step.replace("NAME", f"({name})").replace("ATTRIBUTE", attribute)
    source = "{% macro m() %}{% endmacro %}{% for x in messages recursive %}{{ EXPRESSION }}{% endfor %}"
    try:
        text = render(ENVIRONMENTS[where], source.replace("EXPRESSION", expression))
    except (SecurityError, jinja2.UndefinedError, NeedsWorker):
        return
    assert text == "", "what is not there prints nothing"


def test_the_methods_of_symbolic_text_show_nothing_of_themselves() -> None:
    """A `partialmethod` would show a template its `func`, which takes the name of any other method."""
    for name in dir(SymbolicText):
        assert name.startswith("_") or isinstance(getattr(SymbolicText, name), FunctionType), name
