"""Token layouts: texts of one trace have the ids and weights that each has when it is encoded alone."""

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
from testkit.traced_texts import ANSWER, ROLE, USER, TracedLayout, TracedText, layout
from tokenizers import AddedToken, models, pre_tokenizers

from templatekit import Tokenizer, TokenizerError
from templatekit.testing.texts import adversarial_text
from templatekit.tokens import assembly, token_layouts, word_table
from templatekit.tokens import encoder as encoder_module
from templatekit.tokens.assembly import Assembler
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.fast_backend import reference_encode
from templatekit.tokens.supervision import LazyLossSpans, loss_spans
from templatekit.tokens.token_layouts import TokenLayout, TokenLayouts
from templatekit.types import TEMPLATE

SEPARATE = ("bytes", "nfc", "sentencepiece", "metaspace", "strips")
TRAIN_ON = ("response", "content", "all", "response=0.5,user=0.1", "last=0.25")


def used(encoder: Encoder) -> list[TokenLayout]:
    assert encoder._assembler is not None
    return [layout for layout in encoder._assembler.layouts.values() if layout is not None]


def are_equal(encoder: Encoder, texts: Sequence[TracedText], train_on: str = "response") -> bool:
    """Whether texts by a token layout equal those that are encoded alone; the first text gives the layout."""
    found: list[Any] = []
    for part in (texts[:1], texts[1:]):
        lazy = [text.lazy() for text in part]
        found += encoder.encode_columns([(text, LazyLossSpans(text, train_on)) for text in lazy])
    whole = [text.eager() for text in texts]
    plain = Encoder(encoder.tokenizer, reuse=False)
    expected = plain.encode_batch([(text, loss_spans(text, train_on)) for text in whole])
    return found == expected


CONSTANTS = (
    *("<|im_start|>", "<|im_end|>\n", "user", "### It:\n", "a b c", " ", "\n\n", "<|im_", "start|>", "| ", "</s>"),
    *("é", " x y "),
)


@st.composite
def layouts(draw: st.DrawFn) -> TracedLayout:
    """Constant and variable pieces in turns, with halves of control tokens among the constants."""
    constant = st.lists(st.sampled_from(CONSTANTS), max_size=3).map("".join)
    user, between, after = draw(constant), draw(constant), draw(constant)
    pieces = [
        (user, TEMPLATE),
        (None, USER),
        (between, TEMPLATE),
        ("assistant", ROLE),
        (None, ANSWER),
        (after, TEMPLATE),
    ]
    return layout(*[(text, origin) for text, origin in pieces if text != ""])


_encoders: dict[tuple[str, int], Encoder] = {}
"""Loading the fast backend takes a while."""


def encoder_of(tokenizer: Tokenizer, break_even: int) -> Encoder:
    """An encoder that loads the fast backend at this many words."""
    encoder = Encoder(tokenizer)
    assert encoder._assembler is not None
    encoder._assembler.words._break_even_texts = break_even
    return encoder


@pytest.mark.parametrize("break_even", [1, 10**9], ids=["fast backend at once", "no fast backend"])
@pytest.mark.parametrize("name", SEPARATE)
@given(data=st.data())
def test_texts_of_a_trace_equal_those_encoded_alone(
    tokenizer_of: Tokenizers, name: str, break_even: int, data: st.DataObject
) -> None:
    tokenizer = tokenizer_of(name)
    if (name, break_even) not in _encoders:
        _encoders[name, break_even] = encoder_of(tokenizer, break_even)
    encoder = _encoders[name, break_even]
    given = data.draw(layouts())
    text = adversarial_text(tokenizer).filter(bool) | st.sampled_from(["a", " ", "x y", "start|>", "<|im_", "\n"])
    weights = data.draw(st.sampled_from([(1.0, 1.0), None]))
    given = replace(given, message_weights=weights)
    texts = data.draw(
        st.lists(
            st.builds(
                TracedText,
                st.just(given),
                st.tuples(text, text),
                st.just((1.0, 1.0)) if weights else st.tuples(st.just(1.0), st.sampled_from([1.0, 0.5, 0.0])),
            ),
            min_size=1,
            max_size=5,
        )
    )
    assert are_equal(encoder, texts, data.draw(st.sampled_from(TRAIN_ON)))


CHAT = layout(
    ("<|im_start|>user\n", TEMPLATE),
    (None, USER),
    ("<|im_end|>\n<|im_start|>assistant\n", TEMPLATE),
    (None, ANSWER),
    ("<|im_end|>", TEMPLATE),
)
PLAIN = layout(
    ("Below is an instruction.\n\n### Instruction:\n", TEMPLATE),
    (None, USER),
    ("\n\n### A long Response:\n", TEMPLATE),
    (None, ANSWER),
    ("</s>", TEMPLATE),
)


@pytest.mark.parametrize("given", [CHAT, PLAIN])
@pytest.mark.parametrize("name", SEPARATE)
def test_plain_texts_share_one_layout(tokenizer_of: Tokenizers, name: str, given: TracedLayout) -> None:
    encoder = Encoder(tokenizer_of(name))
    texts = [TracedText(given, (f"What is {n}?", f"{n} is\n\n a  number.")) for n in range(5)]
    assert are_equal(encoder, texts)
    if name == "strips" and given is CHAT:
        assert not used(encoder)  # its control tokens strip whitespace of the text
        return
    (token_layout,) = used(encoder)
    assert token_layout.fill_slots(texts[0].pieces)[-1].startswith(texts[0].variables[-1])


