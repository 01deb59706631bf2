"""A quicker encoder of parts, where it is proven to give the ids of `tokenizers`: kitoken, if it is installed.

`tokenizers` is the reference. kitoken stands in for it on text of ASCII characters alone, with byte-level BPE whose
pattern is one of those that both were compared on, and after a battery of nasty strings has given equal ids with this
very tokenizer. Its tables, which take as long to make as some thousand texts to encode, are kept once that is proven.
Everything else stays with the reference: with GPT-2's pattern the two part on `\\n's` and behind a non-breaking space,
with SmolLM2's at some control characters. Each 1,024th text of a run is compared as well, by `Encoder`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tokenizers

from templatekit.tokens.disk_cache import kept_bytes
from templatekit.tokens.word_boundaries import is_control, parts_at_seams

Encode: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""The ids of each text."""

_LETTERS = ("a", "Z", "the", "Abc", "x" * 40)
_OTHERS = ("1", "1234", ".", "!?", "'s", "'LL", "_", "/", "{}", "=", "0x", "#")
_BLANKS = ("", " ", "  ", "    ", "\n", "\n\n", " \n ", "\r\n", "\t", "\t\t")

_LARGE = 10_000
"""Entries of a vocabulary whose tables take longer to make than to read."""

_PLAIN = bytes([*b"\t\n\r", *range(ord(" "), 0x7F)])
"""All of ASCII but for control characters that are no newlines and no tabs."""


def is_alike(text: str) -> bool:
    """Whether both encoders give the text equal ids, where the battery says so of a tokenizer.

    Not where whitespace that is no blank stands before an apostrophe, and not with control characters.
    """
    if not text.isascii() or text.encode().translate(None, _PLAIN):  # several times as fast as a pattern
        return False
    return "\n'" not in text and "\t'" not in text and "\r'" not in text


def battery() -> list[str]:
    """Such texts, of everything that patterns tell apart, side by side."""
    kinds = (*_LETTERS, *_OTHERS)
    pairs = itertools.chain(itertools.product(kinds, _BLANKS, kinds), itertools.product(_BLANKS, kinds, _BLANKS))
    return [text for text in map("".join, pairs) if is_alike(text)]


def reference(backend: tokenizers.Tokenizer) -> Encode:
    """`tokenizers` itself."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def worth(backend: tokenizers.Tokenizer) -> int:
    """How many parts the reference encodes in about the time that it takes to load the quicker encoder.

    That is a tenth of a second for a vocabulary of 50,000.
    """
    size: int = backend.get_vocab_size()
    return 1_000 + size // 10


def quicker(backend: tokenizers.Tokenizer, *, fingerprint: str | None = None) -> Encode | None:
    """Encodes texts that are alike and hold no control token; None where kitoken is absent or not proven equal.

    The tables of a large vocabulary are kept under its tokenizer's `fingerprint`.
    """
    try:
        from kitoken import Kitoken
    except ImportError:
        return None
    if backend.normalizer is not None and type(backend.normalizer) is not tokenizers.normalizers.NFC:
        return None
    if not parts_at_seams(backend) or not all(map(is_control, backend.get_added_tokens_decoder().values())):
        return None
    texts = battery()

    def tables() -> bytes | None:
        bare = tokenizers.Tokenizer(backend.model)  # without added tokens, and with nothing put around a text
        bare.normalizer, bare.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        try:
            made: bytes = Kitoken.from_tokenizers(bare.to_str().encode()).to_bytes()
            equal = Kitoken(made).encode_all(texts) == reference(backend)(texts)
        except Exception:  # it does not read every file that `tokenizers` reads; then there is no quicker way
            return None
        return made if equal else None

    if fingerprint is None or backend.get_vocab_size() < _LARGE:
        found = tables()
    else:
        found = kept_bytes([fingerprint, *texts], ["kitoken", "tokenizers"], tables)
    if found is None:
        return None
    encoder = Kitoken(found)
    return lambda texts: encoder.encode_all(list(texts))
