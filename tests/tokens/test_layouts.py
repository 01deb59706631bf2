"""Recipes: texts of one outline have the ids and weights that each has by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.by_hand import byte_tokenizer
from testkit.outlined import ANSWER, ROLE, USER, Filled, Outline, outline
from tokenizers import AddedToken, models, pre_tokenizers

from templatekit import Tokenizer, TokenizerError
from templatekit.testing.adversarial import adversarial_text
from templatekit.tokens import assembly
from templatekit.tokens import encoder as cuts
from templatekit.tokens import layouts as recipes
from templatekit.tokens import word_table as words
from templatekit.tokens.assembly import Assembler
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.fast_backend import reference
from templatekit.tokens.layouts import Recipe, Recipes
from templatekit.tokens.supervision import Losses, loss_spans
from templatekit.types import TEMPLATE

APART = ("bytes", "nfc", "sentencepiece", "metaspace", "strips")
TRAIN_ON = ("response", "content", "all", "response=0.5,user=0.1", "last=0.25")


def used(encoder: Encoder) -> list[Recipe]:
    assert encoder._assembler is not None
    return [recipe for recipe in encoder._assembler.known.values() if recipe is not None]


def alike(encoder: Encoder, texts: Sequence[Filled], train_on: str = "response") -> bool:
    """Whether texts by a recipe are what they are by themselves; the recipe is that of the first."""
    found: list[Any] = []
    for part in (texts[:1], texts[1:]):
        deferred = [filled.deferred() for filled in part]
        found += encoder.encode_columns([(text, Losses(text, train_on)) for text in deferred])
    whole = [filled.whole() for filled in texts]
    plain = Encoder(encoder.tokenizer, reuse=False)
    expected = plain.encode_batch([(text, loss_spans(text, train_on)) for text in whole])
    return found == expected


FIXED = (
    *("<|im_start|>", "<|im_end|>\n", "user", "### It:\n", "a b c", " ", "\n\n", "<|im_", "start|>", "| ", "</s>"),
    *("é", " x y "),
)


@st.composite
def outlines(draw: st.DrawFn) -> Outline:
    """Fixed and variable pieces in turns, halves of control tokens among the fixed ones."""
    fixed = st.lists(st.sampled_from(FIXED), max_size=3).map("".join)
    user, between, after = draw(fixed), draw(fixed), draw(fixed)
    pieces = [
        (user, TEMPLATE),
        (None, USER),
        (between, TEMPLATE),
        ("assistant", ROLE),
        (None, ANSWER),
        (after, TEMPLATE),
    ]
    return outline(*[(text, origin) for text, origin in pieces if text != ""])


_encoders: dict[tuple[str, int], Encoder] = {}
"""To load the quicker encoder takes a while."""


@pytest.mark.parametrize("worth", [1, 10**9], ids=["quicker at once", "never quicker"])
@pytest.mark.parametrize("name", APART)
@given(data=st.data())
def test_texts_of_an_outline_are_what_they_are_alone(
    tokenizer_of: Tokenizers, name: str, worth: int, data: st.DataObject
) -> None:
    tokenizer = tokenizer_of(name)
    encoder = _encoders.setdefault((name, worth), Encoder(tokenizer))
    given = data.draw(outlines())
    text = adversarial_text(tokenizer).filter(bool) | st.sampled_from(["a", " ", "x y", "start|>", "<|im_", "\n"])
    weights = data.draw(st.sampled_from([(1.0, 1.0), None]))
    given = replace(given, message_weights=weights)
    texts = data.draw(
        st.lists(
            st.builds(
                Filled,
                st.just(given),
                st.tuples(text, text),
                st.just((1.0, 1.0)) if weights else st.tuples(st.just(1.0), st.sampled_from([1.0, 0.5, 0.0])),
            ),
            min_size=1,
            max_size=5,
        )
    )
    assert encoder._assembler is not None
    encoder._assembler.words._worth = worth
    assert alike(encoder, texts, data.draw(st.sampled_from(TRAIN_ON)))


CHAT = outline(
    ("<|im_start|>user\n", TEMPLATE),
    (None, USER),
    ("<|im_end|>\n<|im_start|>assistant\n", TEMPLATE),
    (None, ANSWER),
    ("<|im_end|>", TEMPLATE),
)
PLAIN = outline(
    ("Below is an instruction.\n\n### Instruction:\n", TEMPLATE),
    (None, USER),
    ("\n\n### A long Response:\n", TEMPLATE),
    (None, ANSWER),
    ("</s>", TEMPLATE),
)


@pytest.mark.parametrize("given", [CHAT, PLAIN])
@pytest.mark.parametrize("name", APART)
def test_of_plain_texts_there_is_one_recipe(tokenizer_of: Tokenizers, name: str, given: Outline) -> None:
    encoder = Encoder(tokenizer_of(name))
    texts = [Filled(given, (f"What is {n}?", f"{n} is\n\n a  number.")) for n in range(5)]
    assert alike(encoder, texts)
    if name == "strips" and given is CHAT:
        assert not used(encoder)  # its control tokens take whitespace of the text
        return
    (recipe,) = used(encoder)
    assert recipe.cores(texts[0].texts)[-1].startswith(texts[0].variables[-1])


def test_a_core_reaches_to_the_nearest_seam(tokenizer_of: Tokenizers) -> None:
    encoder = Encoder(tokenizer_of("bytes"))
    assert alike(encoder, [Filled(PLAIN, ("x", "y"))] * 2)
    (recipe,) = used(encoder)
    assert recipe.cores(("", "1", "", "2", "")) == (" Instruction:\n1\n\n###", "2</s>")
    assert recipe.numbers.tolist().count(recipes.CORE) == 2
    assert len(recipe.numbers) == len(recipe.weights)


def test_each_weight_of_a_message_has_its_recipe(tokenizer_of: Tokenizers) -> None:
    encoder = Encoder(tokenizer_of("bytes"))
    given = replace(CHAT, message_weights=None)
    texts = [Filled(given, ("x", "y"), (1.0, weight)) for weight in (0.5, 0.25, 0.0, 0.5)]
    assert alike(encoder, texts)
    assert len(used(encoder)) == 3


def runs_of_blanks() -> Tokenizer:
    """With a token of two blanks."""
    vocabulary = {text: id for id, text in enumerate(["Ġ", "ĠĠ", *"ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(backend.to_str(), config={})


class Wrong(NamedTuple):
    """What goes wrong without a rule."""

    tokenizer: Tokenizer
    outline: Outline
    variables: list[tuple[str, ...]]
    without: Callable[[pytest.MonkeyPatch], None]


RULES = {
    "what looks like control goes another way": Wrong(
        byte_tokenizer(AddedToken("<think>", special=False)),
        outline((None, ANSWER), ("</s>", TEMPLATE)),
        [("y",), ("y <think> z",)],
        lambda patch: patch.setattr(Assembler, "_holds_control", lambda self, texts: False),
    ),
    "whitespace that a control token takes is fixed": Wrong(
        byte_tokenizer(AddedToken("<u>", special=True, rstrip=True)),
        outline(("<u>\n", TEMPLATE), (None, USER), ("A", TEMPLATE), (None, ANSWER)),
        [("x", "y"), (" x", "y")],
        lambda patch: patch.setattr(Recipes, "_is_fixed", lambda *_: True),
    ),
    "no variable counts as the template's": Wrong(
        byte_tokenizer(AddedToken("<<a>", special=True), AddedToken("x<<", special=True)),
        outline((None, TEMPLATE), ("<<a>", TEMPLATE), (None, ANSWER)),
        [("b", "y"), ("x", "y")],
        lambda patch: patch.setattr(recipes, "is_open", lambda outline: True),
    ),
    "a seam has a character on either side": Wrong(
        runs_of_blanks(),
        outline(("a  ", TEMPLATE), (None, USER), ("a", TEMPLATE), (None, ANSWER)),
        [("b", "b"), ("  b", "b")],
        lambda patch: patch.setattr(recipes, "SEAM", re.compile("(?= )")),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_negative_control_without_a_rule(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    wrong = RULES[rule]
    plain = wrong.tokenizer.backend(control=False, prefix=True)
    # As kitoken, it knows no control tokens.
    monkeypatch.setattr(words, "quicker", lambda backend, **_: reference(plain))
    monkeypatch.setattr(words, "worth", lambda backend: 1)  # from the first part on
    texts = [Filled(wrong.outline, variables) for variables in wrong.variables]
    assert alike(Encoder(wrong.tokenizer), texts)
    wrong.without(monkeypatch)
    monkeypatch.setattr(Encoder, "_check", lambda self, example: None)
    assert not alike(Encoder(wrong.tokenizer), texts)


def test_a_recipe_that_is_wrong_is_noticed(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first text that is put together by it, and as every way by one text in so many."""
    encoder = Encoder(tokenizer_of("bytes"))
    right = Recipes.of_outline

    def wrong(self: Recipes, *given: Any) -> Recipe | None:
        recipe = right(self, *given)
        if recipe is not None:
            recipe.weights[-1] = 0.5
        return recipe

    monkeypatch.setattr(Recipes, "of_outline", wrong)
    with pytest.raises(TokenizerError, match="found other ids"):
        alike(encoder, [Filled(CHAT, ("x", "y"))] * 2)
    assert not alike(encoder, [Filled(CHAT, ("x", "y"))] * 2)
    monkeypatch.setattr(cuts, "_CHECKED", 1)
    with pytest.raises(TokenizerError, match="found other ids"):
        alike(encoder, [Filled(CHAT, ("x", "y"))] * 2)


def test_recipes_begin_anew(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizer_of("bytes"))
    monkeypatch.setattr(assembly, "MOST", 2)
    for number in range(6):
        given = outline((f"{number} of\n", TEMPLATE), (None, ANSWER), ("</s>", TEMPLATE))
        assert alike(encoder, [Filled(given, ("x",)), Filled(given, ("y",))])
        assert encoder._assembler is not None and len(encoder._assembler.known) <= 3
