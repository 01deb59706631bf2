"""Tiny tokenizers, one for each kind that formats meet, built in a few milliseconds when they are first used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from templatekit.errors import UnknownNameError
from templatekit.tokens.tokenizer import TOKENIZER_FILE, Tokenizer

CORPUS = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName three primary colours.\n\n### Input:\nred, blue\n\n### Response:\nRed, blue and yellow.",
    "user assistant system Hello there! What is the capital of France? The capital of France is Paris.",
    "def main():\n    return {'a': 1, 'b': [2, 3]}\n\n\n### End\n",
    "The quick brown fox jumps over the lazy dog; it's 12:30 o'clock, and we'll see what they're doing.",
) * 3
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE like GPT-2, with the control tokens of ChatML and Llama 3."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", *SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _dolly() -> tokenizers.Tokenizer:
    """With the special tokens that Dolly's authors add, one of which ends in a newline."""
    tokenizer = _byte_level()
    tokenizer.add_special_tokens(["### End", "### Instruction:", "### Response:\n"])
    return tokenizer


def _nfc() -> tokenizers.Tokenizer:
    """Like Qwen: NFC, a splitting pattern, and added tokens that are not flagged special."""
    tokenizer = _byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    open_tokens = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in open_tokens])
    return tokenizer


def _sentencepiece(metaspace: str | None = None) -> tokenizers.Tokenizer:
    """SentencePiece BPE with byte fallback, and BOS before plain text.

    By default it has normalizers like Llama 2, which write a dummy prefix after every control token. `metaspace` is the
    `prepend_scheme` of a pre-tokenizer like in later Llama and Mistral files: "first" writes the prefix only at the
    start of the text.
    """
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    definition = json.loads(trained.to_str())
    pieces = sorted(definition["model"]["vocab"].items(), key=lambda item: item[1])
    byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
    ordered = [*(text for text, _ in pieces[:3]), *byte_pieces, *(text for text, _ in pieces[3:])]
    vocabulary = {text: index for index, text in enumerate(ordered)}
    definition["model"] |= {"vocab": vocabulary, "byte_fallback": True, "fuse_unk": True}
    definition["pre_tokenizer"] = None
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    if metaspace is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    tokenizer.decoder = _sentencepiece_decoder()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _sentencepiece_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def _strips() -> tokenizers.Tokenizer:
    """Like Phi-3: control tokens that strip the whitespace next to them."""
    tokenizer = _sentencepiece()
    right = [AddedToken(text, special=True, rstrip=True) for text in ("<|user|>", "<|assistant|>", "<|im_start|>")]
    tokenizer.add_special_tokens([*right, AddedToken("<|im_end|>", special=True, lstrip=True)])
    tokenizer.add_tokens([AddedToken("<mask>", special=False, normalized=False, lstrip=True)])
    return tokenizer


def _unigram() -> tokenizers.Tokenizer:
    """Unigram with a control token's text in the vocabulary, so that the model may produce it from plain text."""
    characters = sorted({character for text in CORPUS for character in text} - {" ", "\n"})
    pieces: list[tuple[str, float]] = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0)]
    pieces += [(f"<0x{value:02X}>", -12.0) for value in range(256)]
    pieces += [(character, -8.0) for character in characters]
    pieces += [(f"▁{word}", -5.0) for word in ("the", "is", "a", "instruction", "user", "assistant", "s")]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = _sentencepiece_decoder()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def _unknowing() -> tokenizers.Tokenizer:
    """BPE over a small alphabet: most characters become the unknown token."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    specials = ["<unk>", "</s>", *SPECIAL]
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _folding() -> tokenizers.Tokenizer:
    """NFKC and lower case, with control tokens that are matched in normalized text: `＜ＴＨＩＮＫ＞` is `<think>`."""
    tokenizer = _byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=True)])
    tokenizer.add_special_tokens([AddedToken("<halt>", special=True, normalized=True)])
    return tokenizer


_END_OF_TEXT = {"eos_token": "<|endoftext|>"}
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_BUILDERS: Mapping[str, tuple[Callable[[], tokenizers.Tokenizer], Mapping[str, str]]] = {
    "bytes": (_byte_level, _END_OF_TEXT | {"bos_token": "<|begin_of_text|>"}),
    "nfc": (_nfc, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "sentencepiece": (_sentencepiece, _LLAMA),
    "metaspace": (partial(_sentencepiece, "first"), _LLAMA),
    "dolly": (_dolly, _END_OF_TEXT),
    "strips": (_strips, _LLAMA | {"eos_token": "<|im_end|>"}),
    "unigram": (_unigram, _LLAMA),
    "unknowing": (_unknowing, _LLAMA | {"bos_token": "<|begin_of_text|>"}),
    "folding": (_folding, _END_OF_TEXT),
}
"""By name, the function that makes the tokenizer, and its tokenizer_config.json."""

TINY = tuple(_BUILDERS)
"""The names of all tiny tokenizers."""

MAIN = ("bytes", "nfc", "sentencepiece", "metaspace")
"""The kinds to which the tokenizers of nearly all models belong. Formats are checked with these by default."""


@lru_cache(maxsize=64)
def tiny_tokenizer(name: str, special_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """A tiny tokenizer by its name in `TINY`, with additional special tokens."""
    backend, config = _build(name)
    backend.add_special_tokens(list(special_tokens))
    return Tokenizer(backend.to_str(), config=config, name=name + "+" * bool(special_tokens))


def save_tiny_tokenizer(name: str, folder: Path) -> Path:
    """Save a tiny tokenizer to a folder, as models have it."""
    backend, config = _build(name)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / TOKENIZER_FILE))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _build(name: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    if name not in _BUILDERS:
        raise UnknownNameError("tiny tokenizer", name, TINY)
    build, config = _BUILDERS[name]
    return build(), dict(config)
