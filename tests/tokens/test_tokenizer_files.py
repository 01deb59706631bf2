"""A tokenizer from its files: equal to the one that transformers loads, and every error is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from testkit.at_hand import Tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from templatekit import Registry, Tokenizer, TokenizerError
from templatekit.tokens.load import find_tokenizer, from_transformers, resolve_model

Make = Callable[..., Path]
ALPHABET = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a byte tokenizer whose vocabulary holds `</s>` and `<x>`, with added tokens and a configuration."""

    def make(*added: AddedToken, special_tokens_map: dict[str, Any] | None = None, **config: Any) -> Path:
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab={**ALPHABET, "</s>": 256, "<x>": 257}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        for token in added:
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        written = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
        (tmp_path / "tokenizer_config.json").write_text(written, encoding="utf-8")
        if special_tokens_map is not None:
            (tmp_path / "special_tokens_map.json").write_text(json.dumps(special_tokens_map), encoding="utf-8")
        return tmp_path

    return make


LISTED: dict[str, tuple[tuple[AddedToken, ...], dict[str, Any]]] = {
    "eos by name": ((), {"eos_token": "</s>"}),
    "eos as an object": ((), {"eos_token": {"content": "</s>", "special": True, "__type": "AddedToken"}}),
    "eos that is added but not flagged": ((AddedToken("</s>", special=False),), {"eos_token": "</s>"}),
    "additional special tokens": ((), {"additional_special_tokens": ["<x>"]}),
    "extra special tokens": ((), {"extra_special_tokens": ["<x>"]}),
    "extra special tokens by name": ((), {"extra_special_tokens": {"image_token": "<x>"}}),
    "listed, not special": ((), {"added_tokens_decoder": {"257": {"content": "<x>", "special": False}}}),
    "listed, special": ((), {"added_tokens_decoder": {"257": {"content": "<x>", "special": True}}}),
    "listed beyond the vocabulary": ((), {"added_tokens_decoder": {"300": {"content": "<far>", "special": True}}}),
    "listed as special, added as not": (
        (AddedToken("<x>", special=False),),
        {"added_tokens_decoder": {"257": {"content": "<x>", "special": True}}},
    ),
    "two listed out of order": (
        (),
        {
            "added_tokens_decoder": {
                "259": {"content": "<b>", "special": True},
                "258": {"content": "<a>", "special": False},
            }
        },
    ),
    "nothing": ((), {}),
}


@pytest.mark.parametrize("name", LISTED)
def test_added_tokens_are_those_of_transformers(name: str, make: Make) -> None:
    from transformers import AutoTokenizer

    added, config = LISTED[name]
    folder = make(*added, **config)
    theirs = AutoTokenizer.from_pretrained(folder).backend_tokenizer.get_added_tokens_decoder()
    ours = Tokenizer.from_folder(folder)
    assert {(token.id, text, token.special) for text, token in ours.control_tokens.items()} == {
        (id, token.content, token.special) for id, token in theirs.items()
    }


def test_the_special_tokens_map_counts_too(make: Make) -> None:
    tokenizer = Tokenizer.from_folder(make(special_tokens_map={"eos_token": "</s>"}))
    assert tokenizer.special_tokens.eos == "</s>"
    assert tokenizer.special_tokens.special == {"</s>"}


def test_from_transformers_is_from_folder(tokenizer_of: Tokenizers) -> None:
    from transformers import AutoTokenizer

    for name in ("gpt2", "llama2", "llama3", "qwen3", "sentencepiece", "nfc", "bytes"):
        folder = tokenizer_of.folder(name)
        one, other = Tokenizer.from_folder(folder), from_transformers(AutoTokenizer.from_pretrained(folder))
        assert one.special_tokens.bos == other.special_tokens.bos
        assert one.special_tokens.eos == other.special_tokens.eos
        assert one.special_tokens.adds_bos == other.special_tokens.adds_bos
        assert one.control_tokens == other.control_tokens
        assert one.dummy_prefix == other.dummy_prefix
        assert one.chat_template == other.chat_template
        if name in ("llama3", "qwen3"):
            continue  # large, and nothing in them differs from the tiny ones
        text = "Hello world \n\n x é"
        for control in (True, False):
            for prefix in (True, False):
                a, b = (t.backend(control=control, prefix=prefix).encode(text).ids for t in (one, other))
                assert a[-5:] == b[-5:], (name, control, prefix)


