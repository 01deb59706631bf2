"""Whole audits: other data sets, refused rows, the order of rows, and bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from templatekit import ConfigError, SourceError, TemplateError, TokenizerError, UnknownNameError
from templatekit.audit import Report, audit
from templatekit.config.data_options import DataOptions
from templatekit.errors import RecordError
from templatekit.hooks.registry import Registry
from templatekit.pipeline.batches import BATCH_SIZE
from templatekit.types import Record

RunAudit = Callable[..., Report]
PROMPTS = ["shared-prompts", "same-prompt"]
PLAIN = {"instruction": "Name one.", "input": "", "output": "Red."}


def rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    return [{**PLAIN, "instruction": f"Name number {number}."} for number in range(first, first + count)]


def counts(report: Report) -> dict[str, int]:
    return {finding.rule.code: finding.count for finding in report.findings}


def test_rows_keep_their_numbers_over_batches(run_audit: RunAudit) -> None:
    data: list[Any] = rows(2 * BATCH_SIZE + 10)
    data[3], data[BATCH_SIZE], data[2 * BATCH_SIZE + 5] = {"x": 1}, PLAIN, PLAIN
    data[BATCH_SIZE + 7] = {**PLAIN, "output": None}
    report = run_audit(data, template="alpaca")
    assert (report.rows, report.usable) == (2 * BATCH_SIZE + 10, 2 * BATCH_SIZE + 8)
    assert {f.rule.code: f.rows for f in report.findings} == {
        "unread-keys": (3,),
        "unusable": (3, BATCH_SIZE + 7),
        "duplicate-rows": (2 * BATCH_SIZE + 5,),
    }


def test_rows_of_other_sets_are_named(run_audit: RunAudit, write_rows: Callable[..., Path]) -> None:
    report = run_audit(rows(300), template="alpaca", against=[*rows(2, first=400), *rows(5, first=298), {"x": 1}])
    [finding] = report.findings
    assert (finding.rule.code, finding.rows) == ("shared-rows", (298, 299))
    assert finding.example is not None and finding.example.detail == "the same text as row 2 there"
    [other] = report.against
    assert (other.rows, other.unusable) == (8, 1)


def test_similar_rows_of_other_sets_are_named(run_audit: RunAudit) -> None:
    """Rows are compared by their messages. The most similar row is named, and none if the same text exists."""
    words = [f"w{number}" for number in range(40)]
    whole, near, nearer = (" ".join(["x"] * count + words[count:]) for count in (0, 3, 1))
    same = " ".join(words[::-1])

    def said(output: str, instruction: str = "Say it.") -> dict[str, Any]:
        return {"instruction": instruction, "input": "", "output": output}

    others = [said("Four."), said(near), said(nearer), said(same)]
    data = [said("Five.", "Another."), said(whole), said(same)]
    report = run_audit(data, template="alpaca", tokenizer=None, against=others, shared="near=0.7", ignored=PROMPTS)
    assert {f.rule.code: f.rows for f in report.findings} == {"nearly-shared-rows": (1,), "shared-rows": (2,)}
    example = next(f.example for f in report.findings if f.rule.code == "nearly-shared-rows")
    assert example is not None and example.detail.startswith("nearly the text of row 2 there (similarity 0.")
    exact = run_audit(data, template="alpaca", tokenizer=None, against=others, ignored=PROMPTS)
    assert counts(exact) == {"shared-rows": 1}
    assert exact.not_checked["nearly-shared-rows"] == "--shared"
    with pytest.raises(ConfigError, match="shared: found 'nearly'; expected exact, near"):
        run_audit(data, template="alpaca", tokenizer=None, against=others, shared="nearly")
    with pytest.raises(ConfigError, match="shared='near' compares with other data sets; found none"):
        run_audit(data, template="alpaca", tokenizer=None, shared="near")


def test_a_limit_holds_for_the_set_alone(run_audit: RunAudit) -> None:
    report = run_audit(rows(20), template="alpaca", against=rows(20), limit=5)
    assert report.rows == 5 and report.against[0].rows == 20
    assert counts(report) == {"shared-rows": 5}


def test_nothing_usable_is_a_finding(run_audit: RunAudit) -> None:
    report = run_audit([{"messages": 1}, {"messages": 2}])
    assert (report.rows, report.usable, report.lengths) == (2, 0, None)
    assert counts(report) == {"unusable": 2}


def test_nothing_usable_to_compare_with_is_an_error(run_audit: RunAudit) -> None:
    with pytest.raises(ConfigError, match=r"against\.jsonl.*expected rows to compare with; found none"):
        run_audit([PLAIN], template="alpaca", against=[{"instruction": 1, "output": 2}])


def test_no_records_have_no_findings(registry: Registry) -> None:
    report = audit(DataOptions(), [], registry=registry)
    assert (report.rows, report.findings, report.adapter) == (0, (), None)


def test_an_empty_file_is_an_error(run_audit: RunAudit) -> None:
    with pytest.raises(SourceError, match="no records"):
        run_audit([], template="alpaca")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dataset": "missing.json"}, SourceError),
        ({"template": "alpacca"}, UnknownNameError),
        ({"adapter": "alpacca"}, UnknownNameError),
        ({"tokenizer": "/missing"}, TokenizerError),
        ({"template": "tokenizer"}, TemplateError),
    ],
)
def test_wrong_options_are_errors(options: dict[str, str], error: type[Exception], registry: Registry) -> None:
    with pytest.raises(error):
        audit(DataOptions.parse(options), registry=registry)


def test_an_unknown_rule_is_an_error(run_audit: RunAudit) -> None:
    with pytest.raises(UnknownNameError, match="'duplicate-rows'"):
        run_audit([PLAIN], template="alpaca", ignored=["duplicate-row"])


@pytest.mark.parametrize("content", ["{", "[1]", b"\xff"])
def test_a_broken_generation_config_is_an_error(
    content: str | bytes, make_tokenizer: Callable[..., Path], registry: Registry
) -> None:
    folder = make_tokenizer()
    (folder / "generation_config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=r"generation_config\.json"):
        audit(DataOptions(tokenizer=str(folder)), [PLAIN], registry=registry)


def test_records_can_be_given(registry: Registry, make_tokenizer: Callable[..., Path]) -> None:
    options = DataOptions(dataset="my rows", template="alpaca", tokenizer=str(make_tokenizer()))
    given: list[Record | RecordError] = [PLAIN, RecordError("torn", reason="bad_json"), PLAIN]
    seen: list[int] = []
    report = audit(options, given, registry=registry, progress=seen.append)
    assert counts(report) == {"unusable": 1, "duplicate-rows": 1}
    assert seen == []


def _noisy_rows(count: int) -> Iterator[Record]:
    """Rows, most of which break some rule, each in a different way."""
    for number in range(count):
        yield {
            "instruction": f"{number} ### Response:" if number % 3 else "",
            "input": f"noinput{'!' * (number % 30)}",
            "output": f"{number} <|im_end|>\x07" if number % 5 else None,
            f"extra {number % 50}": number,
        }


@pytest.mark.parametrize(("tokenized", "few", "many"), [(False, 2_000, 20_000), (True, 1_000, 3_000)])
def test_memory_does_not_grow_with_the_rows(
    tokenized: bool, few: int, many: int, registry: Registry, make_tokenizer: Callable[..., Path]
) -> None:
    tokenizer = str(make_tokenizer()) if tokenized else None
    peaks: list[int] = []
    seen: list[int] = []

    def watched() -> Iterator[Record]:
        for number, row in enumerate(_noisy_rows(many)):
            if number == few:
                peaks.append(tracemalloc.get_traced_memory()[1])
            yield row

    tracemalloc.start()
    try:
        options = DataOptions(template="alpaca", adapter="alpaca", tokenizer=tokenizer)
        report = audit(options, watched(), registry=registry, progress=seen.append)
        peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert report.rows == many and len(report.findings) >= 5
    assert seen == list(range(10_000, many + 1, 10_000))
    # 16 bytes for each text and for each prompt, and as much again while arrays are merged.
    assert peaks[1] - peaks[0] < 64 * (many - few) + 200_000, peaks


def test_the_check_of_memory_would_see_kept_rows() -> None:
    tracemalloc.start()
    try:
        kept = list(_noisy_rows(2_000))
        assert tracemalloc.get_traced_memory()[1] > 5 * 64 * len(kept)
    finally:
        tracemalloc.stop()
