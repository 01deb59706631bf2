"""Chat-template kwargs: read from the command line, written into the template, and served as they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.budget import one_in
from testkit.look import Eye
from testkit.published import OPEN_ENDED, ORIGINALS, source_of, tokens_of
from testkit.theirs import as_transformers, form_of, rendered

from templatekit import (
    ConfigError,
    DataOptions,
    Example,
    Message,
    RecordError,
    Template,
    TemplateError,
    TemplateFile,
    load_template,
)
from templatekit.export.serving import chat_template
from templatekit.formats.kwargs import parse_kwargs, read_kwargs, with_defaults
from templatekit.formats.lookup import find_template
from templatekit.formats.metadata import read_metadata
from templatekit.hooks.registry import Registry
from templatekit.types import NO_TOKENIZER, SpecialTokens

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["{{ x }}", "{% endset %}", "{# #}", "'\"\\", "{% generation %}", "👩\u200d👧", "\r\n\t\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
HEADS = (
    *("", "\n", "\n\n", "  ", " \n", "x", "{{ 'y' }}", "{% if true %}z{% endif %}\n", "  {% if true %}z{% endif %}"),
    *("{# a comment #}", "{# a comment #}\n", "{# a comment #}\n\n", "{# a comment -#}\n\n  ", "{# a comment #}  "),
    *("{#- templatekit\nstop: ['.']\n#}\n", "{#- templatekit\nstop: ['.']\n-#}\n\n", "{# a +#}\n", "{# a #} {# b #}\n"),
    *("\n{#- templatekit\nstop: ['.']\n#}\n", " \n\n {# templatekit\nstop: ['.']\n-#}\n\n", "\n  {# a comment #}\n"),
)


@pytest.mark.parametrize(
    ("text", "kwargs"),
    [
        ("", {}),
        ("enable_thinking=false", {"enable_thinking": False}),
        ("enable_thinking=False, effort = high", {"enable_thinking": False, "effort": "high"}),
        ('date_string="26 Jul 2024"', {"date_string": "26 Jul 2024"}),
        ("date_string=26 Jul 2024", {"date_string": "26 Jul 2024"}),
        ("date_string=2024-07-26", {"date_string": "2024-07-26"}),
        ("a=12:30,b=0777,c=1_000,d=.5", {"a": "12:30", "b": "0777", "c": "1_000", "d": ".5"}),
        ("a=1,b=-0.5,c=1e3,d=null,e=~", {"a": 1, "b": -0.5, "c": 1000.0, "d": None, "e": None}),
        ("tools=[search, run],x=a, b", {"tools": ["search", "run"], "x": "a, b"}),
        ('a="x=1",b=y=2', {"a": "x=1", "b": "y=2"}),
        ('a=""', {"a": ""}),
    ],
)
def test_kwargs_of_the_command_line(text: str, kwargs: dict[str, Any]) -> None:
    found = parse_kwargs(text)
    assert found == kwargs
    assert list(map(type, found.values())) == list(map(type, kwargs.values()))


WRONG = ("enable_thinking", "=1", "a=", "a=1,a=2", "a=[1", "a=1,,b=2", 'a="x, b=1"')
TWICE = ("a={x: 1, x: 2}", 'a={"x": 1, "x": 2}')


@pytest.mark.parametrize("text", [*WRONG, *TWICE])
def test_invalid_kwargs_are_errors(text: str) -> None:
    if text == "a=1,,b=2":  # a comma within the value
        assert parse_kwargs(text) == {"a": "1,", "b": 2}
        return
    with pytest.raises(ConfigError, match=r"^chat_template_kwargs: "):
        parse_kwargs(text)


@given(text=st.text(max_size=30) | st.text("ab=,[]{}\"': 1\n", max_size=12))
def test_anything_at_all_is_read_or_refused(text: str) -> None:
    try:
        kwargs = parse_kwargs(text)
    except ConfigError:
        return
    assert all(name for name in kwargs)


def test_options_take_what_json_has() -> None:
    options = DataOptions.parse({"chat_template_kwargs": {"a": [1, {"b": None}], "c": 0.5}})
    assert options.chat_template_kwargs == {"a": [1, {"b": None}], "c": 0.5}
    import datetime

    for value in (datetime.date(2024, 7, 26), float("nan"), [float("inf")], {"a": {1, 2}}):
        with pytest.raises(
            ConfigError, match=r"chat_template_kwargs\.a: found .*; expected text, a number, true, false"
        ):
            DataOptions.parse({"chat_template_kwargs": {"a": value}})


@given(head=st.sampled_from(HEADS), value=JSON, other=JSON)
def test_defaults_change_nothing_else(head: str, value: Any, other: Any) -> None:
    """A template with a default gives the text of the template given that value; a server's own value overrides it."""
    source = (
        head
        + "{% if x is defined %}[{{ x | tojson }}]{% endif %}\n  {% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    baked = with_defaults(source, {"x": value}, "t")
    messages = [{"role": "user", "content": "a"}]
    tokens = SpecialTokens()
    assert rendered(baked, messages, tokens) == rendered(source, messages, tokens, x=value)
    assert rendered(baked, messages, tokens, x=other) == rendered(source, messages, tokens, x=other)
    again = with_defaults(baked, {"x": other}, "t")
    assert rendered(again, messages, tokens) == rendered(source, messages, tokens, x=other)
    assert read_metadata(baked, "t") == read_metadata(source, "t")


def test_the_comparison_notices_a_lost_newline() -> None:
    """Negative control: a default set before the text by hand takes its first newline."""
    source = "\n{{ x }}{{ messages[0].content }}"
    careless = "{%- set x = x | default(1) -%}" + source
    messages = [{"role": "user", "content": "a"}]
    assert rendered(careless, messages, SpecialTokens()) != rendered(source, messages, SpecialTokens(), x=1)
    assert rendered(with_defaults(source, {"x": 1}, "t"), messages, SpecialTokens()) == rendered(
        source, messages, SpecialTokens(), x=1
    )


def test_only_variables_read_from_outside_are_kwargs() -> None:
    source = (
        "{% set a = b %}{% for c in messages %}{% if c.d %}{% set e = 1 %}{% else %}{% set e = 2 %}{% endif %}{{ e }}"
        "{% endfor %}{% if not f is defined %}{% set f = 'x' %}{% endif %}{{ f ~ bos_token ~ range(3) ~ tools }}"
        "{% macro g(h) %}{{ h ~ i | default('') }}{% endmacro %}{{ g(1) ~ strftime_now('%d') }}"
        "{% set j = j | default(true) %}"
    )
    assert read_kwargs(source, "t") == {"b", "f", "i", "j"}


READ = {
    "qwen3": {"enable_thinking"},
    "llama3_1": {"builtin_tools", "custom_tools", "date_string", "tools_in_user_message"},
    "gptoss": {"builtin_tools", "model_identity", "reasoning_effort"},
    "gemma": set(),
    "nemotron_3_super": {"enable_thinking", "low_effort", "truncate_history_thinking"},
}


@pytest.mark.parametrize("name", READ)
def test_what_published_templates_read(name: str) -> None:
    assert read_kwargs(source_of(name), name) == READ[name]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"enable_thinkin": False}, "template 'q' does not read 'enable_thinkin'; did you mean 'enable_thinking'?"),
        ({"zzz": 1}, "template 'q' does not read 'zzz'; known: effort, enable_thinking"),
        ({"messages": []}, "'messages' comes from the data or the tokenizer; leave it out"),
        ({"add_generation_prompt": True}, "'add_generation_prompt' comes from the data or the tokenizer"),
        ({"enable_thinking": object()}, "expected text, a number, true, false or null"),
    ],
)
def test_a_kwarg_that_the_template_does_not_read(kwargs: dict[str, Any], message: str) -> None:
    source = "{{ messages[0].content }}{% if enable_thinking is defined %}T{% endif %}{{ effort | default('') }}"
    with pytest.raises(ConfigError) as caught:
        Template(TemplateFile(name="q", source=source), kwargs=kwargs)
    assert message in str(caught.value)


