"""Tokenizers and rendered texts that are built by hand, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from templatekit import RenderedText, Span, Tokenizer
from templatekit.types import Origin

ALPHABET = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def byte_tokenizer(*added: AddedToken) -> Tokenizer:
    """A tokenizer with one token per byte, and added tokens."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=ALPHABET, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return with_tokens(backend, added)


def with_tokens(backend: tokenizers.Tokenizer, added: Sequence[AddedToken]) -> Tokenizer:
    """A tokenizer with these tokens, special or not."""
    for token in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    return Tokenizer(backend.to_str(), config={})


def rendered(*parts: tuple[str, Origin], roles: Sequence[str] = ("user", "assistant")) -> RenderedText:
    """A text of parts, each with its origin."""
    spans = []
    position = 0
    for text, origin in parts:
        if text:
            spans.append(Span(start=position, end=position + len(text), origin=origin))
        position += len(text)
    return RenderedText(
        text="".join(text for text, _ in parts), spans=tuple(spans), roles=tuple(roles), message_weights=(1.0, 1.0)
    )
