"""What is certain of the tokens of any text, for the tokenizers where it can be proven.

**Every character becomes a token, or a part of one.** This holds for BPE whose vocabulary has all bytes: byte-level BPE
with the whole alphabet, and SentencePiece's BPE with byte fallback. Their normalizers and pre-tokenizers, which must be
among those that `templatekit.tokens.word_boundaries` knows, drop nothing. Control tokens may drop the whitespace beside
them. Some byte-level vocabularies lack bytes of rare characters; nothing is certain of texts with these. All other
texts have at least as many tokens as their length divided by that of the longest token.

**No text becomes a control id** unless it is the text of a control token. This holds where no merge of BPE gives such
an id. Otherwise the encoder may split a text again, which changes ids far before the characters in question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import tokenizers

from templatekit.tokens.word_boundaries import components, is_sentencepiece, splits_at_word_boundaries

_NFC_SHRINKS = 4
"""NFC makes one character of at most so many: it is the longest canonical decomposition."""
_SHORTEST_PLACEHOLDER = 16
"""Characters of the text that replaces a control token where text must not become one; see `Tokenizer`."""
_PRINTABLE_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHER_BYTES = [byte for byte in range(0x100) if byte not in _PRINTABLE_BYTES]
_BYTE_SYMBOLS = [chr(byte if byte in _PRINTABLE_BYTES else 0x100 + _OTHER_BYTES.index(byte)) for byte in range(0x100)]
"""The character that stands for each byte in byte-level BPE."""
_BYTE_PIECES = frozenset(f"<0x{value:02X}>" for value in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBounds:
    """What is certain of a tokenizer that makes a token, or a part of one, of every character but whitespace."""

    longest_token: int
    """The most characters of a normalized text that one token covers."""
    composes: bool
    """Whether NFC may make fewer characters of the text first."""
    drops_whitespace: bool
    """Whether control tokens may drop the whitespace beside them."""

    missing: re.Pattern[str] | None = None
    """Finds a character of which the vocabulary lacks a byte; None where it lacks none."""

    def hold_for(self, text: str) -> bool:
        """Whether the bounds are true of this text."""
        return self.missing is None or self.missing.search(text) is None

    def characters_of_a_token(self, text: str) -> int:
        """The most characters that one token covers in this text."""
        return self.longest_token * (_NFC_SHRINKS if self.composes and not text.isascii() else 1)

    def least_tokens(self, text: str) -> int:
        """A number of tokens that the text has at least."""
        return 0 if self.drops_whitespace else len(text) // self.characters_of_a_token(text)


def token_bounds(backend: tokenizers.Tokenizer) -> TokenBounds | None:
    """The bounds of a tokenizer; None where they are not proven."""
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    added_tokens = backend.get_added_tokens_decoder().values()
    if any(token.single_word for token in added_tokens):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    normalizer, pre_tokenizer = components(backend.normalizer), components(backend.pre_tokenizer)
    if splits_at_word_boundaries(backend) and any(step["type"] == "ByteLevel" for step in pre_tokenizer):
        missing = _characters_with_bytes(byte for byte, symbol in enumerate(_BYTE_SYMBOLS) if symbol not in vocabulary)
        if missing is None or any(step != {"type": "NFC"} for step in normalizer) or (missing and normalizer):
            return None
    elif is_sentencepiece(normalizer, pre_tokenizer) and model.byte_fallback and vocabulary.keys() >= _BYTE_PIECES:
        missing = ""
    else:
        return None
    longest = max(map(len, [*vocabulary, *(token.content for token in added_tokens)]))
    return TokenBounds(
        longest_token=max(longest, _SHORTEST_PLACEHOLDER),
        composes=any(step["type"] == "NFC" for step in normalizer),
        drops_whitespace=any(token.lstrip or token.rstrip for token in added_tokens),
        missing=re.compile(f"[{missing}]") if missing else None,
    )


def _characters_with_bytes(bytes_: Iterable[int]) -> str | None:
    """The characters that have any of these bytes in UTF-8, for a pattern; None where these are too many."""
    ranges = ""
    for byte in bytes_:
        if byte < 0x80:
            ranges += re.escape(chr(byte))
        elif 0xF1 <= byte <= 0xF4:  # the first byte of a plane without letters
            first = (byte & 7) << 18
            ranges += f"{chr(first)}-{chr(min(first + 0x3FFFF, 0x10FFFF))}"
        elif byte not in (0xC0, 0xC1, *range(0xF5, 0x100)):  # bytes that UTF-8 never has
            return None
    return ranges


def may_make_control_ids(backend: tokenizers.Tokenizer, control_ids: Collection[int]) -> bool:
    """Whether the model of a tokenizer that has bounds may give one of these ids for text without control tokens."""
    model = backend.model
    pieces = {piece for id in control_ids if (piece := model.id_to_token(id)) is not None}
    if not pieces:
        return False
    if model.ignore_merges or any(len(piece) == 1 for piece in pieces) or pieces & _BYTE_PIECES:
        return True
    merges = json.loads(backend.to_str())["model"]["merges"]
    merged = {"".join(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges}
    return not pieces.isdisjoint(merged)
