"""Encodes rendered texts to ids, in fragments.

A text is cut where its loss weight changes and at each generation boundary, and split at control tokens; nowhere else.
So a prompt is encoded as a server encodes it, no token straddles the edge of what is trained, and each fragment has one
weight.

**Text of the data never becomes a control token.** This is decided here. The encoder *trusts* a control token where the
template wrote all of its characters. The names of the standard roles count as the template's, so that
`'<|' + message.role + '|>'` is trusted. There is one exception: an assistant's own text may use added tokens that are
not flagged special (`<think>`), since reasoning data needs them. A fragment whose control tokens are all trusted is
encoded by the tokenizer as it is. Any other fragment is split at its trusted control tokens, and the text between them
is encoded by a variant of the backend that knows no control tokens. There `<|im_end|>` is ordinary text.

With `control_tokens="everywhere"` the encoder trusts the data too, and each fragment becomes what the tokenizer makes
of it.

Where a tokenizer encodes words separately, the ids of a fragment are assembled from cached ids of its words
(`templatekit.tokens.assembly`). Some texts of each run are encoded both with and without this cache, and a difference
is an error.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import tokenizers

from templatekit.errors import TokenizerError, shorten
from templatekit.packing.columns import TokenizedColumns, offsets_from_lengths
from templatekit.tokens.assembly import Assembler, EncoderInput
from templatekit.tokens.fragments import LONG_FRAGMENT, ControlMatch, Fragment, FragmentTokens
from templatekit.tokens.tokenizer import ControlToken, Tokenizer
from templatekit.tokens.word_boundaries import WORD_BOUNDARY
from templatekit.types import (
    STANDARD_ROLES,
    Boundary,
    ControlTokens,
    LossSpan,
    RenderedText,
    TokenizedExample,
)

_CHECK_INTERVAL = 1024
"""One text in this many is also encoded without the cache, to check the result; so is the first of every layout."""

_PART = 1 << 18
"""Characters of a part."""

_WHITESPACE = re.compile(r"[^\S\x1c-\x1f]*")
"""The whitespace that control tokens strip: Unicode's. In Python, four control characters count as whitespace too."""


