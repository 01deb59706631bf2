"""Properties 13 to 19: the trained ids are those that a server would generate, after the ids of its prompt."""

from __future__ import annotations

import re
from collections import Counter

from templatekit.testing import oracle
from templatekit.testing.check import check
from templatekit.testing.checked_record import CheckedRecord, CheckedSample, equal, holds
from templatekit.testing.exemptions import lossy_tokenizer
from templatekit.testing.inputs import checked_records
from templatekit.types import IGNORE_INDEX, Message, RenderedText, TargetSpan


@check(13, given=checked_records)
def the_response_alone_is_trained(checked: CheckedRecord) -> None:
    """Only the response and its end marker are trained, or the part of them that `train_on` names."""
    for sample in checked.samples:
        text = sample.rendered.text
        trained = oracle.merged([(span.start, span.end) for span in sample.tokenized.loss_spans if span.weight])
        expected = oracle.merged(expected_ranges(sample))
        found, wanted = ([text[start:end] for start, end in ranges] for ranges in (trained, expected))
        equal(found, wanted, f"the trained text (train_on={sample.train_on})", sample)
        equal(trained, expected, "the position of the trained text", sample)


def expected_ranges(sample: CheckedSample) -> list[tuple[int, int]]:
    """The ranges of characters that should be trained."""
    if sample.train_on == "all":
        return [(0, len(sample.rendered.text))]
    if sample.train_on != "content":
        return [(start, end) for start, _, end in (_target_edges(sample, t) for t in sample.trained_targets)]
    spans = []
    for start, marker, end in (_target_edges(sample, target) for target in sample.trained_targets):
        own = (s for s in sample.rendered.spans if s.origin.kind != "template" and not s.origin.in_header)
        spans += [(max(s.start, start), min(s.end, marker)) for s in own if s.end > start and s.start < marker]
        spans.append((marker, end))
    return spans


def _target_edges(sample: CheckedSample, target: TargetSpan) -> tuple[int, int, int]:
    """The start of a turn's response, the start of its end marker, and the end of that marker.

    They are computed from the prompt and from the origins in the conversation that ends with the turn.
    """
    turn = target.message
    alone = sample.rendered_up_to(turn + 1)
    own = [s for s in alone.spans if s.origin.message == turn and not s.origin.in_header]
    if not own or not turn or any(s.origin.generation for s in alone.spans):
        # A first message has no prompt, an empty answer has no position, and generation blocks are taken as expected.
        return target.start, target.marker_start, target.end
    tokens = sample.subject.tokenizer.special_tokens
    start = len(sample.subject.template.prompt(sample.before(turn), tokens).text)
    marker = max(start, own[-1].end)
    return start, marker, marker + _marker_length(sample, turn, _literal_at(alone, marker))


def _literal_at(rendered: RenderedText, start: int) -> str:
    """The literal that starts here, up to the next character of the data."""
    others = (s.start for s in rendered.spans if s.end > start and s.origin.kind != "template")
    return rendered.text[start : min(others, default=len(rendered.text))]


