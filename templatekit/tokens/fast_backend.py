"""A faster backend than `tokenizers`: kitoken, where it is installed and proven to give the same ids.

`tokenizers` is the reference. kitoken replaces it only for byte-level BPE with one of the patterns for which the two
were compared, only for ASCII text, and only after a large set of difficult strings gave equal ids with the tokenizer in
use. Its tables take as long to build as some thousand texts take to encode, so they are cached once they are proven.
Everything else is encoded by the reference: with GPT-2's pattern the two differ on `\\n's` and after a non-breaking
space, and with SmolLM2's pattern at some control characters. `Encoder` also compares each 1,024th text of a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tokenizers

from templatekit.tokens.disk_cache import cached_bytes
from templatekit.tokens.word_boundaries import is_control_token, splits_at_word_boundaries

EncodeTexts: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Returns the ids of each text."""

_LETTERS = ("a", "Z", "the", "Abc", "x" * 40)
_NON_LETTERS = ("1", "1234", ".", "!?", "'s", "'LL", "_", "/", "{}", "=", "0x", "#")
_WHITESPACE = ("", " ", "  ", "    ", "\n", "\n\n", " \n ", "\r\n", "\t", "\t\t")

_LARGE_VOCABULARY = 10_000
"""For a vocabulary of at least this size, building the tables takes longer than reading them."""

_PROVEN_BYTES = bytes([*b"\t\n\r", *range(ord(" "), 0x7F)])
"""All of ASCII, without the control characters that are neither newlines nor tabs."""


def is_proven_text(text: str) -> bool:
    """Whether both backends give equal ids for a text of this kind, once `probe_texts` proves a tokenizer.

    False for text with control characters, and where a newline or tab stands before an apostrophe.
    """
    if not text.isascii() or text.encode().translate(None, _PROVEN_BYTES):  # several times as fast as a pattern
        return False
    return "\n'" not in text and "\t'" not in text and "\r'" not in text


def probe_texts() -> list[str]:
    """The texts of the proof: every combination of the kinds of characters that patterns distinguish."""
    visible = (*_LETTERS, *_NON_LETTERS)
    combinations = itertools.chain(
        itertools.product(visible, _WHITESPACE, visible), itertools.product(_WHITESPACE, visible, _WHITESPACE)
    )
    return [text for text in map("".join, combinations) if is_proven_text(text)]


def reference_encode(backend: tokenizers.Tokenizer) -> EncodeTexts:
    """A function that encodes texts with `tokenizers`, without special tokens around them."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def load_fast_backend(backend: tokenizers.Tokenizer, *, fingerprint: str | None = None) -> EncodeTexts | None:
    """A function that encodes proven texts without control tokens; None where kitoken is absent or not proven equal.

    The tables of a large vocabulary are cached under the tokenizer's `fingerprint`.
    """
    try:
        from kitoken import Kitoken
    except ImportError:
        return None
    if backend.normalizer is not None and type(backend.normalizer) is not tokenizers.normalizers.NFC:
        return None
    added_tokens = backend.get_added_tokens_decoder().values()
    if not splits_at_word_boundaries(backend) or not all(map(is_control_token, added_tokens)):
        return None
    texts = probe_texts()

    def build_tables() -> bytes | None:
        bare = tokenizers.Tokenizer(backend.model)  # without added tokens and post-processor
        bare.normalizer, bare.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        try:
            built: bytes = Kitoken.from_tokenizers(bare.to_str().encode()).to_bytes()
            equal = Kitoken(built).encode_all(texts) == reference_encode(backend)(texts)
        except Exception:  # kitoken cannot read every file that `tokenizers` reads
            return None
        return built if equal else None

    if fingerprint is None or backend.get_vocab_size() < _LARGE_VOCABULARY:
        tables = build_tables()
    else:
        tables = cached_bytes([fingerprint, *texts], ["kitoken", "tokenizers"], build_tables)
    if tables is None:
        return None
    encoder = Kitoken(tables)
    return lambda texts: encoder.encode_all(list(texts))
