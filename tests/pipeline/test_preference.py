"""Preference pairs through the pipeline: both answers or neither; each dropped pair is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers

from templatekit import ConfigError, DataOptions, RecordError, create_registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.pipeline.preference import PreferencePipeline, preference_pairs
from templatekit.testing.texts import UNICODE
from templatekit.tokens import long_texts
from templatekit.types import TokenizedExample, TokenizedPair

TEXT = st.one_of(st.sampled_from(UNICODE), st.text(min_size=1, max_size=20)).filter(str.strip)
Read = Callable[..., tuple[list[TokenizedPair], PreferencePipeline]]


@pytest.fixture(scope="module")
def read(tokenizer_of: Tokenizers) -> Read:
    """The pairs of records, and the pipeline with its counts."""
    registry = create_registry()

    def read(*records: dict[str, Any], **options: Any) -> tuple[list[TokenizedPair], PreferencePipeline]:
        given = {"template": "chatml", "on_error": "skip", **options}
        pipeline = PreferencePipeline(DataOptions.parse(given), registry, tokenizer=tokenizer_of("bytes"))
        return preference_pairs(pipeline.run(records)), pipeline

    return read


def _prompt(pair: TokenizedPair, answer: str) -> tuple[int, ...]:
    example: TokenizedExample = getattr(pair, answer)
    return example.input_ids[: next(place for place, weight in enumerate(example.loss_weights) if weight)]


def _record(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_each_answer_is_what_supervised_training_would_see(
    read: Read, tokenizer_of: Tokenizers, prompt: str, chosen: str, rejected: str
) -> None:
    """Both answers follow the same prompt."""
    if chosen == rejected:
        return
    (pair,), pipeline = read(_record(prompt, chosen, rejected))
    assert _prompt(pair, "chosen") == _prompt(pair, "rejected")
    assert pipeline.counts.differing_prompts == 0
    for answer, text in (("chosen", chosen), ("rejected", rejected)):
        alone = Pipeline(DataOptions.parse({"template": "chatml"}), pipeline.registry, tokenizer=pipeline.tokenizer)
        (item,) = alone.run([_record(prompt, text, "")])
        assert item.tokenized is not None
        found = getattr(pair, answer)
        assert (found.input_ids, found.loss_weights) == (item.tokenized.input_ids, item.tokenized.loss_weights)


def test_equal_answers_and_rows_without_a_pair_are_dropped_and_counted(read: Read) -> None:
    pairs, pipeline = read(
        _record("a?", "b", "b"),
        _record("a?", "b", "c"),
        {"prompt": "a?", "chosen": "b", "rejected": None},
        _record("d?", "e", "f"),
    )
    assert [pair.row for pair in pairs] == [1, 3]
    counts = pipeline.counts
    assert counts.dropped["equal_answers"] == 1
    assert counts.dropped_rows["equal_answers"] == [0]
    assert counts.dropped.total() == 2
    assert (counts.rows_in, counts.rows_out, counts.samples) == (4, 2, 4)
    assert "rejected answer" not in counts.left_out
    assert counts.tokens == sum(len(one) for pair in pairs for one in (pair.chosen, pair.rejected))


def test_single_answers_are_refused_with_advice(read: Read) -> None:
    with pytest.raises(RecordError, match="expected a chosen and a rejected one; train on single answers with"):
        read({"instruction": "a", "input": "", "output": "b"}, template="alpaca", on_error="stop")


def test_what_is_not_about_answers_is_refused(read: Read) -> None:
    for train_on in ("all", "response=1,user=0.1", "response=0.5"):
        with pytest.raises(ConfigError, match="preferences are between answers"):
            read(_record("a?", "b", "c"), train_on=train_on)
    assert len(read(_record("a?", "b", "c"), train_on="content")[0]) == 1


def test_prompts_carry_no_weight_even_where_the_data_gives_them_some(read: Read) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "weight": 1.0},
        {"role": "user", "content": "three"},
    ]
    record = {"prompt": turns, "chosen": "four", "rejected": "five"}
    (pair,), _ = read(record)
    assert _prompt(pair, "chosen") == _prompt(pair, "rejected")
    assert len(_prompt(pair, "chosen")) > 30  # three turns


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_a_pair_is_too_long_as_a_whole(read: Read, longer: str) -> None:
    texts = {"chosen": "b", "rejected": "c", longer: "d" * 200}
    pairs, pipeline = read({"prompt": "a?", **texts}, _record("a?", "b", "c"), max_length=150)
    assert [pair.row for pair in pairs] == [1]
    assert pipeline.counts.dropped == {"too_long": 1}
    assert pipeline.counts.rows_out == 1
    with pytest.raises(RecordError, match="too long"):
        read({"prompt": "a?", **texts}, max_length=150, truncation="error", on_error="stop")


@pytest.mark.parametrize("policy", ["drop", "turns", "context", "response"])
@given(data=st.data())
def test_a_pair_that_is_far_too_long_has_the_outcome_of_whole_texts(
    policy: str, read: Read, data: st.DataObject
) -> None:
    text = st.lists(st.sampled_from(("the", "quick", "日本語", "<|im_end|>", "it's 12")), min_size=1, max_size=30)
    record = _record(*(data.draw(text.map(" ".join), label=key) for key in ("prompt", "chosen", "rejected")))
    options = {"max_length": data.draw(st.integers(60, 150), label="limit"), "truncation": policy}
    records = (record, _record("a?", "b", "c"))  # the second is short, so that something is left
    whole, before = read(*records, **options)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LONG_TEXT", "_LONG_TEXT_PER_TOKEN"):
            patch.setattr(long_texts, name, 0)
        patch.setattr(long_texts, "_START_PER_TOKEN", 1)
        partial, after = read(*records, **options)
    assert partial == whole
    assert after.counts.dropped_rows == before.counts.dropped_rows
    assert after.counts.truncated_rows == before.counts.truncated_rows


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_old_turns_go_from_both_prompts_alike(read: Read, longer: str) -> None:
    turns = [
        {"role": "user", "content": "old " * 20},
        {"role": "assistant", "content": "older"},
        {"role": "user", "content": "now?"},
    ]
    record = {"prompt": turns, "chosen": "b", "rejected": "c", longer: "d" * 60}
    whole, _ = read(record)
    limit = max(len(whole[0].chosen), len(whole[0].rejected)) - 5
    (pair,), pipeline = read(record, max_length=limit, truncation="turns")
    assert _prompt(pair, "chosen") == _prompt(pair, "rejected")
    assert "old" not in pair.chosen.rendered.text + pair.rejected.rendered.text
    assert len(_prompt(pair, "chosen")) < len(_prompt(whole[0], "chosen"))
    assert pipeline.counts.truncated == {"turns": 2}


def test_an_answer_that_is_cut_leaves_the_other_whole(read: Read) -> None:
    (pair,), pipeline = read(_record("a?", "b", "d" * 200), max_length=100, truncation="response")
    assert len(pair.rejected) <= 100
    assert pair.rejected.truncated == "response"
    assert pair.chosen.truncated is None
    assert pipeline.counts.truncated == {"response": 1}
    assert _prompt(pair, "chosen") == _prompt(pair, "rejected")


def test_answers_that_are_cut_to_the_same_are_dropped(read: Read) -> None:
    _, pipeline = read(
        _record("a?", "d" * 200 + "e", "d" * 200 + "f"), _record("a?", "b", "c"), max_length=100, truncation="response"
    )
    assert pipeline.counts.dropped == {"equal_answers": 1}


def test_answers_of_several_texts_are_refused(read: Read) -> None:
    """Qwen 3 renders an earlier turn's thoughts only as long as the turn is the last."""
    begun = [{"role": "user", "content": "a?"}]
    more = [
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "d", "reasoning_content": "so"},
    ]
    other = [{"role": "assistant", "content": "e"}]
    record = {"prompt": begun, "chosen": more, "rejected": other}
    _, pipeline = read(record, {"prompt": begun, "chosen": "b", "rejected": "c"}, template="qwen3")
    assert pipeline.counts.dropped == {"answer_in_pieces": 1}
    pairs, _ = read(record, template="qwen3", train_on="last")
    assert len(pairs) == 1


@given(st.lists(st.sampled_from(["equal", "long", "good"]), min_size=1, max_size=8))
def test_counts_add_up(read: Read, kinds: list[str]) -> None:
    made = {"equal": _record("a", "b", "b"), "long": _record("a", "b", "c" * 300), "good": _record("a", "b", "c")}
    records = [made[kind] for kind in kinds]
    if "good" not in kinds:
        return
    pairs, pipeline = read(*records, max_length=200)
    counts = pipeline.counts
    assert len(pairs) == counts.rows_out == kinds.count("good")
    assert counts.dropped["equal_answers"] == kinds.count("equal")
    assert counts.dropped["too_long"] == kinds.count("long")
    assert counts.rows_in == len(kinds)
    assert json.dumps(counts.as_dict())
