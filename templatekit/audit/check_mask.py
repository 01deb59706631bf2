"""Rules about what is trained: too little, without an end, too long, or other tokens than serving has."""

from __future__ import annotations

from collections.abc import Iterator

from templatekit.audit.values import AuditedSample, Hit, Row, Setup
from templatekit.errors import NOTHING_TRAINED, shorten
from templatekit.formats.end_markers import EndMarkers
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import TargetSpan


def nothing_trained(row: Row, setup: Setup) -> Iterator[Hit]:
    """No token of a text carries loss: the pipeline has dropped it."""
    if row.error is not None and row.error.reason == NOTHING_TRAINED:
        yield Hit(what=row.error.message, detail=str(row.error))


def turn_dependent(row: Row, setup: Setup) -> Iterator[Hit]:
    """Turns that the whole conversation does not hold as serving would meet them, so that it takes several samples."""
    for sample in row.samples:
        if sample.goes_on and sample.rendered.target_spans:
            last = sample.rendered.target_spans[-1]
            detail = f"sample {sample.rendered.sample + 1} of {sample.rendered.samples} that the record gives"
            yield Hit(detail=detail, sample=sample, start=last.start, end=last.end)


def end_marker_untrained(row: Row, setup: Setup) -> Iterator[Hit]:
    """A trained answer whose end marker carries no loss, or that has none."""
    for sample in row.samples:
        for target in _last_of_each_turn(sample.rendered.target_spans):
            if not sample.trains(target.start, target.end):
                continue
            if not sample.trains(target.end - 1, target.end):
                what = "the marker carries no loss"
            elif target.end == target.marker_start or not _holds_marker(sample, target, setup):
                what = "no marker in what is trained"
            else:
                continue
            yield Hit(what=what, sample=sample, start=target.marker_start, end=target.end)
            break


def _last_of_each_turn(targets: tuple[TargetSpan, ...]) -> Iterator[TargetSpan]:
    """A turn may be trained in several blocks; its end is in the last one."""
    for index, target in enumerate(targets):
        if index + 1 == len(targets) or targets[index + 1].message != target.message:
            yield target


def _holds_marker(sample: AuditedSample, target: TargetSpan, setup: Setup) -> bool:
    """Whether a stop text or a special token stands in what is trained behind the answer."""
    pattern = EndMarkers.of(setup.template.metadata, setup.special).pattern
    return bool(pattern and pattern.search(sample.rendered.text, target.marker_start, target.end))


def too_long(row: Row, setup: Setup) -> Iterator[Hit]:
    """More tokens than `--max-length`: what is wrong, or which policy makes the sample fit."""
    limit = setup.options.max_length or 0
    for sample in row.samples:
        if sample.length <= limit:
            continue
        detail = f"{sample.length:,} tokens"
        if sample.fitted is not None:
            what, detail = f"shortened: {sample.fitted.truncated}", f"{detail}, {len(sample.fitted):,} of them kept"
        elif sample.trained is None or sample.trained[0] >= limit:
            what = "the prompt alone is too long"
        else:
            what = "prompt and answer together"
        yield Hit(what=what, detail=detail, sample=sample)


def end_cut_off(row: Row, setup: Setup) -> Iterator[Hit]:
    """A cut at `--max-length` would leave a part of the answer, and take its end marker.

    Not where `--truncation` brings the sample down to the limit with the marker in it.
    """
    limit = setup.options.max_length or 0
    for sample in row.samples:
        if sample.trained is None or sample.trained[1] < limit:
            continue
        end = sample.rendered.target_spans[-1].end if sample.rendered.target_spans else len(sample.rendered.text)
        if sample.fitted is not None:
            ends = {target.end for target in sample.rendered.target_spans}
            if sample.fitted.truncated != "response" or len(sample.fitted.rendered.text) in ends:
                continue
            what = "--truncation response takes it"
        elif sample.trained[0] < limit:
            what = "a trainer that cuts would take it"
        else:
            continue
        yield Hit(
            what=what,
            detail=f"the last trained token is number {sample.trained[1] + 1:,} of {sample.length:,}",
            sample=sample,
            start=end,
            end=end,
        )


def unstable_boundary(row: Row, setup: Setup) -> Iterator[Hit]:
    """Encoded as a whole, the text has other ids."""
    for sample in row.samples:
        if sample.edge is not None:
            yield Hit(sample=sample)


def explain_boundary(hit: Hit, setup: Setup) -> Hit:
    """The cut where the ids begin to differ, and the tokens there."""
    sample, tokenizer = hit.sample, setup.tokenizer
    assert sample is not None and sample.edge is not None and tokenizer is not None
    cut, whole = sample.edge
    first = next((i for i, (a, b) in enumerate(zip(cut, whole, strict=False)) if a != b), min(len(cut), len(whole)))
    # The decoded length is near enough: a dummy space or a normalised character does not lead to another cut.
    position = len(tokenizer.decode(cut[: first + 1]))
    place = min((span.start for span in sample.losses[1:]), key=lambda start: abs(start - position), default=0)
    shown = slice(max(0, first - 1), first + 3)
    detail = f"cut: {_tokens(tokenizer, cut[shown])}; whole: {_tokens(tokenizer, whole[shown])}"
    return hit._replace(detail=detail, start=place, end=place)


def _tokens(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return " ".join(shorten(tokenizer.decode([id]), 30) for id in ids)
