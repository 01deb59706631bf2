"""From text to ids, by cuts.

The text is cut at control tokens and where the loss weight changes or a generation boundary lies, and nowhere else.
So a prompt is encoded as a server encodes it, no token straddles the mask's edge, and each piece has one weight.

Control ids come from the template's text alone. A control token's text counts where the template wrote all of it; the
exception is text of the assistant's own, which may use added tokens that are not flagged special (`<think>`), since
reasoning data needs them. Where a piece holds no other control text, the tokenizer as it is encodes it; where it does,
the piece is parted at the tokens that count, and the rest is encoded by a copy without control tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import tokenizers

from templatekit.errors import TokenizerError, shorten
from templatekit.tokens.tokenizer import ControlToken, Tokenizer
from templatekit.types import Boundary, LossSpan, RenderedText, TokenizedExample


class Match(NamedTuple):
    """A control token that counts, in characters of the text."""

    start: int
    end: int
    token: ControlToken


class Piece(NamedTuple):
    """Text for one call to the encoder, or a control token's id that is already known."""

    start: int
    text: str
    control: bool = True
    """Encode with the control tokens, which are known to be the template's."""
    prefix: bool = True
    """Let the tokenizer put its dummy prefix in front."""
    id: int | None = None
    expected: tuple[int, ...] = ()
    """The control ids that must come out, in order."""


class Tokens(NamedTuple):
    """What the encoder made of a piece."""

    start: int
    """Where the piece begins, in characters of the text."""
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] | None = None
    """The characters of each token, counted from `start`; None where the piece has one weight throughout."""


