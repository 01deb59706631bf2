"""Properties 13 to 19: what is trained is what a server would generate, behind what a server would be fed."""

from __future__ import annotations

import re
from collections import Counter

from templatekit.testing import oracle
from templatekit.testing.check import Violation, check, equal, holds
from templatekit.testing.check_content import lossy_tokenizer
from templatekit.testing.subject import Case, CheckedSample
from templatekit.testing.trials import cases
from templatekit.types import IGNORE_INDEX, Message, RenderedText, TargetSpan


@check(13, given=cases)
def the_response_alone_is_trained(case: Case) -> None:
    """What is trained is the response and its end marker, as the training option says, and nothing else."""
    for sample in case.samples:
        trained = [(span.start, span.end) for span in sample.tokenized.loss_spans if span.weight]
        text = sample.rendered.text
        equal(
            [text[start:end] for start, end in oracle.joined(trained)],
            [text[start:end] for start, end in oracle.joined(wanted(sample))],
            f"what is trained (train_on={sample.train_on})",
            sample,
        )
        equal(oracle.joined(trained), oracle.joined(wanted(sample)), "where the trained text stands", sample)


def wanted(sample: CheckedSample) -> list[tuple[int, int]]:
    """The characters that should be trained."""
    if sample.train_on == "all":
        return [(0, len(sample.rendered.text))]
    if sample.train_on != "content":
        return [(start, end) for start, _, end in (_extent(sample, t) for t in sample.trained_targets)]
    spans = []
    for start, marker, end in (_extent(sample, target) for target in sample.trained_targets):
        own = (s for s in sample.rendered.spans if s.origin.kind != "template" and not s.origin.in_header)
        spans += [(max(s.start, start), min(s.end, marker)) for s in own if s.end > start and s.start < marker]
        spans.append((marker, end))
    return spans


def _extent(sample: CheckedSample, target: TargetSpan) -> tuple[int, int, int]:
    """Where a turn's response, its end marker and the text behind that begin: found from the prompt and the origins of
    the conversation that ends with the turn."""
    turn = target.message
    alone = sample.rendered_up_to(turn + 1)
    own = [s for s in alone.spans if s.origin.message == turn and not s.origin.in_header]
    if not own or not turn or any(s.origin.generation for s in alone.spans):
        # An answer to nothing has no prompt, an empty one no place, and a template's own blocks decide themselves.
        return target.start, target.marker_start, target.end
    tokens = sample.subject.tokenizer.special_tokens
    start = len(sample.subject.template.prompt(sample.before(turn), tokens).text)
    marker = max(start, own[-1].end)
    return start, marker, marker + _marker_length(sample, turn, _closing(alone, marker))


def _closing(rendered: RenderedText, start: int) -> str:
    """What the template writes from here on, up to the next character of the data."""
    others = (s.start for s in rendered.spans if s.end > start and s.origin.kind != "template")
    return rendered.text[start : min(others, default=len(rendered.text))]


