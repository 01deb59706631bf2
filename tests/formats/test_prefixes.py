"""One rendering gives the texts of every beginning of a conversation, for the templates for which that is so."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import jinja2
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from testkit.budget import budget
from testkit.odd_templates import TOKENS, conversations, templates
from testkit.published import OWN, TRL, published

from templatekit import Example, Template, TemplateFile, TemplatekitError
from templatekit.formats import prefixes
from templatekit.formats.environment import plain_environment
from templatekit.formats.prefixes import PrefixTemplate
from templatekit.formats.sandbox.untrusted import UntrustedTemplate
from templatekit.hooks.loading import create_registry

LOOP = "{{% for m in messages %}}{}{{% endfor %}}{}"
BUNDLED = {name: file.source for name, file in create_registry().templates.items() if "messages" in file.source}


def check(source: str, example: Example) -> bool:
    """Compare the texts of all beginnings with their own renderings; return whether there are any."""
    environment = plain_environment()
    found = PrefixTemplate.of(environment, source)
    if found is None:
        return False
    messages = [{"role": message.role, "content": message.content} for message in example.messages]
    variables: dict[str, Any] = {"messages": messages, "bos_token": "<s>", "eos_token": "</s>"}
    template = environment.from_string(source)
    try:
        texts = found.texts(environment.from_string(found.tree).render, variables)
    except (jinja2.TemplateError, TypeError, ValueError):
        return False
    if texts is None:
        return False
    for count in range(texts.fewest, len(messages) + 1):
        for prompt in (False, True):
            beginning = {**variables, "messages": messages[:count], "add_generation_prompt": prompt}
            assert texts.text(count, prompt) == template.render(**beginning)
    return True


@pytest.mark.parametrize("name", [*BUNDLED, *TRL, *OWN])
@settings(max_examples=budget(8))
@given(example=conversations())
def test_beginnings_of_published_templates(name: str, example: Example, tokenizer_of: Any) -> None:
    source = BUNDLED.get(name) or published(name, tokenizer_of).source
    event(f"{name}: {check(source, example)}")


@settings(max_examples=budget(1200), suppress_health_check=list(HealthCheck))
@given(source=templates(), example=conversations())
def test_beginnings_of_generated_templates(source: str, example: Example) -> None:
    assume(check(source, example))


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "gemma3", "phi3", "zephyr", "llama2", "mistral-v7"])
def test_common_templates_need_one_rendering(name: str) -> None:
    assert PrefixTemplate.of(plain_environment(), BUNDLED[name]) is not None


REFUSED = {
    "the number of messages": LOOP.format("{{ m.content }}{% if messages | length > 3 %}!{% endif %}", ""),
    "the last message": LOOP.format("{{ m.content }}{% if messages[-1].content == 'b' %}!{% endif %}", ""),
    "the next message": LOOP.format("{{ m.content }}{% if loop.nextitem %}!{% endif %}", ""),
    "the number of rounds": LOOP.format("{{ m.content }}{{ loop.revindex }}", ""),
    "the loop by another name": LOOP.format("{% set l = loop %}{{ m.content }}{{ l.length }}", ""),
    "an item of the loop": LOOP.format("{{ m.content }}{{ loop['length'] }}", ""),
    "all messages before them": "{{ messages | map(attribute='content') | join }}" + LOOP.format("{{ m.content }}", ""),
    "another list of them": "{% set found = messages | list %}{{ found | length }}"
    + LOOP.format("{{ m.content }}", ""),
    "a condition on them": "{% set rest = messages[1:] if messages | length > 3 else messages %}"
    "{% for m in rest %}{{ m.content }}{% endfor %}",
    "two loops": LOOP.format("{{ m.content }}", "") * 2,
    "a filtered loop": "{% for m in messages if m.content %}{{ m.content }}{% endfor %}",
    "a break": LOOP.format("{% if m.content == 'b' %}{% break %}{% endif %}{{ m.content }}", ""),
    "the prompt within": LOOP.format("{{ m.content }}{% if add_generation_prompt %}!{% endif %}", ""),
    "a count beside the end": "{% set ns = namespace(n=0) %}"
    + LOOP.format("{% set ns.n = ns.n + 1 %}{{ ns.n }}{% if loop.last %}!{% endif %}", ""),
    "a count after them": "{% set ns = namespace(n=0) %}" + LOOP.format("{{ ns.n }}", "{% set ns.n = 1 %}"),
    "a name set within": "{% set x = 'a' %}" + LOOP.format("{% set x = m.content %}", "{{ x }}"),
    "the name of the message": "{% set m = 'a' %}" + LOOP.format("{{ m.content }}", "{{ m }}"),
    "the middle of them": LOOP.format("{{ m.content }}{{ messages[1:2][0].content }}", ""),
    "another value of the message": LOOP.format("{% set m = {'role': 'a'} %}", "{{ messages[-1].role }}"),
    "a joiner": "{% set comma = joiner() %}" + LOOP.format("{{ comma() }}{{ m.content }}{{ loop.last }}", ""),
    "a macro": "{% macro f() %}{{ messages | length }}{% endmacro %}" + LOOP.format("{{ m.content }}{{ f() }}", ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_template_that_looks_further_is_rendered_beginning_by_beginning(what: str) -> None:
    assert PrefixTemplate.of(plain_environment(), REFUSED[what]) is None


ACCEPTED = {
    "the first message": "{% set given = messages[0].role == 'system' %}"
    "{% for m in (messages[1:] if given else messages) %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "the last message after the loop": LOOP.format(
        "{{ m.content }}", "{% if messages[-1].role == 'user' %}A{% endif %}"
    ),
    "the end of the loop": LOOP.format("{% set c = m.content %}{% set c = c ~ c %}{{ c }}{{ loop.last }}", ""),
    "a count": "{% set ns = namespace(n=0) %}" + LOOP.format("{% set ns.n = ns.n + 1 %}{{ ns.n }}", "{{ ns.n }}"),
    "a loop within": LOOP.format("{% for c in m.content %}{{ c }}{{ loop.last }}{% endfor %}{{ loop.last }}", ""),
    "the prompt": LOOP.format(
        "{{ m.content }}", "{{ 'A' if add_generation_prompt is defined and add_generation_prompt }}"
    ),
    "the third message": LOOP.format("{{ m.content }}{{ messages[2].content }}", ""),
}


def test_an_expression_stays_one_until_its_cost_is_counted() -> None:
    """With a constant for `loop.last`, Jinja would compute it while it compiles."""
    found = PrefixTemplate.of(plain_environment(), LOOP.format("{{ 'ab' * (9 if loop.last else 1) }}", "{{ 'c' * 9 }}"))
    assert found is not None
    code = str(plain_environment().compile(found.tree, raw=True))
    assert "ab" in code and "abab" not in code
    assert "ccc" in code  # negative control: this one was constant before


@pytest.mark.parametrize("what", ACCEPTED)
@settings(max_examples=budget(40))
@given(example=conversations())
def test_what_a_template_may_look_at(what: str, example: Example) -> None:
    assert PrefixTemplate.of(plain_environment(), ACCEPTED[what]) is not None
    check(ACCEPTED[what], example)


@pytest.mark.parametrize("what", ["a count after them", "the prompt within", "a name set within"])
def test_without_the_conditions_the_property_fails(what: str) -> None:
    """Negative control."""

    @given(example=conversations())
    def compare(example: Example) -> None:
        check(REFUSED[what], example)

    with patch.object(prefixes, "_is_independent", lambda *_: True), pytest.raises(AssertionError):
        compare()


@settings(max_examples=budget(300), suppress_health_check=list(HealthCheck))
@given(source=st.sampled_from(sorted(BUNDLED.values())) | templates(), example=conversations())
def test_untrusted_templates_find_the_same_turns(source: str, example: Example) -> None:
    """Their plain texts are metered, and come from another environment."""
    found: list[Any] = []
    for kind in (Template, UntrustedTemplate):
        try:
            found.append(kind(TemplateFile(name="made", source=source), strict=False).samples(example, TOKENS))
        except TemplatekitError as error:
            found.append(str(error))
    assert found[0] == found[1]
