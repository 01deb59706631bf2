"""The encoder with hand-made texts: cuts, control tokens with every flag, and text that the vocabulary lacks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import tokenizers
from testkit.at_hand import Tokenizers
from testkit.by_hand import byte_tokenizer, rendered
from tokenizers import AddedToken, models

from templatekit import LossSpan, RenderedText, Tokenizer, TokenizerError
from templatekit.tokens.encoder import Encoder
from templatekit.types import COMPUTED, TEMPLATE, field_origin

USER, ANSWER = field_origin("content", 0), field_origin("content", 1)


def tokens(tokenizer: Tokenizer, text: RenderedText, spans: Sequence[LossSpan] = (), **options: Any) -> list[str]:
    """The tokens; bytes between control tokens are joined."""
    ids = Encoder(tokenizer, **options).encode(text, spans).input_ids
    return [tokenizer.decode([id]) for id in ids]


END = AddedToken("<end>", special=True)
THINK = AddedToken("<think>", special=False)


def test_control_tokens_are_trusted_where_the_template_wrote_all_of_it() -> None:
    tokenizer = byte_tokenizer(END, THINK)
    whole = rendered(
        ("<end>", TEMPLATE),
        ("<end>", USER),
        ("<think>", USER),
        ("<think>", TEMPLATE),
        ("<think>", ANSWER),
        ("<end>", ANSWER),
    )
    assert tokens(tokenizer, whole) == ["<end>", *"<end>", *"<think>", "<think>", "<think>", *"<end>"]


@pytest.mark.parametrize("cut", range(1, 5))
def test_parts_of_different_origin_do_not_make_control(cut: int) -> None:
    tokenizer = byte_tokenizer(END, AddedToken("<end", special=False))
    for one, other in (
        (TEMPLATE, USER),
        (USER, TEMPLATE),
        (TEMPLATE, ANSWER),
        (ANSWER, TEMPLATE),
        (USER, ANSWER),
        (COMPUTED, TEMPLATE),
    ):
        text = rendered(("<end>"[:cut], one), ("<end>"[cut:], other))
        found = tokens(tokenizer, text)
        assert "<end>" not in found
        assert ("<end" in found) == (cut == 4 and one in (TEMPLATE, ANSWER))


def test_two_fields_of_one_answer_do_not_make_control_together() -> None:
    reasoning = field_origin("reasoning", 1)
    text = rendered(("<thi", reasoning), ("nk>", ANSWER))
    assert tokens(byte_tokenizer(THINK), text) == [*"<think>"]


def test_a_header_is_not_an_assistants_own_text() -> None:
    text = rendered(("<think>", field_origin("name", 1)), ("<think>", field_origin("role", 1)), ("<think>", ANSWER))
    assert tokens(byte_tokenizer(THINK), text) == [*"<think>", "<think>", "<think>"]
    odd = rendered(("<think>", field_origin("role", 1)), roles=("user", "model"))
    assert tokens(byte_tokenizer(THINK), odd) == [*"<think>"]


def test_the_longest_token_wins_where_it_is_the_templates() -> None:
    """`### Response:` and `### Response:\\n`: the longer one where the template wrote the newline, else the shorter."""
    tokenizer = byte_tokenizer(AddedToken("### R:", special=True), AddedToken("### R:\n", special=True))
    assert tokens(tokenizer, rendered(("### R:\n", TEMPLATE), ("a", USER))) == ["### R:\n", "a"]
    assert tokens(tokenizer, rendered(("### R:", TEMPLATE), ("\na", USER))) == ["### R:", "\n", "a"]


@pytest.mark.parametrize(
    ("before", "behind", "found"),
    [(" ", " ", True), ("a", " ", False), (" ", "a", False), ("", "", True), (".", "!", True)],
)
def test_whole_words(before: str, behind: str, found: bool) -> None:
    tokenizer = byte_tokenizer(AddedToken("stop", special=True, single_word=True))
    text = rendered((f"{before}stop{behind}", TEMPLATE))
    assert ("stop" in tokens(tokenizer, text)) == found
    assert tokens(tokenizer, text) == [
        tokenizer.decode([i]) for i in tokenizer.backend(control=True, prefix=True).encode(text.text).ids
    ]


@pytest.mark.parametrize("white", [" ", "\n \t", "\u00a0\u3000", "\x1c", "\x1f ", " \x1d "])
def test_tokens_that_strip_whitespace(white: str) -> None:
    """As the tokenizer itself does, also where the text is split because of a control string in the data."""
    tokenizer = byte_tokenizer(
        AddedToken("<l>", special=True, lstrip=True), AddedToken("<r>", special=True, rstrip=True), END
    )
    backend = tokenizer.backend(control=True, prefix=True)
    for middle in ("<l>", "<r>"):
        plain = rendered((f"a{white}{middle}{white}b", TEMPLATE))
        expected = [tokenizer.decode([id]) for id in backend.encode(plain.text).ids]
        assert tokens(tokenizer, plain) == expected
        nasty = rendered((f"a{white}{middle}{white}b", TEMPLATE), ("<end>", USER))
        assert tokens(tokenizer, nasty) == [*expected, *"<end>"]


def test_text_that_a_normalizer_makes_control(tokenizer_of: Tokenizers) -> None:
    """`＜ｈａｌｔ＞` and `<HALT>` become `<halt>`: as data they stay text, even beside the template's tokens."""
    tokenizer = tokenizer_of("folding")
    for data in ("＜ｈａｌｔ＞", "<HALT>", "<Think>", "a<HALT>b＜ｔｈｉｎｋ＞"):
        text = rendered(("<halt>Q:", TEMPLATE), (data, USER), ("<halt>", TEMPLATE))
        ids = Encoder(tokenizer).encode(text).input_ids
        control = [id for id in ids if id in tokenizer.control_ids]
        assert control == [tokenizer.id_of("<halt>")] * 2


