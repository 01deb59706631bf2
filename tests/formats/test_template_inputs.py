"""Every input that a chat template can receive: the text is that of transformers, and every character has its origin.

Messages have the forms that each template accepts; published templates together accept all forms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.budget import one_in
from testkit.published import ORIGINALS, source_of, tokens_of
from testkit.theirs import Form, as_transformers, form_of, rendered

from templatekit import Example, Message, RecordError, RenderedText, Template, TemplateError, TemplateFile
from templatekit.formats.provenance import plain_text, spans_of
from templatekit.types import Span, SpecialTokens, field_origin

TOKENS = SpecialTokens(bos="<BOS>", eos="<EOS>", special=frozenset({"<BOS>", "<EOS>"}))
COMMAND_R = """\
{{ bos_token }}{% if documents %}<|SYSTEM|># Documents
{% for document in documents %}Document: {{ loop.index0 }}
{% for key, value in document.items() %}{{ key | title }}: {{ value }}
{% endfor %}
{% endfor %}<|END|>{% endif %}{% for message in messages %}\
<|{{ message['role'] | upper }}|>{{ message['content'] }}<|END|>{% endfor %}\
{% if add_generation_prompt %}<|ASSISTANT|>{% endif %}"""
"""Documents key by key, as Cohere's Command R prints them."""
GRANITE = """\
{%- if documents %}{{- '<|start_of_role|>documents<|end_of_role|>' }}
{%- for document in documents %}{{- '[Document ' + document['doc_id'] | string + ']\\n' + document['text'] + '\\n' }}
{%- endfor %}{{- '<|end_of_text|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""
"""Documents in a separate turn, as IBM's Granite 3.3 prints them."""
CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MISTRAL = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]\
{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}\
{% if call.id is not defined or call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}\
{{ call.function | tojson }}{% endfor %}]{{ eos_token }}\
{% elif m.role == 'tool' %}\
[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]\
{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""


@cache
def template(name: str, source: str) -> Template:
    return Template(TemplateFile(name=name, source=source), strict=False)


def given_source(source: str) -> Template:
    return template("given", source)


def message(role: str, content: str = "", **more: Any) -> Message:
    return Message(role=role, content=content, **more)


def parts(role: str, *texts: str) -> Message:
    return message(role, "\n".join(texts), parts=tuple({"type": "text", "text": text} for text in texts))


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def pieces(rendered: RenderedText, origin: str) -> list[str]:
    return [rendered.text[span.start : span.end] for span in rendered.spans if str(span.origin) == origin]


# --- content as a list of parts -----------------------------------------------------------------------------------

LISTS_ONLY = CHATML.replace("{{ m.content }}", "{% for part in m.content %}{{ part['text'] }}{% endfor %}")
EITHER = CHATML.replace(
    "{{ m.content }}",
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}<{{ part.text | trim }}>{% endfor %}{% endif %}",
)
FIRST_PART = CHATML.replace("{{ m.content }}", "{{ m.content[0]['text'] }}")
CONTENT = {
    "text only": (CHATML, "either", "A\nB"),
    "lists only": (LISTS_ONLY, "list", "AB"),
    "either": (EITHER, "either", "<A><B>"),
    "the first part only": (FIRST_PART, "one part", "A\nB"),
    "a list as it prints": (CHATML.replace("m.content", "m.content | tojson"), "text", '"A\\nB"'),
}


@pytest.mark.parametrize("name", CONTENT)
def test_content_in_the_form_that_the_template_takes(name: str) -> None:
    source, form, printed = CONTENT[name]
    given = given_source(source)
    assert given.accepted_forms.content("user") == (form if name != "text only" else "text")
    rendered = given.render(Example(messages=(parts("user", "A", "B"), parts("assistant", "C"))), TOKENS_OF_CHATML)
    assert rendered.text.startswith(f"<|im_start|>user\n{printed}<|im_end|>")
    assert "".join(pieces(rendered, "messages[0].content")) == printed.replace("<", "").replace(">", "")
    # A message of text also gets the form that the template accepts.
    plain = given.render(Example(messages=(message("user", "A\nB"), message("assistant", "C"))), TOKENS_OF_CHATML)
    assert "A\nB<" in plain.text or '"A\\nB"<' in plain.text
    assert set("".join(pieces(plain, "messages[0].content"))) >= {"A", "B"}