def test_what_counts_as_control(make: Make) -> None:
    """Flagged special, or neither whitespace nor a single character."""
    tokenizer = Tokenizer.from_folder(
        make(
            AddedToken("<think>", special=False),
            AddedToken("\n\n\n", special=False),
            AddedToken("§", special=False),
            AddedToken("\t", special=True),
            AddedToken("<word>", special=False, single_word=True, lstrip=True),
        )
    )
    assert set(tokenizer.control_tokens) == {"<think>", "\t", "<word>"}
    word = tokenizer.control_tokens["<word>"]
    assert (word.whole_word, word.strips_left, word.strips_right, word.special) == (True, True, False, False)


@pytest.mark.parametrize(
    ("name", "dummy_prefix", "adds_bos"),
    [
        ("gpt2", "never", False),
        ("llama2", "each", True),
        ("llama3", "never", False),
        ("qwen3", "never", False),
        ("smollm2", "never", False),
        ("sentencepiece", "each", True),
        ("metaspace", "first", True),
        ("unigram", "each", False),
        ("strips", "each", True),
        ("bytes", "never", False),
        ("unknowing", "never", False),
    ],
)
def test_prefixes_and_bos(name: str, dummy_prefix: str, adds_bos: bool, tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of(name)
    assert tokenizer.dummy_prefix == dummy_prefix
    assert tokenizer.special_tokens.adds_bos == adds_bos


@pytest.mark.parametrize(
    "stage",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]),
    ],
)
def test_a_byte_level_dummy_prefix(stage: Any, tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ALPHABET, merges=[]))
    tokenizer.pre_tokenizer = stage
    tokenizer.add_special_tokens(["<x>"])
    ours = Tokenizer(tokenizer.to_str(), config={})
    assert ours.dummy_prefix == "each"
    ids = ours.backend(control=True, prefix=False).encode("ab").ids
    assert ours.backend(control=True, prefix=True).encode("ab").ids == [ALPHABET["Ġ"], *ids]


def test_a_changed_file_has_another_fingerprint(make: Make) -> None:
    one = Tokenizer.from_folder(make(eos_token="</s>")).fingerprint
    assert Tokenizer.from_folder(make(eos_token="</s>")).fingerprint == one
    assert Tokenizer.from_folder(make(eos_token="<x>")).fingerprint != one
    assert Tokenizer.from_folder(make(AddedToken("<y>", special=True), eos_token="</s>")).fingerprint != one


def test_several_chat_templates_by_name(make: Make) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert Tokenizer.from_folder(make(chat_template=named)).chat_template == "D"
    assert Tokenizer.from_folder(make(chat_template={"default": "D"})).chat_template == "D"
    assert Tokenizer.from_folder(make(chat_template=named[:1])).chat_template is None
    folder = make(chat_template="in the configuration")
    (folder / "chat_template.jinja").write_text("in a file", encoding="utf-8")
    assert Tokenizer.from_folder(folder).chat_template == "in a file"


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such folder": (lambda folder: folder / "none", "expected a folder with tokenizer.json; found no such folder"),
    "an empty folder": (lambda folder: _written(folder / "empty"), "expected a folder with tokenizer.json; found []"),
    "not JSON": (lambda folder: _written(folder, tokenizer="{"), "tokenizer.json cannot be read"),
    "not a tokenizer": (lambda folder: _written(folder, tokenizer="{}"), "tokenizer.json cannot be read"),
    "not text": (lambda folder: _written(folder, tokenizer=b"\xff\xfe"), "cannot be read: 'utf-8' codec"),
    "a configuration that is no JSON": (
        lambda folder: _written(folder, config="{"),
        "tokenizer_config.json' cannot be read",
    ),
    "a configuration that is a list": (lambda folder: _written(folder, config="[]"), "expected an object; found list"),
    "a token that is not there": (
        lambda folder: _written(folder, config='{"eos_token": "<nope>"}'),
        "eos_token '<nope>' is not in its vocabulary; known: none",
    ),
    "added tokens that are a list": (
        lambda folder: _written(folder, config='{"added_tokens_decoder": ["<x>"]}'),
        "added_tokens_decoder must map ids to objects with content; found ['<x>']",
    ),
    "added tokens by words": (
        lambda folder: _written(folder, config='{"added_tokens_decoder": {"one": {"content": "<x>"}}}'),
        "added_tokens_decoder must map ids to objects with content",
    ),
    "an added token without content": (
        lambda folder: _written(folder, config='{"added_tokens_decoder": {"300": {"special": true}}}'),
        "added_tokens_decoder must map ids to objects with content",
    ),
    "an added token that is text": (
        lambda folder: _written(folder, config='{"added_tokens_decoder": {"300": "<x>"}}'),
        "added_tokens_decoder must map ids to objects with content",
    ),
}