def test_text_that_the_model_makes_control(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("unigram")
    assert tokenizer.id_of("</s>") in tokenizer.backend(control=False, prefix=True).encode("x </s>").ids
    for data in ("</s>", "x</s><s>y", "<unk>", "</s></s> </s>"):
        text = rendered(("<s>", TEMPLATE), (data, USER), ("</s>", TEMPLATE))
        ids = Encoder(tokenizer).encode(text).input_ids
        assert [id for id in ids if id in tokenizer.control_ids] == [1, 2]
        assert data.replace(" ", "") in tokenizer.decode(ids).replace(" ", "")


def test_text_that_the_vocabulary_lacks_is_unknown_and_no_error(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("unknowing")
    text = rendered(("the ", TEMPLATE), ("日本 </s> é", USER), ("</s>", TEMPLATE))
    ids = Encoder(tokenizer).encode(text).input_ids
    assert tokenizer.unknown_id in ids
    assert [id for id in ids if id in tokenizer.control_ids - {tokenizer.unknown_id}] == [tokenizer.id_of("</s>")]


def test_a_character_that_is_a_control_token_is_an_error() -> None:
    """The model's own vocabulary spells one character as a special token: no other ids exist for it."""
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "§": 1}, unk_token="a"))
    backend.add_special_tokens(["§"])
    tokenizer = Tokenizer(backend.to_str(), config={})
    assert Encoder(tokenizer).encode(rendered(("§", TEMPLATE))).input_ids == (1,)
    with pytest.raises(TokenizerError, match="makes a control token of '§'"):
        Encoder(tokenizer).encode(rendered(("§", USER)))


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_that_are_text_keep_their_ids_beside_control_strings(special: bool) -> None:
    """As in Phi-2's and GPT-NeoX's files: runs of blanks are added tokens, behind a control token the model lacks."""
    blanks = AddedToken("    ", special=False, normalized=False), AddedToken("\t\t", special=False, normalized=False)
    tokenizer = byte_tokenizer(END, *blanks, AddedToken("<more>", special=special), AddedToken("\n\n", special=False))
    ids = [tokenizer.id_of(text) for text in ("    ", "\t\t", "\n\n")]
    assert None not in ids
    for data in ("<end>", "<more>"):
        text = rendered(("    ", TEMPLATE), (data, USER), ("\t\t\n\n", USER))
        found = Encoder(tokenizer).encode(text).input_ids
        assert [id for id in found if id in ids] == ids
        assert tokenizer.decode(found) == text.text
        assert tokenizer.control_ids.isdisjoint(found)


def test_no_text_no_ids() -> None:
    example = Encoder(byte_tokenizer()).encode(rendered())
    assert example.input_ids == example.loss_weights == ()


def spans(*parts: tuple[int, float]) -> list[LossSpan]:
    ends = [0, *(end for end, _ in parts)]
    return [LossSpan(start=a, end=b, weight=w) for (a, b), (_, w) in zip(pairwise(ends), parts, strict=True)]


def test_a_joint_token_has_the_largest_weight_of_its_characters(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("gpt2")
    text = rendered(("Say hello world", TEMPLATE))
    example = Encoder(tokenizer, boundary="joint").encode(text, spans((6, 0.25), (9, 0.5), (15, 0.0)))
    assert [tokenizer.decode([id]) for id in example.input_ids] == ["Say", " hello", " world"]
    assert example.loss_weights == (0.0, 0.5, 0.0)
    cut = Encoder(tokenizer).encode(text, spans((6, 0.25), (9, 0.5), (15, 0.0)))
    assert [tokenizer.decode([id]) for id in cut.input_ids] == ["Say", " he", "llo", " world"]
    assert cut.loss_weights == (0.0, 0.25, 0.5, 0.0)


def test_the_first_token_is_never_a_target(tokenizer_of: Tokenizers) -> None:
    for boundary in ("cut", "joint"):
        example = Encoder(tokenizer_of("gpt2"), boundary=boundary).encode(
            rendered(("a b c", TEMPLATE)), spans((5, 1.0))
        )
        assert example.loss_weights == (0.0, 1.0, 1.0)
        assert example.labels[0] == -100
