"""What a model wrote, in pieces: control tokens apart from text, and the text unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.budget import budget

from templatekit.testing import tiny_tokenizer
from templatekit.testing.tiny_tokenizers import MAIN
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import AnswerPiece


def spelt(tokenizer: Tokenizer) -> list[str]:
    return sorted(token.text for token in tokenizer.control_tokens.values())


@pytest.mark.parametrize("name", MAIN)
@settings(max_examples=budget(60))
@given(data=st.data())
def test_pieces_are_what_was_encoded(name: str, data: st.DataObject) -> None:
    """Texts and control tokens in turn come back, where the tokenizer keeps their characters."""
    tokenizer = tiny_tokenizer(name)
    text = st.text(st.sampled_from("ab c\n<|x>. "), min_size=1, max_size=12)
    control = st.sampled_from(spelt(tokenizer))
    parts = data.draw(st.lists(st.tuples(text, control), min_size=1, max_size=4))
    ids: list[int] = []
    expected: list[AnswerPiece] = []
    for words, token in parts:
        prefixed = bool(ids) and tokenizer.dummy_prefix == "each"  # as the encoder does behind a control token
        encoded = tokenizer.backend(control=False, prefix=prefixed).encode(words, add_special_tokens=False).ids
        ids += [*encoded, tokenizer.control_tokens[token].id]
        expected += [AnswerPiece(words), AnswerPiece(token, True, tokenizer.control_tokens[token].special)]
    found = tokenizer.pieces(ids)
    assert [piece.is_control for piece in found] == [piece.is_control for piece in expected]
    assert [piece for piece in found if piece.is_control] == [piece for piece in expected if piece.is_control]
    for piece, wanted in zip(found, expected, strict=True):
        assert piece.text == wanted.text


def test_text_that_spells_a_control_token_is_text() -> None:
    """And the token itself is none: the negative control."""
    tokenizer = tiny_tokenizer("bytes")
    token = spelt(tokenizer)[0]
    ids = tokenizer.backend(control=False, prefix=False).encode(token, add_special_tokens=False).ids
    assert tokenizer.pieces(ids) == [AnswerPiece(token)]
    assert tokenizer.pieces([tokenizer.control_tokens[token].id])[0].is_control


def test_half_a_character_is_no_error() -> None:
    tokenizer = tiny_tokenizer("bytes")
    ids = tokenizer.backend(control=False, prefix=False).encode("🎉", add_special_tokens=False).ids
    if len(ids) > 1:
        assert tokenizer.pieces(ids[:1])[0].text == "\ufffd"
