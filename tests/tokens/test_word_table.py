"""The ids of words, concatenated, equal those of whole texts for every tokenizer that encodes words separately."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.bundled import CHAT, ONE_TURN
from testkit.by_hand import byte_tokenizer, rendered, with_tokens
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from templatekit import LossSpan, Registry, Tokenizer, TokenizerError
from templatekit.formats.lookup import find_template
from templatekit.testing import Subject, adversarial_text
from templatekit.testing.checked_record import CheckedRecord
from templatekit.tokens import fast_backend, word_table
from templatekit.tokens.disk_cache import cached_files
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.word_boundaries import HARMLESS_PATTERNS, SPLITTING_PATTERNS, encodes_words_separately
from templatekit.tokens.word_table import WordTable
from templatekit.types import TEMPLATE, field_origin

SEPARATE = {
    **dict.fromkeys(("bytes", "nfc", "sentencepiece", "metaspace", "dolly", "strips"), True),
    **dict.fromkeys(("gpt2", "llama2", "llama3", "qwen3", "smollm2", "mistral", "tekken"), True),
    **dict.fromkeys(("unigram", "unknowing", "folding"), False),
}
FRAGMENTS = (
    *(
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\x85",
        "\u180e",
        "\u200b",
        "\u2028",
    ),
    *(
        "a",
        "Be",
        "it's",
        "'S",
        "'\u017f",
        "12",
        "1234",
        "½",
        "²",
        "Ⅷ",
        "٣",
        ".",
        "!!",
        "/",
        "//",
        "_",
        "«",
        "$",
        "\x00",
    ),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "\u0345",
        "\u1100\u1161",
        "日本",
        "ไทย",
        "नि",
        "\u2581",
        "\u200d",
        "👩\u200d👧",
        "\ufeff",
    ),
    *("\u0130", "ß", "ǅ", "ʰ", "\u037e", "\u212b", "\U0001d15e", "\u0958", "the ", " answer", "x" * 50),
)
BOUNDARY_TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join) | st.text(max_size=12)
"""Texts with blanks beside everything that patterns and normalizers distinguish."""


def by_words(table: WordTable, *texts: str, prefix: bool = True) -> list[list[int]]:
    """The ids of each text, by the table."""
    indices, offsets = table.new_batch(), [0]
    for text in texts:
        table.add_text(indices, text, prefix=prefix)
        offsets.append(len(indices))
    words = table.encode(indices)
    return [words.ids[words.offsets[a] : words.offsets[b]].tolist() for a, b in itertools.pairwise(offsets)]


def table_of(tokenizer: Tokenizer) -> WordTable:
    return WordTable(
        tokenizer.backend(control=False, prefix=False), prefixed=tokenizer.backend(control=False, prefix=True)
    )


@pytest.mark.parametrize("name", SEPARATE)
def test_which_tokenizers_encode_words_separately(tokenizer_of: Tokenizers, name: str) -> None:
    assert tokenizer_of(name).encodes_words_separately == SEPARATE[name]


@given(texts=st.lists(BOUNDARY_TEXTS, min_size=1, max_size=8))
def test_texts_have_the_ids_of_their_words(tokenizer: Tokenizer, texts: list[str]) -> None:
    if not tokenizer.encodes_words_separately:
        return
    table = table_of(tokenizer)
    for prefix in (True, False):
        backend = tokenizer.backend(control=False, prefix=prefix)
        expected = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        assert by_words(table, *texts, prefix=prefix) == expected
        assert by_words(table, *texts, prefix=prefix) == expected  # now from the cache


def tokenizers_with_runs_of_blanks() -> dict[str, Tokenizer]:
    """Byte-level and SentencePiece's, each with a token of two blanks."""
    runs = ["Ġ", "ĠĠ", "Ċ", *"abc"]
    level = tokenizers.Tokenizer(models.BPE(vocab={text: id for id, text in enumerate(runs)}, merges=[("Ġ", "Ġ")]))
    level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = ["▁", "▁▁", "\n", *"abc"]
    piece = tokenizers.Tokenizer(models.BPE(vocab={text: id for id, text in enumerate(pieces)}, merges=[("▁", "▁")]))
    piece.normalizer = normalizers.Replace(" ", "▁")
    return {"bytes": Tokenizer(level.to_str(), config={}), "pieces": Tokenizer(piece.to_str(), config={})}


