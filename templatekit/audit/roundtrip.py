"""Which texts a tokenizer does not give back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args
from unicodedata import is_normalized

from templatekit.audit.values import Lossy
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example

_HEAD = "a\n"
"""Encoded in front of a text, so that neither a dummy prefix nor a decoder's strip changes the text's own edge."""
_Form: TypeAlias = Literal["NFC", "NFD", "NFKC", "NFKD"]
_FIELDS = ("content", "context", "reasoning")
_ASCII = "".join(map(chr, range(0x20, 0x7F))) + "\n\t a  b   c\n\n\nd\r\n\x00\x1b\x7f"
_BYTES = "".join(map(chr, range(0x180))) + "€漢字한👋🏽"


class RoundTrip:
    """Encodes and decodes texts, but only those that the tokenizer may change."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._suspect = self._prefilter()

    def lossy(self, examples: Iterable[Example]) -> Iterator[tuple[int, Lossy]]:
        """The texts that do not come back, each with its example's place among `examples`."""
        texts = [
            (place, index, field, text)
            for place, example in enumerate(examples)
            for index, message in enumerate(example.messages)
            for field in _FIELDS
            if (text := getattr(message, field)) and self._suspect(text)
        ]
        for (place, index, field, text), decoded in zip(texts, self._decoded([t[-1] for t in texts]), strict=True):
            if decoded != text:
                yield place, Lossy(message=index, field=field, text=text, decoded=decoded)

    def _decoded(self, texts: list[str], *, control: bool = False) -> list[str]:
        """The texts there and back. Without control tokens: what those do to data is for another rule."""
        if not texts:
            return []
        backend = self._tokenizer.backend(control=control, prefix=False)
        encodings = backend.encode_batch_fast([_HEAD + text for text in texts], add_special_tokens=False)
        decoded = backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        # A decoder may strip the space that a prefix added; the head takes that upon itself.
        return [text.lstrip(" ").removeprefix(_HEAD) for text in decoded]

    def _prefilter(self) -> Callable[[str], bool]:
        """What may be changed: by the tokenizer's own normalizers where it keeps bytes, else by trial."""
        backend = self._tokenizer.backend(control=True, prefix=False)
        normalizers = _types(backend.normalizer)
        forms = [form for form in get_args(_Form) if form in normalizers]
        byte_level = "ByteLevel" in _types(backend.pre_tokenizer) and _types(backend.decoder) == {"ByteLevel"}
        if byte_level and len(forms) == len(normalizers) and self._keeps(_BYTES, forms):
            return lambda text: not text.isascii() and not all(is_normalized(form, text) for form in forms)
        if self._keeps(_ASCII, ()):
            return lambda text: not text.isascii()
        return lambda text: True

    def _keeps(self, text: str, forms: Sequence[_Form]) -> bool:
        """Whether characters that no form changes come back."""
        text = "".join(c for c in text if all(is_normalized(form, c) for form in forms))
        return self._decoded([text], control=True) == [text]


def _types(stage: Any) -> set[str]:
    """The kinds of a normalizer, pre-tokenizer or decoder, those inside it included; its pickled state is JSON."""
    return set(_flat(json.loads(stage.__getstate__()))) if stage is not None else set()


def _flat(stage: dict[str, Any]) -> Iterator[str]:
    nested = next((stage[key] for key in ("normalizers", "pretokenizers", "decoders") if key in stage), None)
    if nested is None:
        yield stage["type"]
    for inner in nested or ():
        yield from _flat(inner)