def _marker_length(sample: CheckedSample, turn: int, closing: str) -> int:
    """The first stop text; else the one special token; of several, the last that stands there whatever follows."""
    tokenizer, metadata = sample.subject.tokenizer, sample.subject.template.metadata
    special = {text for text, token in oracle.added_tokens(tokenizer).items() if token["special"]}
    texts = sorted({*special, *metadata.stop, tokenizer.special_tokens.eos} - {""}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
    found = list(pattern.finditer(closing))
    for match in found:
        if match[0] in metadata.stop:
            return match.end()
    if len(found) > 1:
        followed = sample.rendered_up_to(turn + 1, Message(role="user", content="x"))
        ends = [s.end for s in followed.spans if s.origin.message == turn and not s.origin.in_header]
        there = _closing(followed, ends[-1]) if ends else ""
        opening = re.match(f"(?:{pattern.pattern})*", _closing(followed, 0))
        openers = set(pattern.findall(opening[0])) if opening else set()
        opened = min((match.start() for match in found if match[0] in openers), default=len(closing))
        found = [match for match in found if match.end() <= opened and there.startswith(closing[: match.end()])]
    return found[-1].end() if found else 0


@check(14, 15, given=cases, unless=[lossy_tokenizer])
def trained_ids_are_the_responses(case: Case) -> str | None:
    """The trained ids begin and end where the trained characters do: no token holds characters of both kinds."""
    tokenizer = case.subject.tokenizer
    if case.train_on == "all":
        return "everything is trained"  # but for the first token, which nothing predicts
    if not all(oracle.is_lossless(tokenizer, sample.rendered.text) for sample in case.samples):
        return "the tokenizer has no piece for some bytes"
    for sample in case.samples:
        ids, cuts = sample.tokenized.input_ids, sample.cuts
        flags = [bool(weight) for weight in sample.tokenized.loss_weights]
        spans = [(start, end) for start, end in oracle.joined(wanted(sample)) if _has_ids(sample, start, end)]
        if spans and not _has_ids(sample, 0, spans[0][0]):
            holds(not flags[0], "the first id is trained, though nothing predicts it", sample)
            flags[0] = True
        trained = oracle.runs_of(flags)
        equal(len(trained), len(spans), "the number of runs of trained ids", sample)
        for (first, last), (start, end) in zip(trained, spans, strict=True):
            for at, place, edge in ((first, start, "begins"), (last, end, "ends")):
                expected = oracle.decoded(tokenizer, sample.rendered, place, [*cuts, place])
                equal(tokenizer.decode(ids[:at]), expected, f"the text of the ids where a trained run {edge}", sample)
    return None


def _has_ids(sample: CheckedSample, start: int, end: int) -> bool:
    """Whether any id stands for these characters: whitespace may be taken by a control token."""
    tokenizer, cuts = sample.subject.tokenizer, [*sample.cuts, start, end]
    before, behind = (oracle.decoded(tokenizer, sample.rendered, at, cuts) for at in (start, end))
    return before != behind


@check(16, given=cases)
def prompt_is_prefix(case: Case) -> None:
    """The text of a sample starts with the prompt that a server feeds to have the answer generated."""
    for sample in case.samples:
        prompt = sample.prompt.text
        equal(sample.rendered.text[: len(prompt)], prompt, "how the text begins", sample)
        first = sample.trained_targets[0]
        if not any(span.origin.generation for span in sample.rendered.spans):
            equal(first.start, len(prompt), "where the first answer begins", sample)


@check(17, given=cases)
def prompt_ids_are_prefix(case: Case) -> None:
    """The ids of a sample start with the ids that a server feeds to have its first trained answer generated."""
    for sample in case.samples:
        count = len(sample.prompt_ids)
        equal(sample.tokenized.input_ids[:count], sample.prompt_ids, "how the ids begin", sample)


@check(18, given=cases)
def labels_begin_behind_the_prompt(case: Case) -> str | None:
    """Nothing of the prompt is trained, and the very next id is."""
    if case.train_on in ("all", "content"):
        return f"train_on={case.train_on} asks for something else"
    for sample in case.samples:
        labels, count = sample.tokenized.labels, len(sample.prompt_ids)
        inside = [at for at, label in enumerate(labels[:count]) if label != IGNORE_INDEX]
        holds(not inside, f"trained ids within the prompt's {count}", sample, found=inside)
        if any(span.origin.generation for span in sample.rendered.spans):
            continue  # the template's own blocks may begin later
        holds(count < len(labels), "nothing stands behind the prompt", sample)
        if count:  # nothing predicts the first id
            equal(labels[count], sample.tokenized.input_ids[count], "the label behind the prompt", sample)
    return None


@check(19, given=cases)
def end_marker_is_trained_once(case: Case) -> str | None:
    """Every trained answer ends with one trained end marker, at which generation stops."""
    template = case.subject.template
    turns = Counter(target.message for sample in case.samples for target in sample.rendered.target_spans)
    if any(span.origin.generation for sample in case.samples for span in sample.rendered.spans):
        return "the template's own generation blocks decide"
    answers = [index for index, m in enumerate(case.whole.example.messages) if m.role == "assistant" and m.weight]
    answers = {"all": [], "last": answers[-1:]}.get(case.train_on, answers)
    if case.conversations == 1:
        equal([turns[index] for index in answers], [1] * len(answers), "how often each answer is a target")
    for sample in case.samples:
        for target in sample.rendered.target_spans:
            marker = sample.rendered.text[target.marker_start : target.end]
            if not marker:
                holds(template.metadata.end_marker == "none", "an answer has no end marker", sample)
                continue
            holds(
                any(marker.endswith(text) for text in _stop_texts(case)),
                "the end marker is no stop of the saved model's",
                sample,
                expected=_stop_texts(case),
                found=marker,
            )
            weights = {
                span.weight
                for span in sample.tokenized.loss_spans
                if span.start < target.end and target.marker_start < span.end
            }
            trained = case.train_on == "all" or target in sample.trained_targets
            equal(bool(max(weights)), trained, f"whether the end marker {marker!r} is trained", sample)
            equal(len(weights), 1, f"how many weights the end marker {marker!r} has", sample)
        last = sample.rendered.target_spans[-1].end
        behind = [span for span in sample.tokenized.loss_spans if span.start >= last and span.weight]
        if behind and case.train_on != "all":
            raise Violation("text behind the last end marker is trained", sample=sample, found=behind)
    return None


def _stop_texts(case: Case) -> list[str]:
    stops = case.subject.stops
    return [*stops.strings, *(case.subject.tokenizer.decode([id]) for id in stops.ids)]
