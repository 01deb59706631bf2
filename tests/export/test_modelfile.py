"""Templates as Modelfiles: Ollama's prompt is that of training, or Ollama fails where the template refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit import ollama
from testkit.budget import FULL
from testkit.bundled import BUNDLED
from testkit.published import ORIGINALS, source_of

from templatekit import Example, Message, RecordError, Registry, Template, TemplateError, TemplateFile, Tokenizer
from templatekit.export.modelfile import go_template, modelfile
from templatekit.formats.lookup import find_template
from templatekit.testing import texts
from templatekit.types import SpecialTokens

TOKENS = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>"}))
REFUSED = {
    "mistral-v3": "it does not print each message once, in their order",
    "mistral-v3-tekken": "it does not print each message once, in their order",
}
"""Bundled templates that no Modelfile holds: their system message moves with the last question."""
EXPRESSED = [name for name in BUNDLED if name not in REFUSED]
UNLIKE = {
    "gemma": ["a question is printed", "an answer is printed"],
    "gemma3": ["a question is printed", "an answer is printed"],
    "llama2": ["a question is printed", "an answer is printed"],
    "llama3": ["a question is printed", "an answer is printed"],
    "mistral": ["an answer is printed"],
    "mistral-v1": ["an empty system message"],
    "mistral-v7": ["an answer is printed", "an empty system message"],
    "qwen3": ["reasoning in earlier answers", "tools are left out"],
}
"""The differences that the Modelfile names; the conversations of these tests contain none of them."""
TEXTS = st.lists(
    st.sampled_from([*texts.WORDS, *texts.MARKERS, *texts.JINJA, *texts.UNICODE, " ", "\n", '"""', "{{ .Role }}"]),
    min_size=1,
    max_size=4,
).map(lambda pieces: f"x{''.join(pieces)}y")
CHATS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system", "user", "tool"]), TEXTS), min_size=1, max_size=6
)


def ours(template: Template, chat: ollama.Chat, tokens: SpecialTokens = TOKENS) -> str | None:
    """The template's prompt, without the BOS that Ollama adds; None if the template refuses or loses a message."""
    messages = tuple(Message(role=role, content=content) for role, content in ollama.joined(chat))
    if messages[-1].role == "assistant":
        return None
    try:
        rendered = template.prompt(Example(messages=messages), tokens)
    except RecordError:
        return None
    if {span.origin.message for span in rendered.spans if span.origin.field == "content"} != set(range(len(messages))):
        return None
    begins = "bos_token" in template.variables or tokens.adds_bos
    return rendered.text.removeprefix(tokens.bos) if begins else rendered.text


def theirs(source: str, chat: ollama.Chat) -> str | None:
    try:
        return ollama.run(source, chat)
    except ollama.GoError:
        return None


def go_source(text: str) -> str:
    """The template as Ollama has it after reading the Modelfile."""
    (source,) = ollama.read_modelfile(text)["TEMPLATE"]
    return source


@pytest.fixture(scope="module", params=EXPRESSED)
def exported(request: pytest.FixtureRequest, builtin: Registry) -> tuple[Template, str]:
    template = find_template(request.param, builtin)
    return template, go_template(template, TOKENS).source()


def answered(chat: ollama.Chat) -> bool:
    return ollama.joined(chat)[-1][0] == "assistant"


@given(chat=CHATS)
def test_the_prompts_are_ours(exported: tuple[Template, str], chat: list[tuple[str, str]]) -> None:
    template, source = exported
    found = theirs(source, chat)
    if any(role == "tool" for role, _ in chat):  # Ollama's template refuses this, whatever the original does
        assert found is None
    elif answered(chat):  # the model continues the answer: the prompt, then the start of the answer
        before = theirs(source, ollama.joined(chat)[:-1])
        assert found is None or (before is not None and found.endswith(chat[-1][1]))
    else:
        assert found == ours(template, chat)


@pytest.mark.parametrize("name", EXPRESSED)
def test_an_answer_that_is_to_go_on_ends_with_its_text(name: str, builtin: Registry) -> None:
    """As in training: the text of the whole conversation up to the end of the last answer's own text."""
    template = find_template(name, builtin)
    source = go_template(template, TOKENS).source()
    chat = [("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D.")]
    messages = tuple(Message(role=role, content=content) for role, content in chat)
    found = theirs(source, chat)
    if not template.multi_turn:
        assert found is None
    elif name == "qwen3":  # a last answer has a thinking block in training; Ollama's has what the client sends
        assert found is not None and found.endswith("<|im_start|>assistant\nD.")
    else:
        whole = template.render(Example(messages=messages), TOKENS).text.removeprefix("<s>")
        assert found == whole[: whole.rindex("D.") + 2]