def test_a_template_that_reads_none_says_so() -> None:
    with pytest.raises(ConfigError, match="it reads none beyond what every template is given"):
        Template(TemplateFile(name="q", source="{{ messages[0].content }}"), kwargs={"x": 1})


def test_a_variable_without_a_default_is_given_one(tmp_path: Path) -> None:
    """A user's own file may read a name that only a kwarg provides."""
    path = tmp_path / "mine.jinja"
    path.write_text("{{ mood }}: {{ instruction }}\n{{ response }}{{ eos_token }}", encoding="utf-8")
    with pytest.raises(Exception, match="unknown variable 'mood'"):
        load_template(str(path))
    example = Example(messages=(Message(role="user", content="a"), Message(role="assistant", content="b")))
    rendered = load_template(str(path), kwargs={"mood": "glad"}).render(example)
    assert rendered.text == "glad: a\nb"
    assert rendered.spans[0].origin.is_template and rendered.text[: rendered.spans[0].end] == "glad: "


VALUES: tuple[Any, ...] = (False, True, "26 Jul 2024", "high", ["search"])
TURNS = (
    Message(role="user", content="A?"),
    Message(role="assistant", content="B."),
    Message(role="user", content="C?"),
    Message(role="assistant", content="D."),
)


@pytest.mark.parametrize("name", one_in(3, ORIGINALS))
def test_published_templates_with_kwargs(name: str) -> None:
    """Text and prompt are those of transformers given the same values, and of the exported template given none."""
    source, tokens = source_of(name), tokens_of(name)
    form, example = form_of(source), Example(messages=TURNS)
    before = Example(messages=TURNS[:3])
    for kwarg in sorted(read_kwargs(source, name)):
        for value in VALUES:
            try:
                expected = as_transformers(source, example, tokens, form, **{kwarg: value})
                prompt = as_transformers(source, before, tokens, form, add_generation_prompt=True, **{kwarg: value})
            except Exception:
                continue  # a value that this template does not accept
            template = Template(TemplateFile(name=name, source=source), strict=False, kwargs={kwarg: value})
            exported = chat_template(template, tokens)
            assert as_transformers(exported, example, tokens, form) == expected
            assert template.prompt(example, tokens).text == prompt
            assert as_transformers(exported, before, tokens, form, add_generation_prompt=True) == prompt
            try:
                text = template.render(example, tokens).text
                assert text == expected or (not expected.startswith(prompt) and text.startswith(prompt))
            except RecordError as error:
                assert error.reason == "prompt_is_no_prefix"
            except TemplateError:
                assert name in OPEN_ENDED


