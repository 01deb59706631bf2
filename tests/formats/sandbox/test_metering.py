"""An untrusted template ends with text, or in limited time with an error that names the exceeded limit."""

from __future__ import annotations

import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testkit.untrusted import CHAT, EXAMPLE, TEXT, TOKENS, untrusted_template

from templatekit import Example, Message, RecordError, Template, TemplateError, TemplateFile
from templatekit.formats import metadata
from templatekit.formats.sandbox.metering import MeteredEnvironment, metered_environment, written_size
from templatekit.formats.sandbox.untrusted import UntrustedTemplate, load_template
from templatekit.formats.sandbox.worker import Request, Worker


class WorkerCalled(BaseException):
    """A template was left to the worker."""


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: Worker, request: Request) -> Any:
        raise WorkerCalled(request.method)

    monkeypatch.setattr(Worker, "call", call)


DEEP = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = BUILT %}{% endfor %}"
BOMBS = {
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for k in range(9999) %}{% for i in range(99999) if false %}{% endfor %}{% endfor %}",
    "a loop over an iterator": "{% for k in range(9999) %}"
    "{% for i in range(9999) | map('abs') %}{% endfor %}{% endfor %}",
    "a loop over characters": "{% for k in range(99999) %}{% for c in messages | string %}{% endfor %}{% endfor %}",
    "printing without end": "{% for i in range(99999) %}{{ messages | string }}{% endfor %}",
    "literals without end": "{% for i in range(99999) %}" + "A" * 999 + "{% endfor %}",
    "a text times a number": "{{ 'A' * 10**10 }}",
    "a field times a number": "{{ messages[0].content * (10 ** 9) }}",
    "a list times a number": "{{ (messages * 9999999) | length }}",
    "power": "{{ (1 + messages | length) ** (9 ** 9) }}",
    "power in a branch never taken": "{% if false %}{{ 9 ** (9 ** 9) }}{% endif %}",
    "a filter in a branch never taken": "{% if false %}{{ 'x' | center(10 ** 11) }}{% endif %}",
    "rounding": "{{ messages | length | round(10 ** 8, 'ceil') }}",
    "plus doubles": "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "tilde doubles": "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "doubling without a loop": "{% set t = 'ab' %}" + "{% set t = t + t %}" * 60,
    "plus doubles in an argument": "{% macro f(t) %}{{ f(t + t) }}{% endmacro %}{{ f('abcd' * 1) }}",
    "set blocks double": "{% set t = 'ab' %}" + "{% set t %}{{ t }}{{ t }}{% endset %}" * 60,
    "lists double": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "a list in a list": DEEP.replace("BUILT", "[ns.x, ns.x]") + "{{ ns.x }}",
    "a mapping in a mapping": DEEP.replace("BUILT", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "a tuple in a tuple": DEEP.replace("BUILT", "(ns.x, ns.x)") + "{{ {ns.x: 1} }}",
    "the arguments of a macro": "{% set ns = namespace(x=1) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ f(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    "macros that branch": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "callers that branch": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 15 + "x" * 99 + "{% endcall %}" * 15,
    "a block that calls itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "join": "{{ range(99999) | join(messages | string) }}",
    "join of a text": "{{ (messages | string * 99).join(range(99999) | map('string')) }}",
    "replace": "{% set ns = namespace(t='aaaaaaaa') %}{% for i in range(9) %}"
    "{% set ns.t = ns.t | replace('a', ns.t) %}{% endfor %}",
    "replace as a method": "{% set ns = namespace(t='aaaaaaaa') %}{% for i in range(9) %}"
    "{% set ns.t = ns.t.replace('a', ns.t) %}{% endfor %}",
    "tojson's indent": "{{ messages | tojson(indent=10**10) }}",
    "center": "{{ messages[0].content | center(10 ** 10) }}",
    "center as a method": "{{ messages[0].content.center(10 ** 10) }}",
    "ljust, rjust, zfill": "{{ messages[0].content.ljust(10 ** 10) }}",
    "expandtabs": "{{ (messages[0].content ~ '\t').expandtabs(10 ** 9) }}",
    "translate": "{{ messages[0].content.translate({72: 'x' * 10 ** 9}) }}",
    "to_bytes": "{{ (messages | length).to_bytes(10 ** 10, 'big') }}",
    "indent": "{{ messages[0].content | indent(10 ** 10, first=true) }}",
    "wordwrap": "{{ messages[0].content | wordwrap(1, wrapstring='x' * 10 ** 10) }}",
    "percent": "{{ '%10000000000d' % (messages | length) }}",
    "the filter format": "{{ '%10000000000d' | format(messages | length) }}",
    "str.format": "{{ '{:10000000000}'.format(messages | length) }}",
    "batch": "{{ messages | batch(10 ** 10, 'x') | list }}",
    "slice": "{{ messages | slice(10 ** 10) | list }}",
    "sum": "{{ ([[1] * 9999] * 9999) | sum(start=[]) }}",
    "a cycler of cyclers": "{% set ns = namespace(x=1) %}{% for i in range(60) %}"
    "{% set ns.x = cycler(ns.x, ns.x).items %}{% endfor %}{{ ns.x }}",
    "fromkeys": "{{ {}.fromkeys(range(99999), messages) }}",
    "searching again and again": "{% set t = messages | string %}"
    "{% for i in range(99999) %}{{ 'x' ~ t in t }}{% endfor %}",
    "selecting nothing again and again": "{% for i in range(99999) %}"
    "{{ range(99999) | select('none') | list | length }}{% endfor %}",
    "comparing again and again": "{% set a = range(99999) | list %}{% set b = range(99999) | list %}"
    "{% for i in range(99999) %}{{ a == b }}{% endfor %}",
    "slicing again and again": "{% set a = range(99999) | list %}"
    "{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "numbers that grow": "{% set ns = namespace(n=7) %}"
    "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "a long number": "{{ 0x" + "f" * 9999 + " }}",
}  # fmt: skip


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_left_to_the_worker(name: str) -> None:
    """The meter stops them before they have cost much."""
    began = time.process_time()
    with pytest.raises(WorkerCalled):
        untrusted_template(BOMBS[name] + CHAT).render(EXAMPLE, TOKENS)
    assert time.process_time() - began < 5


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("name", ["nested ranges", "plus doubles", "macros that branch"])
def test_the_meter_is_what_stops_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: if nothing is charged, the loop continues."""
    spent = 0

    def spend(self: MeteredEnvironment, amount: int) -> None:
        nonlocal spent
        spent += amount
        if spent > 2_000_000:
            raise InterruptedError

    monkeypatch.setattr(MeteredEnvironment, "spend", spend)
    with pytest.raises(RecordError, match="InterruptedError"):
        untrusted_template(BOMBS[name] + CHAT).render(EXAMPLE, TOKENS)


VERDICTS = {
    "endless, in Python": (BOMBS["nested ranges"], ", line 2 breaks the time bound: found no end after 1 s"),
    "endless, in C": (BOMBS["power"], " breaks the time bound: found no end after 1 s of processor time"),
    "at compile time": (BOMBS["power in a branch never taken"], ", line 2 breaks the time bound"),
    "more than memory": (BOMBS["a text times a number"], ", line 2 breaks the memory bound: found more than 256 MB"),
    "a list that grows": (BOMBS["lists double"], ", line 2 breaks the memory bound"),
    "too much text": (
        "{% for i in range(9999) %}" + "A" * 500 + "{% endfor %}",
        " breaks the output bound: found 4,999,5",
    ),
}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("name", VERDICTS)
def test_the_worker_names_the_bound_and_the_line(name: str) -> None:
    source, words = VERDICTS[name]
    with pytest.raises(TemplateError) as caught:
        untrusted_template("\n" + source + CHAT, "bomb").render(EXAMPLE, TOKENS, row=17)
    assert str(caught.value).startswith("template 'bomb'")
    assert words in str(caught.value)
    assert str(caught.value).endswith("; row 17") != (name == "at compile time")


@pytest.mark.usefixtures("worker")
def test_bombs_that_only_some_data_set_off(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% if 'boom' in messages[0].content %}" + BOMBS["plus doubles"] + "{{ 'A' * 10 ** 10 }}{% endif %}" + CHAT
    template = untrusted_template(source.replace("{{ 'A' * 10 ** 10 }}", "{{ 'A' * messages | length * 10 ** 10 }}"))
    for row in range(20):
        assert template.render(EXAMPLE, TOKENS, row=row).text == TEXT
    boom = Example(messages=(Message(role="user", content="boom"), EXAMPLE.messages[1]))
    with pytest.raises(TemplateError, match=r"breaks the memory bound: .*; row 20"):
        template.render(boom, TOKENS, row=20)
    assert template.render(EXAMPLE, TOKENS, row=21).text == TEXT


FOLDER = next(iter(getattr(find_spec("trl"), "submodule_search_locations", None) or [""]))
PUBLISHED = sorted((Path(FOLDER) / "chat_templates").glob("*.jinja")) if FOLDER else []
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": ["Zürich", 1]}}}
PARAMETERS = {"type": "object", "properties": {"at": {"type": "array", "items": {"type": "string"}}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS}}
CONVERSATIONS = {
    "one turn": EXAMPLE,
    "more turns": Example(messages=EXAMPLE.messages * 3),
    "a system message": Example(messages=(Message(role="system", content=" Be brief.\n"), *EXAMPLE.messages * 2)),
    "tools": Example(
        messages=(
            EXAMPLE.messages[0],
            Message(role="assistant", content="", tool_calls=(CALL,)),
            Message(role="tool", content='{"seen": true}', name="look"),
            EXAMPLE.messages[1],
        ),
        tools=(TOOL,),
    ),
}


def outcome(template: Template, example: Example) -> object:
    found: list[object] = []
    for method in (template.render, template.samples, template.prompt):
        try:
            found.append(method(example, TOKENS))
        except (RecordError, TemplateError) as error:
            found.append((type(error), str(error)))
    return found


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_templates_are_metered_and_render_as_trusted_ones(path: Path) -> None:
    file = TemplateFile(name=path.stem, source=path.read_text(encoding="utf-8"))
    template, same = UntrustedTemplate(file, strict=False), Template(file, strict=False)
    for example in CONVERSATIONS.values():
        assert outcome(template, example) == outcome(same, example)
    assert template._in_process


LEAVES = [
    "messages",
    "messages[0]",
    "messages[0].content",
    "v",
    "v",
    "ns.x",
    "ns.x",
    "i",
    "'ab'",
    "'%9999999d'",
    "9",
    "99999",
]
LEAVES += ["none", "range(99999)", "range(9)", "varargs", "''", "'{:>999999999}'", "'\\t'", "2.5", "undefined"]
FILTERS = [
    "trim",
    "tojson",
    "tojson(indent=9999999)",
    "list",
    "length",
    "join('xyz')",
    "join(v)",
    "replace('a', v)",
    "string",
]
FILTERS += [
    "upper",
    "first",
    "last",
    "map('string')",
    "select",
    "selectattr('role')",
    "sort",
    "unique",
    "reverse",
    "sum",
]
FILTERS += [
    "center(99999999)",
    "indent(99999)",
    "wordwrap(1)",
    "batch(99999999, v)",
    "slice(999999)",
    "e",
    "urlencode",
    "items",
]
FILTERS += [
    "format(v)",
    "round(99999)",
    "default(v)",
    "dictsort",
    "pprint",
    "groupby('role')",
    "striptags",
    "truncate(9)",
]
METHODS = [
    "split()",
    "split('a')",
    "join(v)",
    "replace('', v)",
    "strip()",
    "zfill(999999999)",
    "ljust(99999999)",
    "items()",
]
METHODS += [
    "encode()",
    "count('a')",
    "startswith(v)",
    "splitlines()",
    "expandtabs(99999999)",
    "format(v)",
    "title()",
    "get(v)",
]
EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.builds(
            "({} {} {})".format, inner, st.sampled_from(["+", "~", "*", "%", "-", "**", "//", "in", "=="]), inner
        ),
        st.builds("({} | {})".format, inner, st.sampled_from(FILTERS)),
        st.builds("({}).{}".format, inner, st.sampled_from(METHODS)),
        st.builds("({})[{}]".format, inner, st.sampled_from(["0", "-1", "1:", "::-1", ":9", "v"])),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{'k': {}, 'l': {}}}".format, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("f({}, {})".format, inner, inner),
    ),
    max_leaves=5,
)
STATEMENTS = st.recursive(
    st.one_of(
        st.builds("{{{{ {} }}}}".format, EXPRESSIONS),
        st.builds("{{% set v = {} %}}".format, EXPRESSIONS),
        st.builds("{{% set ns.x = {} %}}".format, EXPRESSIONS),
        st.just("some text"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.builds("{{% for i in {} %}}{}{{% endfor %}}".format, EXPRESSIONS, inner),
        st.builds("{{% for i in range(99999) if {} %}}{}{{% endfor %}}".format, EXPRESSIONS, inner),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, EXPRESSIONS, inner),
        st.builds("{{% set v %}}{}{{% endset %}}".format, inner),
        st.builds("{{% macro f(v, i) %}}{}{{% endmacro %}}".format, inner),
        st.builds("{{% call f(v, 1) %}}{}{{% endcall %}}".format, inner),
        st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, st.sampled_from(FILTERS), inner),
    ),
    max_leaves=8,
)
PRELUDE = "{% set v = 'abc' %}{% set i = 1 %}{% set ns = namespace(x=v) %}{% macro f(v, i) %}{{ v }}{% endmacro %}"
SECONDS = 8
"""Seconds of processor time: twice the most that a rendering here takes on a slow machine, plus its worker's."""


