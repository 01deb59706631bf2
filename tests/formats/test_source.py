"""A template's source before it runs: its errors by name, its metadata, and the guard around the response."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.published import TRL, source_of

from templatekit import (
    Example,
    Message,
    RecordError,
    Template,
    TemplateError,
    TemplateFile,
    load_template,
    template_files,
)
from templatekit.config.text_files import MAX_BYTES
from templatekit.formats.metadata import TemplateMetadata, read_metadata
from templatekit.formats.sandbox.untrusted import UntrustedTemplate
from templatekit.formats.source import check_source
from templatekit.types import SpecialTokens

TOKENS = SpecialTokens(bos="<BOS>", eos="<EOS>", special=frozenset({"<BOS>", "<EOS>"}))

EXAMPLE = Example(messages=(Message(role="user", content="Q"), Message(role="assistant", content="A")))


def template(source: str, *, strict: bool = True) -> Template:
    return Template(TemplateFile(name="tried", source=source), strict=strict)


ERRORS = {
    "a syntax error": (
        "first\n{% if x %}\n{{ response }",
        "template 'tried', line 3: unexpected '}'; found '{{ response }'",
    ),
    "an unknown tag": ("{% nosuch %}{{ response }}", "line 1: Encountered unknown tag 'nosuch'."),
    "an unclosed block": ("{% if context %}{{ response }}", "line 1: Unexpected end of template."),
    "an unknown filter": ("{{ instruction | uper }}{{ response }}", "line 1: No filter named 'uper'.; found"),
    "an unknown test": (
        "{% if context is nosuch %}{% endif %}{{ response }}",
        "line 1: TemplateRuntimeError: No test named 'nosuch' found.",
    ),
    "a misspelt variable": (
        "{{ instruction }}\n{{ instructoin }}{{ response }}",
        "line 2: unknown variable 'instructoin'; did you mean 'instruction'?; an instruction template receives "
        "system, instruction, context, response, bos_token, eos_token, pad_token, unk_token, sep_token, "
        "add_generation_prompt",
    ),
    "a variable of another kind": (
        "{{ messages[0].content }}{{ response }}",
        "line 1: unknown variable 'response'; known: add_generation_prompt, bos_token, documents, eos_token, messages, "
        "pad_token, sep_token, tools, unk_token; a chat template receives messages, tools, documents",
    ),
    "no response": (
        "{{ instruction }}",
        "template 'tried': nothing to train: it reads neither `response` nor `messages`; "
        "write {{ response }} where the answer belongs",
    ),
    "an empty file": ("", "nothing to train"),
    "a response used twice": (
        "{{ instruction }}\n{{ response }}\n{{ response }}",
        "uses `response` 2 times, on lines 2, 3; use it once, or guard it: {% if not add_generation_prompt %}",
    ),
    "a response in a block": (
        "{{ instruction }}{% if context %}{{ response }}{% endif %}",
        "line 1: `response` stands inside a block, so where the prompt ends depends on the data; move it to the top "
        "level, or guard it",
    ),
    "a response that is only set": ("{% set x = response %}{{ instruction }}{{ x }}", "stands inside a block"),
    "a response before the instruction": (
        "{{ response }}{{ instruction }}{{ eos_token }}",
        "the response must be printed once, after all other fields; found response, instruction",
    ),
    "a response that is never printed": (
        "{{ instruction }}{% if add_generation_prompt and response %}{% endif %}",
        "messages[1].content: template 'tried' has no place for this text of the assistant message",
    ),
    "a guarded response printed twice": (
        "{{ instruction }}{% if not add_generation_prompt %}{{ response }}|{{ response }}{% endif %}",
        "the response must be printed once, after all other fields; found instruction, response, response",
    ),
    "a prompt that is no prefix": (
        "{{ instruction }}{% if add_generation_prompt %}prompt{% else %}{{ response }}{% endif %}",
        "renders the conversation differently from the prompt a server would feed before it; from character 11 the "
        "prompt is 'prompt' and the text is 'response'",
    ),
    "a refusal of everything": ("{{ raise_exception('no') }}{{ response }}", "template 'tried' refuses: no"),
    "a constant that cannot be printed": ("{{ none }}{{ instruction }}{{ response }}", "the template prints None"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_source(name: str) -> None:
    source, words = ERRORS[name]
    with pytest.raises(TemplateError) as caught:
        template(source)
    assert words in str(caught.value)
    assert "'tried'" in str(caught.value)


def test_names_that_the_template_tests_are_no_error() -> None:
    source = "{% if mood is defined %}{{ mood }}{% endif %}{{ tone | default('calm') }}{{ instruction }}{{ response }}"
    assert template(source).kind == "instruction"


SET = "{% for m in messages %}{% if m.content %}{% set text = m.content %}{% endif %}{{ text }}{% endfor %}"
OPTION = "{% if not add_vision_id and messages %}{{ add_vision_id or '' }}{% endif %}{{ messages[0].content }}"


@pytest.mark.parametrize("source", [SET, OPTION])
def test_names_set_in_a_branch_and_options_are_no_error(source: str) -> None:
    assert template(source).kind == "chat"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (SET.replace("{{ text }}", "{{ texts }}"), "texts"),
        (OPTION.replace("and messages", "and mesages"), "mesages"),
        (OPTION.replace("{{ add_vision_id or '' }}", "{{ add_vision_ids }}"), "add_vision_ids"),
        ("{% if input %}{{ input }}{% endif %}{{ instruction }}{{ response }}", "input"),
    ],
)
def test_misspelt_names_beside_them_are_still_found(source: str, name: str) -> None:
    with pytest.raises(TemplateError, match=f"unknown variable '{name}'"):
        template(source)


@pytest.mark.parametrize("name", TRL)
def test_a_published_template_is_taken_as_a_file(name: str) -> None:
    """It is checked as strictly as a user's own file, since models come with a `chat_template.jinja`."""
    assert template(source_of(name), strict=True).kind == "chat"


