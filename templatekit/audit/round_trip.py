"""Finds texts that encoding and decoding changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args
from unicodedata import is_normalized

from templatekit.audit.rows import TEXT_FIELDS, RoundTripDifference
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.tokens.word_boundaries import components
from templatekit.types import Example

_PREFIX = "a\n"
"""Encoded before each text, so that neither a dummy prefix nor a decoder's strip changes the start of the text."""
_Form: TypeAlias = Literal["NFC", "NFD", "NFKC", "NFKD"]
_ASCII_PROBE = "".join(map(chr, range(0x20, 0x7F))) + "\n\t a  b   c\n\n\nd\r\n\x00\x1b\x7f"
_BYTE_PROBE = "".join(map(chr, range(0x180))) + "€漢字한👋🏽"


class RoundTrip:
    """Encodes and decodes texts. Texts that the tokenizer cannot change are skipped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._may_change = self._prefilter()

    def differences(self, examples: Iterable[Example]) -> Iterator[tuple[int, RoundTripDifference]]:
        """The texts that change, each with the index of its example."""
        texts = [
            (index, message_index, field, text)
            for index, example in enumerate(examples)
            for message_index, message in enumerate(example.messages)
            for field in TEXT_FIELDS
            if (text := getattr(message, field)) and self._may_change(text)
        ]
        all_decoded = self._decoded([text for *_, text in texts])
        for (index, message_index, field, text), decoded in zip(texts, all_decoded, strict=True):
            if decoded != text:
                yield index, RoundTripDifference(message=message_index, field=field, text=text, decoded=decoded)

    def _decoded(self, texts: list[str], *, control: bool = False) -> list[str]:
        """Encode and decode texts, by default without control tokens, which another rule checks."""
        if not texts:
            return []
        backend = self._tokenizer.backend(control=control, prefix=False)
        encodings = backend.encode_batch_fast([_PREFIX + text for text in texts], add_special_tokens=False)
        decoded = backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        # Some decoders strip the space of a dummy prefix, others leave it; it comes before `_PREFIX`.
        return [text.lstrip(" ").removeprefix(_PREFIX) for text in decoded]

    def _prefilter(self) -> Callable[[str], bool]:
        """A function that says whether the tokenizer may change a text.

        A byte-level tokenizer only changes texts that its normalizers change. Others are tried on a probe text.
        """
        backend = self._tokenizer.backend(control=True, prefix=False)
        normalizers, decoders = _types(backend.normalizer), _types(backend.decoder)
        forms = [form for form in get_args(_Form) if form in normalizers]
        byte_level = "ByteLevel" in _types(backend.pre_tokenizer) and decoders == {"ByteLevel"}
        if byte_level and len(forms) == len(normalizers) and self._preserves(_BYTE_PROBE, forms):
            return lambda text: not text.isascii() and not all(is_normalized(form, text) for form in forms)
        if self._preserves(_ASCII_PROBE, ()):
            return lambda text: not text.isascii()
        return lambda text: True

    def _preserves(self, text: str, forms: Sequence[_Form]) -> bool:
        """Whether the tokenizer preserves this text, apart from the characters that the normalization forms change."""
        text = "".join(c for c in text if all(is_normalized(form, c) for form in forms))
        return self._decoded([text], control=True) == [text]


def _types(stage: Any) -> set[str]:
    """The types in a normalizer, pre-tokenizer or decoder."""
    return {component["type"] for component in components(stage)}