@given(STATEMENTS)
@settings(suppress_health_check=[*HealthCheck])
def test_any_template_ends_here_or_is_left_to_the_worker(no_worker: None, statements: str) -> None:
    """A text that is rendered here is the same as without limits."""
    file = TemplateFile(name="any", source=PRELUDE + statements + CHAT)
    began = time.process_time()
    try:
        template = UntrustedTemplate(file, strict=False)
        found = outcome(template, EXAMPLE)
    except WorkerCalled:
        return
    except TemplateError as error:
        with pytest.raises(TemplateError, match=re.escape(str(error))):
            Template(file, strict=False)
        return
    finally:
        assert time.process_time() - began < SECONDS
    assert found == outcome(Template(file, strict=False), EXAMPLE)


@given(STATEMENTS)
@settings(suppress_health_check=[*HealthCheck], max_examples=max(5, settings().max_examples // 4))
def test_any_template_ends(worker: Worker, statements: str) -> None:
    began = time.monotonic()
    try:
        text = untrusted_template(PRELUDE + statements + CHAT).render(EXAMPLE, TOKENS).text
        assert text.endswith("Hi you!</s>")
    except (RecordError, TemplateError) as error:
        assert str(error)
    assert time.monotonic() - began < 20 * SECONDS, "however loaded the machine is"


@pytest.mark.usefixtures("no_worker")
def test_ordinary_operations_are_metered() -> None:
    turns = tuple(EXAMPLE.messages * 200)
    template = untrusted_template(CHAT)
    assert template.prompt(Example(messages=turns), TOKENS).text.startswith(TEXT * 199)
    assert template._in_process


def test_the_allowance_and_the_steps_grow_with_the_data() -> None:
    """Ten times the data takes about ten times the steps."""
    used = []
    for times in (10, 100, 1_000):
        environment = metered_environment()
        untrusted_template(CHAT).prompt(Example(messages=EXAMPLE.messages * times), TOKENS)
        used.append(1_000_000 - environment._meter.remaining)
    assert used[0] * 8 < used[1] < used[0] * 12
    assert used[1] * 8 < used[2] < used[1] * 12


SCALARS = st.one_of(st.text(max_size=9), st.integers(0, 9), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.tuples(inner, inner),
    ),
)


@given(VALUES)
def test_the_written_size_of_a_value(value: Any) -> None:
    twice = [value, value]
    assert written_size(twice) == 1 + 2 * written_size(value)
    assert written_size(value) <= 1 + len(str(value))
    assert len(str(value).encode("ascii", "ignore")) <= 4 + 30 * written_size(value)
    assert written_size([twice] * 1_000, limit=50) <= 2_100


def test_a_long_source_is_refused() -> None:
    with pytest.raises(TemplateError, match="found 200,001 characters; expected at most 200,000"):
        untrusted_template("x" * 200_001)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}", "cannot be compiled: RecursionError"),
        ("{{ 1" + " + 1" * 3_000 + " }}", "cannot be compiled: RecursionError"),
        (
            "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
            "cannot be compiled: SyntaxError: too many statically nested",
        ),
        ("{% if x %}" * 3_000, "cannot be compiled: RecursionError"),
        ("{{ " + "9" * 9_999 + " }}", "cannot be compiled: ValueError: Exceeds the limit"),
    ],
)
def test_sources_that_are_hard_to_compile(source: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        untrusted_template(source + CHAT)


@pytest.mark.parametrize("body", ["[" * 9_000, "a: " + "x" * 20_000, "- " * 4_000, "{a: " * 2_000])
def test_a_leading_comment_that_is_long_or_deep(body: str) -> None:
    began = time.process_time()
    with pytest.raises(TemplateError, match=r"the leading comment is not YAML|found a leading comment of 20,0"):
        metadata.read_metadata("{#- templatekit\n" + body + "\n#}" + CHAT, "tried")
    assert time.process_time() - began < 5


def test_templates_by_path_and_of_tokenizers_are_untrusted(tmp_path: Path, builtin: Any) -> None:
    from templatekit.formats.lookup import find_template

    path = tmp_path / "mine.jinja"
    path.write_text(CHAT, encoding="utf-8")
    assert isinstance(load_template(str(path)), UntrustedTemplate)
    assert isinstance(find_template(str(path), builtin), UntrustedTemplate)
    assert isinstance(find_template("tokenizer", builtin, chat_template=CHAT), UntrustedTemplate)
    for name in builtin.templates:
        assert not isinstance(find_template(name, builtin), UntrustedTemplate)
