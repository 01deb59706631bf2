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
from typing import NamedTuple, TypeAlias

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


Ids: TypeAlias = list[tuple[int, int, int]]
"""Token ids with the characters they stand for: (id, start, end)."""


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
            ids = [token for tokens in encoded[position : position + len(parts)] for token in tokens]
            position += len(parts)
            examples.append(
                TokenizedExample(
                    input_ids=tuple(token for token, _, _ in ids),
                    loss_weights=_weights(ids, spans),
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

    def _run(self, pieces: Sequence[Piece]) -> list[Ids]:
        """Each piece's tokens, in order."""
        results: list[Ids] = [[] for _ in pieces]
        groups: dict[tuple[bool, bool], list[int]] = {}
        for index, piece in enumerate(pieces):
            if piece.id is not None:
                results[index] = [(piece.id, piece.start, piece.start + len(piece.text))]
            else:
                groups.setdefault((piece.control, piece.prefix), []).append(index)
        for (control, prefix), members in groups.items():
            tokens = self._encode_texts([pieces[index].text for index in members], control=control, prefix=prefix)
            for index, ids in zip(members, tokens, strict=True):
                results[index] = self._checked(pieces[index], ids)
        return results

    def _encode_texts(self, texts: Sequence[str], *, control: bool, prefix: bool) -> list[Ids]:
        backend = self.tokenizer.backend(control=control, prefix=prefix)
        if self.boundary == "joint":
            encodings = backend.encode_batch(texts, add_special_tokens=False)
            return [
                [(id, *offset) for id, offset in zip(encoding.ids, encoding.offsets, strict=True)]
                for encoding in encodings
            ]
        # A piece has one weight, so its tokens need no offsets of their own.
        return [
            [(id, 0, 0) for id in encoding.ids]
            for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def _checked(self, piece: Piece, ids: Ids) -> Ids:
        """The ids in characters of the whole text, once no control id has come out that should not have."""
        control = self.tokenizer.control_ids
        came = tuple(id for id, _, _ in ids if id in control)
        if came != (piece.expected if piece.control else ()):
            # A normalizer or the model itself made a control id of text that does not look like one.
            ids = self._without_control(piece)
        return [(id, piece.start + start, piece.start + end) for id, start, end in ids]

    def _without_control(self, piece: Piece) -> Ids:
        """Encodes character by character where nothing else keeps control ids out. Slow, and hardly ever needed."""
        if piece.expected:
            raise TokenizerError(
                f"tokenizer {self.tokenizer.name!r}: the control tokens of {shorten(piece.text)} come out as others"
            )
        ids: Ids = []
        for index, character in enumerate(piece.text):
            prefix = piece.prefix and index == 0
            part = self._encode_texts([character], control=False, prefix=prefix)[0]
            ids += [(id, index, index + 1) for id, _, _ in part]
        if any(id in self.tokenizer.control_ids for id, _, _ in ids):
            raise TokenizerError(f"tokenizer {self.tokenizer.name!r} makes control ids of {shorten(piece.text)}")
        return ids


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


def _weights(ids: Ids, spans: Sequence[LossSpan]) -> tuple[float, ...]:
    """Each token's weight: the largest among its characters. Nothing predicts the first token, so it has none."""
    starts = [span.start for span in spans]
    weights = []
    for _, start, end in ids:
        first = max(bisect_right(starts, start) - 1, 0)
        last = max(bisect_right(starts, max(start, end - 1)) - 1, 0)
        weights.append(max((span.weight for span in spans[first : last + 1]), default=0.0))
    return (0.0, *weights[1:]) if weights else ()
