"""Decides which tokenizers encode the words of a text separately: a word then has the same ids in every text.

A *word boundary* is the position before a blank (U+0020) that stands between two characters that are not whitespace.
This module answers whether the ids of every text are the concatenated ids of its words, split at every word boundary.
The answer is yes for two kinds of tokenizers, and only where each component is one that the proof below covers. For all
other tokenizers the answer is no.

**With a pre-tokenizer that splits words** (byte-level BPE). BPE never merges across the matches of a pre-tokenizer. So
two things must hold: every word boundary separates two matches, and the matches on either side do not depend on the
other side. In the patterns listed here, no alternative can match a blank after a character that is not whitespace: a
blank is either the first character of a match, or part of a run of whitespace. So every word boundary separates two
matches. No pattern looks behind, so a match depends only on the text from its start on. One alternative looks ahead,
`\\s+(?!\\S)`: it looks past a run of whitespace, which at a word boundary is the one blank, followed by its word.
Patterns that are applied before (digits, Chinese runs) match characters by class, and never blanks. NFC leaves a word
boundary unchanged: a blank never composes with the character before it, and only whitespace becomes whitespace.

**Without a pre-tokenizer** (SentencePiece's BPE, where a blank becomes U+2581). A merge across a word boundary would
give a token in which U+2581 follows another character. Where the vocabulary has no such token, there is no such merge,
and the merges on either side are independent. U+2581 itself counts as whitespace here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

BLANK = " "
METASPACE = "▁"

_NO_NEIGHBOR = f"\u180e{METASPACE}"
WORD_BOUNDARY = re.compile(rf"(?<=[^\s{_NO_NEIGHBOR}])(?= [^\s{_NO_NEIGHBOR}])")
"""Matches at each word boundary.

Python's whitespace is Unicode's plus four control characters; a blank beside one of these four is not taken as a
boundary.
"""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_REST}"

SPLITTING_PATTERNS = frozenset(
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
"""Patterns of the pre-tokenizer `Split` that split a text at every word boundary."""

HARMLESS_PATTERNS = frozenset({r"\p{N}{1,3}", r"\p{N}", "[一-龥぀-ゟ゠-ヿ]+"})
"""Patterns of `Split` that match characters by class, never blanks: they split more, and everywhere in the same way."""


def encodes_words_separately(backend: tokenizers.Tokenizer) -> bool:
    """Whether the ids of every text without control tokens are those of its words, concatenated."""
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or model.dropout:
        return False
    if any(_may_contain_word_boundary(token) for token in backend.get_added_tokens_decoder().values()):
        return False
    normalizer, pre_tokenizer = components(backend.normalizer), components(backend.pre_tokenizer)
    if splits_at_word_boundaries(backend):
        return all(component == {"type": "NFC"} for component in normalizer)
    return is_sentencepiece(normalizer, pre_tokenizer) and not model.ignore_merges and not _may_merge_words(backend)


def is_control_token(token: tokenizers.AddedToken) -> bool:
    """Whether an added token is more than text: flagged special, or else neither whitespace nor a single character."""
    return token.special or len(token.content.strip()) > 1


def splits_at_word_boundaries(backend: tokenizers.Tokenizer) -> bool:
    """Whether the pre-tokenizer has only components that are listed here, and splits a text at every word boundary."""
    kinds = [_kind(component) for component in components(backend.pre_tokenizer)]
    return "splits" in kinds and "unknown" not in kinds


def components(stage: Any) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as a flat list of its components, in the form of tokenizer.json."""
    return [] if stage is None else _flat(json.loads(stage.__getstate__()))


def _flat(stage: Mapping[str, Any]) -> list[dict[str, Any]]:
    nested = next((stage[key] for key in ("normalizers", "pretokenizers", "decoders") if key in stage), None)
    return [dict(stage)] if nested is None else [component for inner in nested for component in _flat(inner)]


def _may_contain_word_boundary(token: tokenizers.AddedToken) -> bool:
    """Whether an added token that is itself text, such as a run of blanks, may match characters of two words.

    Control tokens do not matter here: the text in question never contains them.
    """
    if is_control_token(token):
        return False
    wide = token.lstrip or token.rstrip or token.single_word or token.normalized
    return wide or any(a != BLANK and b == BLANK for a, b in zip(token.content, token.content[1:], strict=False))


def _kind(component: Mapping[str, Any]) -> str:
    """What a component of a pre-tokenizer does at word boundaries: `splits`, `harmless` or `unknown`."""
    if component["type"] == "ByteLevel" and not component["add_prefix_space"]:
        return "splits" if component.get("use_regex", True) else "harmless"
    if component["type"] == "Digits":
        return "harmless"
    if component["type"] == "Split" and component["behavior"] == "Isolated" and not component["invert"]:
        pattern = component["pattern"].get("Regex")
        return "splits" if pattern in SPLITTING_PATTERNS else "harmless" if pattern in HARMLESS_PATTERNS else "unknown"
    return "unknown"


def is_sentencepiece(normalizer: list[dict[str, Any]], pre_tokenizer: list[dict[str, Any]]) -> bool:
    """Whether a text is changed only by writing U+2581 for each blank, and perhaps one before the text."""
    replace = {"type": "Replace", "pattern": {"String": BLANK}, "content": METASPACE}
    if not pre_tokenizer:
        return normalizer in ([replace], [{"type": "Prepend", "prepend": METASPACE}, replace])
    metaspaces = [step for step in pre_tokenizer if step["type"] == "Metaspace" and step["replacement"] == METASPACE]
    return not normalizer and len(metaspaces) == len(pre_tokenizer) == 1 and not metaspaces[0]["split"]


def _may_merge_words(backend: tokenizers.Tokenizer) -> bool:
    """Whether SentencePiece's vocabulary lacks U+2581, or has a token with U+2581 after another character."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return METASPACE not in vocabulary or any(METASPACE in token.lstrip(METASPACE) for token in vocabulary)


def may_be_beside_word_boundary(character: str) -> bool:
    """Whether a blank beside this character may be at a word boundary; `""` stands for another blank: False."""
    return bool(character) and not character.isspace() and character not in _NO_NEIGHBOR
