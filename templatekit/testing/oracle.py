"""What is right, worked out anew: from the tokenizer's file, the origins of the characters and the records.

Nothing here asks the modules that cut, encode and mask, so that a mistake of theirs is not repeated.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import tokenizers

from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import STANDARD_ROLES, RenderedText

BLANK = "\u2581"
_SPACE = r"[^\S\x1c-\x1f]+"
"""Unicode's whitespace; Python's holds four control characters more."""


class Control(NamedTuple):
    """A control token that a text holds, with its entry in the tokenizer's file."""

    start: int
    end: int
    token: dict[str, Any]


@lru_cache(maxsize=64)
def definition(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's file."""
    return dict(json.loads(tokenizer.backend(control=True, prefix=True).to_str()))


def parts(stage: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list."""
    if stage is None:
        return []
    nested = stage.get("normalizers") or stage.get("pretokenizers")
    return [part for inner in nested for part in parts(inner)] if nested else [stage]


@lru_cache(maxsize=64)
def added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The tokenizer's added tokens that are more than whitespace."""
    return {token["content"]: token for token in definition(tokenizer)["added_tokens"] if token["content"].strip()}


@lru_cache(maxsize=64)
def lossy(tokenizer: Tokenizer) -> str | None:
    """Why the tokenizer does not give every text back, even after what it declares to change; None where it does."""
    others = {
        part["type"]
        for part in parts(definition(tokenizer)["normalizer"])
        if part["type"] not in ("NFC", "Prepend") and not (part["type"] == "Replace" and part["content"] == BLANK)
    }
    if others:
        return f"the tokenizer changes texts ({', '.join(sorted(others))})"
    splitters = {part["type"] for part in parts(definition(tokenizer)["pre_tokenizer"])}
    if "ByteLevel" not in splitters and not definition(tokenizer)["model"].get("byte_fallback"):
        return "the tokenizer has no bytes to fall back on"
    return None


@lru_cache(maxsize=64)
def missing_bytes(tokenizer: Tokenizer) -> frozenset[int]:
    """Bytes for which a byte-level vocabulary has no piece: SmolLM2's lacks some."""
    stage = definition(tokenizer)["pre_tokenizer"]
    if not any(part["type"] == "ByteLevel" for part in parts(stage)):
        return frozenset()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = definition(tokenizer)["model"]["vocab"]
    found = set()
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000 and (code < 0x800 or code % 64 == 0):
            text = chr(code)
            pieces = byte_level.pre_tokenize_str(text)[0][0]
            found |= {b for b, piece in zip(text.encode(), pieces, strict=True) if piece not in vocabulary}
    return frozenset(found)


def is_lossless(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokenizer can give this text back."""
    if lossy(tokenizer):
        return False
    missing = missing_bytes(tokenizer)
    return not missing or missing.isdisjoint(text.encode())


@lru_cache(maxsize=128)
def _pattern(tokenizer: Tokenizer, special: bool) -> re.Pattern[str]:
    tokens = [text for text, token in added_tokens(tokenizer).items() if special or not token["special"]]
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")


def control_in(tokenizer: Tokenizer, text: str, *, special: bool = True) -> Iterator[Control]:
    """Control tokens in a text, leftmost and longest first."""
    for match in _pattern(tokenizer, special).finditer(text):
        yield Control(match.start(), match.end(), added_tokens(tokenizer)[match[0]])


def control_of(tokenizer: Tokenizer, rendered: RenderedText) -> list[Control]:
    """The control tokens that a rendered text may hold: those that stand in the template's own runs, and those that are
    not flagged special in one field of an assistant's own text."""
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
        Control(start + found.start, start + found.end, found.token)
        for start, end, own in runs
        for found in control_in(tokenizer, rendered.text[start:end], special=own)
    ]


def control_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The control ids among ids, without the unknown token: text that the vocabulary lacks comes out as it."""
    control = {token["id"] for token in added_tokens(tokenizer).values()}
    return [id for id in ids if id in control and id != unknown_id(tokenizer)]


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token; None where it means something else as well, as GPT-2's end of text."""
    tokens = tokenizer.special_tokens
    return None if tokens.unk in (tokens.bos, tokens.eos) else tokenizer.id_of(tokens.unk)


def decoded(tokenizer: Tokenizer, rendered: RenderedText, end: int, cuts: Sequence[int]) -> str:
    """What the ids of `rendered.text[:end]` should decode to: the text, but for what the tokenizer declares to change:
    NFC, the blank U+2581, dummy prefixes, and whitespace that control tokens take."""
    control = [found for found in control_of(tokenizer, rendered) if found.end <= end]
    borders = sorted({0, end, *(cut for cut in cuts if cut < end), *(at for a, b, _ in control for at in (a, b))})
    starts = {found.start: found.token for found in control}
    after = {found.end: found.token for found in control}
    normalizers = parts(definition(tokenizer)["normalizer"])
    kinds = {part["type"] for part in normalizers}
    splitters = parts(definition(tokenizer)["pre_tokenizer"])
    metaspace = next((part for part in splitters if part["type"] == "Metaspace"), None)
    blanks = "Prepend" in kinds or metaspace is not None
    as_blank = metaspace is not None or any(part.get("content") == BLANK for part in normalizers)
    pieces = []

    def behind(place: int) -> bool:
        """Whether nothing stands before it but a control token, and whitespace that this token takes."""
        kept = re.sub(rf"{_SPACE}\Z", "", rendered.text[:place])
        return place in after or (len(kept) in after and bool(after[len(kept)]["rstrip"]))

    for start, stop in itertools.pairwise(borders):
        piece = rendered.text[start:stop]
        if start in starts:
            pieces.append(piece)
            continue
        if start in after and after[start]["rstrip"] and start not in cuts:
            piece = re.sub(rf"\A{_SPACE}", "", piece)
        if stop in starts and starts[stop]["lstrip"] and stop not in cuts:
            piece = re.sub(rf"{_SPACE}\Z", "", piece)
        if "NFC" in kinds:
            piece = unicodedata.normalize("NFC", piece)
        if as_blank:
            piece = piece.replace(BLANK, " ")
        if piece and blanks:
            scheme = metaspace["prepend_scheme"] if metaspace else "always"
            prefixed = scheme == "always" or (scheme == "first" and start == 0)
            # The decoder takes the very first blank away again.
            if prefixed and (start == 0 or behind(start)) and not (metaspace and piece.startswith(" ")):
                piece = " " + piece
        pieces.append(piece)
    text = "".join(pieces)
    return text[1:] if blanks and text.startswith(" ") else text


def runs_of(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """The runs of true values."""
    edges = [i for i in range(len(flags) + 1) if (i > 0 and flags[i - 1]) != (i < len(flags) and flags[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open extents, sorted, with neighbours made one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def holds_no_control_but(tokenizer: Tokenizer, rendered: RenderedText) -> bool:
    """Whether a text holds no control tokens but those that count, neither as it is nor normalized."""
    own = control_of(tokenizer, rendered)
    normalizer = tokenizer.backend(control=True, prefix=True).normalizer
    normalized = normalizer.normalize_str(rendered.text) if normalizer else rendered.text
    found = list(control_in(tokenizer, rendered.text))
    return found == own and len(list(control_in(tokenizer, normalized))) == len(own)


def nothing_straddles(tokenizer: Tokenizer, text: str, cuts: Sequence[int]) -> bool:
    """Whether neither the tokens nor the words of the whole text straddle a cut."""
    backend = tokenizer.backend(control=True, prefix=True)
    offsets = backend.encode(text, add_special_tokens=False).offsets
    if any(start < cut < end for cut in cuts for start, end in offsets):
        return False
    return all(_words_part_at(backend, text, cut) for cut in cuts)


def _words_part_at(backend: tokenizers.Tokenizer, text: str, cut: int) -> bool:
    if backend.pre_tokenizer is None:
        return True

    def words(text: str) -> list[str]:
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]

    near = slice(max(0, cut - 50), cut + 50)
    return words(text[near]) == words(text[near.start : cut]) + words(text[cut : near.stop])
