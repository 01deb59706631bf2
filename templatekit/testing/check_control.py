"""Properties 20 to 24: control tokens come from the template, never from texts of the data."""

from __future__ import annotations

from templatekit.testing import oracle
from templatekit.testing.check import check
from templatekit.testing.checked_record import CheckedRecord
from templatekit.testing.exemptions import no_separate_bos
from templatekit.testing.inputs import (
    RecordPair,
    checked_records,
    control_strings_in_a_text,
    halves_in_all_texts,
    markers_in_a_text,
)
from templatekit.testing.violation import equal, holds
from templatekit.types import IGNORE_INDEX


@check(20, given=checked_records, unless=[no_separate_bos])
def bos_comes_first_or_never(checked: CheckedRecord) -> None:
    """BOS is the first id or is absent; a template that does not write it leaves that to the tokenizer."""
    tokens, template = checked.subject.tokenizer.special_tokens, checked.subject.template
    bos = checked.subject.tokenizer.id_of(tokens.bos)
    for sample in checked.samples:
        positions = [index for index, id in enumerate(sample.tokenized.input_ids) if id == bos]
        if "bos_token" in template.variables:
            holds(
                positions in ([], [0]), f"the positions of {tokens.bos}", sample, expected="[0] or []", found=positions
            )
        else:
            expected = [0] if template.kind == "instruction" and tokens.adds_bos else []
            equal(positions, expected, f"the positions of {tokens.bos}", sample)


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


def _control_ids(checked: CheckedRecord) -> list[list[int]]:
    tokenizer = checked.subject.tokenizer
    return [oracle.control_ids(tokenizer, sample.tokenized.input_ids) for sample in checked.samples]


@check(22, given=control_strings_in_a_text)
def texts_change_no_control_id(pair: RecordPair) -> str | None:
    """Control strings in a text change no control id, and the ids still decode to the text."""
    if not pair.locations:
        return "no text to replace"
    equal(_control_ids(pair.changed), _control_ids(pair.original), "the control ids, with control strings in one text")
    return _check_decoding(pair.changed)


@check(23, given=halves_in_all_texts)
def halves_never_join(pair: RecordPair) -> str | None:
    """Two halves of a control string in adjacent texts never become a control token."""
    if not pair.locations:
        return "no text to replace"
    equal(
        _control_ids(pair.changed),
        _control_ids(pair.original),
        "the control ids, with halves of one at each text's edges",
    )
    return _check_decoding(pair.changed)


def _check_decoding(checked: CheckedRecord) -> str | None:
    tokenizer = checked.subject.tokenizer
    for sample in checked.samples:
        if not oracle.is_lossless(tokenizer, sample.rendered.text):
            continue
        expected = oracle.expected_decoding(tokenizer, sample.rendered, len(sample.rendered.text), sample.cuts)
        equal(tokenizer.decode(sample.tokenized.input_ids), expected, "the ids decode to another text", sample)
    return None


@check(24, given=markers_in_a_text)
def markers_change_no_label(pair: RecordPair) -> str | None:
    """The template's own markers in a text that is not trained do not change the trained ids."""
    if not pair.locations:
        return "no text but answers"
    trained = [
        [[id for id in sample.tokenized.labels if id != IGNORE_INDEX] for sample in checked.samples]
        for checked in (pair.changed, pair.original)
    ]
    equal(trained[0], trained[1], "the trained ids, with the template's own markers in one text")
    return None
