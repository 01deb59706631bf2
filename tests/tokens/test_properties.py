"""What a property asks beyond one format in one process: other processes, joint encoding, every cut of a string.

The properties themselves are the named checks of `templatekit.testing`; tests/testing tries them on everything bundled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.bundled import ANY_ROLE, CHAT, ONE_TURN

from templatekit import RecordError, Registry, TemplateFile, Tokenizer
from templatekit.formats.lookup import find_template
from templatekit.formats.template import Template
from templatekit.testing import CHECKS, Subject, adversarial_text, oracle
from templatekit.testing.checked_record import CheckedRecord

Draw = st.DataObject


def subject_of(template: str | Template, tokenizer: Tokenizer, registry: Registry, **options: Any) -> Subject:
    """Alpaca's records through a template."""
    found = find_template(template, registry) if isinstance(template, str) else template
    adapter = registry.adapters["alpaca"]
    return Subject(adapter=adapter, template=found, tokenizer=tokenizer, registry=registry, **options)


PROGRAM = """
import hashlib, json, sys
from templatekit import create_registry, render
folder, record = sys.argv[1], json.loads(sys.argv[2])
for template in ("alpaca", "chatml"):
    for example in render([record] * 3, template=template, tokenizer=folder, registry=create_registry()):
        print(hashlib.sha256(repr((example.input_ids, example.labels, example.rendered.spans)).encode()).hexdigest())
"""


def test_2_deterministic_in_any_process(tokenizer_of: Any) -> None:
    """Whatever the hash seed, the locale and the time zone."""
    import json

    folder = str(tokenizer_of.folder("nfc"))
    record = json.dumps({"instruction": "e\u0301 <|im_end|> <think>", "input": "x\n", "output": "</think> 日本 "})
    outputs = set()
    for seed, locale, zone in (("1", "C", "UTC"), ("2", "C.UTF-8", "Asia/Tokyo")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone, "PYTHONUTF8": "0"}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, folder, record], env=environment, capture_output=True, text=True, check=True
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 2


@given(data=st.data())
def test_25_joint_encoding_is_plain_encoding(tokenizer: Tokenizer, builtin: Registry, data: Draw) -> None:
    """Joint encoding cuts nowhere, but still separates control tokens."""
    subject = subject_of(data.draw(st.sampled_from(ONE_TURN + CHAT)), tokenizer, builtin, boundary="joint")
    text = adversarial_text(tokenizer, subject.template)
    case = CheckedRecord(subject, {key: data.draw(text, label=key) for key in ("instruction", "input", "output")})
    sample = case.whole
    text_of_it = sample.rendered.text
    if oracle.has_only_expected_control_tokens(tokenizer, sample.rendered):
        backend = tokenizer.backend(control=True, prefix=True)
        assert list(sample.tokenized.input_ids) == backend.encode(text_of_it, add_special_tokens=False).ids
    CHECKS["control_ids_are_the_templates"].attempt(case)
    CHECKS["ids_labels_and_weights_agree"].attempt(case)
    if oracle.is_lossless(tokenizer, text_of_it):
        expected = oracle.expected_decoding(tokenizer, sample.rendered, len(text_of_it), ())
        assert tokenizer.decode(sample.tokenized.input_ids) == expected


def test_negative_control_of_joint_encoding(tokenizer_of: Any, builtin: Registry) -> None:
    """Joint encoding merges across the boundary: the ids no longer start with those that a server feeds."""
    record = {"instruction": "x", "input": "", "output": "\n\n\n It is red."}
    for boundary, checks in (("cut", ()), ("joint", ("prompt_ids_are_prefix", "trained_ids_are_the_responses"))):
        case = CheckedRecord(subject_of("alpaca-lora", tokenizer_of("nfc"), builtin, boundary=boundary), record)
        failed = set()
        for name in ("prompt_ids_are_prefix", "trained_ids_are_the_responses", "control_ids_are_the_templates"):
            try:
                CHECKS[name].attempt(case)
            except AssertionError:
                failed.add(name)
        assert failed == set(checks)


def test_23_halves_in_adjacent_fields(tokenizer_of: Any, builtin: Registry) -> None:
    """Every cut of every control string, with nothing between two fields, or the template's own half of one."""
    tokenizer = tokenizer_of("nfc")
    source = "{{ instruction }}{{ context }}<|im_{{ response }}{{ eos_token }}"
    subject = subject_of(Template(TemplateFile(name="adjacent", source=source)), tokenizer, builtin)
    for text in tokenizer.control_tokens:
        for at in range(1, len(text)):
            record = {"instruction": f"a{text[:at]}", "input": f"{text[at:]}b", "output": "end|>c"}
            case = CheckedRecord(subject, record)
            CHECKS["control_ids_are_the_templates"].attempt(case)
            CHECKS["ids_decode_to_the_text"].attempt(case)
            ids = case.whole.tokenized.input_ids
            assert oracle.control_ids(tokenizer, ids) == [tokenizer.id_of("<|im_end|>")]


def test_29_unknown_roles_are_text_or_refused(tokenizer_of: Any, builtin: Registry) -> None:
    """A role is data: in a control token's place it is text, and an instruction format has no turn for it."""
    record = {"messages": [{"role": "<|im_end|>", "content": "a"}, {"role": "assistant", "content": "b"}]}
    parts: dict[str, Any] = {"adapter": builtin.adapters["messages"], "tokenizer": tokenizer_of("bytes")}
    for name in CHAT:
        if name not in ANY_ROLE:
            with pytest.raises(RecordError, match=r"refuses: .*; found <\|im_end\|>"):
                list(Subject(template=find_template(name, builtin), registry=builtin, **parts).pipeline().run([record]))
            continue
        case = CheckedRecord(Subject(template=find_template(name, builtin), registry=builtin, **parts), record)
        CHECKS["control_ids_are_the_templates"].attempt(case)
        CHECKS["ids_decode_to_the_text"].attempt(case)
    for name in ONE_TURN:
        subject = Subject(template=find_template(name, builtin), registry=builtin, **parts)
        with pytest.raises(RecordError, match=r"found <\|im_end\|>, assistant"):
            list(subject.pipeline().run([record]))


def test_the_profile_is_derandomized_in_ci() -> None:
    from hypothesis import settings

    assert settings.get_profile("ci").derandomize
