"""Ids put together from words: equal to those of whole texts, for every tokenizer of which that is claimed."""

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
from templatekit.tokens import fast_backend as quick
from templatekit.tokens import word_table as words
from templatekit.tokens.disk_cache import kept_files
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.word_boundaries import HARMLESS, PARTING, encodes_words_apart
from templatekit.tokens.word_table import Words
from templatekit.types import TEMPLATE, field_origin

APART = {
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
SEAMY = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join) | st.text(max_size=12)
"""Texts of blanks beside everything that patterns and normalizers tell apart."""


def by_words(table: Words, *texts: str, prefix: bool = True) -> list[list[int]]:
    numbers, ends = table.begin(), [0]
    for text in texts:
        table.add(numbers, text, prefix=prefix)
        ends.append(len(numbers))
    parts = table.encode(numbers)
    return [parts.ids[parts.ends[a] : parts.ends[b]].tolist() for a, b in itertools.pairwise(ends)]


def table_of(tokenizer: Tokenizer) -> Words:
    return Words(tokenizer.backend(control=False, prefix=False), prefixed=tokenizer.backend(control=False, prefix=True))


@pytest.mark.parametrize("name", APART)
def test_of_which_tokenizers_it_is_claimed(tokenizer_of: Tokenizers, name: str) -> None:
    assert tokenizer_of(name).encodes_words_apart == APART[name]


@given(texts=st.lists(SEAMY, min_size=1, max_size=8))
def test_texts_have_the_ids_of_their_words(tokenizer: Tokenizer, texts: list[str]) -> None:
    if not tokenizer.encodes_words_apart:
        return
    table = table_of(tokenizer)
    for prefix in (True, False):
        backend = tokenizer.backend(control=False, prefix=prefix)
        expected = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        assert by_words(table, *texts, prefix=prefix) == expected
        assert by_words(table, *texts, prefix=prefix) == expected  # known by now


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
def test_negative_control_every_blank_is_no_seam(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    tokenizer = tokenizers_with_runs_of_blanks()[name]
    assert tokenizer.encodes_words_apart
    expected = tokenizer.backend(control=False, prefix=True).encode(text, add_special_tokens=False).ids
    assert by_words(table_of(tokenizer), text) == [expected]
    monkeypatch.setattr(words, "_is_edge", lambda character: True)
    assert by_words(table_of(tokenizer), text) != [expected]


CLASSES = ("a", "A", "ǅ", "ʰ", "中", "\u0301", "1", "½", ".", "'", "$", "/", "\x00", "\u200d")
BLANKS = (" ", "\n", "\r", "\t", "\u00a0")


def around_seams() -> Iterator[tuple[str, str]]:
    """Texts on both sides of a seam, of every class of characters that the patterns know."""
    left = ["".join(text) for text in itertools.product(("", *CLASSES, *BLANKS), CLASSES)]
    right = ["".join(text) for text in itertools.product(CLASSES, ("", *CLASSES, *BLANKS), ("", "s", " ", "\n"))]
    for number, (one, other) in enumerate(itertools.product(left, right)):
        if number % 11 == 0:  # coprime to the counts: every pair of neighbours comes
            yield one, f" {other}"


@pytest.mark.parametrize("pattern", sorted(PARTING))
def test_listed_patterns_part_at_seams(pattern: str) -> None:
    assert not seams_that_hold(pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))


@pytest.mark.parametrize("pattern", [*sorted(HARMLESS), r"\S+ ?|\s+", r"(?<!a) \p{L}+|.", r" ?\p{L}+(?! \.)|."])
def test_negative_control_other_patterns_do_not(pattern: str) -> None:
    """They take a blank at a word's end, or look behind themselves or beyond the blank."""
    assert seams_that_hold(pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))


def seams_that_hold(pre_tokenizer: pre_tokenizers.PreTokenizer) -> list[str]:
    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]

    return [one + other for one, other in around_seams() if pieces(one + other) != pieces(one) + pieces(other)]


def test_what_is_not_known_is_not_claimed() -> None:
    def claimed(**parts: object) -> bool:
        backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "▁": 1}, merges=[]))
        for stage, part in parts.items():
            setattr(backend, stage, part)
        return encodes_words_apart(backend)

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert claimed(pre_tokenizer=level)
    assert claimed(pre_tokenizer=level, normalizer=normalizers.NFC())
    assert claimed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level]))
    assert not claimed(pre_tokenizer=level, normalizer=normalizers.NFD())
    assert not claimed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    assert not claimed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    assert not claimed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), level]))
    assert not claimed(pre_tokenizer=pre_tokenizers.Split(tokenizers.Regex(max(PARTING)), "removed"))
    assert not claimed()
    assert claimed(normalizer=normalizers.Replace(" ", "▁"))
    assert not claimed(normalizer=normalizers.Sequence([normalizers.Replace(" ", "▁"), normalizers.Lowercase()]))
    merging = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "▁": 1, "a▁": 2}, merges=[("a", "▁")]))
    merging.normalizer = normalizers.Replace(" ", "▁")
    assert not encodes_words_apart(merging)