@pytest.mark.parametrize(("name", "text"), [("bytes", "a    b"), ("bytes", "a\n   b"), ("pieces", "a  b ▁ c")])
def test_negative_control_not_every_blank_is_a_word_boundary(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    tokenizer = tokenizers_with_runs_of_blanks()[name]
    assert tokenizer.encodes_words_separately
    expected = tokenizer.backend(control=False, prefix=True).encode(text, add_special_tokens=False).ids
    assert by_words(table_of(tokenizer), text) == [expected]
    monkeypatch.setattr(word_table, "may_be_beside_word_boundary", lambda character: True)
    assert by_words(table_of(tokenizer), text) != [expected]


CLASSES = ("a", "A", "ǅ", "ʰ", "中", "\u0301", "1", "½", ".", "'", "$", "/", "\x00", "\u200d")
BLANKS = (" ", "\n", "\r", "\t", "\u00a0")


def around_word_boundaries() -> Iterator[tuple[str, str]]:
    """Texts on both sides of a word boundary, of every class of characters that the patterns distinguish."""
    left = ["".join(text) for text in itertools.product(("", *CLASSES, *BLANKS), CLASSES)]
    right = ["".join(text) for text in itertools.product(CLASSES, ("", *CLASSES, *BLANKS), ("", "s", " ", "\n"))]
    for number, (one, other) in enumerate(itertools.product(left, right)):
        if number % 11 == 0:  # coprime to the counts: every pair of neighbours comes
            yield one, f" {other}"


@pytest.mark.parametrize("pattern", sorted(SPLITTING_PATTERNS))
def test_listed_patterns_split_at_word_boundaries(pattern: str) -> None:
    assert not unsplit_word_boundaries(pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))


@pytest.mark.parametrize(
    "pattern", [*sorted(HARMLESS_PATTERNS), r"\S+ ?|\s+", r"(?<!a) \p{L}+|.", r" ?\p{L}+(?! \.)|."]
)
def test_negative_control_other_patterns_do_not(pattern: str) -> None:
    """Other patterns match a blank at a word's end, look behind, or look ahead beyond the blank."""
    assert unsplit_word_boundaries(pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))


def unsplit_word_boundaries(pre_tokenizer: pre_tokenizers.PreTokenizer) -> list[str]:
    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]

    return [
        one + other for one, other in around_word_boundaries() if pieces(one + other) != pieces(one) + pieces(other)
    ]


def test_what_is_not_known_is_not_claimed() -> None:
    def claimed(**parts: object) -> bool:
        backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "▁": 1}, merges=[]))
        for stage, part in parts.items():
            setattr(backend, stage, part)
        return encodes_words_separately(backend)

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert claimed(pre_tokenizer=level)
    assert claimed(pre_tokenizer=level, normalizer=normalizers.NFC())
    assert claimed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level]))
    assert not claimed(pre_tokenizer=level, normalizer=normalizers.NFD())
    assert not claimed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    assert not claimed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    assert not claimed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), level]))
    assert not claimed(pre_tokenizer=pre_tokenizers.Split(tokenizers.Regex(max(SPLITTING_PATTERNS)), "removed"))
    assert not claimed()
    assert claimed(normalizer=normalizers.Replace(" ", "▁"))
    assert not claimed(normalizer=normalizers.Sequence([normalizers.Replace(" ", "▁"), normalizers.Lowercase()]))
    merging = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "▁": 1, "a▁": 2}, merges=[("a", "▁")]))
    merging.normalizer = normalizers.Replace(" ", "▁")
    assert not encodes_words_separately(merging)


@pytest.mark.parametrize("text", ["x ", "\t ", "a b"])
def test_added_tokens_that_are_text_and_contain_a_word_boundary(text: str) -> None:
    """Runs of blanks are allowed; tokens that end in a blank are not."""
    blanks = AddedToken("    ", special=False, normalized=False)
    assert byte_tokenizer(blanks).encodes_words_separately
    token = AddedToken(text, special=False, normalized=False)
    # One character and blanks: not a control token.
    assert byte_tokenizer(token).encodes_words_separately == (len(text.strip()) > 1)
    assert not byte_tokenizer(AddedToken("\t", special=False, normalized=False, lstrip=True)).encodes_words_separately


def test_a_dummy_prefix_behind_added_text(tokenizer_of: Tokenizers) -> None:
    backend = tokenizer_of("sentencepiece").backend(control=True, prefix=True)
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    assert not with_tokens(backend, [AddedToken("\n\n", special=False, normalized=False)]).encodes_words_separately