@pytest.mark.parametrize("name", EXPRESSED)
def test_what_differs_is_said(name: str, builtin: Registry) -> None:
    notes = go_template(find_template(name, builtin), TOKENS).notes
    assert [note for note, start in zip(notes, UNLIKE.get(name, []), strict=True) if not note.startswith(start)] == []


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_no_modelfile_holds_is_refused_by_name(name: str, why: str, builtin: Registry) -> None:
    with pytest.raises(TemplateError, match="it prints the tokenizer's eos_token, and no tokenizer is given"):
        modelfile(find_template(name, builtin))
    with pytest.raises(TemplateError, match=f"template '{name}' cannot be written as a Modelfile: {why}"):
        go_template(find_template(name, builtin), TOKENS)


TURN = "{{ '<' ~ m.role ~ '>' ~ m.content ~ '</>' }}"
SOURCES = {
    "the date": ("{{ strftime_now('%d') }}{% for m in messages %}" + TURN + "{% endfor %}", "it prints the date"),
    "another turn": (
        "{% for m in messages %}{{ loop.index }}" + TURN + "{% endfor %}",
        "the text before system after user depends on other turns; found '</>3<system>' and '</>2<system>'",
    ),
    "the last turn": (
        "{% for m in messages %}{{ '!' if loop.last }}" + TURN + "{% endfor %}",
        "depends on other turns; found",
    ),
    "upper case": ("{% for m in messages %}{{ m.content | upper }}{% endfor %}</>", 'it changes a text; found "ZÜRICH'),
    "twice": ("{% for m in messages %}{{ m.content ~ m.content }}{% endfor %}", "it changes a text; found"),
    "backwards": ("{% for m in messages | reverse %}" + TURN + "{% endfor %}", "each message once, in their order"),
    "nothing": (
        "{% for m in messages %}{{ raise_exception('no') }}{{ m.content }}{% endfor %}",
        "it accepts no sequence of system, user and assistant messages",
    ),
    "a count": (
        "{% if messages | length > 3 %}{{ raise_exception('long') }}{% endif %}{% for m in messages %}"
        + TURN
        + "{% endfor %}",
        "it refuses the sequence system, user, system, user, though it accepts each pair of it",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_templates_that_depend_on_more_are_refused(name: str) -> None:
    """Negative controls: each template prints something that a template by roles would get wrong."""
    source, why = SOURCES[name]
    with pytest.raises(TemplateError) as caught:
        go_template(Template(TemplateFile(name="odd", source=source), strict=False), TOKENS)
    assert "template 'odd' cannot be written as a Modelfile: " in str(caught.value)
    assert why in str(caught.value)


INEXPRESSIBLE = (
    "cohere2",  # the system message stands in a preamble, which is there without one too
    "deepseek_r1_distill",  # system messages come first, wherever they stand
    "deepseekv3",
    "gemma3",  # a later system message is a user's turn of its own
    "gptoss",  # prints the date
    "llama3_1",  # the first system message is printed otherwise than later ones
    "llama3_2",  # prints the date
    "muse_glimmer",
)


@pytest.mark.parametrize("name", ORIGINALS)
def test_published_templates(name: str) -> None:
    """For every published template that a Modelfile can express, Ollama's prompts are those of the template."""
    template = Template(TemplateFile(name=name, source=source_of(name)), strict=False)
    try:
        source = go_template(template, TOKENS).source()
    except TemplateError as error:
        assert name in INEXPRESSIBLE, error
        return
    assert name not in INEXPRESSIBLE
    for chat in every_chat():
        if not answered(chat) and (expected := ours(template, chat)) is not None:
            assert theirs(source, chat) == expected


NASTY = [
    "{{ .Content }}",
    '"""',
    "{{",
    "{",
    "}",
    "}}",
    '"',
    "\\",
    "\n\n",
    " \t",
    "\r",
    "\x00",
    "\u2028",
    "▁",
    "👩\u200d",
    "-",
    "`",
    "'",
]


def test_a_brace_before_an_action_stays_a_brace() -> None:
    """Go takes the first two braces of `{{{` for the start of an action."""
    turns = "{{ '<' ~ m.role ~ '>{' }}{{ m.content }}{{ '} { {\n{' }}"
    source = (
        f"{{% for m in messages %}}{turns}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<a>{{' }}}}{{% endif %}}"
    )
    template = Template(TemplateFile(name="braces", source=source), strict=False)
    found = go_source(modelfile(template))
    assert "{{{" not in found
    chat = [("user", "A{"), ("assistant", "{B"), ("user", "{{C}}")]
    assert theirs(found, chat) == ours(template, chat, SpecialTokens(known=False))
    with pytest.raises(AssertionError):  # negative control: what was written before
        theirs(found.replace('{{ "\\u007b" }}', "{"), chat)


@given(
    literals=st.lists(st.lists(st.sampled_from([*NASTY, "a", "<x>"]), max_size=3).map("".join), min_size=4, max_size=4),
    chat=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), min_size=1, max_size=4),
)
def test_any_literal_survives(literals: list[str], chat: list[tuple[str, str]]) -> None:
    """Ollama reads back any text that a template writes around messages: braces, quotes, whitespace, control codes."""
    first, before, after, prompt = literals
    turn = f"{before!r} ~ m.role ~ m.content ~ {after!r}"
    source = f"{{{{ {first!r} }}}}{{% for m in messages %}}{{{{ {turn} }}}}{{% endfor %}}"
    source += f"{{% if add_generation_prompt %}}{{{{ {prompt!r} }}}}{{% endif %}}"
    template = Template(TemplateFile(name="any", source=source), strict=False)
    found = go_source(modelfile(template))
    if not answered(chat):
        assert theirs(found, chat) == ours(template, chat, SpecialTokens(known=False))