def test_a_slot_reaches_to_the_nearest_word_boundary(tokenizer_of: Tokenizers) -> None:
    encoder = Encoder(tokenizer_of("bytes"))
    assert are_equal(encoder, [TracedText(PLAIN, ("x", "y"))] * 2)
    (token_layout,) = used(encoder)
    assert token_layout.fill_slots(("", "1", "", "2", "")) == (" Instruction:\n1\n\n###", "2</s>")
    assert token_layout.entries.tolist().count(token_layouts.SLOT) == 2
    assert len(token_layout.entries) == len(token_layout.weights)


def test_each_weight_of_a_message_has_its_own_layout(tokenizer_of: Tokenizers) -> None:
    encoder = Encoder(tokenizer_of("bytes"))
    given = replace(CHAT, message_weights=None)
    texts = [TracedText(given, ("x", "y"), (1.0, weight)) for weight in (0.5, 0.25, 0.0, 0.5)]
    assert are_equal(encoder, texts)
    assert len(used(encoder)) == 3


def runs_of_blanks() -> Tokenizer:
    """With a token of two blanks."""
    vocabulary = {text: id for id, text in enumerate(["Ġ", "ĠĠ", *"ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(backend.to_str(), config={})


class Wrong(NamedTuple):
    """A case that fails without a rule."""

    tokenizer: Tokenizer
    layout: TracedLayout
    variables: list[tuple[str, ...]]
    without: Callable[[pytest.MonkeyPatch], None]


RULES = {
    "texts with control text use no layout": Wrong(
        byte_tokenizer(AddedToken("<think>", special=False)),
        layout((None, ANSWER), ("</s>", TEMPLATE)),
        [("y",), ("y <think> z",)],
        lambda patch: patch.setattr(Assembler, "_contains_control_text", lambda self, texts: False),
    ),
    "whitespace that a control token strips is constant": Wrong(
        byte_tokenizer(AddedToken("<u>", special=True, rstrip=True)),
        layout(("<u>\n", TEMPLATE), (None, USER), ("A", TEMPLATE), (None, ANSWER)),
        [("x", "y"), (" x", "y")],
        lambda patch: patch.setattr(TokenLayouts, "_is_in_every_text", lambda *_: True),
    ),
    "no variable is the template's": Wrong(
        byte_tokenizer(AddedToken("<<a>", special=True), AddedToken("x<<", special=True)),
        layout((None, TEMPLATE), ("<<a>", TEMPLATE), (None, ANSWER)),
        [("b", "y"), ("x", "y")],
        lambda patch: patch.setattr(token_layouts, "variables_are_data", lambda layout: True),
    ),
    "a word boundary has a character on either side": Wrong(
        runs_of_blanks(),
        layout(("a  ", TEMPLATE), (None, USER), ("a", TEMPLATE), (None, ANSWER)),
        [("b", "b"), ("  b", "b")],
        lambda patch: patch.setattr(token_layouts, "WORD_BOUNDARY", re.compile("(?= )")),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_negative_control_without_a_rule(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    wrong = RULES[rule]
    plain = wrong.tokenizer.backend(control=False, prefix=True)
    # Like kitoken, it knows no control tokens.
    monkeypatch.setattr(word_table, "load_fast_backend", lambda backend, **_: reference_encode(plain))
    texts = [TracedText(wrong.layout, variables) for variables in wrong.variables]
    assert are_equal(encoder_of(wrong.tokenizer, break_even=1), texts)
    wrong.without(monkeypatch)
    monkeypatch.setattr(Encoder, "_check", lambda self, example: None)
    assert not are_equal(encoder_of(wrong.tokenizer, break_even=1), texts)


def test_a_wrong_layout_is_noticed(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first text that uses it, and later by one text in every `_CHECK_INTERVAL`."""
    encoder = Encoder(tokenizer_of("bytes"))
    right = TokenLayouts.of_traced

    def wrong(self: TokenLayouts, *given: Any) -> TokenLayout | None:
        layout = right(self, *given)
        if layout is not None:
            layout.weights[-1] = 0.5
        return layout

    monkeypatch.setattr(TokenLayouts, "of_traced", wrong)
    with pytest.raises(TokenizerError, match="found other ids"):
        are_equal(encoder, [TracedText(CHAT, ("x", "y"))] * 2)
    assert not are_equal(encoder, [TracedText(CHAT, ("x", "y"))] * 2)
    monkeypatch.setattr(encoder_module, "_CHECK_INTERVAL", 1)
    with pytest.raises(TokenizerError, match="found other ids"):
        are_equal(encoder, [TracedText(CHAT, ("x", "y"))] * 2)


def test_too_many_layouts_are_computed_again(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizer_of("bytes"))
    monkeypatch.setattr(assembly, "MAX_LAYOUTS", 2)
    for number in range(6):
        given = layout((f"{number} of\n", TEMPLATE), (None, ANSWER), ("</s>", TEMPLATE))
        assert are_equal(encoder, [TracedText(given, ("x",)), TracedText(given, ("y",))])
        assert encoder._assembler is not None and len(encoder._assembler.layouts) <= 3