@pytest.mark.parametrize("template", [*ONE_TURN[:3], *CHAT])
@given(data=st.data())
def test_examples_are_those_of_whole_texts(
    tokenizer_of: Tokenizers, builtin: Registry, template: str, data: st.DataObject
) -> None:
    """Ids, weights and spans are equal for any data; the records of the conformance kit come in whole batches."""
    tokenizer = tokenizer_of(data.draw(st.sampled_from([name for name in SEPARATE if SEPARATE[name]][:6])))
    subject = Subject(
        adapter=builtin.adapters["alpaca"],
        template=find_template(template, builtin),
        tokenizer=tokenizer,
        registry=builtin,
    )
    text = adversarial_text(tokenizer, subject.template) | BOUNDARY_TEXTS
    fields = ("instruction", "input", "output")
    records = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(fields, text)), min_size=1, max_size=4))
    batch = []
    for record in records:
        tokenized = CheckedRecord(subject, record).whole.tokenized
        batch.append((tokenized.rendered, tokenized.loss_spans))
    expected = Encoder(tokenizer, reuse=False).encode_batch(batch)
    assert Encoder(tokenizer).encode_batch(batch) == expected


USER = field_origin("content", 0)


def test_a_difference_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of all of these: the first text of a run is encoded both ways, and each 1,024th."""
    monkeypatch.setattr(word_table, "may_be_beside_word_boundary", lambda character: True)
    tokenizer = tokenizers_with_runs_of_blanks()["bytes"]
    good, bad = rendered(("a b", USER)), rendered(("a\n    b", USER))
    with pytest.raises(TokenizerError, match=r"found other ids for 'a\\n    b' .*; to go on: --no-reuse"):
        Encoder(tokenizer).encode(bad)
    encoder = Encoder(tokenizer)
    encoder.encode_batch([(good, ())] * 1000)
    encoder.encode_batch([(bad, ())] * 24)
    with pytest.raises(TokenizerError, match="other ids"):
        encoder.encode(bad)
    assert Encoder(tokenizer, reuse=False).encode(bad).input_ids


def test_texts_with_control_text_in_the_data_are_encoded_directly(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("nfc")
    texts = [
        rendered(("<|im_start|>", TEMPLATE), ("an answer", USER), ("<|im_end|>", TEMPLATE)),
        rendered(("<|im_start|>", TEMPLATE), ("an <|im_end|> answer", USER), ("<|im_end|>", TEMPLATE)),
        rendered(("plain", USER)),
    ]
    batch = [(text, (LossSpan(start=0, end=12, weight=0.0), LossSpan(start=12, end=40, weight=0.5))) for text in texts]
    columns = Encoder(tokenizer).encode_columns(batch)
    assert list(columns) == Encoder(tokenizer, reuse=False).encode_batch(batch)
    ids = columns.input_ids.tolist()
    assert sum(id == tokenizer.id_of("<|im_end|>") for id in ids) == 2


def test_texts_with_a_control_id_that_the_model_makes_are_encoded_directly() -> None:
    """The model's vocabulary contains the control token's text, spelled out by merges."""
    merges = [("<", "e"), ("<e", ">")]
    vocabulary = {**{character: index for index, character in enumerate("<e>ab")}, "<e": 5, "<e>": 6}
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary))
    vocabulary |= {character: index + 7 for index, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = with_tokens(backend, [AddedToken("<e>", special=True)])
    table = WordTable(backend, prefixed=backend, forbidden_ids=tokenizer.control_ids)
    indices = table.new_batch()
    table.add_text(indices, "a <e> b")
    assert table.encode(indices).is_forbidden.tolist() == [False, True, False]
    text = rendered(("<e>", TEMPLATE), ("a <e> b", USER))
    (example,) = Encoder(tokenizer).encode_batch([(text, ())])
    assert [id for id in example.input_ids if id == 6] == [6]


def test_a_full_table_is_emptied(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("bytes")
    monkeypatch.setattr(word_table, "MAX_WORDS", 20)
    table = table_of(tokenizer)
    backend = tokenizer.backend(control=False, prefix=True)
    for round in range(10):
        texts = [f"word{round} number{i} {'long' * 20}{i}" for i in range(10)]
        assert by_words(table, *texts) == [backend.encode(text, add_special_tokens=False).ids for text in texts]
        assert table._count <= 20 + 3 * len(texts)


def test_a_backend_that_fails_leaves_no_indices_behind(tokenizer_of: Tokenizers) -> None:
    table = table_of(tokenizer_of("bytes"))
    indices = table.new_batch()
    table.add_text(indices, "a \ud800 b")
    with pytest.raises((TypeError, UnicodeError)):
        table.encode(indices)
    assert by_words(table, "a b") == by_words(table_of(tokenizer_of("bytes")), "a b")


PROVEN = st.lists(
    st.sampled_from(
        [text for text in FRAGMENTS if fast_backend.is_proven_text(text)] + ["'s", "'LL", "\r", "=", "0x", "https://"]
    ),
    max_size=12,
).map("".join)
FAST = ("bytes", "nfc", "gpt2", "smollm2", "qwen3")


@pytest.mark.parametrize("name", FAST)
@given(texts=st.lists(PROVEN | st.text(st.characters(codec="ascii"), max_size=20), min_size=1, max_size=20))
def test_the_fast_backend_gives_the_ids_of_the_reference(tokenizer_of: Tokenizers, name: str, texts: list[str]) -> None:
    pytest.importorskip("kitoken")
    backend = tokenizer_of(name).backend(control=True, prefix=True)
    if name not in _fast_backends:
        _fast_backends[name] = fast_backend.load_fast_backend(backend)
    encode = _fast_backends[name]
    assert encode is not None
    proven = [text for text in texts if fast_backend.is_proven_text(text)]
    assert encode(proven) == fast_backend.reference_encode(backend)(proven)


_fast_backends: dict[str, fast_backend.EncodeTexts | None] = {}


def test_negative_control_texts_that_are_not_proven(tokenizer_of: Tokenizers) -> None:
    """Which texts are not passed to the fast backend, and why."""
    pytest.importorskip("kitoken")
    backend = tokenizer_of("bytes").backend(control=True, prefix=True)
    encode, text = fast_backend.load_fast_backend(backend), "a\n's"
    assert encode is not None
    assert not fast_backend.is_proven_text(text)
    assert encode([text]) != fast_backend.reference_encode(backend)([text])
    assert not any(map(fast_backend.is_proven_text, ("é", "a\x1db", "\u00a0's", "\x00")))
    assert fast_backend.is_proven_text('don\'t say\n"so" 12 times.\t')


def test_the_probe_texts_find_a_backend_that_is_not_equal(
    tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kitoken")
    monkeypatch.setattr(fast_backend, "is_proven_text", str.isascii)
    assert fast_backend.load_fast_backend(tokenizer_of("bytes").backend(control=True, prefix=True)) is None


def test_the_tables_of_the_fast_backend_are_cached(
    tokenizer_of: Tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are built and proven once, then read; those of a small vocabulary are built each time."""
    kitoken = pytest.importorskip("kitoken")
    monkeypatch.setenv("TEMPLATEKIT_CACHE", str(tmp_path))
    backend = tokenizer_of("bytes").backend(control=True, prefix=True)
    assert fast_backend.load_fast_backend(backend, fingerprint="bytes") is not None
    assert cached_files(tmp_path) == []
    monkeypatch.setattr(fast_backend, "_LARGE_VOCABULARY", 1)
    with monkeypatch.context() as patch:
        patch.setattr(fast_backend, "is_proven_text", str.isascii)
        assert fast_backend.load_fast_backend(backend, fingerprint="bytes") is None  # not proven, so not cached
    assert cached_files(tmp_path) == []
    made = fast_backend.load_fast_backend(backend, fingerprint="bytes")
    monkeypatch.setattr(kitoken, "Kitoken", lambda tables, read=kitoken.Kitoken: read(tables))  # cannot build any
    found = fast_backend.load_fast_backend(backend, fingerprint="bytes")
    assert made is not None and found is not None
    texts = fast_backend.probe_texts()
    assert found(texts) == made(texts) == fast_backend.reference_encode(backend)(texts)
    # Negative control: now none can be built.
    assert fast_backend.load_fast_backend(backend, fingerprint="another") is None


