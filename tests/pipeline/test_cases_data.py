"""The data cases of shared/CASES.md that reach the reader, the adapters and the templates."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testkit.look import Eye

from templatekit import DataOptions, RecordError, Registry
from templatekit.pipeline.pipeline import Pipeline

Eyes = Callable[[str], Eye]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def pipeline(registry: Registry, **options: Any) -> Pipeline:
    return Pipeline(DataOptions.parse({"on_error": "skip", **options}), registry)


def test_ms_swift_reasoning_and_names_are_kept_or_refused(eye_of: Eyes) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning_content": "because"},
        ]
    }
    assert "<think>\nbecause\n</think>\n\nb" in eye_of("qwen3").one(record, "tokenizer").text
    with pytest.raises(RecordError, match=r"messages\[1\]\.reasoning: template 'chatml' has no place"):
        eye_of("qwen3").one(record, "chatml")
    named = {"messages": [{"role": "user", "content": "a", "name": "bob"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(RecordError, match=r"messages\[0\]\.name: template 'chatml' has no place"):
        eye_of("qwen3").one(named, "chatml")


def test_ms_swift_over_long_rows_are_dropped_and_counted_not_replaced(eye_of: Eyes) -> None:
    rows = [{"instruction": "a " * n, "input": "", "output": "b"} for n in (1, 400, 2)]
    pipeline = eye_of("gpt2").pipeline("alpaca", max_length=120)
    assert [item.rendered.row for item in pipeline.run(rows)] == [0, 2]
    assert pipeline.counts.dropped == {"too_long": 1}


def test_ms_swift_a_local_dolly_file_keeps_its_context(shared: Path, builtin: Registry) -> None:
    path = shared / "data/dolly/dolly_litgpt_fixture.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    run = pipeline(builtin, dataset=str(path), template="dolly")
    texts = [item.rendered.text for item in run.run(run.open())]
    assert len(texts) == len(rows) == 12
    assert sum(bool(row["context"]) for row in rows) >= 1
    for row, text in zip(rows, texts, strict=True):
        assert row["context"] in text
        assert ("\n\nInput:\n" in text) == bool(row["context"])


def test_llamafactory_text_beside_tool_calls_is_kept(eye_of: Eyes) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }
    (trained,) = eye_of("qwen3").one(record, "tokenizer").trained
    assert "Let me see.\n<tool_call>" in trained


def test_llamafactory_string_arguments_are_encoded_once(eye_of: Eyes) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}
    record = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    }
    (trained,) = eye_of("qwen3").one(record, "tokenizer").trained
    assert '"arguments": {"x": "é"}}' in trained


def test_llamafactory_nothing_is_added_to_a_system_prompt(eye_of: Eyes) -> None:
    seen = eye_of("qwen3").chat([("system", "Be brief."), ("user", "a"), ("assistant", "b")], "tokenizer")
    assert seen.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert "detailed thinking" not in seen.text


def test_litgpt_a_second_read_gives_the_same(eye_of: Eyes) -> None:
    record: dict[str, Any] = {"instruction": "a", "context": "c", "response": "b", "category": "qa"}
    before = copy.deepcopy(record)
    first, second = eye_of("gpt2").all([record, record], "dolly")
    assert first.example.input_ids == second.example.input_ids
    assert record == before


def test_original_alpacas_empty_outputs_and_placeholders(shared: Path, builtin: Registry) -> None:
    path = str(shared / "data/alpaca/alpaca_original_head_1805.json")
    rows: list[dict[str, str]] = json.loads(Path(path).read_text(encoding="utf-8"))
    run = pipeline(builtin, dataset=path, template="alpaca")
    texts = [item.rendered.text for item in run.run(run.open())]
    assert len(texts) == len(rows) == 1_805
    assert run.counts.empty_responses == 4
    placeholders = {"Noinput", "<no input>"}
    without = pipeline(builtin, dataset=path, template="alpaca", empty_context=tuple(placeholders))
    cleaned = [item.rendered.text for item in without.run(without.open())]
    fewer = [row for row, a, b in zip(rows, texts, cleaned, strict=True) if "### Input:" in a and "### Input:" not in b]
    assert len(fewer) == sum(row["input"] in placeholders for row in rows) == 16


def test_hh_rlhf_pairs_that_part_early_and_empty_replies(eye_of: Eyes) -> None:
    """Rows made after HH-RLHF: 5 differ before the last turn, 4 have an empty chosen reply."""
    start = "\n\nHuman: A?\n\nAssistant: "
    early = {
        "chosen": f"{start}B.\n\nHuman: C?\n\nAssistant: D.",
        "rejected": f"{start}No.\n\nHuman: C?\n\nAssistant: D.",
    }
    empty = {"chosen": start.rstrip(), "rejected": f"{start}B."}
    plain = {"chosen": f"{start}B.", "rejected": f"{start}No."}
    pipeline = eye_of("qwen3").pipeline("chatml")
    texts = [item.rendered.text for item in pipeline.run([early] * 5 + [empty] * 4 + [plain])]
    counts = pipeline.counts
    assert (counts.rows_out, counts.early_pairs, counts.empty_responses) == (10, 5, 4)
    assert counts.left_out == {"rejected answer": 10}
    assert not any("No." in text for text in texts)
    turn = "<|im_start|>assistant\n"
    assert [text.count(turn) for text in texts] == [2] * 5 + [1] * 5
    assert texts[-1] == f"<|im_start|>user\nA?<|im_end|>\n{turn}B.<|im_end|>\n"


def test_chapter7_preference_data(shared: Path, builtin: Registry) -> None:
    """1,100 pairs, of which 6 have the same answer twice."""
    path = shared / "data/ch07/instruction-data-with-preference.json"
    rows: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    run = pipeline(builtin, dataset=str(path), template="alpaca")
    texts = [item.rendered.text for item in run.run(run.open())]
    assert all(text.endswith(f"### Response:{row['chosen']}") for row, text in zip(rows, texts, strict=True))
    assert (run.counts.left_out["rejected answer"], run.counts.equal_pairs) == (1_100, 6)
    assert run.counts.unread_keys == {"output": 0}


def test_gpteacher_calls_the_answer_response(eye_of: Eyes) -> None:
    seen = eye_of("gpt2").one({"instruction": "a", "input": "", "response": "b"}, "alpaca")
    assert seen.trained == ["b<|endoftext|>"]


def test_self_instruct_nests_its_instances(shared: Path, builtin: Registry) -> None:
    path = shared / "data/alpaca/self_instruct_seed_tasks_175.jsonl"
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    run = pipeline(builtin, dataset=str(path), template="alpaca")
    item = next(run.run(run.open()))
    assert item.rendered.text.endswith(f"### Response:{first['instances'][0]['output']}")


@pytest.mark.parametrize("shape", ["array", "lines", "one object"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_either_content_in_either_ending(shape: str, name: str, tmp_path: Path, builtin: Registry) -> None:
    row = {"instruction": "a", "input": "", "output": "b"}
    rows = [row] if shape == "one object" else [row, row]
    content = {
        "array": json.dumps(rows),
        "lines": "".join(f"{json.dumps(one)}\n" for one in rows),
        "one object": json.dumps(row, indent=1),
    }[shape]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    run = pipeline(builtin, dataset=str(path), template="alpaca")
    assert len(list(run.run(run.open()))) == len(rows)


def test_null_input_never_prints_none(eye_of: Eyes) -> None:
    for row in ({"instruction": "a", "input": None, "output": "b"}, {"instruction": "a", "output": "b"}):
        for template in ("alpaca", "alpaca-lora", "chapter7", "seed", "dolly", "phi3-chapter7", "chatml", "llama3"):
            assert "None" not in eye_of("gpt2").one(row, template).text


def seconds(eye: Eye, template: str, turns: int) -> float:
    """Processor time, which other processes do not add to."""
    conversation = [("user", "How are you doing today?"), ("assistant", "Quite well, and you?")] * turns
    pipeline = eye.pipeline(template)
    record = {"messages": [{"role": role, "content": content} for role, content in conversation]}
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        list(pipeline.run([record]))
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(
    ("tokenizer", "template"), [("qwen3", "chatml"), ("llama3", "tokenizer"), ("smollm2", "tokenizer")]
)
def test_axolotl_the_cost_is_linear_in_turns(tokenizer: str, template: str, eye_of: Eyes) -> None:
    """80 turn pairs cost at most 20 times what 5 cost (the best of five runs of each)."""
    eye = eye_of(tokenizer)
    seconds(eye, template, 5)
    assert seconds(eye, template, 80) <= 20 * seconds(eye, template, 5)