@pytest.mark.parametrize("text", ["x ", "\t ", "a b"])
def test_added_tokens_that_are_text_and_hold_a_seam(text: str) -> None:
    """Runs of blanks are no trouble; what ends in a blank is."""
    blanks = AddedToken("    ", special=False, normalized=False)
    assert byte_tokenizer(blanks).encodes_words_apart
    token = AddedToken(text, special=False, normalized=False)
    # One character and blanks: not a control token.
    assert byte_tokenizer(token).encodes_words_apart == (len(text.strip()) > 1)
    assert not byte_tokenizer(AddedToken("\t", special=False, normalized=False, lstrip=True)).encodes_words_apart


def test_a_dummy_prefix_behind_added_text(tokenizer_of: Tokenizers) -> None:
    backend = tokenizer_of("sentencepiece").backend(control=True, prefix=True)
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    assert not with_tokens(backend, [AddedToken("\n\n", special=False, normalized=False)]).encodes_words_apart


@pytest.mark.parametrize("template", [*ONE_TURN[:3], *CHAT])
@given(data=st.data())
def test_examples_are_those_of_whole_texts(
    tokenizer_of: Tokenizers, builtin: Registry, template: str, data: st.DataObject
) -> None:
    """Ids, weights and spans, whatever the data holds; with the kit's records, whole batches of them."""
    tokenizer = tokenizer_of(data.draw(st.sampled_from([name for name in APART if APART[name]][:6])))
    subject = Subject(
        adapter=builtin.adapters["alpaca"],
        template=find_template(template, builtin),
        tokenizer=tokenizer,
        registry=builtin,
    )
    text = adversarial_text(tokenizer, subject.template) | SEAMY
    fields = ("instruction", "input", "output")
    records = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(fields, text)), min_size=1, max_size=4))
    batch = []
    for record in records:
        tokenized = subject.case(record).whole.tokenized
        batch.append((tokenized.rendered, tokenized.loss_spans))
    expected = Encoder(tokenizer, reuse=False).encode_batch(batch)
    assert Encoder(tokenizer).encode_batch(batch) == expected


USER = field_origin("content", 0)