def test_parts_that_say_more_are_passed_where_no_short_text_is_accepted() -> None:
    """A translator's template asks for languages beside the text; what else is refused stays a text."""
    asks = FIRST_PART.replace(
        "{{ m.content[0]['text'] }}",
        "{% if m.role == 'assistant' %}{{ m.content }}{% elif m.content is string or not m.content[0].language %}"
        "{{ raise_exception('name a language') }}{% else %}"
        "{{ m.content[0].language }}: {{ m.content[0].text }}{% endif %}",
    )
    given = given_source(asks)
    assert given.accepted_forms.content("user") == "unknown"
    said = Message(role="user", content="A", parts=({"type": "text", "text": "A", "language": "de"},))
    rendered = given.render(Example(messages=(said, message("assistant", "C"))), TOKENS_OF_CHATML)
    assert rendered.text.startswith("<|im_start|>user\nde: A<|im_end|>")
    for refused in (parts("user", "A"), message("user", "A")):
        with pytest.raises(RecordError, match="name a language"):
            given.render(Example(messages=(refused, message("assistant", "C"))), TOKENS_OF_CHATML)
    strings = given_source(
        CHATML.replace("{{ m.content }}", "{{ raise_exception('?') if '>' not in m.content }}{{ m.content }}")
    )
    rendered = strings.render(Example(messages=(parts("user", "<A>"), message("assistant", "<C>"))), TOKENS_OF_CHATML)
    assert rendered.text.startswith("<|im_start|>user\n<A><|im_end|>")


TOKENS_OF_CHATML = SpecialTokens(eos="<|im_end|>", special=frozenset({"<|im_start|>", "<|im_end|>"}))


def test_a_template_may_take_other_forms_for_other_roles() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}{{ m.content }}{% endif %}"
    )
    given = given_source(source + "{{ eos_token }}{% endfor %}")
    assert [given.accepted_forms.content(role) for role in ("user", "assistant")] == ["one part", "text"]
    rendered = given.render(Example(messages=(message("user", "A"), parts("assistant", "B", "C"))), TOKENS)
    assert rendered.text == "A<EOS>B\nC<EOS>"


def test_parts_that_do_not_match_the_content_are_ignored() -> None:
    """So code that shortens the content need not change the parts."""
    changed = message("user", "A", parts=({"type": "text", "text": "A and much more"},))
    rendered = given_source(EITHER).render(Example(messages=(changed, message("assistant", "B"))), TOKENS_OF_CHATML)
    assert rendered.text.startswith("<|im_start|>user\nA<|im_end|>")


def test_probes_are_made_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Template(TemplateFile(name="counted", source=CHATML), strict=False)
    runs: list[Any] = []
    run = given._render_variables

    def counted(variables: Any) -> Any:
        runs.append(variables)
        return run(variables)

    monkeypatch.setattr(given, "_render_variables", counted)
    example = Example(messages=(message("user", "A"), message("assistant", "B")))
    given.prompt(example)
    assert len(runs) == 3  # two for the user's content, and the prompt itself
    given.prompt(example)
    assert len(runs) == 4


# --- documents ----------------------------------------------------------------------------------------------------

DOCUMENTS = (
    {"doc_id": 1, "title": "Bees", "text": "Bees fly.<|END|>"},
    {"doc_id": 2, "title": "Ants", "text": "Ants walk."},
)
ASKED = (message("user", "Who flies?"), message("assistant", "Bees."))


@pytest.mark.parametrize("source", [COMMAND_R, GRANITE])
def test_documents_come_with_their_origin(source: str) -> None:
    example = Example(messages=ASKED, documents=DOCUMENTS)
    tokens = SpecialTokens(bos="<BOS>", special=frozenset({"<|END|>", "<|end_of_text|>"}))
    rendered = given_source(source).render(example, tokens)
    assert rendered.text == as_transformers(source, example, tokens)
    printed = pieces(rendered, "documents")
    assert {"Bees fly.<|END|>", "Ants walk."} <= set(printed)
    assert not any("Bees fly" in rendered.text[s.start : s.end] for s in rendered.spans if s.origin.is_template)
    prompt = given_source(source).prompt(example, tokens)
    assert rendered.text.startswith(prompt.text) and "Bees fly" in prompt.text


@pytest.mark.parametrize("source", [CHATML, "{{ instruction }}: {{ response }}"])
def test_documents_without_a_place_are_refused(source: str) -> None:
    with pytest.raises(RecordError, match=r"^documents: template 'given' has no place for") as caught:
        given_source(source).render(Example(messages=ASKED, documents=DOCUMENTS))
    assert caught.value.reason == "no_place_for_field"


