"""Generated templates with odd conditions, compared with two renderings by transformers of each turn alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from testkit.budget import LONG, budget
from testkit.odd_templates import Wrong, check, conversations, made, templates
from testkit.published import assistant, user

from templatekit import Example, TemplateError
from templatekit.formats.rendering import Rendering
from templatekit.formats.tracing import trace_tree
from templatekit.formats.turns import Conversation, _ServedTurn


@settings(max_examples=20_000 if LONG else budget(400), suppress_health_check=list(HealthCheck))
@given(source=templates(), record=st.booleans(), data=st.data())
def test_28_generated_templates_train_each_turn_as_it_is_served(source: str, record: bool, data: st.DataObject) -> None:
    try:
        template = made(source)
    except TemplateError:
        event("refused as a template")
        return
    with patch.object(trace_tree, "RECORD_EVERY", 1 if record else 1_000):
        for _ in range(20 if LONG else 4):
            example = data.draw(conversations())
            event(check(source, template, example))
            if record:  # the second time by the trace that the first has recorded
                check(source, template, example)


@contextmanager
def guessed_middle_turns() -> Iterator[None]:
    """A product that takes the turns between the first and the last for such as they stand in the whole text."""
    asked = Conversation._served_turn

    def guessed(self: Conversation, turn: int, longer: Rendering) -> _ServedTurn:
        first, last = self._turns[0], self._turns[-1]
        if turn in (first, last) or turn in self._served or self._messages[turn].content != "x":
            return asked(self, turn, longer)
        own = longer.own_range(turn)
        before = asked(self, first, longer)
        if own is None or not before.targets or before.text is None:
            return asked(self, turn, longer)
        marker = before.targets[0].end - before.targets[0].marker_start
        start = longer.text.rindex("A ", 0, own[0]) + 2
        target = replace(before.targets[0], message=turn, start=start, marker_start=own[1], end=own[1] + marker)
        self._served[turn] = _ServedTurn(longer.text[: target.end], (target,))
        return self._served[turn]

    with patch.object(Conversation, "_served_turn", guessed):
        yield


ODD = {
    "the last message asks for no thoughts": ("prompt", "'/no_think' in messages[-1].content", "q /no_think"),
    "the length of the prompt": ("prompt", "messages | length == 5", "q"),
    "the length of the last text": ("prompt", "messages[-1].content | length > 3", "quite"),
    "the last text is one": ("prompt", "messages[-1].content == 'one'", "one"),
    "the first letter": ("prompt", "messages[-1].content[:1] == 'Q'", "Question"),
    "capitals": ("prompt", "messages[-1].content is upper", "QUITE"),
    "a number": ("prompt", "messages[-1].content | int > 5", "12"),
    "the message before the last": ("prompt", "messages | length > 3 and messages[-3].content == 'one'", "q"),
    "the turn's number": ("prompt", "messages | selectattr('role', 'equalto', 'user') | list | length == 3", "q"),
    "the last answer is long": ("end", "loop.last and loop.length == 6", "q"),
    "the question of the last answer": ("end", "loop.last and loop.previtem.content is upper", "QUITE"),
}
"""Where a template does something odd, on which condition, and the third question that meets it."""


def odd_template(place: str, condition: str) -> str:
    prompt = f"{{% if {condition} %}}<think>{{% endif %}}" if place == "prompt" else ""
    end = f"{{% if {condition} %}}!{{% endif %}}" if place == "end" else ""
    return (
        "{% for m in messages %}{% if m.role == 'user' %}U {{ m.content }}\n{% else %}"
        f"A {end}{{{{ m.content }}}}</s>{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}A {prompt}{{% endif %}}"
    )


def odd_example(question: str) -> Example:
    """Five turn pairs, of which the third has the question; the first is `one` to be found two turns later."""
    questions = ["p", "one" if question == "q" else "p", question, "p", "p"]
    return Example(messages=tuple(m for text in questions for m in (user(text), assistant("x"))))


@pytest.mark.parametrize("what", ODD)
def test_a_middle_turn_that_depends_on_its_content_or_number(what: str) -> None:
    place, condition, question = ODD[what]
    source = odd_template(place, condition)
    found = check(source, made(source), odd_example(question))
    assert found in ("prompt_is_no_prefix", "2 samples", "3 samples or more")


@pytest.mark.parametrize("what", ODD)
def test_the_oracle_notices_middle_turns_that_are_guessed(what: str) -> None:
    """Negative control."""
    place, condition, question = ODD[what]
    source = odd_template(place, condition)
    with guessed_middle_turns(), pytest.raises(Wrong):
        check(source, made(source), odd_example(question))
