"""From text to ids, by cuts.

The text is cut at control tokens and where the loss weight changes or a generation boundary lies, and nowhere else.
So a prompt is encoded as a server encodes it, no token straddles the mask's edge, and each piece has one weight.

Control ids come from the template's text alone. A control token's text counts where the template wrote all of it, the
names of standard roles included (`'<|' + message.role + '|>'`). The exception is text of the assistant's own, which may
use added tokens that are not flagged special (`<think>`), since reasoning data needs them. Where a piece holds no other
control text, the tokenizer as it is encodes it; where it does, the piece is parted at the tokens that count, and the
rest is encoded by a copy without control tokens.

With `control_tokens="everywhere"` none of this holds: each piece is what the tokenizer as it is makes of it, and text
of the data acts as well.

Where a tokenizer encodes words apart, the ids of a piece are put together from those of its words. Some texts of each
run are encoded both ways, and a difference is an error.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise

import tokenizers

from templatekit.errors import TokenizerError, shorten
from templatekit.packing.columns import TokenizedColumns
from templatekit.tokens.assembly import Assembler
from templatekit.tokens.fragments import Match, Piece, Tokens
from templatekit.tokens.tokenizer import ControlToken, Tokenizer
from templatekit.types import (
    STANDARD_ROLES,
    Boundary,
    ControlTokens,
    LossSpan,
    RenderedText,
    TokenizedExample,
)

_CHECKED = 1024
"""Of so many texts one is encoded as a whole, too, and so is the first by each recipe."""

_WHITESPACE = re.compile(r"[^\S\x1c-\x1f]*")
"""What control tokens strip: Unicode's whitespace. Python's holds four control characters more."""


class Encoder:
    """Encodes rendered texts with one tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        boundary: Boundary = "cut",
        control_tokens: ControlTokens = "template",
        reuse: bool = True,
    ) -> None:
        """`reuse` takes equal words' ids from one another, where that is proven to give the same ids."""
        self.tokenizer = tokenizer
        self.boundary = boundary
        self.control_tokens = control_tokens
        self.reuse = reuse
        self._encoded = 0

    def encode(self, rendered: RenderedText, spans: Sequence[LossSpan] = ()) -> TokenizedExample:
        """One text; see `encode_batch`."""
        return self.encode_batch([(rendered, spans)])[0]

    def encode_batch(self, texts: Iterable[tuple[RenderedText, Sequence[LossSpan]]]) -> list[TokenizedExample]:
        """Each text's ids and loss weights; without loss spans nothing is trained."""
        return list(self.encode_columns(texts))

    def encode_columns(self, texts: Iterable[tuple[RenderedText, Sequence[LossSpan]]]) -> TokenizedColumns:
        """The same as columns."""
        batch = [*texts]
        if self._assembler is None:
            return TokenizedColumns.of(self._encode_whole(batch))
        columns, others, first = self._assembler.encode(batch)
        if others:
            # What words do not tell is encoded piece by piece, and put in its place.
            places = {index: len(batch) + number for number, index in enumerate(others)}
            whole = TokenizedColumns.of(self._encode_whole([batch[index] for index in others]))
            order = [places.get(index, index) for index in range(len(batch))]
            columns = TokenizedColumns.join([columns, whole]).select(order)
        for index in {*first, *range(-self._encoded % _CHECKED, len(batch), _CHECKED)}:
            self._check(columns[index])
        self._encoded += len(batch)
        return columns

    @cached_property
    def _assembler(self) -> Assembler | None:
        """None where ids cannot be put together from those of words."""
        if not self.reuse or self.boundary != "cut" or self.control_tokens != "template":
            return None
        if not self.tokenizer.encodes_words_apart:
            return None
        return Assembler(self.tokenizer, self._plain_pieces, self._pattern)

    def _plain_pieces(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> list[Piece] | None:
        """The pieces, parted at the control tokens; None where text of the data looks like control."""
        plain: list[Piece] = []
        for piece in self._pieces(rendered, spans):
            if piece.id is not None or not piece.control:
                return None
            plain += self._parted(piece) if piece.matches else (piece,)
        return plain

    def _check(self, example: TokenizedExample) -> None:
        (whole,) = self._encode_whole([(example.rendered, example.loss_spans)])
        if (whole.input_ids, whole.loss_weights) != (example.input_ids, example.loss_weights):
            raise TokenizerError(
                f"tokenizer {self.tokenizer.name!r}: found other ids for {shorten(example.rendered.text)} where they "
                "are put together from its words than for the whole; expected the same, so this is a mistake of "
                "templatekit's: please report it; to go on: --no-reuse"
            )

    def _encode_whole(self, batch: Sequence[tuple[RenderedText, Sequence[LossSpan]]]) -> list[TokenizedExample]:
        """Piece by piece, as the tokenizer itself encodes each: all pieces of all texts in one call a variant."""
        pieces = [list(self._pieces(rendered, spans)) for rendered, spans in batch]
        encoded = self._run([piece for parts in pieces for piece in parts])
        position = 0
        examples = []
        for (rendered, spans), parts in zip(batch, pieces, strict=True):
            tokens = list(chain.from_iterable(encoded[position : position + len(parts)]))
            position += len(parts)
            examples.append(
                TokenizedExample(
                    input_ids=tuple(chain.from_iterable(part.ids for part in tokens)),
                    loss_weights=_weights(tokens, spans),
                    rendered=rendered,
                    loss_spans=tuple(spans),
                )
            )
        return examples

    def offsets(self, rendered: RenderedText, spans: Sequence[LossSpan] = ()) -> list[tuple[int, int]]:
        """Where each token of `encode` lies, in characters of the text.

        Tokens that share a character overlap; characters that have no token of their own lie between two of them.
        """
        runs = self._run(list(self._pieces(rendered, spans)), offsets=True)
        return [
            (tokens.start + start, tokens.start + end)
            for tokens in chain.from_iterable(runs)
            for start, end in tokens.offsets or ()
        ]

    def _pieces(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> Iterator[Piece]:
        text = rendered.text
        counted = deque(self._counted(rendered))
        cuts = sorted({0, *(span.start for span in spans)}) if self.boundary == "cut" else [0]
        behind_control = False
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            inside = self._found(text[start:end], start) if self.control_tokens == "everywhere" else []
            while counted and counted[0].start < end:
                match = counted.popleft()
                if match.start >= start and match.end <= end and _stands_alone(match, text, start, end):
                    inside.append(match)
            if start < end:
                prefix = self._prefix_at(start, behind_control=behind_control)
                yield from self._segment(Piece(start, text[start:end], tuple(inside), prefix))
                behind_control = bool(inside) and end in _behind(inside[-1], text)

    def _segment(self, piece: Piece) -> Iterator[Piece]:
        """A piece, parted no more than its control tokens and its dummy prefix ask for."""
        start, text, matches = piece.start, piece.text, piece.matches
        if self.control_tokens == "template" and not self._same_controls(piece):
            yield from self._parted(piece)
            return
        head = 0
        if not piece.prefix:
            # Only what comes before the first control token goes on without a prefix.
            head = matches[0].start - start if matches else len(text)
            before = _without_end(text[:head]) if matches and matches[0].token.strips_left else text[:head]
            if before:
                yield Piece(start, before, prefix=False)
        if head < len(text):
            yield Piece(start + head, text[head:], matches)

    def _parted(self, piece: Piece) -> Iterator[Piece]:
        """Control tokens by id, and what lies between them through the copy that knows none."""
        position, prefix, strips = piece.start, piece.prefix, False
        for match in (*piece.matches, None):
            stop = match.start if match else piece.start + len(piece.text)
            between = piece.text[position - piece.start : stop - piece.start]
            if strips:
                between = _without_start(between)
                position = stop - len(between)
            if match and match.token.strips_left:
                between = _without_end(between)
            if between:
                yield Piece(position, between, prefix=prefix, control=False)
            if match:
                yield Piece(match.start, match.token.text, id=match.token.id)
                position, strips = match.end, match.token.strips_right
                prefix = self._prefix_at(position, behind_control=True)

    def _prefix_at(self, start: int, *, behind_control: bool) -> bool:
        """Whether the tokenizer, given the whole text, puts its dummy prefix at this place."""
        return start == 0 or (behind_control and self.tokenizer.prefixes == "each")

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return _any_of(self.tokenizer.control_tokens.values())

    @cached_property
    def _open_pattern(self) -> re.Pattern[str] | None:
        """Finds the control tokens that an assistant's own text may use."""
        return _any_of(token for token in self.tokenizer.control_tokens.values() if not token.special)

    def _counted(self, rendered: RenderedText) -> list[Match]:
        """The control tokens that count, whole words or not, leftmost and longest first, as tokenizers find them."""
        if self.control_tokens == "everywhere" or self._pattern is None or not self._pattern.search(rendered.text):
            return []
        return [
            Match(match.start(), match.end(), self.tokenizer.control_tokens[match[0]])
            for start, end, own in _trusted_regions(rendered)
            if (pattern := self._open_pattern if own else self._pattern) is not None
            for match in pattern.finditer(rendered.text, start, end)
        ]

    def _same_controls(self, piece: Piece) -> bool:
        """Whether the piece holds no control text but the tokens that count."""
        found = [(match.start, match.end) for match in self._found(piece.text, piece.start)]
        return found == [(match.start, match.end) for match in piece.matches]

    def _found(self, text: str, start: int) -> list[Match]:
        """Every control token in a text that begins at `start`, whoever wrote it."""
        tokens, found = self.tokenizer.control_tokens, self._pattern.finditer(text) if self._pattern else ()
        matches = (Match(match.start(), match.end(), tokens[match[0]]) for match in found)
        return [
            Match(start + match.start, start + match.end, match.token)
            for match in matches
            if _stands_alone(match, text, 0, len(text))
        ]

    def _run(self, pieces: Sequence[Piece], *, offsets: bool = False) -> list[list[Tokens]]:
        """Each piece's tokens, in order: one run of them, or several where the piece had to be parted.

        Cut pieces have one weight each, so that few need the characters of their tokens, which cost time.
        """
        offsets = offsets or self.boundary == "joint"
        results = [[] if piece.id is None else [_known(piece)] for piece in pieces]
        groups: dict[tuple[bool, bool], list[int]] = {}
        for index, piece in enumerate(pieces):
            if piece.id is None:
                groups.setdefault((piece.control, piece.prefix), []).append(index)
        for (control, prefix), members in groups.items():
            texts = [pieces[index].text for index in members]
            encodings = self._encode_texts(texts, control=control, prefix=prefix, offsets=offsets)
            for index, encoding in zip(members, encodings, strict=True):
                results[index] = self._checked(pieces[index], encoding, offsets=offsets)
        return results

    def _encode_texts(
        self, texts: Sequence[str], *, control: bool, prefix: bool, offsets: bool
    ) -> list[tokenizers.Encoding]:
        backend = self.tokenizer.backend(control=control, prefix=prefix)
        placed = offsets or (control and self.tokenizer.matches_loosely)
        encode = backend.encode_batch if placed else backend.encode_batch_fast
        encodings: list[tokenizers.Encoding] = encode(texts, add_special_tokens=False)
        return encodings

    def _checked(self, piece: Piece, encoding: tokenizers.Encoding, *, offsets: bool) -> list[Tokens]:
        """The piece's tokens, once no control id has come out that should not have."""
        if self.control_tokens == "everywhere" or self._came_right(piece, encoding):
            return [Tokens(piece.start, encoding.ids, encoding.offsets if offsets else None)]
        # A normalizer or the model itself made a control id of text that is not one.
        parts = list(self._parted(piece) if piece.control else self._split(piece))
        return [tokens for several in self._run(parts, offsets=offsets) for tokens in several]

    def _came_right(self, piece: Piece, encoding: tokenizers.Encoding) -> bool:
        control = self.tokenizer.control_ids
        if not piece.matches and control.isdisjoint(encoding.ids):
            return True
        if piece.control and self.tokenizer.matches_loosely:
            return self._came_in_place(piece, encoding)
        came = [id for id in encoding.ids if id in control]
        expected = [match.token.id for match in piece.matches]
        if not piece.control and self._pattern is not None and self._pattern.search(piece.text):
            return came == expected
        # What the vocabulary lacks may come out as the unknown token, which is a control token too.
        return [id for id in came if id != self.tokenizer.unknown_id] == [
            id for id in expected if id != self.tokenizer.unknown_id
        ]

    def _came_in_place(self, piece: Piece, encoding: tokenizers.Encoding) -> bool:
        """Whether each control id stands for the characters of the token that counts, and there is no other.

        Else the template's own might not be found, for the characters beside it, and text of the data in its stead.
        """
        placed = zip(encoding.ids, encoding.offsets, strict=True)
        came = [(id, place) for id, place in placed if id in self.tokenizer.control_ids]
        return len(came) == len(piece.matches) and all(
            id == match.token.id and start + piece.start < match.end and match.start < end + piece.start
            for (id, (start, end)), match in zip(came, piece.matches, strict=True)
        )

    def _split(self, piece: Piece) -> Iterator[Piece]:
        """The piece in smaller ones, cut behind the first character of control text, else behind every character.

        Hardly ever needed: where the model's own vocabulary holds a control token's text (Unigram), or a normalizer
        makes it.
        """
        if len(piece.text) == 1:
            raise TokenizerError(f"tokenizer {self.tokenizer.name!r} makes a control token of {shorten(piece.text)}")
        found = self._pattern.finditer(piece.text) if self._pattern else ()
        cuts = sorted({match.start() + 1 for match in found} - {len(piece.text)}) or range(1, len(piece.text))
        for start, end in pairwise([0, *cuts, len(piece.text)]):
            yield Piece(piece.start + start, piece.text[start:end], prefix=piece.prefix and not start, control=False)


def _behind(match: Match, text: str) -> range:
    """The places right behind a control token: several where it takes the whitespace that follows."""
    whitespace = _WHITESPACE.match(text, match.end) if match.token.strips_right else None
    return range(match.end, (whitespace.end() if whitespace else match.end) + 1)


def _known(piece: Piece) -> Tokens:
    assert piece.id is not None
    return Tokens(piece.start, (piece.id,), ((0, len(piece.text)),))


def _any_of(tokens: Iterable[ControlToken]) -> re.Pattern[str] | None:
    """Finds any of the tokens, the longest first."""
    ordered = sorted(tokens, key=lambda token: (-len(token.text), token.text))
    return re.compile("|".join(re.escape(token.text) for token in ordered)) if ordered else None


def _stands_alone(match: Match, text: str, start: int, end: int) -> bool:
    """Whether a token that must be a whole word is one in `text[start:end]`, which is encoded alone."""
    if not match.token.whole_word:
        return True
    before = match.start > start and _is_word(text[match.start - 1])
    return not before and not (match.end < end and _is_word(text[match.end]))


def _is_word(character: str) -> bool:
    """As the tokenizers library has it: marks and joiners among them, unlike Python's."""
    kind = unicodedata.category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in ("\u200c", "\u200d")


def _without_start(text: str) -> str:
    match = _WHITESPACE.match(text)
    return text[match.end() :] if match else text


def _without_end(text: str) -> str:
    return _without_start(text[::-1])[::-1]


def _trusted_regions(rendered: RenderedText) -> Iterator[tuple[int, int, bool]]:
    """The longest runs of characters that are the template's, or (True) one field of an assistant's own text."""
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


def _weights(parts: Sequence[Tokens], spans: Sequence[LossSpan]) -> tuple[float, ...]:
    """Each token's weight: the largest among its characters. Nothing predicts the first token, so it has none."""
    starts = [span.start for span in spans]

    def largest(start: int, end: int) -> float:
        first, last = bisect_right(starts, start) - 1, bisect_right(starts, max(start, end - 1)) - 1
        return max((span.weight for span in spans[max(first, 0) : last + 1]), default=0.0)

    weights: list[float] = []
    for part in parts:
        if part.offsets is None:
            weights += [largest(part.start, part.start)] * len(part.ids)
        else:
            weights += [largest(part.start + start, part.start + end) for start, end in part.offsets]
    return (0.0, *weights[1:]) if weights else ()