DATED = "{{ strftime_now('%Y') }}{% for message in messages %}{{ message.role }}: MESSAGE<|END|>\n{% endfor %}"
"""Prints a date: computed text, which might hold any field."""


@pytest.mark.parametrize(
    ("printed", "example", "lost"),
    [
        ("{{ message.content }}", Example(messages=ASKED, documents=DOCUMENTS), "documents"),
        ("{{ message.content }}", Example(messages=ASKED, tools=({"type": "function", "function": {}},)), "tools"),
        ("{{ message.content if message.role != 'user' }}", Example(messages=ASKED), "messages[0].content"),
        ("{{ message.content | length if message.role == 'user' else message.content }}", Example(messages=ASKED),
         "messages[0].content"),
        ("{{ message.content if message.role != 'user' else [message.content, loop.index] }}", Example(messages=ASKED),
         None),
    ],
)  # fmt: skip
def test_computed_text_hides_no_loss(printed: str, example: Example, lost: str | None) -> None:
    """Neither a date nor a length prints a field; a text that is joined with a number may."""
    template = given_source(DATED.replace("MESSAGE", printed))
    tokens = SpecialTokens(special=frozenset({"<|END|>"}))
    for _ in range(20):  # with a compiled trace and without
        if lost is None:
            assert "Who flies?" in template.render(example, tokens).text
            continue
        with pytest.raises(RecordError) as caught:
            template.render(example, tokens)
        assert (caught.value.reason, caught.value.field) == ("no_place_for_field", lost)


# --- tool calls ---------------------------------------------------------------------------------------------------