def test_qwen3_without_thinking(tokenizer_of: Tokenizers, builtin: Registry) -> None:
    """The empty thinking block is fed, not trained, and a server without a kwarg feeds it too."""
    from transformers import AutoTokenizer

    tokenizer = tokenizer_of("qwen3")
    template = find_template(
        "tokenizer", builtin, chat_template=tokenizer.chat_template, kwargs={"enable_thinking": False}
    )
    eye = Eye(tokenizer, builtin)
    record = {"messages": [{"role": "user", "content": "Two plus two?"}, {"role": "assistant", "content": "Four."}]}
    seen = eye.one(record, "tokenizer", chat_template_kwargs={"enable_thinking": False})
    fed = "<|im_start|>user\nTwo plus two?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert seen.text == fed + "Four.<|im_end|>\n"
    assert seen.trained == ["Four.<|im_end|>"]
    example = Example(messages=(Message(role="user", content="Two plus two?"),))
    assert template.prompt(example, tokenizer.special_tokens).text == fed
    ids = seen.example.input_ids
    served: Any = AutoTokenizer.from_pretrained(tokenizer.name)
    served.chat_template = chat_template(template, tokenizer.special_tokens)
    prompt = served.apply_chat_template(record["messages"][:1], add_generation_prompt=True, return_dict=False)
    assert tuple(prompt) == ids[: len(prompt)]
    assert all(weight == 0 for weight in seen.example.loss_weights[: len(prompt)])
    assert all(weight == 1 for weight in seen.example.loss_weights[len(prompt) : -1])
    # A client may still ask for thinking.
    asked: Any = served.apply_chat_template(
        record["messages"][:1], add_generation_prompt=True, tokenize=False, enable_thinking=True
    )
    assert asked == fed.removesuffix("<think>\n\n</think>\n\n")
    # Without the kwarg, the model writes the block.
    assert eye.one(record, "tokenizer").trained == ["<think>\n\n</think>\n\nFour.<|im_end|>"]


def test_a_value_is_the_templates_own_text(tokenizer_of: Tokenizers, builtin: Registry) -> None:
    """The value is chosen along with the template: a control token in it acts, as on a server with this template."""
    tokenizer = tokenizer_of("qwen3")
    source = "{{ note | default('') }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    template = Template(TemplateFile(name="noted", source=source), kwargs={"note": "<|im_start|>"})
    rendered = template.render(Example(messages=TURNS), NO_TOKENIZER)
    assert rendered.spans[0].origin.is_template
    options = DataOptions.parse({"dataset": "none", "adapter": "messages"})
    from templatekit.pipeline.pipeline import Pipeline

    ids = Pipeline(options, builtin, template=template, tokenizer=tokenizer).prompt_ids(Example(messages=TURNS[:1]))
    assert ids[0] == tokenizer.id_of("<|im_start|>")


def test_a_template_object_and_kwargs(builtin: Registry) -> None:
    import templatekit

    template = Template(TemplateFile(name="n", source="{{ x | default('-') }}{{ instruction }}|{{ response }}"))
    rows = [{"instruction": "a", "output": "b"}]
    (with_it,) = templatekit.render(rows, template=template, chat_template_kwargs={"x": "!"})
    (without,) = templatekit.render(rows, template=template)
    assert isinstance(with_it, templatekit.RenderedText) and isinstance(without, templatekit.RenderedText)
    assert (with_it.text, without.text) == ("!a|b", "-a|b")


def test_line_numbers_stay() -> None:
    source = "{{ x | default('') }}\n{{ messages[0].content.nothing.at_all }}"
    template = Template(TemplateFile(name="n", source=source), strict=False, kwargs={"x": "!"})
    with pytest.raises(RecordError, match="template 'n', line 2: "):
        template.render(Example(messages=TURNS[:1]))