def test_a_difference_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of all of these: the first text of a run is encoded both ways, and each 1,024th."""
    monkeypatch.setattr(words, "_is_edge", lambda character: True)
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


def test_control_text_in_the_data_goes_the_whole_way(tokenizer_of: Tokenizers) -> None:
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


def test_a_control_id_that_the_model_makes_goes_the_whole_way() -> None:
    """Its vocabulary holds the control token's text, spelled out by merges."""
    merges = [("<", "e"), ("<e", ">")]
    vocabulary = {**{character: index for index, character in enumerate("<e>ab")}, "<e": 5, "<e>": 6}
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary))
    vocabulary |= {character: index + 7 for index, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = with_tokens(backend, [AddedToken("<e>", special=True)])
    table = Words(backend, prefixed=backend, unwanted=tokenizer.control_ids)
    numbers = table.begin()
    table.add(numbers, "a <e> b")
    assert table.encode(numbers).strange.tolist() == [False, True, False]
    text = rendered(("<e>", TEMPLATE), ("a <e> b", USER))
    (example,) = Encoder(tokenizer).encode_batch([(text, ())])
    assert [id for id in example.input_ids if id == 6] == [6]


def test_the_table_begins_anew(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("bytes")
    monkeypatch.setattr(words, "MOST", 20)
    table = table_of(tokenizer)
    backend = tokenizer.backend(control=False, prefix=True)
    for round in range(10):
        texts = [f"word{round} number{i} {'long' * 20}{i}" for i in range(10)]
        assert by_words(table, *texts) == [backend.encode(text, add_special_tokens=False).ids for text in texts]
        assert table._count <= 20 + 3 * len(texts)


def test_an_encoder_that_fails_leaves_no_numbers_behind(tokenizer_of: Tokenizers) -> None:
    table = table_of(tokenizer_of("bytes"))
    numbers = table.begin()
    table.add(numbers, "a \ud800 b")
    with pytest.raises((TypeError, UnicodeError)):
        table.encode(numbers)
    assert by_words(table, "a b") == by_words(table_of(tokenizer_of("bytes")), "a b")


ALIKE = st.lists(
    st.sampled_from([text for text in FRAGMENTS if quick.is_alike(text)] + ["'s", "'LL", "\r", "=", "0x", "https://"]),
    max_size=12,
).map("".join)
QUICK = ("bytes", "nfc", "gpt2", "smollm2", "qwen3")


@pytest.mark.parametrize("name", QUICK)
@given(texts=st.lists(ALIKE | st.text(st.characters(codec="ascii"), max_size=20), min_size=1, max_size=20))
def test_the_quicker_encoder_gives_the_references_ids(tokenizer_of: Tokenizers, name: str, texts: list[str]) -> None:
    pytest.importorskip("kitoken")
    backend = tokenizer_of(name).backend(control=True, prefix=True)
    if name not in _quicker:
        _quicker[name] = quick.quicker(backend)
    encode = _quicker[name]
    assert encode is not None
    alike = [text for text in texts if quick.is_alike(text)]
    assert encode(alike) == quick.reference(backend)(alike)


_quicker: dict[str, quick.Encode | None] = {}


def test_negative_control_texts_that_are_not_alike(tokenizer_of: Tokenizers) -> None:
    """What is kept from the quicker encoder, and for what reason."""
    pytest.importorskip("kitoken")
    backend = tokenizer_of("bytes").backend(control=True, prefix=True)
    encode, text = quick.quicker(backend), "a\n's"
    assert encode is not None
    assert not quick.is_alike(text)
    assert encode([text]) != quick.reference(backend)([text])
    assert not any(map(quick.is_alike, ("é", "a\x1db", "\u00a0's", "\x00")))
    assert quick.is_alike('don\'t say\n"so" 12 times.\t')


def test_the_battery_tells_an_encoder_that_is_not_equal(
    tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kitoken")
    monkeypatch.setattr(quick, "is_alike", str.isascii)
    assert quick.quicker(tokenizer_of("bytes").backend(control=True, prefix=True)) is None


def test_the_tables_of_the_quicker_encoder_are_kept(
    tokenizer_of: Tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made and proven once, then read; of a small vocabulary they are made each time."""
    kitoken = pytest.importorskip("kitoken")
    monkeypatch.setenv("TEMPLATEKIT_CACHE", str(tmp_path))
    backend = tokenizer_of("bytes").backend(control=True, prefix=True)
    assert quick.quicker(backend, fingerprint="bytes") is not None
    assert kept_files(tmp_path) == []
    monkeypatch.setattr(quick, "_LARGE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(quick, "is_alike", str.isascii)
        assert quick.quicker(backend, fingerprint="bytes") is None  # not proven, so not kept
    assert kept_files(tmp_path) == []
    made = quick.quicker(backend, fingerprint="bytes")
    monkeypatch.setattr(kitoken, "Kitoken", lambda tables, read=kitoken.Kitoken: read(tables))  # makes none
    found = quick.quicker(backend, fingerprint="bytes")
    assert made is not None and found is not None
    texts = quick.battery()
    assert found(texts) == made(texts) == quick.reference(backend)(texts)
    assert quick.quicker(backend, fingerprint="another") is None  # negative control: now none can be made


def test_of_which_tokenizers_there_is_none_quicker(tokenizer_of: Tokenizers) -> None:
    for name in ("sentencepiece", "metaspace", "unigram", "unknowing", "folding"):
        assert quick.quicker(tokenizer_of(name).backend(control=True, prefix=True)) is None


def test_words_go_to_the_quicker_encoder_once_it_pays(
    tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal ids before and behind it, of texts that are alike and of others."""
    pytest.importorskip("kitoken")
    tokenizer = tokenizer_of("nfc")
    table, backend = table_of(tokenizer), tokenizer.backend(control=False, prefix=True)
    assert table._worth > 1_000
    table._worth = 30
    for round in range(4):
        texts = [f"word{round}{n} it's\n's n{round}{n} naïve{round} café {n}." for n in range(10)]
        assert by_words(table, *texts) == [encoding.ids for encoding in backend.encode_batch_fast(texts)]
        assert (table._quicker is not None) == (round > 0 or table._asked > 30)
    assert table._quicker is not None


def test_no_texts() -> None:
    table = table_of(byte_tokenizer())
    parts = table.encode(array("q"))
    assert not len(parts.ids)
    assert by_words(table, "", "a") == [[], [ord("a") - 33]]
    assert len(Encoder(byte_tokenizer()).encode_columns([])) == 0