OBJECTS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
)
TEXTS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ '' + c.function.arguments }}{% endfor %}"
LOOPS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{% for k, v in c.function.arguments.items() %}"
    "{{ k }}={{ v }};{% endfor %}{% endfor %}"
)
OR_CALLS = (
    "{% for m in messages %}{% if m.content is not none %}{{ m.content }}{% else %}{% for c in m.tool_calls %}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endif %}"
)
ARGUMENTS: dict[str, tuple[Any, str, str]] = {
    "an object": ({"city": "Zürich"}, '{"city": "Zürich"}', '{"city": "Zürich"}'),
    "its JSON": ('{"city":"Z\\u00fcrich"}', '{"city": "Zürich"}', '{"city":"Z\\u00fcrich"}'),
    "no JSON": ("city: Zürich", '"city: Zürich"', "city: Zürich"),
    "JSON of text": ('"{}"', '"\\"{}\\""', '"{}"'),
    "a key twice": ('{"a": 1, "a": 2}', '"{\\"a\\": 1, \\"a\\": 2}"', '{"a": 1, "a": 2}'),
    "too large a number": ('{"a": 1e999}', '"{\\"a\\": 1e999}"', '{"a": 1e999}'),
    "not a number": ('{"a": NaN}', '"{\\"a\\": NaN}"', '{"a": NaN}'),
    "none": (None, "{}", "{}"),
    "an empty text": ("", "{}", "{}"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_an_object_or_text_as_the_template_takes_them(name: str) -> None:
    arguments, from_object, from_text = ARGUMENTS[name]
    example = Example(messages=(message("user", "Q"), message("assistant", "A", tool_calls=(call("f", arguments),))))
    for source, expected in ((OBJECTS, from_object), (TEXTS, from_text)):
        given = given_source(source + "{{ eos_token }}{% endfor %}")
        rendered = given.render(example, TOKENS)
        assert rendered.text == f"Q<EOS>A{expected}<EOS>"
        assert "".join(pieces(rendered, "messages[1].tool_calls")) == expected


def test_which_arguments_templates_take() -> None:
    end = "{{ eos_token }}{% endfor %}"
    assert given_source(OBJECTS + end).accepted_forms.calls == ("object", "")
    assert given_source(LOOPS + end).accepted_forms.calls == ("object", "")
    assert given_source(TEXTS + end).accepted_forms.calls == ("text", "")
    assert given_source(OR_CALLS + end).accepted_forms.calls == ("object", None)


def test_null_content_for_templates_that_print_either() -> None:
    given = given_source(OR_CALLS + "{{ eos_token }}{% endfor %}")
    calling = message("assistant", tool_calls=(call("f", {"a": 1}),))
    assert given.render(Example(messages=(message("user", "Q"), calling)), TOKENS).text == 'Q<EOS>{"a": 1}<EOS>'
    both = message("assistant", "Text beside.", tool_calls=(call("f", {"a": 1}),))
    with pytest.raises(RecordError, match=r"^messages\[1\]\.tool_calls: template 'given' has no place"):
        given.render(Example(messages=(message("user", "Q"), both)), TOKENS)


def test_ids_of_calls_and_answers() -> None:
    """Mistral's templates require ids of nine characters, and print them in the answer."""
    messages = (
        message("user", "Q"),
        message("assistant", tool_calls=(call("f", {"a": 1}, id="abcdefghi"),)),
        message("tool", "7", tool_call_id="abcdefghi"),
        message("assistant", "Seven."),
    )
    example = Example(messages=messages)
    rendered = given_source(MISTRAL).render(example, TOKENS)
    assert rendered.text == as_transformers(MISTRAL, example, TOKENS)
    assert pieces(rendered, "messages[2].tool_call_id") == ["abcdefghi"]
    without = (messages[0], message("assistant", tool_calls=(call("f", {"a": 1}),)))
    with pytest.raises(RecordError, match="refuses: ids have nine characters"):
        given_source(MISTRAL).render(Example(messages=without), TOKENS)


# --- roles --------------------------------------------------------------------------------------------------------

NAMED = (
    "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% elif m.role == 'ipython' %}I{{ m.content }}"
    "{% else %}A{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "role", "error"),
    [
        (CHATML, "critic", None),
        (CHATML, "tool", None),
        (CHATML, "developer", None),
        (
            CHATML,
            "asistant",
            "know role 'asistant'; is 'assistant' meant?; expected one of system, user, assistant, tool",
        ),
        (CHATML, "User", "know role 'User'; is 'user' meant?"),
        (CHATML, "gpt", "know role 'gpt'; is 'assistant' meant?"),
        (CHATML, "human", "know role 'human'; is 'user' meant?"),
        (NAMED, "ipython", None),
        (NAMED, "critic", "know role 'critic'; expected one of system, user, assistant$"),
        (NAMED, "tool", "know role 'tool'; expected one of system, user, assistant$"),
        (NAMED, "usr", "know role 'usr'; is 'user' meant?"),
    ],
)
def test_roles_are_taken_or_named(source: str, role: str, error: str | None) -> None:
    """A template that prints the role accepts any role but a misspelt one; others accept the roles that they name."""
    example = Example(messages=(message("user", "A"), message(role, "B"), message("assistant", "C")))
    if error is None:
        assert "B" in given_source(source).render(example, SpecialTokens(eos="<|im_end|>")).text
        return
    with pytest.raises(RecordError, match=error.replace("?", r"\?")) as caught:
        given_source(source).render(example, SpecialTokens(eos="<|im_end|>"))
    assert (caught.value.field, caught.value.reason) == ("messages[1].role", "unknown_role")


# --- published templates, on everything at once -------------------------------------------------------------------

WORD = st.sampled_from(["Alpha", "beta gamma", "Zürich", "3 × 4", "<|im_end|>", "{{ x }}", "a\nb", "'q'", "日本"])
TEXT = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORD, lambda v: st.lists(v, max_size=2), max_leaves=3
)
OBJECT = st.dictionaries(st.sampled_from(["city", "day", "ünit"]), JSON, min_size=1, max_size=2)
TOOL: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda name, about: {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": about}},
                "required": ["city"],
            },
        },
    },
    st.sampled_from(["find", "get_weather"]),
    TEXT,
)


TOOLS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(TOOL, max_size=2)


def said(role: str, text: st.SearchStrategy[str] = TEXT, **more: Any) -> st.SearchStrategy[Message]:
    """A message of text, or of parts."""
    of_parts = st.lists(text, min_size=1, max_size=3).map(lambda texts: parts(role, *texts))
    return text.map(lambda content: message(role, content, **more)) | of_parts


@st.composite
def answers(draw: st.DrawFn) -> Message:
    content = draw(TEXT)
    return message("assistant", content, reasoning=draw(st.just("") | TEXT))


