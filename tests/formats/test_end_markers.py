"""The end marker: the part of a closing that the rule selects, and the end markers of published templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from testkit.published import CALL, OWN, TRL, Published, assistant, conversation, published, user

from templatekit import Example, RecordError, Template, TemplateError, TemplateFile
from templatekit.types import SpecialTokens

GOLDEN = Path(__file__).parent.parent / "golden" / "end-markers.txt"
TOKENS = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>", "<end>", "<end>x", "<open>", "<call>"}))
TURN = conversation(user("q"), assistant("a"))


def made(closing: str, *, last: str = "", opening: str = "", comment: str = "") -> Template:
    """A template that writes `closing` after every answer, and `last` after the last one."""
    return Template(
        TemplateFile(
            name="made",
            source=comment
            + opening
            + "{% for m in messages %}{% if m.role == 'user' %}<open>{{ m.content }}{% else %}A{{ m.content }}"
            + closing
            + ("{% if loop.last %}" + last + "{% endif %}" if last else "")
            + "{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}",
        ),
        strict=False,
    )


def marker(template: Template, example: Example = TURN, tokens: SpecialTokens = TOKENS) -> str:
    rendered = template.render(example, tokens)
    last = rendered.target_spans[-1]
    return rendered.text[last.marker_start : last.end]


@pytest.mark.parametrize(
    ("closing", "last", "expected"),
    [
        ("<end>", "", "<end>"),
        (" bye.<end>\n", "", " bye.<end>"),
        ("<end>\n", "</s>", "<end>"),  # as Phi-3
        ("", "</s>", "</s>"),
        ("<call><end></s>", "", "<call><end></s>"),  # as DeepSeek's and LFM2's tool calls
        ("<call><end>\n", "</s>", "<call><end>"),
        ("<end>x\n", "</s>", "<end>x"),  # the longest token, not the token within it
        ("<end>", "x</s>", None),  # a user's turn replaces another token
        ("<end><open>", "", "<end>"),  # as Llama 3, which always asks for the next answer
        ("<end>\n<open>A", "</s>", "<end>"),
    ],
)
def test_special_tokens(closing: str, last: str, expected: str | None) -> None:
    template = made(closing, last=last)
    if expected is None:
        with pytest.raises(TemplateError, match="leaves open what ends an answer; found '<end>x</s>' after it"):
            marker(template)
        return
    assert marker(template) == expected


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("</s>", "<call><end></s>"), ("<end>", "<call><end>"), ("<call>", "<call>"), ("<other>", "<call><end></s>")],
)
def test_a_stop_text_decides(stop: str, expected: str) -> None:
    closing = "<call><end></s>"
    assert marker(made(closing, comment=f"{{# templatekit\nstop: ['{stop}'] #}}")) == expected
    assert marker(made(closing).ended_by(stop)) == expected
    named = made(closing, comment="{# templatekit\nstop: ['<call>'] #}")
    assert marker(named.ended_by(stop)) == expected  # the option overrides the metadata
    assert marker(named) == "<call>"


def test_a_stop_text_that_is_no_token() -> None:
    assert marker(made("\n\n### End\nmore</s>").ended_by("### End")) == "\n\n### End"


@pytest.mark.parametrize("closing", ["", "\n", " bye."])
def test_an_unclear_end_is_an_error(closing: str) -> None:
    with pytest.raises(TemplateError) as caught:
        marker(made(closing))
    for hint in ("--end-marker TEXT", "--end-marker none", 'stop: ["..."]', "end_marker: none", "{{ eos_token }}"):
        assert hint in str(caught.value)
    assert marker(made(closing).ended_by("none")) == ""
    assert marker(made(closing, comment="{# templatekit\nend_marker: none #}")) == ""
    with pytest.raises(TemplateError, match=r"expected '<open>'; name the text that ends it"):
        marker(made(closing).ended_by("<open>"))
    assert marker(made("<end>").ended_by("none")) == "<end>"


QUOTED = "{{ m.content | tojson }}"
DOUBLED = "{{ (m.content ~ m.content) | upper | tojson }}"


@pytest.mark.parametrize("printed", [QUOTED, DOUBLED])
def test_what_a_template_makes_of_an_empty_answer_belongs_to_it(printed: str) -> None:
    """`tojson` prints two quotes that come from no character of the data; the marker is found behind them."""
    source = made("<end>").original.replace("A{{ m.content }}", f"A{printed}")
    template = Template(TemplateFile(name="made", source=source), strict=False)
    empty = conversation(user("q"), assistant(""))
    assert marker(template, empty) == marker(template) == "<end>"
    [target] = template.render(empty, TOKENS).target_spans
    rendered = template.render(empty, TOKENS)
    assert rendered.text[target.start : target.end] == '""<end>'
    longer = conversation(user("q"), assistant(""), user("r"), assistant("a"))
    assert [len(sample.rendered.target_spans) for sample in template.samples(longer, TOKENS)] == [2]


UNENDED = "{% if m.content != 'odd' and not m.tool_calls %}<end>{% endif %}"


@pytest.mark.parametrize("answer", [assistant("odd"), assistant("", tool_calls=(CALL,))])
def test_an_end_that_one_answer_leaves_open_is_an_error_of_its_row(answer: Any) -> None:
    """The template ends other answers, so that other rows can be used."""

    def with_calls(closing: str) -> Template:
        call = "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
        source = made(closing).original.replace("A{{ m.content }}", f"A{call}")
        return Template(TemplateFile(name="made", source=source), strict=False)

    row = conversation(user("q"), answer)
    with pytest.raises(
        RecordError, match="leaves open what ends this answer, though it ends others; found ''"
    ) as caught:
        with_calls(UNENDED).samples(row, TOKENS)
    assert (caught.value.reason, caught.value.field) == ("no_end_marker", "messages[1]")
    assert marker(with_calls(UNENDED)) == "<end>"
    with pytest.raises(TemplateError, match="leaves open what ends an answer"):  # negative control: it ends none
        with_calls("").samples(row, TOKENS)


def test_special_tokens_of_data_end_nothing() -> None:
    """A closing is the template's own text: up to the first character of another origin."""
    source = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ messages[0].content }}{% endif %}"
    source += "{% endfor %}"
    template = Template(TemplateFile(name="made", source=source), strict=False)
    with pytest.raises(TemplateError, match="leaves open"):
        template.render(conversation(user("</s>"), assistant("a")), TOKENS)