def _marker_length(sample: CheckedSample, turn: int, literal: str) -> int:
    """The length of the end marker at the start of a literal.

    The marker ends with the first stop text. Without a stop text it ends with the only special token, or with the last
    of several that the template writes whether or not another turn follows.
    """
    tokenizer, metadata = sample.subject.tokenizer, sample.subject.template.metadata
    special = {text for text, token in oracle.added_tokens(tokenizer).items() if token["special"]}
    texts = sorted({*special, *metadata.stop, tokenizer.special_tokens.eos} - {""}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
    found = list(pattern.finditer(literal))
    for match in found:
        if match[0] in metadata.stop:
            return match.end()
    if len(found) > 1:
        followed = sample.rendered_up_to(turn + 1, Message(role="user", content="x"))
        ends = [s.end for s in followed.spans if s.origin.message == turn and not s.origin.in_header]
        literal_between = _literal_at(followed, ends[-1]) if ends else ""
        opening = re.match(f"(?:{pattern.pattern})*", _literal_at(followed, 0))
        openers = set(pattern.findall(opening[0])) if opening else set()
        opened = min((match.start() for match in found if match[0] in openers), default=len(literal))
        found = [m for m in found if m.end() <= opened and literal_between.startswith(literal[: m.end()])]
    return found[-1].end() if found else 0


@check(14, 15, given=checked_records, unless=[lossy_tokenizer])
def trained_ids_are_the_responses(checked: CheckedRecord) -> str | None:
    """The trained ids start and end where the trained characters do: no token contains trained and other characters."""
    tokenizer = checked.subject.tokenizer
    if checked.train_on == "all":
        return "everything is trained"  # but for the first token, which nothing predicts
    if not all(oracle.is_lossless(tokenizer, sample.rendered.text) for sample in checked.samples):
        return "the tokenizer has no token for some bytes"
    for sample in checked.samples:
        ids, cuts = sample.tokenized.input_ids, sample.cuts
        flags = [bool(weight) for weight in sample.tokenized.loss_weights]
        spans = [(start, end) for start, end in oracle.merged(expected_ranges(sample)) if _has_ids(sample, start, end)]
        if spans and not _has_ids(sample, 0, spans[0][0]):
            holds(not flags[0], "the first id is trained, though nothing predicts it", sample)
            flags[0] = True
        trained = oracle.true_runs(flags)
        equal(len(trained), len(spans), "the number of runs of trained ids", sample)
        for run, span in zip(trained, spans, strict=True):
            for index, position, edge in zip(run, span, ("starts", "ends"), strict=True):
                expected = oracle.expected_decoding(tokenizer, sample.rendered, position, [*cuts, position])
                what = f"the text of the ids before a trained run {edge}"
                equal(tokenizer.decode(ids[:index]), expected, what, sample)
    return None


def _has_ids(sample: CheckedSample, start: int, end: int) -> bool:
    """Whether these characters have any id: a control token may strip whitespace."""
    tokenizer, cuts = sample.subject.tokenizer, [*sample.cuts, start, end]
    before, after = (oracle.expected_decoding(tokenizer, sample.rendered, at, cuts) for at in (start, end))
    return before != after


@check(16, given=checked_records)
def prompt_is_prefix(checked: CheckedRecord) -> None:
    """The text of a sample starts with the prompt from which a server generates the answer."""
    for sample in checked.samples:
        prompt = sample.prompt.text
        equal(sample.rendered.text[: len(prompt)], prompt, "the start of the text", sample)
        first = sample.trained_targets[0]
        if not any(span.origin.generation for span in sample.rendered.spans):
            equal(first.start, len(prompt), "the start of the first answer", sample)


@check(17, given=checked_records)
def prompt_ids_are_prefix(checked: CheckedRecord) -> None:
    """The ids of a sample start with the prompt ids from which a server generates its first trained answer."""
    for sample in checked.samples:
        count = len(sample.prompt_ids)
        equal(sample.tokenized.input_ids[:count], sample.prompt_ids, "the start of the ids", sample)


@check(18, given=checked_records)
def labels_begin_behind_the_prompt(checked: CheckedRecord) -> str | None:
    """No id of the prompt is trained, and the id after it is."""
    if checked.train_on in ("all", "content"):
        return f"train_on={checked.train_on} asks for something else"
    for sample in checked.samples:
        labels, count = sample.tokenized.labels, len(sample.prompt_ids)
        inside = [index for index, label in enumerate(labels[:count]) if label != IGNORE_INDEX]
        holds(not inside, f"trained ids within the prompt's {count}", sample, found=inside)
        if any(span.origin.generation for span in sample.rendered.spans):
            continue  # a generation block may start later
        holds(count < len(labels), "there is no id after the prompt", sample)
        if count:  # nothing predicts the first id
            equal(labels[count], sample.tokenized.input_ids[count], "the label after the prompt", sample)
    return None


@check(19, given=checked_records)
def end_marker_is_trained_once(checked: CheckedRecord) -> str | None:
    """Every trained answer ends with one trained end marker, at which generation stops."""
    template = checked.subject.template
    turns = Counter(target.message for sample in checked.samples for target in sample.rendered.target_spans)
    if any(span.origin.generation for sample in checked.samples for span in sample.rendered.spans):
        return "the template's own generation blocks decide"
    answers = [index for index, m in enumerate(checked.whole.example.messages) if m.role == "assistant" and m.weight]
    answers = {"all": [], "last": answers[-1:]}.get(checked.train_on, answers)
    if checked.conversations == 1:
        equal([turns[index] for index in answers], [1] * len(answers), "how often each answer is a target")
    for sample in checked.samples:
        for target in sample.rendered.target_spans:
            marker = sample.rendered.text[target.marker_start : target.end]
            if not marker:
                holds(template.metadata.end_marker == "none", "an answer has no end marker", sample)
                continue
            stops = _stop_texts(checked)
            what = "the saved model does not stop at the end marker"
            holds(marker.endswith(tuple(stops)), what, sample, expected=stops, found=marker)
            inside = (s for s in sample.tokenized.loss_spans if s.start < target.end and target.marker_start < s.end)
            weights = {span.weight for span in inside}
            trained = checked.train_on == "all" or target in sample.trained_targets
            equal(bool(max(weights)), trained, f"whether the end marker {marker!r} is trained", sample)
            equal(len(weights), 1, f"how many weights the end marker {marker!r} has", sample)
        last = sample.rendered.target_spans[-1].end
        trailing = [span for span in sample.tokenized.loss_spans if span.start >= last and span.weight]
        right = not trailing or checked.train_on == "all"
        holds(right, "text after the last end marker is trained", sample, found=trailing)
    return None


def _stop_texts(checked: CheckedRecord) -> list[str]:
    stops = checked.subject.stops
    return [*stops.strings, *(checked.subject.tokenizer.decode([id]) for id in stops.ids)]