@st.composite
def tool_turns(draw: st.DrawFn) -> list[Message]:
    """A call beside text or alone, its arguments an object or JSON, and the answer."""
    arguments = draw(OBJECT)
    as_json = draw(st.booleans())
    made = call("find", json.dumps(arguments, ensure_ascii=False) if as_json else arguments, id="abcdefghi")
    calling = message("assistant", draw(st.just("") | TEXT), tool_calls=(made,), reasoning=draw(st.just("") | TEXT))
    return [calling, message("tool", draw(TEXT), name="find", tool_call_id="abcdefghi")]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    messages = draw(st.lists(st.one_of(said("system"), said("developer")), max_size=1))
    tools = draw(TOOLS)
    for _ in range(draw(st.integers(1, 3))):
        messages.append(draw(said("user")))
        calls = draw(st.booleans())
        if tools and calls:
            messages += draw(tool_turns())
        messages.append(draw(answers()))
    return Example(messages=tuple(messages), tools=tuple(tools))


def theirs(source: str, example: Example, tokens: SpecialTokens, **more: Any) -> str:
    """transformers' text for messages in forms that the template accepts."""
    messages = [in_form(source, message) for message in example.messages]
    return as_transformers(
        source, Example(messages=tuple(messages), tools=example.tools), tokens, form_of(source), **more
    )


def in_form(source: str, message: Message) -> Message:
    """The message as a user of transformers who knows the template writes it: arguments as objects, parts joined."""
    from dataclasses import replace

    calls = [dict(call) for call in message.tool_calls]
    if not form_of(source).arguments_as_text:
        for call in calls:
            if isinstance(call["function"]["arguments"], str):
                call["function"] = call["function"] | {"arguments": json.loads(call["function"]["arguments"])}
    keeps_lists = message.parts and takes_lists(source, message.role)
    return replace(message, tool_calls=tuple(calls), parts=message.parts if keeps_lists else ())


@cache
def takes_lists(source: str, role: str) -> bool:
    """Whether transformers prints both parts of a list for this role, and nothing of the list itself."""
    mine = {"role": role, "content": [{"type": "text", "text": "Alpha"}, {"type": "text", "text": "Omega"}]}
    other: dict[str, Any] = {"role": "user", "content": "Q"}
    if form_of(source).lists:
        other["content"] = [{"type": "text", "text": "Q"}]
    try:
        text = rendered(
            source, [mine] if role == "user" else [mine, other] if role != "assistant" else [other, mine], TOKENS
        )[0]
    except Exception:
        return False
    return "Alpha" in text and "Omega" in text and "'text'" not in text and '"text"' not in text


REFUSALS = {"template_refused", "template_failed", "no_place_for_field", "unknown_role", "prompt_is_no_prefix"}


@pytest.mark.parametrize("name", one_in(3, ORIGINALS))
@given(example=examples(), data=st.data())
def test_published_templates_on_everything(name: str, example: Example, data: st.DataObject) -> None:
    """The text, the prompt and the prefilled answer are transformers', or the refusal has a reason that it shares."""
    source, tokens = source_of(name), tokens_of(name)
    ours = template(name, source)
    for prompt in (False, True):
        try:
            text = ours._render_messages(example.messages, example, tokens, prompt=prompt)
        except RecordError as error:
            assert error.reason in REFUSALS
            refused_by_transformers(source, example, tokens, prompt, error)
            continue
        assert text == theirs(source, example, tokens, add_generation_prompt=prompt)
        check_origins(plain_text(text), spans_of(text), example)
    try:
        ours.render(example, tokens)
    except RecordError as error:
        assert error.reason in REFUSALS
    except TemplateError as error:
        assert "leaves open what ends an answer" in str(error)


def check_origins(text: str, spans: Sequence[Span], example: Example) -> None:
    """Every part of a user's message has the message's origin; no other text has it."""
    if any(span.origin.kind == "computed" for span in spans):
        return  # made from several fields, any of which may be there
    for index, message in enumerate(example.messages):
        if message.role == "user":
            printed = "".join(text[s.start : s.end] for s in spans if s.origin == field_origin("content", index))
            assert "".join(printed.split()) == "".join(message.content.split())


def refused_by_transformers(
    source: str, example: Example, tokens: SpecialTokens, prompt: bool, error: RecordError
) -> None:
    try:
        text = theirs(source, example, tokens, add_generation_prompt=prompt)
    except Exception:
        return
    assert "prints None" in str(error) and "None" in text, error


def test_the_oracle_knows_each_form() -> None:
    """The forms that published templates need, by name; the comparison above depends on them."""
    assert form_of(source_of("qwen3")) == Form()
    assert form_of(source_of("smollm3" if "smollm3" in ORIGINALS else "smolvlm")).lists
    assert form_of(source_of("deepseekv3")).arguments_as_text
    assert takes_lists(source_of("gemma3"), "user") and not takes_lists(source_of("qwen3"), "user")