class Encoder:
    """Encodes rendered texts with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, *, boundary: Boundary = "cut") -> None:
        self.tokenizer = tokenizer
        self.boundary = boundary

    def encode(self, rendered: RenderedText, spans: Sequence[LossSpan] = ()) -> TokenizedExample:
        """One text; see `encode_batch`."""
        return self.encode_batch([(rendered, spans)])[0]

    def encode_batch(self, texts: Iterable[tuple[RenderedText, Sequence[LossSpan]]]) -> list[TokenizedExample]:
        """Each text's ids and loss weights; without loss spans nothing is trained.

        All pieces of all texts go to the encoder in one call a variant.
        """
        batch = [(rendered, tuple(spans)) for rendered, spans in texts]
        pieces = [list(self._pieces(rendered, spans)) for rendered, spans in batch]
        encoded = self._run([piece for parts in pieces for piece in parts])
        position = 0
        examples = []
        for (rendered, spans), parts in zip(batch, pieces, strict=True):
            tokens = encoded[position : position + len(parts)]
            position += len(parts)
            examples.append(
                TokenizedExample(
                    input_ids=tuple(chain.from_iterable(part.ids for part in tokens)),
                    loss_weights=_weights(tokens, spans),
                    rendered=rendered,
                    loss_spans=spans,
                )
            )
        return examples

    def _pieces(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> Iterator[Piece]:
        text = rendered.text
        counted = self._counted(rendered)
        cuts = [span.start for span in spans] if self.boundary == "cut" else []
        cuts = sorted({0, *cuts})
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            inside = [match for match in counted if start <= match.start and match.end <= end]
            behind_control = any(match.end == start for match in counted)
            yield from self._segment(text, start, end, inside, behind_control)

    def _segment(
        self, text: str, start: int, end: int, matches: Sequence[Match], behind_control: bool
    ) -> Iterator[Piece]:
        """The pieces of one segment, parted no more than its control tokens and its dummy prefix ask for."""
        prefix = self._prefix_at(start, behind_control)
        if not self._same_controls(text[start:end], start, matches):
            yield from self._parted(text, start, end, matches, prefix)
            return
        head = start
        if not prefix:
            # Only what comes before the first control token goes on without a prefix.
            head = matches[0].start if matches else end
            if head > start:
                strips = bool(matches) and matches[0].token.strips_left
                yield Piece(start, text[start:head].rstrip() if strips else text[start:head], prefix=False)
        if head < end:
            yield Piece(head, text[head:end], expected=tuple(match.token.id for match in matches))

    def _parted(self, text: str, start: int, end: int, matches: Sequence[Match], prefix: bool) -> Iterator[Piece]:
        """Control tokens by id, and what lies between them through the copy that knows none."""
        position, strips = start, False
        for match in [*matches, None]:
            stop = match.start if match else end
            between = text[position:stop]
            if strips:
                position += len(between) - len(between.lstrip())
                between = between.lstrip()
            if match and match.token.strips_left:
                between = between.rstrip()
            if between:
                yield Piece(position, between, control=False, prefix=prefix)
            if match:
                yield Piece(match.start, text[match.start : match.end], id=match.token.id)
                position, strips = match.end, match.token.strips_right
                prefix = self._prefix_at(position, behind_control=True)

    def _prefix_at(self, start: int, behind_control: bool) -> bool:
        """Whether the tokenizer, given the whole text, puts its dummy prefix at this place."""
        return start == 0 or (behind_control and self.tokenizer.prefixes == "each")

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        texts = sorted(self.tokenizer.control_tokens, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def _counted(self, rendered: RenderedText) -> list[Match]:
        """The control tokens that count, leftmost and longest first, as the tokenizer finds them."""
        if self._pattern is None or not self._pattern.search(rendered.text):
            return []
        found: list[Match] = []
        for start, end in _trusted_regions(rendered):
            position = start
            while match := self._pattern.search(rendered.text, position, end):
                token = self.tokenizer.control_tokens[match[0]]
                if token.special and not _all_template(rendered, match.start(), match.end()):
                    position = match.start() + 1
                    continue
                found.append(Match(match.start(), match.end(), token))
                position = match.end()
        return found

    def _same_controls(self, segment: str, offset: int, matches: Sequence[Match]) -> bool:
        """Whether the segment holds no control text but the tokens that count."""
        if self._pattern is None:
            return True
        found = [(offset + match.start(), offset + match.end()) for match in self._pattern.finditer(segment)]
        return found == [(match.start, match.end) for match in matches]

    def _run(self, pieces: Sequence[Piece]) -> list[Tokens]:
        """Each piece's tokens, in order."""
        results = [Tokens(piece.start, () if piece.id is None else (piece.id,)) for piece in pieces]
        groups: dict[tuple[bool, bool], list[int]] = {}
        for index, piece in enumerate(pieces):
            if piece.id is None:
                groups.setdefault((piece.control, piece.prefix), []).append(index)
        for (control, prefix), members in groups.items():
            encodings = self._encode_texts([pieces[index].text for index in members], control=control, prefix=prefix)
            for index, encoding in zip(members, encodings, strict=True):
                results[index] = self._checked(pieces[index], encoding)
        return results

    def _encode_texts(self, texts: Sequence[str], *, control: bool, prefix: bool) -> list[tokenizers.Encoding]:
        backend = self.tokenizer.backend(control=control, prefix=prefix)
        # Cut pieces have one weight each, so that only joint ones need the characters of their tokens.
        encode = backend.encode_batch if self.boundary == "joint" else backend.encode_batch_fast
        encodings: list[tokenizers.Encoding] = encode(texts, add_special_tokens=False)
        return encodings

    def _checked(self, piece: Piece, encoding: tokenizers.Encoding) -> Tokens:
        """The piece's tokens, once no control id has come out that should not have."""
        ids = encoding.ids
        control = self.tokenizer.control_ids
        came = () if control.isdisjoint(ids) else tuple(id for id in ids if id in control)
        if came != (piece.expected if piece.control else ()):
            # A normalizer or the model itself made a control id of text that does not look like one.
            return self._without_control(piece)
        return Tokens(piece.start, ids, encoding.offsets if self.boundary == "joint" else None)

    def _without_control(self, piece: Piece) -> Tokens:
        """Encodes character by character where nothing else keeps control ids out. Slow, and hardly ever needed."""
        if piece.expected:
            raise TokenizerError(
                f"tokenizer {self.tokenizer.name!r}: the control tokens of {shorten(piece.text)} come out as others"
            )
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for index, character in enumerate(piece.text):
            prefix = piece.prefix and index == 0
            part = self._encode_texts([character], control=False, prefix=prefix)[0].ids
            ids += part
            offsets += [(index, index + 1)] * len(part)
        if not self.tokenizer.control_ids.isdisjoint(ids):
            raise TokenizerError(f"tokenizer {self.tokenizer.name!r} makes control ids of {shorten(piece.text)}")
        return Tokens(piece.start, ids, offsets)


def _trusted_regions(rendered: RenderedText) -> Iterator[tuple[int, int]]:
    """The longest runs of characters that are the template's or an assistant's own text."""
    start = end = 0
    for span in rendered.spans:
        origin = span.origin
        own = origin.message is not None and rendered.roles[origin.message] == "assistant" and not origin.in_header
        if origin.is_template or own:
            end = span.end
            continue
        if end > start:
            yield start, end
        start = end = span.end
    if end > start:
        yield start, end


def _all_template(rendered: RenderedText, start: int, end: int) -> bool:
    return all(span.origin.is_template for span in rendered.spans if span.start < end and span.end > start)


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