def _written(folder: Path, *, tokenizer: str | bytes | None = None, config: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if tokenizer is None and config is not None:
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ALPHABET, merges=[])).to_str()
    if tokenizer is not None:
        data = tokenizer if isinstance(tokenizer, bytes) else tokenizer.encode()
        (folder / "tokenizer.json").write_bytes(data)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name: str, tmp_path: Path) -> None:
    make, words = BROKEN[name]
    with pytest.raises(TokenizerError) as caught:
        assert Tokenizer.from_folder(make(tmp_path)).special_tokens
    assert words in str(caught.value)


def test_addresses(make: Make, builtin: Registry, tmp_path: Path) -> None:
    folder = make(eos_token="</s>")
    assert find_tokenizer(str(folder), builtin).special_tokens.eos == "</s>"
    assert find_tokenizer(str(folder / "tokenizer.json"), builtin).name == str(folder)
    assert resolve_model("someone/model", builtin) is None
    for wrong in ("nonsense", "./none", "none.gguf", str(tmp_path / "none")):
        with pytest.raises(TokenizerError, match=r"is neither a folder, nor a \.gguf file, nor a model's name"):
            resolve_model(wrong, builtin)


def test_a_tokenizer_without_a_fast_backend() -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer 'slow' has no tokenizer\.json form"):
        from_transformers(object(), name="slow")  # type: ignore[arg-type]


def test_truncation_and_padding_in_the_file_are_left_out(tmp_path: Path) -> None:
    """Settings saved from an earlier use would cut texts silently."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ALPHABET, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50, pad_id=1)
    ours = Tokenizer(tokenizer.to_str(), config={})
    for control in (True, False):
        assert len(ours.backend(control=control, prefix=True).encode("abcdefgh").ids) == 8


def test_the_unknown_token(tokenizer_of: Tokenizers) -> None:
    assert tokenizer_of("unknowing").unknown_id == 0
    assert tokenizer_of("unigram").unknown_id == 0
    assert tokenizer_of("gpt2").unknown_id is None


def test_a_normalizer_stays_in_every_variant() -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ALPHABET, merges=[]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("a"), normalizers.Lowercase()])
    tokenizer.add_special_tokens(["<x>"])
    ours = Tokenizer(tokenizer.to_str(), config={})
    variant = ours.backend(control=False, prefix=False)
    assert list(variant.encode("BC").tokens) == ["b", "c"]


STOPS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "no file": ({}, ("</s>",)),
    "one id": ({"generation_config.json": '{"eos_token_id": 257}'}, ("<x>",)),
    "a list": ({"generation_config.json": '{"eos_token_id": [257, 256]}'}, ("<x>", "</s>")),
    "another file": ({"config.json": '{"eos_token_id": 257}'}, ("<x>",)),
    "the first file counts": (
        {"config.json": '{"eos_token_id": 256}', "generation_config.json": '{"eos_token_id": 257}'},
        ("<x>",),
    ),
    "none named": ({"generation_config.json": "{}"}, ("</s>",)),
    "an id of no token": ({"generation_config.json": '{"eos_token_id": [9999, 257]}'}, ("<x>",)),
    "an id of plain text": ({"generation_config.json": '{"eos_token_id": [5, 257]}'}, ("<x>",)),
}


@pytest.mark.parametrize("name", STOPS)
def test_stop_tokens_are_those_of_the_model(name: str, make: Make) -> None:
    files, expected = STOPS[name]
    folder = make(AddedToken("<x>", special=True), AddedToken("</s>", special=True), eos_token="</s>")
    plain = Tokenizer.from_folder(folder).fingerprint
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_tokens.stop_tokens == expected
    assert (tokenizer.fingerprint == plain) == (expected == ("</s>",))  # other stop tokens give other samples


def test_a_damaged_file_of_stop_tokens_is_named(make: Make) -> None:
    folder = make(eos_token="</s>")
    (folder / "generation_config.json").write_text("[", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"generation_config\.json' cannot be read: .*expected an object of JSON"):
        Tokenizer.from_folder(folder)
