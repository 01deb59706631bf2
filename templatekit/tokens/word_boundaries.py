"""Which tokenizers encode the words of a text apart, so that a word's ids are the same whatever stands beside it.

A *seam* is the place before a blank (U+0020) that stands between two characters that are no whitespace. The question
is whether a text's ids are always those of its parts, cut at every seam. It is answered for two kinds of tokenizers,
each part of which is one that the argument was made for; for every other the answer is no.

**Where a pre-tokenizer parts words** (byte-level BPE). BPE never merges across the pieces that a pre-tokenizer makes,
so the question is whether every seam parts pieces, and whether the pieces on either side of it are made alike without
the other side. In the patterns listed here no alternative can take a blank behind a character that is no whitespace: a
blank is the first character that an alternative takes, or in a run of whitespace. So every seam parts two matches.
None looks behind itself, so what a match is depends on the text from its start alone; the one that looks ahead,
`\\s+(?!\\S)`, looks behind a run of whitespace, which at a seam is the blank itself with its word behind it. Patterns
that are applied before (digits, Chinese runs) take characters by their class and no blanks. NFC leaves a seam alone: a
blank never composes with what stands before it, and nothing that is no whitespace becomes whitespace.

**Where there is no pre-tokenizer** (SentencePiece's BPE: a blank becomes U+2581). A merge across a seam would make a
token in which U+2581 follows another character, so where the vocabulary holds no such token there is none, and the
merges on either side know nothing of each other. U+2581 itself counts as whitespace here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

BLANK = " "
METASPACE = "▁"

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_REST}"

PARTING = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2, spelled out
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        _WORDS % r"\p{N}",  # Qwen 2 to 3
        _WORDS % r"\p{N}{1,3}",  # Llama 3, GLM 4, cl100k
        rf"{_CAMEL % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}",  # Mistral's Tekken
        rf"{_CAMEL % (f'{_CONTRACTIONS}?', f'{_CONTRACTIONS}?')}|\p{{N}}{{1,3}}"  # gpt-oss, o200k
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{_REST}",  # DeepSeek 3
    }
)
"""Patterns of `Split` that part a text at every seam."""

HARMLESS = frozenset({r"\p{N}{1,3}", r"\p{N}", "[一-龥぀-ゟ゠-ヿ]+"})
"""Patterns of `Split` that take characters by their class, no blank among them: they part more, and alike."""


def encodes_words_apart(backend: tokenizers.Tokenizer) -> bool:
    """Whether the ids of a text without added tokens are those of its parts, cut at every seam."""
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or model.dropout:
        return False
    if any(_may_hold_a_seam(token) for token in backend.get_added_tokens_decoder().values()):
        return False
    normalizer, pre_tokenizer = _parts(backend.normalizer), _parts(backend.pre_tokenizer)
    if parts_at_seams(backend):
        return all(part == {"type": "NFC"} for part in normalizer)
    return _is_sentencepiece(normalizer, pre_tokenizer) and not model.ignore_merges and _merges_no_seam(backend)


def is_control(token: tokenizers.AddedToken) -> bool:
    """Whether an added token is more than text: flagged special, or else neither whitespace nor a single character."""
    return token.special or len(token.content.strip()) > 1


def _may_hold_a_seam(token: tokenizers.AddedToken) -> bool:
    """Whether an added token that is text itself, such as a run of blanks, may take characters of two words.

    Control tokens are no concern: they are never part of the text in question.
    """
    if is_control(token):
        return False
    wide = token.lstrip or token.rstrip or token.single_word or token.normalized
    return wide or any(a != BLANK and b == BLANK for a, b in zip(token.content, token.content[1:], strict=False))


def parts_at_seams(backend: tokenizers.Tokenizer) -> bool:
    """Whether the pre-tokenizer is of the kinds listed here and parts a text at every seam."""
    kinds = [_kind(part) for part in _parts(backend.pre_tokenizer)]
    return "parts" in kinds and "unknown" not in kinds


def _kind(part: Mapping[str, Any]) -> str:
    if part["type"] == "ByteLevel" and not part["add_prefix_space"]:
        return "parts" if part.get("use_regex", True) else "harmless"
    if part["type"] == "Digits":
        return "harmless"
    if part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        pattern = part["pattern"].get("Regex")
        return "parts" if pattern in PARTING else "harmless" if pattern in HARMLESS else "unknown"
    return "unknown"


def _is_sentencepiece(normalizer: list[dict[str, Any]], pre_tokenizer: list[dict[str, Any]]) -> bool:
    """Whether all that is done to a text is a U+2581 for each blank, and perhaps one in front."""
    replace = {"type": "Replace", "pattern": {"String": BLANK}, "content": METASPACE}
    if not pre_tokenizer:
        return normalizer in ([replace], [{"type": "Prepend", "prepend": METASPACE}, replace])
    spaces = [part for part in pre_tokenizer if part["type"] == "Metaspace" and part["replacement"] == METASPACE]
    return not normalizer and len(spaces) == len(pre_tokenizer) == 1 and not spaces[0]["split"]


def _merges_no_seam(backend: tokenizers.Tokenizer) -> bool:
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return METASPACE in vocabulary and not any(METASPACE in token.lstrip(METASPACE) for token in vocabulary)


def _parts(stage: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of what stands in tokenizer.json."""
    return [] if stage is None else _flat(json.loads(stage.__getstate__()))


def _flat(stage: Mapping[str, Any]) -> list[dict[str, Any]]:
    nested = stage.get("normalizers", stage.get("pretokenizers"))
    return [dict(stage)] if nested is None else [part for inner in nested for part in _flat(inner)]
