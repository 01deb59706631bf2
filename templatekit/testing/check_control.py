"""Properties 20 to 24: control tokens come from the template, never from a text of the data."""

from __future__ import annotations

from templatekit.testing import oracle
from templatekit.testing.check import check, equal, holds
from templatekit.testing.subject import Case, Subject
from templatekit.testing.trials import Pair, cases, halves_apart, markers_in_fields, replacements
from templatekit.types import IGNORE_INDEX


def no_bos_of_its_own(subject: Subject) -> str | None:
    """For the check of BOS."""
    tokens = subject.tokenizer.special_tokens
    if not subject.capabilities.bos_once:
        return "the template declares bos_once: false"
    if not tokens.bos or tokens.bos == tokens.eos:
        return "the tokenizer has no BOS of its own"
    if tokens.bos in subject.template.original:
        return f"the template writes {tokens.bos} as another token"
    return None


@check(20, given=cases, unless=[no_bos_of_its_own])
def bos_comes_first_or_never(case: Case) -> None:
    """BOS is the first id or is absent; where the template writes none it is there as the tokenizer puts it."""
    tokens, template = case.subject.tokenizer.special_tokens, case.subject.template
    bos = case.subject.tokenizer.id_of(tokens.bos)
    for sample in case.samples:
        places = [at for at, id in enumerate(sample.tokenized.input_ids) if id == bos]
        if "bos_token" in template.variables:
            holds(places in ([], [0]), f"where {tokens.bos} stands", sample, expected="[0] or []", found=places)
        else:
            expected = [0] if template.kind == "instruction" and tokens.adds_bos else []
            equal(places, expected, f"where {tokens.bos} stands", sample)


@check(21, given=cases)
def control_ids_are_the_templates(case: Case) -> None:
    """The control ids are those of the template's own text, in their order, whatever the data holds."""
    tokenizer = case.subject.tokenizer
    unknown = oracle.unknown_id(tokenizer)
    for sample in case.samples:
        texts = [(sample.rendered, sample.tokenized.input_ids, "the text's control ids")]
        if sample.prompted:
            texts.append((sample.prompt, sample.prompt_ids, "the prompt's control ids"))
        for rendered, ids, what in texts:
            expected = [found.token["id"] for found in oracle.control_of(tokenizer, rendered)]
            equal(oracle.control_ids(tokenizer, ids), [id for id in expected if id != unknown], what, sample)


def _control(case: Case) -> list[list[int]]:
    tokenizer = case.subject.tokenizer
    return [oracle.control_ids(tokenizer, sample.tokenized.input_ids) for sample in case.samples]


@check(22, given=replacements)
def texts_change_no_control_id(pair: Pair) -> str | None:
    """Control strings in a text change no control id, and the ids still decode to the text."""
    if not pair.places:
        return "no text to replace"
    equal(_control(pair.changed), _control(pair.neutral), "the control ids, with control strings in one text")
    return _decodes(pair.changed)


@check(23, given=halves_apart)
def halves_never_join(pair: Pair) -> str | None:
    """Halves of a control string in neighbouring texts never join to one."""
    if not pair.places:
        return "no text to replace"
    equal(_control(pair.changed), _control(pair.neutral), "the control ids, with halves of one at each text's edges")
    return _decodes(pair.changed)


def _decodes(case: Case) -> str | None:
    tokenizer = case.subject.tokenizer
    for sample in case.samples:
        if not oracle.is_lossless(tokenizer, sample.rendered.text):
            continue
        expected = oracle.decoded(tokenizer, sample.rendered, len(sample.rendered.text), sample.cuts)
        equal(tokenizer.decode(sample.tokenized.input_ids), expected, "the ids decode to another text", sample)
    return None


@check(24, given=markers_in_fields)
def markers_change_no_label(pair: Pair) -> str | None:
    """The template's own markers in a text that is not trained change nothing of what is trained."""
    if not pair.places:
        return "no text but answers"
    trained = [
        [[id for id in sample.tokenized.labels if id != IGNORE_INDEX] for sample in case.samples]
        for case in (pair.changed, pair.neutral)
    ]
    equal(trained[0], trained[1], "the trained ids, with the template's own markers in one text")
    return None
