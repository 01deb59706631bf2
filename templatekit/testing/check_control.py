"""Properties 20 to 24: control tokens come from the template, never from texts of the data."""

from __future__ import annotations

from templatekit.testing import oracle
from templatekit.testing.check import check
from templatekit.testing.check_content import compare_decoding
from templatekit.testing.checked_record import CheckedRecord, equal, holds
from templatekit.testing.exemptions import no_separate_bos
from templatekit.testing.inputs import (
    RecordPair,
    checked_records,
    control_strings_in_a_text,
    halves_in_all_texts,
    markers_in_a_text,
)
from templatekit.types import IGNORE_INDEX


@check(20, given=checked_records, unless=[no_separate_bos])
def bos_comes_first_or_never(checked: CheckedRecord) -> None:
    """BOS is the first id or is absent; a template that does not write it leaves that to the tokenizer."""
    tokens, template = checked.subject.tokenizer.special_tokens, checked.subject.template
    bos = checked.subject.tokenizer.id_of(tokens.bos)
    for sample in checked.samples:
        positions = [index for index, id in enumerate(sample.tokenized.input_ids) if id == bos]
        what = f"the positions of {tokens.bos}"
        if "bos_token" in template.variables:
            holds(positions in ([], [0]), what, sample, expected="[0] or []", found=positions)
        else:
            equal(positions, [0] if template.kind == "instruction" and tokens.adds_bos else [], what, sample)


@check(21, given=checked_records)
def control_ids_are_the_templates(checked: CheckedRecord) -> None:
    """The control ids are those of the template's own text, in their order, whatever the data holds."""
    tokenizer = checked.subject.tokenizer
    unknown = oracle.unknown_id(tokenizer)
    for sample in checked.samples:
        texts = [(sample.rendered, sample.tokenized.input_ids, "the text's control ids")]
        if sample.prompted:
            texts.append((sample.prompt, sample.prompt_ids, "the prompt's control ids"))
        for rendered, ids, what in texts:
            expected = [found.token["id"] for found in oracle.expected_control_tokens(tokenizer, rendered)]
            equal(oracle.control_ids(tokenizer, ids), [id for id in expected if id != unknown], what, sample)


@check(22, given=control_strings_in_a_text)
def texts_change_no_control_id(pair: RecordPair) -> str | None:
    """Control strings in a text change no control id, and the ids still decode to the text."""
    return _compare_control_ids(pair, "the control ids, with control strings in one text")


@check(23, given=halves_in_all_texts)
def halves_never_join(pair: RecordPair) -> str | None:
    """Two halves of a control string in adjacent texts never become a control token."""
    return _compare_control_ids(pair, "the control ids, with halves of one at each text's edges")


def _compare_control_ids(pair: RecordPair, what: str) -> str | None:
    """Compare the control ids of both records, and the changed record's ids with its text."""
    if not pair.replaced:
        return "no text to replace"
    tokenizer = pair.changed.subject.tokenizer
    changed, original = (
        [oracle.control_ids(tokenizer, sample.tokenized.input_ids) for sample in checked.samples]
        for checked in (pair.changed, pair.original)
    )
    equal(changed, original, what)
    for sample in pair.changed.samples:
        if oracle.is_lossless(tokenizer, sample.rendered.text):
            compare_decoding(sample)
    return None


@check(24, given=markers_in_a_text)
def markers_change_no_label(pair: RecordPair) -> str | None:
    """The template's own markers in a text that is not trained do not change the trained ids."""
    if not pair.replaced:
        return "no text but answers"
    changed, original = (
        [[id for id in sample.tokenized.labels if id != IGNORE_INDEX] for sample in checked.samples]
        for checked in (pair.changed, pair.original)
    )
    equal(changed, original, "the trained ids, with the template's own markers in one text")
    return None