@pytest.mark.parametrize("name", [*EXPRESSED, "tokenizer"])
@pytest.mark.parametrize("tokenizer_name", ["bytes", "sentencepiece", "strips", "llama2", "llama3", "qwen3", "smollm2"])
def test_modelfiles_of_real_tokenizers(name: str, tokenizer_name: str, tokenizer_of: Any, builtin: Registry) -> None:
    """Ollama reads back the intended template and every text at which generation stops."""
    tokenizer: Tokenizer = tokenizer_of(tokenizer_name)
    if name == "tokenizer" and tokenizer.chat_template is None:
        return
    template = find_template(name, builtin, chat_template=tokenizer.chat_template)
    values = ollama.read_modelfile(modelfile(template, tokenizer))
    assert values["FROM"] == ["."]
    assert (tokenizer.special_tokens.eos or template.metadata.stop[0]) in values["stop"]
    assert set(template.metadata.stop) <= set(values["stop"])
    chat = [("user", "A?")] if not template.multi_turn else [("user", "A?"), ("assistant", "B."), ("user", "C?")]
    (source,) = values["TEMPLATE"]
    assert theirs(source, chat) == ours(template, chat, tokenizer.special_tokens)


@pytest.mark.parametrize(
    ("stop", "line"), {"### End": 'stop "### End"', 'a" b': 'stop """a" b"""', "a\nb": 'stop """a\nb"""'}.items()
)
def test_stops_are_read_back(stop: str, line: str) -> None:
    source = (
        f"{{#- templatekit\nstop: [{stop!r}]\n#}}\n" if "\n" not in stop else '{#- templatekit\nstop: ["a\\nb"]\n#}\n'
    )
    text = modelfile(Template(TemplateFile(name="s", source=source + "{{ instruction }}|{{ response }}")))
    assert f"\nPARAMETER {line}\n" in text
    assert ollama.read_modelfile(text)["stop"] == [stop]


@pytest.mark.parametrize("stop", ['a"', "\x07"])
def test_stops_that_no_modelfile_holds(stop: str) -> None:
    template = Template(TemplateFile(name="s", source="{{ instruction }}|{{ response }}"))
    template.metadata = template.metadata.model_copy(update={"stop": (stop,)})
    with pytest.raises(TemplateError, match="no Modelfile can hold its stop text"):
        modelfile(template)


def every_chat() -> Iterator[list[tuple[str, str]]]:
    chance = random.Random(1)
    for length in range(1, 5):
        for roles in product(("system", "user", "assistant"), repeat=length):
            yield [(role, f"x{''.join(chance.choices(TEXT_POOL, k=3))}y") for role in roles]


TEXT_POOL = [*texts.WORDS, *texts.MARKERS, *texts.JINJA, *texts.UNICODE, "\n", '"""', "{{ .Role }}"]


def test_go_itself_agrees_with_the_interpreter(tmp_path: Path, builtin: Registry) -> None:
    """Every template over every order of up to four messages, by Go's text/template; by default a ninth of them."""
    cases = [
        (go_template(find_template(name, builtin), TOKENS).source(), chat)
        for name in EXPRESSED
        for chat in every_chat()
    ][:: 1 if FULL else 9]
    results = ollama.run_in_go(cases, tmp_path)
    for (source, chat), result in zip(cases, results, strict=True):
        assert theirs(source, chat) == result.get("text"), (chat, result)
    errors = {result["error"].split("<slice ")[1].split(">")[0] for result in results if "error" in result}
    # The notes that a user of Ollama reads.
    assert {error[:13] for error in errors} == {'"no such role', '"wrong order"', '"no question"'}