def test_a_tokenizers_own_template_may_read_anything() -> None:
    assert template("{{ enable_thinking }}{{ messages[0].content }}", strict=False).kind == "chat"


def test_functions_and_globals_are_known_names() -> None:
    source = (
        "{% set ns = namespace(x=1) %}{% for i in range(2) %}{{ strftime_now('') }}{% endfor %}"
        "{{ instruction }}{{ response }}"
    )
    assert template(source).variables == {"instruction", "response"}


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"template file '.*none\.jinja' cannot be read: .*No such file"):
        load_template(str(tmp_path / "none.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xff{{ response }}")
    with pytest.raises(TemplateError, match="cannot be read: 'utf-8' codec"):
        load_template(str(tmp_path / "latin.jinja"))


def test_a_template_is_a_regular_file_of_bounded_size(tmp_path: Path) -> None:
    """A pipe may have no writer, so that reading it never ends; a device ends never."""
    path = tmp_path / "odd.jinja"
    os.mkfifo(path)
    expected = "found a pipe, a socket or a device; expected a regular file"
    for read in (lambda: load_template(str(path)), lambda: template_files(tmp_path)):
        with pytest.raises(TemplateError, match=f"odd.jinja' cannot be read: {expected}"):
            read()
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(TemplateError, match=expected):
        load_template(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(TemplateError, match="found a folder; expected a file"):
        load_template(str(path))
    path.rmdir()
    source = "{{ instruction }}{{ response }}"
    path.write_text(source + "é" * (MAX_BYTES // 2))
    with pytest.raises(TemplateError, match=r"found 1,000,031 bytes; expected at most 1,000,000"):
        load_template(str(path))
    (tmp_path / "real").write_text(source)
    path.unlink()
    path.symlink_to("real")  # a link to a file is one
    assert load_template(str(path)).original == template_files(tmp_path)[0].source == source


def test_line_endings_do_not_matter() -> None:
    unix = "{#- templatekit\nstop: [x]\n#}\nA\n{{ instruction }}\n\nB: {{ response }}\n"
    for ending in ("\r\n", "\r"):
        other = template(unix.replace("\n", ending))
        assert other.source == template(unix).source
        assert other.metadata == TemplateMetadata(stop=("x",))


@pytest.mark.parametrize("start", ["\ufeff", "\ufeff\ufeff", "\n\ufeff", "\ufeff\n", "\ufeff \r\n\t", "\n\n", " "])
def test_a_byte_order_mark_and_blank_lines_before_the_metadata(start: str, tmp_path: Path, worker: object) -> None:
    """Templates of plugins, from files and of tokenizers, in this process and in the worker."""
    comment = "{#- templatekit\nstop: [x]\n#}\n"
    for source in ("A{{ instruction }}B{{ response }}x", "A{{ instruction }}{{ '-' * 2 }}B{{ response }}x"):
        expected = template(comment + source).render(EXAMPLE)
        (tmp_path / "tried.jinja").write_bytes((start + comment + source).encode())
        file = TemplateFile(name="tried", source=start + comment + source)
        found = [
            template(start + comment + source),
            load_template(str(tmp_path / "tried.jinja")),
            UntrustedTemplate(file),
        ]
        for other in (*found, Template(template_files(tmp_path)[0])):
            assert other.metadata == TemplateMetadata(stop=("x",))
            assert other.render(EXAMPLE) == expected
            assert "\ufeff" not in other.original + other.source


def test_a_byte_order_mark_is_removed_from_the_start_alone() -> None:
    source = "\ufeff\n{{ instruction }}\ufeff{{ response }}"
    assert template(source).render(EXAMPLE).text == "\nQ\ufeffA"
    assert TemplateFile(name="t", source=" \n{{ response }}").source == " \n{{ response }}"


METADATA = {
    "a wrong key": ("stopp: x", "template 'tried', leading comment: unknown option 'stopp'; did you mean 'stop'?"),
    "a wrong type": ("stop: '### End'", "leading comment: stop: found '### End'; expected a valid tuple"),
    "a wrong choice": (
        "end_marker: never",
        "leading comment: end_marker: found 'never'; expected 'required' or 'none'",
    ),
    "not YAML": ("stop: [", "the leading comment is not YAML"),
    "not a mapping": ("- a\n- b", "must hold `key: value` lines; found ['a', 'b']"),
    "keys that are no names": ("1: x", "leading comment: unknown option '1'"),
    "aliases, which may stand for gigabytes": ("stop: &a [x]\ndescription: *a", "aliases are not taken here"),
    "a key twice": ("stop: [x]\nstop: [y]", "the leading comment is not YAML: found key 'stop' twice"),
    "an inner key twice": ("capabilities: {system: true, system: false}", "found key 'system' twice"),
    "endless nesting": ("[" * 5_000, "the leading comment is not YAML"),
}


@pytest.mark.parametrize("name", METADATA)
def test_wrong_metadata(name: str) -> None:
    body, words = METADATA[name]
    with pytest.raises(TemplateError) as caught:
        template("{#- templatekit\n" + body + "\n#}\n{{ instruction }}{{ response }}")
    assert words in str(caught.value)


@pytest.mark.parametrize("opening", ["{#", "{#-", "{#- ", "{#+"])
@pytest.mark.parametrize("closing", ["#}", "-#}"])
def test_metadata_is_read_from_a_leading_comment_alone(opening: str, closing: str) -> None:
    comment = f'{opening} templatekit\ndescription: Nice.\nstop: ["### End"]\n{closing}'
    assert read_metadata(comment + "x", "n") == TemplateMetadata(description="Nice.", stop=("### End",))
    assert read_metadata("\n \n" + comment + "x", "n") == read_metadata(comment, "n")
    assert read_metadata("x" + comment, "n") == TemplateMetadata()
    assert read_metadata("{# a comment #}" + comment, "n") == TemplateMetadata()
    assert read_metadata(f"{opening} templatekit {closing}", "n") == TemplateMetadata()
    dated = read_metadata(f"{opening} templatekit\ndescription: 2024-13-45 {closing}", "n")
    assert dated.description.strip() == "2024-13-45"
    assert read_metadata(f"{opening} templatekits are nice {closing}", "n") == TemplateMetadata()


@given(st.text(max_size=40))
def test_any_leading_comment_is_read_or_refused(body: str) -> None:
    with contextlib.suppress(TemplateError):
        read_metadata("{# templatekit " + body + " #}x", "n")


def plain(source: str, **variables: str) -> str:
    """Jinja's own rendering of the unguarded source."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(eos_token="<EOS>", bos_token="<BOS>", **variables)


GUARDED = {
    "end": "A {{ instruction }}\nB: {{ response }}",
    "trailing newlines": "A {{ instruction }}\nB: {{ response }}\n\n\n",
    "text after it": "A {{ instruction }}\n\nB:\n{{ response }}\n\n### End\n",
    "strips left": "A {{ instruction }}\n\nB:   \n\n {{- response }}{{ eos_token }}",
    "strips right": "A {{ instruction }} B: {{ response -}} \n\n {{ eos_token }}\n",
    "strips both": "A {{ instruction }} B: {{- response -}} C\n",
    "block before": "{% if context %}{{ context }}\n{% endif %}{{ instruction }}\n  {{ response }}",
    "block behind": "{{ instruction }}\n{{ response }}\n{% if true %}\nend\n{% endif %}\n",
    "space before": "{{ instruction }} \n   {{ response }}",
    "expression": "{{ instruction }}:{{ 'a' ~ response ~ 'b' }}|",
    "filter": "{{ instruction }}:{{ response | trim }}|",
    "text in quotes": "{{ 'response' }}{{ instruction }}{{ \"response\" ~ response }}",
    "an attribute of that name": "{{ context.response }}{{ instruction }}\n{{ response }}{{ eos_token }}",
    "raw block": "{% raw %}{{ response }}{% endraw %}{{ instruction }}{{ response }}",
    "comment": "{# {{ response }} #}{{ instruction }}\n{# response #}\n{{ response }} {# end #}\n",
    "same line": "{% if context %}x{% endif %}{{ instruction }}{% if context %}y{% endif %}{{ response }}",
    "blank lines stripped before": "{{ instruction }}\n\n{%- if context %}z{% endif %}\n\n\n{{ response }}",
}
FIELDS = st.text(st.sampled_from("ab \n<#{%-"), max_size=6)


@pytest.mark.parametrize("name", GUARDED)
@given(instruction=FIELDS, context=FIELDS, response=FIELDS)
def test_the_guard_changes_no_text_and_cuts_before_the_response(
    name: str, instruction: str, context: str, response: str
) -> None:
    source = GUARDED[name]
    guarded = check_source(source, name).text
    whole = plain(source, instruction=instruction, context=context, response=response)
    assert plain(guarded, instruction=instruction, context=context, response=response) == whole
    prompt = plain(guarded, instruction=instruction, context=context, response=response, add_generation_prompt="yes")
    mark = "\U0001f9ea"
    marked = plain(source, instruction=instruction, context=context, response=mark + response)
    before = marked.index(mark)
    own = {"expression": "a", "text in quotes": "response"}.get(name, "")
    assert prompt == marked[: before - len(own)]


def test_a_template_with_its_own_guard_is_left_alone() -> None:
    source = "{{ instruction }}{% if not add_generation_prompt %}{{ response }}{% endif %}"
    assert check_source(source, "n").text == source


def test_the_guard_check_notices_a_cut_in_the_wrong_place() -> None:
    wrong = "A {{ instruction }}\n{% if not add_generation_prompt %}B: {{ response }}{% endif %}"
    prompt = plain(wrong, instruction="i", context="", response="r", add_generation_prompt="yes")
    assert prompt != plain(GUARDED["end"], instruction="i", context="", response="")


FRAGMENTS = [
    *"{}%#-+ \n.'|~(",
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{# ",
    " #}",
    "response",
    "instruction",
    "messages",
    "if ",
    "else",
    "endif",
    "for x in ",
    "endfor",
    "set x = ",
    "macro f(x)",
    "endmacro",
    "raw",
    "endraw",
    "none",
    "1",
    "loop",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), st.booleans())
def test_any_source_is_taken_or_refused(source: str, response: bool) -> None:
    try:
        taken = template(source + "{{ instruction }}{{ response }}" * response)
    except TemplateError:
        return
    example = Example(messages=(Message(role="user", content="i"), Message(role="assistant", content="r")))
    try:
        assert taken.render(example).text
    except RecordError as error:
        assert error.reason in ("no_place_for_field", "template_failed", "prompt_is_no_prefix"), error


EMPTY_END = "{{ instruction }}{% if not add_generation_prompt %}{{ response }}{% endif %}"


def test_a_template_without_an_end_is_refused_by_name_where_a_tokenizer_is_known() -> None:
    example = Example(messages=(Message(role="user", content="i"), Message(role="assistant", content="r")))
    with pytest.raises(TemplateError, match="template 'tried' leaves open what ends an answer; found '' after it"):
        template(EMPTY_END).render(example, TOKENS)
    assert template(EMPTY_END).render(example).target_spans[0].end == 2
    open_ended = template("{# templatekit\nend_marker: none #}" + EMPTY_END)
    assert open_ended.render(example, TOKENS).target_spans[0].end == 2
