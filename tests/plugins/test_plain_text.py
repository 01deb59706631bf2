"""The adapter `text` with the template `text`: plain text, all of which is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.look import Eye

from templatekit import Example, Message, RecordError, Registry, Tokenizer
from templatekit.export.serving import chat_template
from templatekit.formats.lookup import find_template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing import plain_text
from templatekit.types import SpecialTokens

Eyes = Callable[[str], Eye]


@given(text=st.text(max_size=20) | plain_text())
def test_all_of_it_is_trained_and_eos(text: str, builtin: Registry) -> None:
    template = find_template("text", builtin)
    example = builtin.adapters["text"].to_example({"text": text})
    try:
        rendered = template.render(example, SpecialTokens(eos="</s>"))
    except RecordError as error:
        assert error.reason == "bad_text"  # half a surrogate pair
        return
    assert rendered.text == f"{text}</s>"
    (target,) = rendered.target_spans
    assert (target.start, target.marker_start, target.end) == (0, len(text), len(text) + 4)


def test_every_token_but_the_first_is_trained(tokenizer: Tokenizer, builtin: Registry) -> None:
    """With BOS before it, the first token of the text is trained as well."""
    eye = Eye(tokenizer, builtin)
    seen = eye.one({"text": "The sea is salt."}, "text")
    assert seen.example.trained_tokens == len(seen.example) - 1
    assert seen.example.loss_weights[0] == 0
    special = tokenizer.special_tokens
    first = tokenizer.decode(seen.example.input_ids[:1])
    assert (first == special.bos) == special.adds_bos
    assert seen.text.endswith(special.eos)


def test_a_prompt_is_directly_followed_by_the_answer(eye_of: Eyes) -> None:
    seen = eye_of("gpt2").one({"prompt": "Once upon", "completion": " a time"}, "text")
    assert seen.text == "Once upon a time<|endoftext|>"
    assert seen.trained == [" a time<|endoftext|>"]


def test_a_server_continues_the_users_text(eye_of: Eyes, builtin: Registry) -> None:
    eye = eye_of("gpt2")
    pipeline = eye.pipeline("text")
    prompt = Example(messages=(Message(role="user", content="Once upon"),))
    assert eye.tokenizer.decode(pipeline.prompt_ids(prompt)) == "Once upon"
    assert "instruction" in chat_template(find_template("text", builtin), eye.tokenizer.special_tokens)


@pytest.mark.parametrize("template", ["alpaca", "dolly", "seed", "chapter7", "phi3-chapter7"])
def test_other_formats_of_one_turn_refuse_a_text_without_a_prompt(template: str, eye_of: Eyes) -> None:
    words = "found assistant; choose 'text' for texts without a prompt"
    with pytest.raises(RecordError, match=words) as caught:
        eye_of("gpt2").one({"text": "a"}, template)
    assert caught.value.reason == "not_one_turn"


def test_nothing_else_fits_plain_text(eye_of: Eyes, builtin: Registry) -> None:
    eye = eye_of("gpt2")
    records: list[tuple[list[tuple[str, str]], str]] = [
        ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], "not_one_turn"),
        ([("assistant", "b"), ("assistant", "b")], "not_one_turn"),
        ([("system", "s"), ("assistant", "b")], "no_place_for_field"),
        ([("user", "a")], "no_response"),
    ]
    for turns, reason in records:
        with pytest.raises(RecordError) as caught:
            eye.chat(turns, "text")
        assert caught.value.reason == reason


def test_there_is_no_prompt_to_serve(eye_of: Eyes, builtin: Registry) -> None:
    eye = eye_of("gpt2")
    pipeline: Pipeline = eye.pipeline("text")
    with pytest.raises(RecordError, match="no message comes before the answer"):
        pipeline.prompt_ids(builtin.adapters["text"].to_example({"text": "a"}))