def test_an_earlier_turn_that_ends_otherwise_is_a_sample_of_its_own() -> None:
    """As in gpt-oss: the last answer ends with one token, earlier answers with another."""
    template = made("{% if not loop.last %}<end>{% endif %}", last="</s>")
    example = conversation(user("q"), assistant("a"), user("r"), assistant("b"))
    trained = [
        sample.rendered.text[target.marker_start : target.end]
        for sample in template.samples(example, TOKENS)
        for target in sample.rendered.target_spans
    ]
    assert trained == ["</s>", "</s>"]


def ending(chat: Published, example: Example) -> str:
    """The closing with a bar after its marker, or why there is none."""
    try:
        rendered = chat.template.samples(example, chat.tokens)[-1].rendered
    except RecordError as error:
        return f"({error.reason})"
    except TemplateError as error:
        return "(open)" if "leaves open" in str(error) else "(fails)"
    if not rendered.target_spans:
        return "(no block)"
    last = rendered.target_spans[-1]
    return repr(f"{rendered.text[last.marker_start : last.end]}⟧{rendered.text[last.end :]}")


def test_published_templates_end_markers(update_golden: bool, tokenizer_of: Any) -> None:
    """A table: for each template the end marker and the text after it, for an answer, reasoning and a tool call."""
    if not TRL:
        pytest.skip("trl is not installed")
    answer = conversation(user("Q?"), assistant("A."))
    thought = conversation(user("Q?"), assistant("A.", reasoning="Hm."))
    call = conversation(user("Q?"), assistant("", tool_calls=(CALL,)), tools=True)
    lines = []
    for name in [*TRL, *OWN]:
        chat = published(name, tokenizer_of)
        lines.append(" | ".join([name, *(ending(chat, example) for example in (answer, thought, call))]))
    table = "\n".join(lines) + "\n"
    if update_golden:
        GOLDEN.write_text(table, encoding="utf-8")
    assert table == GOLDEN.read_text(encoding="utf-8")
