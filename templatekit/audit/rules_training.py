"""Rules about training and serving: trained tokens, lengths, end markers, and the ids that servers see."""

from __future__ import annotations

from collections.abc import Iterator

from templatekit.audit.context import AuditContext
from templatekit.audit.rows import AuditedRow, AuditedSample
from templatekit.audit.rule import Occurrence
from templatekit.errors import NOTHING_TRAINED, shorten
from templatekit.formats.end_markers import EndMarkers
from templatekit.tokens.tokenizer import ControlToken, Tokenizer
from templatekit.types import TargetSpan


def nothing_trained(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A row that the pipeline dropped because no token has a loss weight."""
    if row.error is not None and row.error.reason == NOTHING_TRAINED:
        yield Occurrence(kind=row.error.message, detail=str(row.error))


def turn_dependent(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """An answer that needs a sample of its own, because the whole conversation prints it differently from serving."""
    for sample in row.samples:
        if sample.continued and sample.rendered.target_spans:
            last = sample.rendered.target_spans[-1]
            detail = f"sample {sample.rendered.sample + 1} of {sample.rendered.samples} that the record gives"
            yield Occurrence(detail=detail, sample=sample, start=last.start, end=last.end)


def end_marker_untrained(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A trained answer without an end marker, or whose end marker has no loss weight."""
    for sample in row.samples:
        # The last target of each turn: a turn may have several, and the end marker is in the last.
        for target in {target.message: target for target in sample.rendered.target_spans}.values():
            if not sample.is_trained(target.start, target.end):
                continue
            if not sample.is_trained(target.end - 1, target.end):
                kind = "the marker carries no loss"
            elif target.end == target.marker_start or not _contains_end_marker(sample, target, context):
                kind = "no marker in what is trained"
            else:
                continue
            yield Occurrence(kind=kind, sample=sample, start=target.marker_start, end=target.end)
            break


def _contains_end_marker(sample: AuditedSample, target: TargetSpan, context: AuditContext) -> bool:
    """Whether the end of a target contains a stop text or a special token."""
    pattern = EndMarkers.of(context.template.metadata, context.special_tokens).pattern
    return bool(pattern and pattern.search(sample.rendered.text, target.marker_start, target.end))


def too_long(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A sample with more tokens than `--max-length`. The kind names the reason, or the policy that shortens it."""
    limit = context.options.max_length or 0
    for sample in row.samples:
        if sample.length <= limit:
            continue
        detail = f"{sample.length:,} tokens"
        if sample.shortened is not None:
            kind = f"shortened: {sample.shortened.truncated}"
            detail += f", {len(sample.shortened):,} of them kept"
        elif sample.trained_range is None or sample.trained_range[0] >= limit:
            kind = "the prompt alone is too long"
        else:
            kind = "prompt and answer together"
        yield Occurrence(kind=kind, detail=detail, sample=sample)


def end_cut_off(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A sample that a cut at `--max-length` would leave with a part of the answer but without the end marker.

    Samples that `--truncation` shortens without losing the end marker do not count.
    """
    limit = context.options.max_length or 0
    for sample in row.samples:
        if sample.trained_range is None or sample.trained_range[1] < limit:
            continue
        end = sample.rendered.target_spans[-1].end if sample.rendered.target_spans else len(sample.rendered.text)
        if sample.shortened is not None:
            ends = {target.end for target in sample.rendered.target_spans}
            if sample.shortened.truncated != "response" or len(sample.shortened.rendered.text) in ends:
                continue
            kind = "--truncation response takes it"
        elif sample.trained_range[0] < limit:
            kind = "a trainer that cuts would take it"
        else:
            continue
        detail = f"the last trained token is number {sample.trained_range[1] + 1:,} of {sample.length:,}"
        yield Occurrence(kind=kind, detail=detail, sample=sample, start=end, end=end)


def unstable_boundary(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that has other ids when it is encoded as a whole."""
    for sample in row.samples:
        if sample.encoding_difference is not None:
            yield Occurrence(sample=sample)


def explain_boundary(occurrence: Occurrence, context: AuditContext) -> Occurrence:
    """Add the cut at which the ids start to differ, and the tokens there."""
    sample, tokenizer = occurrence.sample, context.tokenizer
    assert sample is not None and sample.encoding_difference is not None and tokenizer is not None
    cut, whole = sample.encoding_difference
    first = next((i for i, (a, b) in enumerate(zip(cut, whole, strict=False)) if a != b), min(len(cut), len(whole)))
    # The decoded length may be off by a dummy space or a normalised character, but the nearest cut stays the same.
    decoded_length = len(tokenizer.decode(cut[: first + 1]))
    cuts = (span.start for span in sample.loss_spans[1:])
    position = min(cuts, key=lambda start: abs(start - decoded_length), default=0)
    shown = slice(max(0, first - 1), first + 3)
    detail = f"cut: {_tokens(tokenizer, cut[shown])}; whole: {_tokens(tokenizer, whole[shown])}"
    return occurrence._replace(detail=detail, start=position, end=position)


def _tokens(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return " ".join(shorten(tokenizer.decode([id]), 30) for id in ids)


def stop_token(context: AuditContext) -> Iterator[Occurrence]:
    """An end marker at which a server would not stop."""
    token = _special_token(context)
    if token is None or context.stop_tokens is None or token.id in context.stop_tokens.ids:
        return
    yield Occurrence(
        detail=f"answers end with {token.text} ({token.id}); {context.stop_tokens.source} stops at "
        f"{', '.join(_token_with_id(context, id) for id in context.stop_tokens.ids) or 'no token'}"
    )


def end_marker_not_special(context: AuditContext) -> Iterator[Occurrence]:
    """An end marker that is no special token of the tokenizer."""
    if context.tokenizer is None or not context.end_marker.strip() or _special_token(context) is not None:
        return
    ids = context.tokenizer.backend(control=True, prefix=False).encode(context.end_marker, add_special_tokens=False).ids
    tokens = " ".join(repr(context.tokenizer.decode([id])) for id in ids)
    yield Occurrence(detail=f"answers end with {context.end_marker!r}, in ordinary tokens: {tokens}")


def trailing_text(context: AuditContext) -> Iterator[Occurrence]:
    """Text that the template writes after the last end marker."""
    if context.trailing.strip():
        yield Occurrence(detail=f"after the end marker the template writes {context.trailing!r}")


def _special_token(context: AuditContext) -> ControlToken | None:
    """The last special token in the end marker: a server has to stop at it."""
    if context.tokenizer is None:
        return None
    special = [token for token in context.tokenizer.control_tokens.values() if token.special]
    inside = [token for token in special if token.text in context.end_marker]
    ends = {token.text: context.end_marker.rindex(token.text) + len(token.text) for token in inside}
    return max(inside, key=lambda token: (ends[token.text], len(token.text)), default=None)


def _token_with_id(context: AuditContext, id: int) -> str:
    assert context.tokenizer is not None
    return f"{context.tokenizer.decode([id])} ({id})"
