"""Both environments give the text of transformers, and one of them knows the origin of each character."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.theirs import as_transformers

from templatekit import Example, Message, RecordError, Template, TemplateError, TemplateFile
from templatekit.testing import texts
from templatekit.types import SpecialTokens

TOKENS = SpecialTokens(bos="<BOS>", eos="<EOS>", special=frozenset({"<BOS>", "<EOS>", "<|im_end|>"}))
EXAMPLE = Example(
    messages=(Message(role="user", content=" Héllo, <there>!\n"), Message(role="assistant", content="Hi & you"))
)
ANSWER = "{{ messages[1].content }}"


def template(source: str) -> Template:
    return Template(TemplateFile(name="tried", source=source), strict=False)


def origin_runs(source: str, example: Example = EXAMPLE) -> list[tuple[str, str]]:
    """The (text, origin) runs of a rendering."""
    from templatekit.formats.provenance import spans_of

    text = template("{% if messages %}{% endif %}" + source)._render_messages(
        example.messages, example, TOKENS, prompt=False
    )
    return [(str.__getitem__(text, slice(span.start, span.end)), str(span.origin)) for span in spans_of(text)]


USER, ASSISTANT = "messages[0].content", "messages[1].content"
CASES: Mapping[str, tuple[str, list[tuple[str, str]]]] = {
    "tilde": (
        "{{ '<' ~ messages[0].role ~ '|' ~ 1 ~ '>' }}",
        [("<", "template"), ("user", "messages[0].role"), ("|1>", "template")],
    ),
    "plus": (
        "{{ bos_token + messages[1].content + eos_token }}",
        [("<BOS>", "template"), ("Hi & you", ASSISTANT), ("<EOS>", "template")],
    ),
    "trim binds tighter than plus": (
        "{{ '<' + messages[0].content | trim + '>' }}",
        [("<", "template"), ("Héllo, <there>!", USER), (">", "template")],
    ),
    "macro with a default": (
        "{% macro turn(m, end='<|im_end|>') %}{{ m.content | trim }}{{ end }}{% endmacro %}{{ turn(messages[1]) }}",
        [("Hi & you", ASSISTANT), ("<|im_end|>", "template")],
    ),
    "set block": (
        "{% set x %}<a>{{ messages[1].content }}{% endset %}{{ x | upper }}",
        [("<A>", "template"), ("HI & YOU", ASSISTANT)],
    ),
    "call block": (
        "{% macro box(m) %}[{{ caller() }}|{{ m.role }}]{% endmacro %}{% call box(messages[1]) %}<b>{% endcall %}",
        [("[<b>|", "template"), ("assistant", "messages[1].role"), ("]", "template")],
    ),
    "filter block": (
        "{% filter trim %} <a>{{ messages[0].content }}{% endfilter %}",
        [("<a>", "template"), (" Héllo, <there>!", USER)],
    ),
    "namespace": (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + '<|' + m.content %}{% endfor %}"
        "{{ ns.t }}",
        [("<|", "template"), (" Héllo, <there>!\n", USER), ("<|", "template"), ("Hi & you", ASSISTANT)],
    ),
    "join": (
        "{{ messages | map(attribute='content') | join('<sep>') }}",
        [(" Héllo, <there>!\n", USER), ("<sep>", "template"), ("Hi & you", ASSISTANT)],
    ),
    "join by attribute": (
        "{{ messages | join('<sep>', attribute='content') }}",
        [(" Héllo, <there>!\n", USER), ("<sep>", "template"), ("Hi & you", ASSISTANT)],
    ),
    "join of constants": (
        "{{ ['<a>', '<b>'] | join(messages[0].role) }}",
        [("<a>", "template"), ("user", "messages[0].role"), ("<b>", "template")],
    ),
    "join with a number": (
        "{{ ['<a>', messages[0].role] | join(7) }}",
        [("<a>", "template"), ("7user", "messages[0].role")],
    ),
    "a constant mapping by role": (
        "{% for m in messages %}{{ {'user': '<|user|>', 'assistant': '<|model|>'}[m.role] }}{% endfor %}",
        [("<|user|><|model|>", "template")],
    ),
    "a set mapping by role": (
        "{% set names = {'user': '<|user|>', 'assistant': '<|model|>'} %}{{ names[messages[1].role] }}",
        [("<|model|>", "template")],
    ),
    "constant lists and tuples": ("{% for x in ['<a>', ('<b>', 1)] %}{{ x[0] }}{% endfor %}", [("<<b>", "template")]),
    "percent format": (
        "{{ '<a>%s<b>' % messages[1].content }}",
        [("<a>", "template"), ("Hi & you", ASSISTANT), ("<b>", "template")],
    ),
    "format filter": (
        "{{ '<a>%s<b>' | format(messages[1].content) }}",
        [("<a>", "template"), ("Hi & you", ASSISTANT), ("<b>", "template")],
    ),
    "str.format": (
        "{{ '<a>{}{{}}{m.role}<b>'.format(messages[1].content, m=messages[0]) }}",
        [
            ("<a>", "template"),
            ("Hi & you", ASSISTANT),
            ("{}", "template"),
            ("user", "messages[0].role"),
            ("<b>", "template"),
        ],
    ),
    "str.format with widths": (
        "{{ '<{:>10}>'.format(messages[0].role) }}",
        [("<", "template"), ("      user", "messages[0].role"), (">", "template")],
    ),
    "str.format_map": (
        "{{ '<{role}>'.format_map(messages[0]) }}",
        [("<", "template"), ("user", "messages[0].role"), (">", "template")],
    ),
    "data as a format never makes template text": (
        "{{ messages[1].content.format('<|im_end|>') }}",
        [("Hi & you", ASSISTANT)],
    ),
    "two fields as a format": (
        "{{ (messages[0].role ~ messages[1].content).format('<|im_end|>') }}",
        [("userHi & you", "computed")],
    ),
    "tojson of a text": ("{{ messages[1].content | tojson }}", [('"Hi & you"', ASSISTANT)]),
    "tojson of a message": (
        "{{ messages[1] | tojson }}",
        [('{"role": "assistant", "content": "Hi & you"}', "computed")],
    ),
    "tojson of one field": (
        "{{ {'name': messages[1].content} | tojson(indent=1) }}",
        [('{\n "name": "Hi & you"\n}', ASSISTANT)],
    ),
    "tojson of constants": ("{{ ['<|im_end|>'] | tojson }}", [('["<|im_end|>"]', "template")]),
    "split": ("{{ messages[1].content.split(' & ')[-1] }}", [("you", ASSISTANT)]),
    "slices": (
        "{{ messages[1].content[:2] ~ '<>' ~ messages[1].content[-3:] }}",
        [("Hi", ASSISTANT), ("<>", "template"), ("you", ASSISTANT)],
    ),
    "replace": (
        "{{ messages[1].content | replace('&', '<and>') }}",
        [("Hi ", ASSISTANT), ("<and>", "template"), (" you", ASSISTANT)],
    ),
    "characters": ("{% for c in messages[1].content %}{{ c }}{% endfor %}", [("Hi & you", ASSISTANT)]),
    "first, last, reverse": (
        "{{ messages[1].content | first }}{{ messages[1].content | last }}{{ 'ab' | reverse }}",
        [("Hu", ASSISTANT), ("ba", "template")],
    ),
    "a changed length is the whole field's": ("{{ ('ß' ~ messages[1].content) | upper }}", [("SSHI & YOU", ASSISTANT)]),
    "computed from several fields": (
        "{{ (messages[0].role ~ messages[1].role) | center(20) }}",
        [("   userassistant    ", "computed")],
    ),
    "indent": ("{{ messages[1].content | indent(2, first=true) }}", [("  Hi & you", ASSISTANT)]),
    "default": (
        "{{ messages[0].nope | default('<none>') }}{{ messages[0].get('nope', '<none>') }}",
        [("<none><none>", "template")],
    ),
    "a number is computed": ("{{ messages | length }}", [("2", "computed")]),
    "a view of a message": (
        "{{ '%s' | format(messages[0].values()) }}",
        [("dict_values(['user', ' Héllo, <there>!\\n'])", "computed")],
    ),
    "bytes": ("{{ '%s' % messages[1].content.encode() }}", [("b'Hi & you'", "computed")]),
    "a number in a control token is the template's when constant": ("{{ '<|a' ~ 1 ~ '|>' }}", [("<|a1|>", "template")]),
    "a counted number is not": ("{% for m in messages %}{{ loop.index }}{% endfor %}", [("12", "computed")]),
    "loop controls": (
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}<{{ loop.cycle('a', 'b') }}>{% endfor %}",
        [("<a>", "template")],
    ),
    "do what raise_exception skips": ("{% if false %}{{ raise_exception('no') }}{% endif %}<x>", [("<x>", "template")]),
    "generation block": (
        "{% for m in messages %}{% generation %}<{{ m.content | trim }}>{% endgeneration %}{% endfor %}",
        [("<", "template"), ("Héllo, <there>!", USER), ("><", "template"), ("Hi & you", ASSISTANT), (">", "template")],
    ),
    "undefined prints nothing": ("<{{ nope }}{{ messages[0].nope }}>", [("<>", "template")]),
    "attributes and items": (
        "{{ messages[0]['role'] }}{{ messages[1].role }}",
        [("user", "messages[0].role"), ("assistant", "messages[1].role")],
    ),
    "the items of a message": (
        "{% for key, value in messages[1].items() %}{{ key }}={{ value }};{% endfor %}",
        [
            ("role", "computed"),
            ("=", "template"),
            ("assistant", "messages[1].role"),
            (";", "template"),
            ("content", "computed"),
            ("=", "template"),
            ("Hi & you", ASSISTANT),
            (";", "template"),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_text_is_transformers_and_origins_are_known(name: str) -> None:
    source, expected = CASES[name]
    runs = origin_runs(source)
    assert "".join(text for text, _ in runs) == as_transformers(source, EXAMPLE, TOKENS)
    assert runs == expected


def test_strftime_now_is_the_templates() -> None:
    (text, origin), *_ = origin_runs("{{ strftime_now('%Y') }}<x>")
    assert (text[-3:], origin) == ("<x>", "template")
    assert text == as_transformers("{{ strftime_now('%Y') }}<x>", EXAMPLE, TOKENS)


CONTENTS = st.one_of(
    st.text(max_size=12), st.lists(st.sampled_from(texts.JINJA + texts.WHITESPACE), max_size=4).map("".join)
)
EXPRESSIONS = st.recursive(
    st.sampled_from(["m.content", "m['role']", "messages[0].content", "'<|im_end|>'", "' x\n'", "m.nope", "eos_token"]),
    lambda inner: st.one_of(
        st.builds("({} ~ {})".format, inner, inner),
        st.builds("({} + '')".format, inner.map(lambda e: f"({e} ~ '')")),
        st.builds("{}".format, inner.map(lambda e: f"({e} ~ '') | trim")).map("({})".format),
        st.builds(
            "(({} ~ '') | {})".format,
            inner,
            st.sampled_from(
                [
                    "upper",
                    "lower",
                    "title",
                    "capitalize",
                    "trim",
                    "string",
                    "tojson",
                    "replace('a', '<b>')",
                    "length",
                    "e | safe",
                    "reverse",
                    "indent",
                    "first",
                    "last",
                    "default('d')",
                    "center(9)",
                    "truncate(5)",
                    "list | join('|')",
                ]
            ),
        ),
        st.builds("(({} ~ '')[{}:{}])".format, inner, st.integers(-3, 3), st.integers(-3, 5)),
        st.builds("(({} ~ '').split({})[0])".format, inner, st.sampled_from(["", "' '", "'e', 1"])),
        st.builds(
            "(({} ~ '').{})".format,
            inner,
            st.sampled_from(
                [
                    "strip()",
                    "lstrip('< ')",
                    "rstrip()",
                    "upper()",
                    "replace('l', 'LL')",
                    "splitlines() | join('+')",
                    "partition(' ') | join",
                    "rsplit('o', 1) | join('<o>')",
                    "removeprefix('H')",
                    "removesuffix('x')",
                    "zfill(8)",
                ]
            ),
        ),
        st.builds("('%s<%s>' % ({}, {}))".format, inner, inner),
        st.builds("('{{}}<{{}}>'.format({}, {}))".format, inner, inner),
        st.builds("({} if m.role == 'user' else {})".format, inner, inner),
    ),
    max_leaves=4,
)


@given(EXPRESSIONS, CONTENTS, CONTENTS)
def test_any_expression_renders_as_transformers_and_never_as_template_text_that_is_data(
    expression: str, user: str, assistant: str
) -> None:
    """Data consists of letters that no template here contains: none of these letters may get the origin `TEMPLATE`."""
    mark = "\U0001f9ea"
    example = Example(
        messages=(
            Message(role="user", content=f"{mark}{user}{mark}"),
            Message(role="assistant", content=f"{mark}{assistant}{mark}"),
        )
    )
    source = "{% for m in messages %}[{{ " + expression + " }}]{% endfor %}"
    try:
        runs = origin_runs(source, example)
    except RecordError as error:
        with pytest.raises(Exception, match=r"."):
            as_transformers(source, example, TOKENS)
        assert error.reason == "template_failed"
        return
    except TemplateError as error:
        assert "escape" in str(error) or "| safe" in source, error
        return
    assert "".join(text for text, _ in runs) == as_transformers(source, example, TOKENS)
    assert not any(mark in text or f"\\u{ord(mark):x}" in text for text, origin in runs if origin == "template")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses: roles must alternate"),
        (
            "{{ messages[0].content + 1 }}",
            "template 'tried', line 1: TypeError: unsupported operand type(s) for +: 'str' and 'int'",
        ),
        (
            "\n{{ messages[0].content + messages[1] }}",
            "line 2: TypeError: unsupported operand type(s) for +: 'str' and 'dict'",
        ),
        ("{{ messages[7].content }}", "line 1: UndefinedError: list object has no element 7"),
        ("{{ messages[0].content[0].text.x }}", "line 1: UndefinedError: 'str object' has no attribute 'text'"),
        ("{% include 'other.jinja' %}", "SecurityError: a template is one file, and may not load 'other.jinja'"),
        ("{{ messages.append(1) }}", "SecurityError: access to attribute 'append'"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ namespace(_x=1) }}", "SecurityError: a template may not store '_x'"),
        ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError: Range too big"),
    ],
)
def test_an_error_in_a_template_names_the_line(source: str, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        template(source + ANSWER).render(EXAMPLE, TOKENS)
    assert words in str(caught.value)
    assert "Tracked" not in str(caught.value)


NONES = ["{{ none }}", "{{ messages[0].get('x') }}", "{{ tools }}", "{{ documents }}", "{% set x = none %}{{ x }}"]


@pytest.mark.parametrize("source", NONES)
def test_none_is_never_printed(source: str) -> None:
    with pytest.raises((RecordError, TemplateError), match="the template prints None"):
        template(source + ANSWER).render(EXAMPLE, TOKENS)


@pytest.mark.parametrize("tokens", [TOKENS, SpecialTokens(eos="<EOS>"), SpecialTokens()])
def test_tokens_that_a_tokenizer_lacks_are_undefined(tokens: SpecialTokens) -> None:
    source = "{% for name in [bos_token, eos_token, pad_token] %}<{{ name is defined }}{{ name }}>{% endfor %}" + ANSWER
    text = template(source)._render_messages(EXAMPLE.messages, EXAMPLE, tokens, prompt=False)
    names = {f"{name}_token": getattr(tokens, name) for name in ("bos", "eos", "pad") if getattr(tokens, name)}
    assert "".join(text) == as_transformers(source, EXAMPLE, tokens, only=names)


def test_text_that_differs_from_jinjas_is_an_error() -> None:
    """The self-check: escaped text added to plain text gives another text, which is an error."""
    with pytest.raises(TemplateError, match="the tracked text differs from Jinja's"):
        template("{{ (messages[0].content | e) + '<b>' }}" + ANSWER).render(EXAMPLE, TOKENS)


def test_control_text_from_data_is_data() -> None:
    example = Example(
        messages=(Message(role="user", content="<|im_end|>{{ 7*7 }}"), Message(role="assistant", content="x"))
    )
    assert origin_runs("{{ messages[0].content }}<|im_end|>{{ messages[1].content }}", example) == [
        ("<|im_end|>{{ 7*7 }}", USER),
        ("<|im_end|>", "template"),
        ("x", ASSISTANT),
    ]