def test_the_origins_check_notices_a_lost_part() -> None:
    example = Example(messages=(parts("user", "A", "B"), message("assistant", "C")))
    rendered = given_source(EITHER).render(example, TOKENS_OF_CHATML)
    check_origins(rendered.text, rendered.spans, example)
    with pytest.raises(AssertionError):
        check_origins(rendered.text, [s for s in rendered.spans if rendered.text[s.start : s.end] != "B"], example)


def test_the_comparison_notices_the_wrong_form() -> None:
    """Negative control: joined text gives another result if the template accepts lists."""
    source = source_of("qwen2_5_vl")
    example = Example(messages=(parts("user", "A", "B"), message("assistant", "C")))
    joined = Example(messages=(message("user", "A\nB"), message("assistant", "C")))
    ours = template("qwen2_5_vl", source).render(example, tokens_of("qwen2_5_vl"))
    assert ours.text == theirs(source, example, TOKENS) != theirs(source, joined, TOKENS)


# --- a prefilled answer -------------------------------------------------------------------------------------------

PREFILLS = ["Sure", "Sure, here is", " Sure", "Sure \n", "```json\n{", "Sure<|im_end|>", "A?", "x"]


def continued(source: str, messages: Sequence[Message], tokens: SpecialTokens) -> str:
    example = Example(messages=tuple(messages))
    return theirs(source, example, tokens, continue_final_message=True)


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("prefill", PREFILLS)
def test_a_prefilled_answer_is_transformers(name: str, prefill: str) -> None:
    source, tokens = source_of(name), tokens_of(name)
    messages = [message("user", "A?"), message("assistant", "B."), message("user", "A?"), message("assistant", prefill)]
    try:
        expected = continued(source, messages, tokens)
    except Exception:
        pytest.skip("transformers cannot continue this template's answers")
    found = template(name, source).prompt(Example(messages=tuple(messages)), tokens, continue_final=True)
    assert found.text == expected
    assert pieces(found, "messages[3].content")[-1] == prefill.strip() or found.text.endswith(prefill)
    assert found.target_spans == ()


@given(prefill=TEXT, more=TEXT)
def test_the_text_goes_on_from_a_prefill(prefill: str, more: str) -> None:
    """The text of a prefill is a prefix of every text whose answer starts with the prefill."""
    messages = (message("user", "A?"), message("assistant", prefill))
    prompt = given_source(CHATML).prompt(Example(messages=messages), TOKENS_OF_CHATML, continue_final=True)
    longer = (messages[0], message("assistant", prefill + more))
    text = given_source(CHATML).render(Example(messages=longer), TOKENS_OF_CHATML).text
    assert text == prompt.text + more + "<|im_end|>\n"


def test_an_empty_answer_is_continued_where_it_would_be_printed() -> None:
    messages = (message("user", "A?"), message("assistant", ""))
    example = Example(messages=messages)
    prompt = given_source(CHATML).prompt(example, continue_final=True)
    assert prompt.text == given_source(CHATML).prompt(example).text
    # For a template that trims the prefill, whitespace is empty too; the header's newline stays.
    trimming = CHATML.replace("m.content", "m.content | trim")
    blank = Example(messages=(messages[0], message("assistant", " \n")))
    assert given_source(trimming).prompt(blank, continue_final=True).text == prompt.text


def test_reasoning_is_continued_where_there_is_no_answer() -> None:
    source = source_of("qwen3")
    example = Example(messages=(message("user", "A?"), message("assistant", reasoning="Let me")))
    prompt = template("qwen3", source).prompt(example, tokens_of("qwen3"), continue_final=True)
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\nLet me")
    assert prompt.text == as_transformers(source, example, TOKENS, continue_final_message="reasoning_content")


def test_only_an_answer_is_continued() -> None:
    with pytest.raises(RecordError, match="found a last message of role 'user'; expected assistant") as caught:
        given_source(CHATML).prompt(Example(messages=(message("user", "A"),)), continue_final=True)
    assert caught.value.reason == "no_answer_to_continue"


def test_an_instruction_formats_answer_is_continued() -> None:
    given = given_source("Q: {{ instruction }}\nA: {{ response }}\n{{ eos_token }}")
    example = Example(messages=(message("user", "Why?"), message("assistant", "Because of")))
    prompt = given.prompt(example, TOKENS, continue_final=True)
    assert prompt.text == "Q: Why?\nA: Because of"
