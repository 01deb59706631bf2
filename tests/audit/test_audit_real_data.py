"""Real data with the models' own templates: exactly the known problems are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from templatekit.audit import Report, audit
from templatekit.config.data_options import DataOptions
from templatekit.hooks.registry import Registry


def counts(report: Report) -> dict[str, int]:
    return {finding.rule.code: finding.count for finding in report.findings}


@pytest.fixture(params=["llama3", "qwen3"])
def own(request: pytest.FixtureRequest, shared: Path) -> Path:
    """A tokenizer with a chat template of its own; skips if it is absent."""
    path = shared / "tokenizers" / str(request.param)
    if not path.is_dir():
        pytest.skip(f"the real tokenizer is absent: no folder {path}")
    return path


def report_on(name: str, own: Path, shared: Path, registry: Registry, **options: object) -> Report:
    path = shared / "data" / name
    if not path.is_file():
        pytest.skip(f"the real data is absent: no file {path}")
    values = {"dataset": str(path), "template": "tokenizer", "tokenizer": str(own), **options}
    return audit(DataOptions.parse(values), registry=registry)


def test_original_alpaca(own: Path, shared: Path, registry: Registry) -> None:
    report = report_on("alpaca/alpaca_original_head_1805.json", own, shared, registry)
    found = counts(report)
    assert (report.rows, report.usable) == (1_805, 1_805)
    assert found["empty-answer"] == 4
    assert found["placeholder"] == 26
    assert set(found) <= {"empty-answer", "placeholder", "text-trimmed", "stop-token", "trailing-text"}


def test_placeholders_of_empty_inputs_can_be_named(shared: Path, registry: Registry) -> None:
    inputs = ["Noinput", "<no input>", "No input."]
    own = shared / "tokenizers" / "qwen3"
    report = report_on("alpaca/alpaca_original_head_1805.json", own, shared, registry, empty_context=inputs)
    assert counts(report)["placeholder"] == 2  # answers


def test_llama3_as_it_was_released(shared: Path, registry: Registry) -> None:
    """Its turns do not end with its EOS, and its template always asks for the next answer."""
    own = shared / "tokenizers" / "llama3"
    found = counts(report_on("other/identity_91.json", own, shared, registry))
    assert {"stop-token", "trailing-text"} <= set(found)


def raw(name: str, shared: Path) -> Any:
    return json.loads((shared / "data" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["chat/sharegpt_fastchat_dummy_500.json", "chat/sharegpt_glaive_toolcall_en_300.json"])
def test_qwen3_renders_last_turns_differently(name: str, shared: Path, registry: Registry) -> None:
    """Only the last answer gets a think block, so that each answer needs a sample of its own."""
    own = shared / "tokenizers" / "qwen3"
    report = report_on(name, own, shared, registry)
    speakers = [[turn["from"] for turn in record["conversations"]] for record in raw(name, shared)]
    answers = [turns.count("gpt") + turns.count("function_call") for turns in speakers]
    assert counts(report)["turn-dependent"] == sum(count > 1 for count in answers) > 100


def test_qwen3_on_the_prompts_of_preference_data(shared: Path, registry: Registry) -> None:
    """Answers within a prompt are not trained, so it does not matter how they are rendered."""
    report = report_on("preference/dpo_en_demo_300.json", shared / "tokenizers" / "qwen3", shared, registry)
    assert (report.adapter, report.usable) == ("preference", 300)
    assert "turn-dependent" not in counts(report)


def test_qwen3_on_last_turns_alone(shared: Path, registry: Registry) -> None:
    own = shared / "tokenizers" / "qwen3"
    report = report_on("chat/sharegpt_fastchat_dummy_500.json", own, shared, registry, train_on="last")
    assert "turn-dependent" not in counts(report)


def test_llama3_has_no_place_for_tools(shared: Path, registry: Registry) -> None:
    own = shared / "tokenizers" / "llama3"
    report = report_on("chat/sharegpt_glaive_toolcall_en_300.json", own, shared, registry)
    assert report.findings[0].rule.code == "unusable"
    assert [part.what for part in report.findings[0].parts] == ["no_place_for_field"]


def test_duplicates_are_those_of_the_file(shared: Path, registry: Registry) -> None:
    name = "other/prompt_completion_wwdc25_valid.jsonl"
    report = report_on(name, shared / "tokenizers" / "qwen3", shared, registry)
    texts: set[tuple[str, str]] = set()
    prompts: set[str] = set()
    expected = {"duplicate-rows": 0, "same-prompt": 0}
    for line in (shared / "data" / name).read_text(encoding="utf-8").splitlines():
        pair = (json.loads(line)["prompt"], json.loads(line)["completion"])
        expected["duplicate-rows"] += pair in texts
        expected["same-prompt"] += pair not in texts and pair[0] in prompts
        texts.add(pair)
        prompts.add(pair[0])
    assert counts(report) == expected
    assert expected["duplicate-rows"] > 10


def test_odd_characters_in_real_text(shared: Path, registry: Registry) -> None:
    report = report_on("preference/dpo_en_demo_300.json", shared / "tokenizers" / "qwen3", shared, registry)
    [finding] = [finding for finding in report.findings if finding.rule.code == "encoding"]
    assert finding.rows == (15, 67, 286)