@dataclass(eq=False)
class Encoder:
    """Encodes rendered texts with one tokenizer."""

    tokenizer: Tokenizer
    _: KW_ONLY
    boundary: Boundary = "cut"
    control_tokens: ControlTokens = "template"
    reuse: bool = True
    """Whether to cache the ids of repeated words, for tokenizers where this provably changes no ids."""
    _encoded_texts: int = field(default=0, init=False)

    def encode(self, rendered: RenderedText, spans: Sequence[LossSpan] = ()) -> TokenizedExample:
        """Encode one text; see `encode_columns`."""
        return self.encode_batch([(rendered, spans)])[0]

    def encode_batch(self, texts: Iterable[EncoderInput]) -> list[TokenizedExample]:
        """Encode several texts; see `encode_columns`."""
        return list(self.encode_columns(texts))

    def encode_columns(self, texts: Iterable[EncoderInput]) -> TokenizedColumns:
        """The ids and loss weights of texts, each given with its loss spans; without loss spans nothing is trained."""
        batch = [*texts]
        if self._assembler is None:
            return self._encode_directly(batch)
        columns, remaining, first_of_layout = self._assembler.encode(batch)
        if remaining:
            others = self._encode_directly([batch[index] for index in remaining])
            if len(remaining) == len(batch):
                self._encoded_texts += len(batch)
                return others
            positions = {index: len(batch) + position for position, index in enumerate(remaining)}
            order = [positions.get(index, index) for index in range(len(batch))]
            columns = TokenizedColumns.join([columns, others]).select(order)
        checked = {*first_of_layout, *range(-self._encoded_texts % _CHECK_INTERVAL, len(batch), _CHECK_INTERVAL)}
        for index in checked.difference(remaining):  # those were encoded directly, a long text among them
            self._check(columns[index])
        self._encoded_texts += len(batch)
        return columns

    @cached_property
    def _assembler(self) -> Assembler | None:
        """None where the ids of texts cannot be assembled from those of their words."""
        if not self.reuse or self.boundary != "cut" or self.control_tokens != "template":
            return None
        if not self.tokenizer.encodes_words_separately:
            return None
        return Assembler(self.tokenizer, self._trusted_fragments, self._control_pattern)

    def _trusted_fragments(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> list[Fragment] | None:
        """The fragments of a text, split at control tokens; None where the data contains the text of one."""
        found: list[Fragment] = []
        for fragment in self._fragments(rendered, spans):
            if fragment.id is not None or not fragment.control:
                return None
            found += self._split_at_control_tokens(fragment) if fragment.matches else (fragment,)
        return found

    def _check(self, example: TokenizedExample) -> None:
        direct = self._encode_directly([(example.rendered, example.loss_spans)])[0]
        if (direct.input_ids, direct.loss_weights) != (example.input_ids, example.loss_weights):
            raise TokenizerError(
                f"tokenizer {self.tokenizer.name!r}: found other ids for {shorten(example.rendered.text)} when they "
                "are assembled from those of its words than when the whole text is encoded; expected equal ids: this "
                "is a bug in templatekit, please report it; to go on: --no-reuse"
            )

    def _encode_directly(self, batch: Sequence[EncoderInput]) -> TokenizedColumns:
        """Encode texts without cached ids: all fragments of all texts in one call to each variant of the backend."""
        fragments = [list(self._fragments(rendered, spans)) for rendered, spans in batch]
        encoded = self._encode_fragments([fragment for of_text in fragments for fragment in of_text])
        position = 0
        runs: list[FragmentTokens] = []
        weights, counts, lengths = array("d"), array("q"), []
        for (_, spans), of_text in zip(batch, fragments, strict=True):
            tokens = list(chain.from_iterable(encoded[position : position + len(of_text)]))
            position += len(of_text)
            runs += tokens
            lengths.append(sum(len(run.ids) for run in tokens))
            for weight, count in _loss_weights(tokens, spans):
                weights.append(weight)
                counts.append(count)
        offsets = offsets_from_lengths(np.array(lengths, dtype=np.int64))
        loss_weights = np.repeat(np.array(weights), np.array(counts))
        # Nothing predicts the first token, so it has no weight.
        loss_weights[offsets[:-1][offsets[:-1] < offsets[1:]]] = 0.0
        return TokenizedColumns(
            rendered=[rendered for rendered, _ in batch],
            loss_spans=[tuple(spans) for _, spans in batch],
            truncated=[None] * len(batch),
            offsets=offsets,
            input_ids=np.fromiter(chain.from_iterable(run.ids for run in runs), np.int32, count=int(offsets[-1])),
            loss_weights=loss_weights,
        )

    def offsets(self, rendered: RenderedText, spans: Sequence[LossSpan] = ()) -> list[tuple[int, int]]:
        """The start and end of each token that `encode` gives, in characters of the text.

        Tokens that share a character overlap. Characters without a token of their own lie between two tokens.
        """
        encoded = self._encode_fragments(list(self._fragments(rendered, spans)), offsets=True)
        return [
            (tokens.start + start, tokens.start + end)
            for tokens in chain.from_iterable(encoded)
            for start, end in tokens.offsets or ()
        ]

    def contains_control_text(self, text: str, start: int, end: int) -> bool:
        """Whether the text of any control token, trusted or not, lies between these offsets."""
        return self._control_pattern is not None and self._control_pattern.search(text, start, end) is not None

    def _fragments(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> Iterator[Fragment]:
        """The fragments of a text, which is first cut where the loss spans start (with `boundary="cut"`)."""
        text = rendered.text
        trusted = deque(self._trusted_matches(rendered))
        cuts = sorted({0, *(span.start for span in spans)}) if self.boundary == "cut" else [0]
        after_control = False
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            matches = self._all_matches(text[start:end], start) if self.control_tokens == "everywhere" else []
            while trusted and trusted[0].start < end:
                match = trusted.popleft()
                if match.start >= start and match.end <= end and _may_match(match, text, start, end):
                    matches.append(match)
            if start < end:
                prefix = self._has_prefix_at(start, after_control=after_control)
                yield from self._split_if_needed(Fragment(start, text[start:end], tuple(matches), prefix))
                after_control = bool(matches) and end in _ends(matches[-1], text)

    def _split_if_needed(self, fragment: Fragment) -> Iterator[Fragment]:
        """Split a fragment only as far as its control tokens and its dummy prefix require."""
        start, text, matches = fragment.start, fragment.text, fragment.matches
        if self.control_tokens == "template" and not self._are_all_trusted(fragment):
            yield from self._split_at_control_tokens(fragment)
            return
        length = 0
        if not fragment.prefix:
            # Only the text before the first control token continues other text, without a dummy prefix.
            length = matches[0].start - start if matches else len(text)
            before = _stripped_end(text[:length]) if matches and matches[0].token.strips_left else text[:length]
            if before:
                yield Fragment(start, before, prefix=False)
        if length < len(text):
            yield Fragment(start + length, text[length:], matches)

    def _split_at_control_tokens(self, fragment: Fragment) -> Iterator[Fragment]:
        """Split a fragment into trusted control tokens, as ids, and text for the variant that knows none."""
        position, prefix, strips = fragment.start, fragment.prefix, False
        for match in (*fragment.matches, None):
            stop = match.start if match else fragment.start + len(fragment.text)
            between = fragment.text[position - fragment.start : stop - fragment.start]
            if strips:
                between = _stripped_start(between)
                position = stop - len(between)
            if match and match.token.strips_left:
                between = _stripped_end(between)
            if between:
                yield Fragment(position, between, prefix=prefix, control=False)
            if match:
                yield Fragment(match.start, match.token.text, id=match.token.id)
                position, strips = match.end, match.token.strips_right
                prefix = self._has_prefix_at(position, after_control=True)

    def _has_prefix_at(self, start: int, *, after_control: bool) -> bool:
        """Whether the tokenizer, given the whole text, would put its dummy prefix at this position."""
        return start == 0 or (after_control and self.tokenizer.dummy_prefix == "each")

    @cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        """A pattern that matches the text of any control token."""
        return _pattern_of(self.tokenizer.control_tokens.values())

    @cached_property
    def _assistant_pattern(self) -> re.Pattern[str] | None:
        """A pattern that matches the control tokens that an assistant's own text may use."""
        return _pattern_of(token for token in self.tokenizer.control_tokens.values() if not token.special)

    def _trusted_matches(self, rendered: RenderedText) -> list[ControlMatch]:
        """The control tokens of a text that the encoder trusts, leftmost and longest first, as tokenizers find them.

        Tokens that must be whole words are found inside words too.
        """
        pattern = self._control_pattern
        if self.control_tokens == "everywhere" or pattern is None or not pattern.search(rendered.text):
            return []
        return [
            ControlMatch(match.start(), match.end(), self.tokenizer.control_tokens[match[0]])
            for start, end, by_assistant in _trusted_regions(rendered)
            if (allowed := self._assistant_pattern if by_assistant else pattern) is not None
            for match in allowed.finditer(rendered.text, start, end)
        ]

    def _are_all_trusted(self, fragment: Fragment) -> bool:
        """Whether a fragment contains no text of control tokens but the trusted ones."""
        found = [(match.start, match.end) for match in self._all_matches(fragment.text, fragment.start)]
        return found == [(match.start, match.end) for match in fragment.matches]

    def _all_matches(self, text: str, start: int) -> list[ControlMatch]:
        """Every control token in a text that starts at offset `start`, trusted or not."""
        tokens = self.tokenizer.control_tokens
        found = self._control_pattern.finditer(text) if self._control_pattern else ()
        matches = (ControlMatch(match.start(), match.end(), tokens[match[0]]) for match in found)
        return [
            ControlMatch(start + match.start, start + match.end, match.token)
            for match in matches
            if _may_match(match, text, 0, len(text))
        ]

    def _encode_fragments(self, fragments: Sequence[Fragment], *, offsets: bool = False) -> list[list[FragmentTokens]]:
        """The tokens of each fragment: one run of them, or several where the fragment had to be split.

        Offsets take time, so they are computed only where they are needed: cut fragments have one weight each.
        """
        offsets = offsets or self.boundary == "joint"
        results = [[] if fragment.id is None else [_tokens_of_id(fragment)] for fragment in fragments]
        groups: dict[tuple[bool, bool], list[int]] = {}
        for index, fragment in enumerate(fragments):
            if len(fragment.text) > LONG_FRAGMENT and not offsets and (parts := self._parts(fragment)):
                results[index] = [
                    run._replace(ids=array("i", run.ids)) for part in parts for run in self._encode_fragments([part])[0]
                ]
            elif fragment.id is None:
                groups.setdefault((fragment.control, fragment.prefix), []).append(index)
        for (control, prefix), members in groups.items():
            backend = self.tokenizer.backend(control=control, prefix=prefix)
            needs_offsets = offsets or (control and self.tokenizer.has_ambiguous_control_ids)
            encode = backend.encode_batch if needs_offsets else backend.encode_batch_fast
            for some in _groups(members, [len(fragments[index].text) for index in members]):
                encodings = encode([fragments[index].text for index in some], add_special_tokens=False)
                for index, encoding in zip(some, encodings, strict=True):
                    results[index] = self._checked_tokens(fragments[index], encoding, offsets=offsets)
        return results

    def longest_part(self, text: str) -> int:
        """About how many characters of a long text are encoded at once: all, or those between two word boundaries."""
        if not self.tokenizer.encodes_starts_alike:
            return len(text)
        longest = position = 0
        while len(text) - position > 2 * _PART and (found := WORD_BOUNDARY.search(text, position + _PART)):
            longest = max(longest, found.start() - position)
            position = found.start()
        return max(longest, len(text) - position)

    def _parts(self, fragment: Fragment) -> list[Fragment]:
        """A long fragment in parts that are encoded one after the other, which takes less memory; or nothing.

        It is cut at word boundaries, where the tokenizer provably encodes words separately.
        """
        text = fragment.text
        # A part without a dummy prefix at its start would have none behind its control tokens either.
        prefix_behind_control = fragment.matches and self.tokenizer.dummy_prefix != "never"
        if prefix_behind_control or not self.tokenizer.encodes_starts_alike:
            return []
        reach = max((len(token) for token in self.tokenizer.control_tokens), default=0)
        cuts, position = [0], 0
        while len(text) - position > 2 * _PART and (found := WORD_BOUNDARY.search(text, position + _PART)):
            position = found.start()
            if not self.contains_control_text(text, max(position - reach, 0), position + reach):
                cuts.append(position)
        if len(cuts) == 1:
            return []
        parts = []
        for start, end in pairwise([*cuts, len(text)]):
            matches = tuple(match for match in fragment.matches if start <= match.start - fragment.start < end)
            prefix = fragment.prefix and not start
            parts.append(Fragment(fragment.start + start, text[start:end], matches, prefix, fragment.control))
        return parts

    def _checked_tokens(
        self, fragment: Fragment, encoding: tokenizers.Encoding, *, offsets: bool
    ) -> list[FragmentTokens]:
        """The tokens of a fragment; it is split and encoded again where control ids appear that are not trusted."""
        if self.control_tokens == "everywhere" or self._has_trusted_ids_only(fragment, encoding):
            return [FragmentTokens(fragment.start, encoding.ids, encoding.offsets if offsets else None)]
        # A normalizer or the model itself made a control id of text that is no control token.
        smaller = self._split_at_control_tokens(fragment) if fragment.control else self._split_control_text(fragment)
        return [run for runs in self._encode_fragments(list(smaller), offsets=offsets) for run in runs]

    def _has_trusted_ids_only(self, fragment: Fragment, encoding: tokenizers.Encoding) -> bool:
        """Whether the control ids of an encoding are those of the trusted control tokens."""
        control = self.tokenizer.control_ids
        if not fragment.matches and control.isdisjoint(encoding.ids):
            return True
        if fragment.control and self.tokenizer.has_ambiguous_control_ids:
            return self._has_trusted_offsets_only(fragment, encoding)
        found = [id for id in encoding.ids if id in control]
        expected = [match.token.id for match in fragment.matches]
        if not fragment.control and self._control_pattern is not None and self._control_pattern.search(fragment.text):
            return found == expected
        # Text that the vocabulary lacks may become the unknown token, which is a control token as well.
        return [id for id in found if id != self.tokenizer.unknown_id] == [
            id for id in expected if id != self.tokenizer.unknown_id
        ]

    def _has_trusted_offsets_only(self, fragment: Fragment, encoding: tokenizers.Encoding) -> bool:
        """Whether each control id covers the characters of its trusted control token, and there is no other.

        Without this check the backend might miss the template's own token, because of the characters beside the token,
        and take text of the data for it.
        """
        tokens = zip(encoding.ids, encoding.offsets, strict=True)
        found = [(id, offsets) for id, offsets in tokens if id in self.tokenizer.control_ids]
        return len(found) == len(fragment.matches) and all(
            id == match.token.id and start + fragment.start < match.end and match.start < end + fragment.start
            for (id, (start, end)), match in zip(found, fragment.matches, strict=True)
        )

    def _split_control_text(self, fragment: Fragment) -> Iterator[Fragment]:
        """Split a fragment after the first character of each control token's text, or else after every character.

        This is rare: the model's own vocabulary contains a control token's text (Unigram), or a normalizer makes it.
        """
        if len(fragment.text) == 1:
            raise TokenizerError(f"tokenizer {self.tokenizer.name!r} makes a control token of {shorten(fragment.text)}")
        found = self._control_pattern.finditer(fragment.text) if self._control_pattern else ()
        cuts = sorted({match.start() + 1 for match in found} - {len(fragment.text)}) or range(1, len(fragment.text))
        for start, end in pairwise([0, *cuts, len(fragment.text)]):
            prefix = fragment.prefix and not start
            yield Fragment(fragment.start + start, fragment.text[start:end], prefix=prefix, control=False)


def _groups(items: Sequence[int], lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """The items in groups that end where their lengths add up to that of a long fragment."""
    start = total = 0
    for end, length in enumerate(lengths, 1):
        total += length
        if total > LONG_FRAGMENT or end == len(items):
            yield items[start:end]
            start, total = end, 0


def _ends(match: ControlMatch, text: str) -> range:
    """The offsets where a control token may end: several where it strips the whitespace after it."""
    whitespace = _WHITESPACE.match(text, match.end) if match.token.strips_right else None
    return range(match.end, (whitespace.end() if whitespace else match.end) + 1)


def _tokens_of_id(fragment: Fragment) -> FragmentTokens:
    assert fragment.id is not None
    return FragmentTokens(fragment.start, (fragment.id,), ((0, len(fragment.text)),))


def _pattern_of(tokens: Iterable[ControlToken]) -> re.Pattern[str] | None:
    """A pattern that matches any of the tokens, the longest first."""
    ordered = sorted(tokens, key=lambda token: (-len(token.text), token.text))
    return re.compile("|".join(re.escape(token.text) for token in ordered)) if ordered else None


def _may_match(match: ControlMatch, text: str, start: int, end: int) -> bool:
    """Whether a match counts in `text[start:end]`, which is encoded alone: a whole-word token must be a word there."""
    if not match.token.whole_word:
        return True
    before = match.start > start and _is_word_character(text[match.start - 1])
    return not before and not (match.end < end and _is_word_character(text[match.end]))


def _is_word_character(character: str) -> bool:
    """Whether the tokenizers library counts it as a word character: unlike Python, it counts marks and joiners."""
    kind = unicodedata.category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in ("\u200c", "\u200d")


def _stripped_start(text: str) -> str:
    match = _WHITESPACE.match(text)
    return text[match.end() :] if match else text


def _stripped_end(text: str) -> str:
    return _stripped_start(text[::-1])[::-1]


def _trusted_regions(rendered: RenderedText) -> Iterator[tuple[int, int, bool]]:
    """The longest regions of characters that the template wrote, or (True) of one field of an assistant's own text."""
    start = end = 0
    for span in rendered.spans:
        origin = span.origin
        role = rendered.roles[origin.message] if origin.message is not None else None
        if origin.is_template or (origin.field == "role" and role in STANDARD_ROLES):
            end = span.end
            continue
        if end > start:
            yield start, end, False
        start = end = span.end
        if role == "assistant" and not origin.in_header:
            yield span.start, span.end, True
    if end > start:
        yield start, end, False


def _loss_weights(tokens: Sequence[FragmentTokens], spans: Sequence[LossSpan]) -> Iterator[tuple[float, int]]:
    """The weight of each token, the largest among its characters, and of how many tokens in a row it is the weight."""
    starts = [span.start for span in spans]

    def largest(start: int, end: int) -> float:
        first, last = bisect_right(starts, start) - 1, bisect_right(starts, max(start, end - 1)) - 1
        return max((span.weight for span in spans[max(first, 0) : last + 1]), default=0.0)

    for run in tokens:
        if run.offsets is None:
            yield largest(run.start, run.start), len(run.ids)
        else:
            yield from ((largest(run.start + start, run.start + end), 1) for start, end in run.offsets)
