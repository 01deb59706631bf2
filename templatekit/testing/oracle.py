"""The test oracle: computes the expected results of checks independently of the code under test.

It uses the tokenizer's file, the origins of characters and the records. It calls none of the modules that cut, encode
and mask, so that it does not repeat their mistakes.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import tokenizers

from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import STANDARD_ROLES, RenderedText

BLANK = "\u2581"
_SPACE = r"[^\S\x1c-\x1f]+"
"""Whitespace as Unicode defines it; Python counts four control characters too."""


class ControlMatch(NamedTuple):
    """A control token in a text, with its entry in the tokenizer's file."""

    start: int
    end: int
    token: dict[str, Any]


@lru_cache(maxsize=64)
def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of the tokenizer's file."""
    return dict(json.loads(tokenizer.backend(control=True, prefix=True).to_str()))


def stages(stage: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The stages of a normalizer or pre-tokenizer, as a flat list."""
    if stage is None:
        return []
    nested = stage.get("normalizers") or stage.get("pretokenizers")
    return [flat for inner in nested for flat in stages(inner)] if nested else [stage]


@lru_cache(maxsize=64)
def added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The tokenizer's added tokens except those of whitespace alone, by text."""
    return {token["content"]: token for token in tokenizer_json(tokenizer)["added_tokens"] if token["content"].strip()}


@lru_cache(maxsize=64)
def why_lossy(tokenizer: Tokenizer) -> str | None:
    """Why decoding does not restore every text; None if it does, except for changes that the tokenizer declares."""
    others = {
        stage["type"]
        for stage in stages(tokenizer_json(tokenizer)["normalizer"])
        if stage["type"] not in ("NFC", "Prepend") and not (stage["type"] == "Replace" and stage["content"] == BLANK)
    }
    if others:
        return f"the tokenizer changes texts ({', '.join(sorted(others))})"
    splitters = {stage["type"] for stage in stages(tokenizer_json(tokenizer)["pre_tokenizer"])}
    if "ByteLevel" not in splitters and not tokenizer_json(tokenizer)["model"].get("byte_fallback"):
        return "the tokenizer has no bytes to fall back on"
    return None


@lru_cache(maxsize=64)
def missing_bytes(tokenizer: Tokenizer) -> frozenset[int]:
    """Bytes that a byte-level vocabulary does not contain; SmolLM2 lacks some."""
    if not any(stage["type"] == "ByteLevel" for stage in stages(tokenizer_json(tokenizer)["pre_tokenizer"])):
        return frozenset()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = tokenizer_json(tokenizer)["model"]["vocab"]
    found = set()
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000 and (code < 0x800 or code % 64 == 0):
            text = chr(code)
            symbols = byte_level.pre_tokenize_str(text)[0][0]
            found |= {b for b, symbol in zip(text.encode(), symbols, strict=True) if symbol not in vocabulary}
    return frozenset(found)


def is_lossless(tokenizer: Tokenizer, text: str) -> bool:
    """Whether decoding can restore this text."""
    if why_lossy(tokenizer):
        return False
    missing = missing_bytes(tokenizer)
    return not missing or missing.isdisjoint(text.encode())


@lru_cache(maxsize=128)
def _control_pattern(tokenizer: Tokenizer, special: bool) -> re.Pattern[str]:
    tokens = [text for text, token in added_tokens(tokenizer).items() if special or not token["special"]]
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")


def control_tokens_in(tokenizer: Tokenizer, text: str, *, special: bool = True) -> Iterator[ControlMatch]:
    """The control tokens in a text; of overlapping ones the leftmost, then the longest."""
    for match in _control_pattern(tokenizer, special).finditer(text):
        yield ControlMatch(match.start(), match.end(), added_tokens(tokenizer)[match[0]])


def expected_control_tokens(tokenizer: Tokenizer, rendered: RenderedText) -> list[ControlMatch]:
    """The control tokens that a rendered text may contain.

    These are the ones in literals, and those not flagged special in one field of an assistant's message.
    """
    runs: list[tuple[int, int, bool]] = []
    for span in rendered.spans:
        message = span.origin.message
        role = rendered.roles[message] if message is not None else None
        if span.origin.kind == "template" or (span.origin.field == "role" and role in STANDARD_ROLES):
            if runs and runs[-1][2] and runs[-1][1] == span.start:
                runs[-1] = (runs[-1][0], span.end, True)
            else:
                runs.append((span.start, span.end, True))
        elif role == "assistant" and span.origin.field != "name":
            runs.append((span.start, span.end, False))
    return [
        ControlMatch(start + found.start, start + found.end, found.token)
        for start, end, is_literal in runs
        for found in control_tokens_in(tokenizer, rendered.text[start:end], special=is_literal)
    ]


def control_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The control ids among ids, without the unknown token's, which plain text outside the vocabulary gives too."""
    control = {token["id"] for token in added_tokens(tokenizer).values()}
    return [id for id in ids if id in control and id != unknown_id(tokenizer)]


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token; None if it has another meaning too, such as GPT-2's end of text."""
    tokens = tokenizer.special_tokens
    return None if tokens.unk in (tokens.bos, tokens.eos) else tokenizer.id_of(tokens.unk)


def expected_decoding(tokenizer: Tokenizer, rendered: RenderedText, end: int, cuts: Sequence[int]) -> str:
    """The text to which the ids of `rendered.text[:end]` should decode.

    It differs from the rendered text by the changes that the tokenizer declares: NFC, the blank U+2581, dummy prefixes,
    and whitespace that control tokens strip.
    """
    control = [found for found in expected_control_tokens(tokenizer, rendered) if found.end <= end]
    edges = sorted({0, end, *(cut for cut in cuts if cut < end), *(at for a, b, _ in control for at in (a, b))})
    starts = {found.start: found.token for found in control}
    ends = {found.end: found.token for found in control}
    normalizers = stages(tokenizer_json(tokenizer)["normalizer"])
    kinds = {stage["type"] for stage in normalizers}
    pre_tokenizers = stages(tokenizer_json(tokenizer)["pre_tokenizer"])
    metaspace = next((stage for stage in pre_tokenizers if stage["type"] == "Metaspace"), None)
    adds_prefix = "Prepend" in kinds or metaspace is not None
    reads_blank = metaspace is not None or any(stage.get("content") == BLANK for stage in normalizers)
    fragments = []

    def follows_control_token(position: int) -> bool:
        """Whether a control token ends here, or before whitespace that it strips."""
        stripped = len(re.sub(rf"{_SPACE}\Z", "", rendered.text[:position]))
        return position in ends or (stripped in ends and bool(ends[stripped]["rstrip"]))

    for start, stop in itertools.pairwise(edges):
        fragment = rendered.text[start:stop]
        if start in starts:
            fragments.append(fragment)
            continue
        if start in ends and ends[start]["rstrip"] and start not in cuts:
            fragment = re.sub(rf"\A{_SPACE}", "", fragment)
        if stop in starts and starts[stop]["lstrip"] and stop not in cuts:
            fragment = re.sub(rf"{_SPACE}\Z", "", fragment)
        if "NFC" in kinds:
            fragment = unicodedata.normalize("NFC", fragment)
        if reads_blank:
            fragment = fragment.replace(BLANK, " ")
        if fragment and adds_prefix:
            scheme = metaspace["prepend_scheme"] if metaspace else "always"
            prefixed = (start == 0 and scheme != "never") or (scheme == "always" and follows_control_token(start))
            if prefixed and not (metaspace and fragment.startswith(" ")):
                fragment = " " + fragment
        fragments.append(fragment)
    text = "".join(fragments)  # the decoder strips its first blank
    return text[1:] if adds_prefix and text.startswith(" ") else text


def true_runs(flags: Iterable[object]) -> list[tuple[int, int]]:
    """The half-open index ranges of consecutive true values."""
    return merged([(index, index + 1) for index, flag in enumerate(flags) if flag])


def merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges, sorted, with adjacent ones merged."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def has_only_expected_control_tokens(tokenizer: Tokenizer, rendered: RenderedText) -> bool:
    """Whether a text contains no control tokens but the expected ones, before and after normalization."""
    expected = expected_control_tokens(tokenizer, rendered)
    normalizer = tokenizer.backend(control=True, prefix=True).normalizer
    normalized = normalizer.normalize_str(rendered.text) if normalizer else rendered.text
    found = list(control_tokens_in(tokenizer, rendered.text))
    return found == expected and len(list(control_tokens_in(tokenizer, normalized))) == len(expected)


def no_token_straddles_a_cut(tokenizer: Tokenizer, text: str, cuts: Sequence[int]) -> bool:
    """Whether no token and no word of the text, encoded as a whole, straddles a cut."""
    backend = tokenizer.backend(control=True, prefix=True)
    offsets = backend.encode(text, add_special_tokens=False).offsets
    if any(start < cut < end for cut in cuts for start, end in offsets):
        return False
    return all(_words_split_at(backend, text, cut) for cut in cuts)


def _words_split_at(backend: tokenizers.Tokenizer, text: str, cut: int) -> bool:
    """Whether the pre-tokenizer splits the text at a cut."""
    if backend.pre_tokenizer is None:
        return True

    def words(text: str) -> list[str]:
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]

    near = slice(max(0, cut - 50), cut + 50)
    return words(text[near]) == words(text[near.start : cut]) + words(text[cut : near.stop])