def test_tokenizers_without_a_fast_backend(tokenizer_of: Tokenizers) -> None:
    for name in ("sentencepiece", "metaspace", "unigram", "unknowing", "folding"):
        assert fast_backend.load_fast_backend(tokenizer_of(name).backend(control=True, prefix=True)) is None


def test_the_fast_backend_is_loaded_once_it_pays(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids before and after are equal, those of proven texts and of others."""
    pytest.importorskip("kitoken")
    tokenizer = tokenizer_of("nfc")
    table, backend = table_of(tokenizer), tokenizer.backend(control=False, prefix=True)
    assert table._break_even_texts > 1_000
    table._break_even_texts = 30
    for round in range(4):
        texts = [f"word{round}{n} it's\n's n{round}{n} naïve{round} café {n}." for n in range(10)]
        assert by_words(table, *texts) == [encoding.ids for encoding in backend.encode_batch_fast(texts)]
        assert (table._fast_backend is not None) == (round > 0 or table._encoded_texts > 30)
    assert table._fast_backend is not None


def test_no_texts() -> None:
    table = table_of(byte_tokenizer())
    assert not len(table.encode(array("q")).ids)
    assert by_words(table, "", "a") == [[], [ord("a") - 33]]
    assert len(Encoder(byte_tokenizer()).encode_columns([])) == 0
