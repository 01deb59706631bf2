"""Records that give several samples, or none, on their way to a file, a data set, a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import templatekit
from templatekit import ConfigError, DataOptions, RecordError, Registry, Template, TemplateFile
from templatekit.export.rows import to_row
from templatekit.formats import load_template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.supervision import loss_spans
from templatekit.types import RenderedText, Sample, TokenizedExample

FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}({{ m.reasoning_content }}){% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Prints a thought only in the last turn."""


def talk(turns: int, *, thoughts: bool = True, **last: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}?"})
        messages.append({"role": "assistant", "content": f"Answer {turn}."})
        if thoughts:
            messages[-1]["reasoning_content"] = "Hm."
    messages[-1] |= last
    return {"messages": messages}


def template(source: str = FORGETS) -> Template:
    return Template(TemplateFile(name="forgets", source=source), strict=False)


def pipeline(builtin: Registry, tokenizer: Any = None, source: str = FORGETS, **options: Any) -> Pipeline:
    parsed = DataOptions.parse({"dataset": "none", **options})
    return Pipeline(parsed, builtin, template=template(source), tokenizer=tokenizer)


ROWS = [talk(3), talk(2, thoughts=False), talk(2)]
"""These give 3, 1 and 2 samples."""


def test_rows_and_samples_are_counted_apart(builtin: Registry, tokenizer_of: Any) -> None:
    for tokenizer in (None, tokenizer_of("bytes")):
        run = pipeline(builtin, tokenizer)
        items = list(run.run(ROWS))
        places = [(item.rendered.row, item.rendered.sample, item.rendered.samples) for item in items]
        assert places == [(0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 1), (2, 0, 2), (2, 1, 2)]
        assert (run.counts.rows_in, run.counts.rows_out, run.counts.samples) == (3, 3, 6)
        assert run.counts.lines(tokens=False)[0] == "rows in: 3, rows out: 3 as 6 samples, dropped: 0"
        assert [len(item.example.messages) for item in items] == [2, 4, 6, 4, 2, 4]
    alone = pipeline(builtin)
    assert len(list(alone.run(ROWS[1:2]))) == 1
    assert alone.counts.lines(tokens=False)[0] == "rows in: 1, rows out: 1, dropped: 0"


@pytest.mark.parametrize(("train_on", "samples"), [("response", 6), ("content", 6), ("last", 3), ("all", 3)])
def test_what_is_trained_decides_how_many(train_on: str, samples: int, builtin: Registry) -> None:
    items = list(pipeline(builtin, train_on=train_on).run(ROWS))
    assert len(items) == samples
    if train_on == "last":
        assert [len(item.rendered.target_spans) for item in items] == [1, 1, 1]
    if train_on == "all":
        assert [len(item.example.messages) for item in items] == [6, 4, 4]


def test_lines_name_the_sample_where_there_are_several(builtin: Registry) -> None:
    rows = [to_row(item.result) for item in pipeline(builtin).run(ROWS)]
    assert [(row["row"], row.get("sample")) for row in rows] == [(0, 0), (0, 1), (0, 2), (1, None), (2, 0), (2, 1)]


def test_the_calls_give_samples(builtin: Registry, tokenizer_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "forgets.jinja"
    path.write_text(FORGETS, encoding="utf-8")
    one: dict[str, Any] = {"template": load_template(str(path)), "tokenizer": tokenizer_of("bytes")}
    rendered = list(templatekit.render(ROWS, **one))
    assert len(rendered) == 6
    assert [list(row.labels) for row in rendered if isinstance(row, TokenizedExample)] == list(
        templatekit.prepare(ROWS, **one)["labels"]
    )


def test_a_sample_that_is_too_long_leaves_the_others(builtin: Registry, tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("bytes")
    lengths = [len(item.tokenized) for item in pipeline(builtin, tokenizer).run(ROWS[:1]) if item.tokenized]
    run = pipeline(builtin, tokenizer, max_length=lengths[1])
    items = list(run.run([*ROWS[:1], *ROWS[:1]]))
    assert [(item.rendered.row, item.rendered.sample) for item in items] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (run.counts.rows_out, run.counts.samples, run.counts.dropped["too_long"]) == (2, 4, 2)
    assert run.counts.dropped_rows == {"too_long": [0, 1]}


def test_a_prompts_text_is_trained_once(builtin: Registry) -> None:
    """User texts with a weight are in every sample, and trained in the first."""
    for record, samples in ((talk(3), 3), (talk(3, thoughts=False), 1)):
        items = list(pipeline(builtin, train_on="response=1,user=0.2").run([record]))
        assert len(items) == samples
        trained = [
            item.rendered.text[span.start : span.end]
            for item in items
            for span in loss_spans(item.rendered, "response=1,user=0.2")
            if span.weight == 0.2
        ]
        assert trained == [f"Question {turn}?" for turn in range(3)]


@given(turns=st.lists(st.integers(1, 4), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_a_record_is_on_one_side_of_a_split(turns: list[int], seed: int, builtin: Registry, tmp_path: Path) -> None:
    from templatekit.config.finetune_options import FinetuneOptions
    from templatekit.training.data import read_splits

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(talk(count)) + "\n" for count in turns), encoding="utf-8")
    options = FinetuneOptions.parse(
        {"dataset": str(path), "split": "train=rest,validation=0.4", "split_order": "shuffled", "seed": seed}
    )
    splits = read_splits(options, Pipeline(options, builtin, template=template())).samples
    check_split(splits, turns)


def check_split(splits: Mapping[str, Sequence[Sample]], turns: list[int]) -> None:
    sides = {name: [item.rendered.row for item in items] for name, items in splits.items()}
    assert not set(sides["train"]) & set(sides["validation"])
    assert sorted(sides["train"] + sides["validation"]) == [row for row, n in enumerate(turns) for _ in range(n)]
    assert len(set(sides["validation"])) == int(len(turns) * 0.4)


def test_the_check_notices_a_record_on_both_sides(builtin: Registry) -> None:
    items = list(pipeline(builtin).run([talk(2), talk(2)]))
    with pytest.raises(AssertionError):
        check_split({"train": items[:1], "validation": items[1:]}, [2, 2])


UNTRAINED: dict[str, tuple[dict[str, Any], str]] = {
    "no assistant": ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message"),
    "no weight": (talk(1, weight=0), "all weights are 0"),
}


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("case", UNTRAINED)
def test_what_nothing_is_trained_of_is_dropped_and_counted(
    case: str, on_error: str, builtin: Registry, tokenizer_of: Any
) -> None:
    record, why = UNTRAINED[case]
    for tokenizer in (None, tokenizer_of("bytes")):
        run = pipeline(builtin, tokenizer, on_error=on_error)
        assert [item.rendered.row for item in run.run([talk(1), record, talk(1)])] == [0, 2]
        assert run.counts.dropped == {"nothing_trained": 1}
        assert run.counts.dropped_rows == {"nothing_trained": [1]}
        assert run.counts.first_dropped == {"nothing_trained": f"1: {why}"}
        with pytest.raises(ConfigError, match=f"0 of 1 samples left; dropped: 1 nothing_trained; the first: 0: {why}"):
            list(pipeline(builtin, tokenizer, on_error=on_error).run([record]))


def test_an_empty_answer_is_trained_to_end(builtin: Registry, tokenizer_of: Any) -> None:
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
    for tokenizer in (None, tokenizer_of("bytes")):
        assert len(list(pipeline(builtin, tokenizer).run([record]))) == 1


def test_turns_without_a_prompt_are_counted(builtin: Registry) -> None:
    source = "{{ messages[0].role.upper() }}\n" + FORGETS
    run = pipeline(builtin, source=source)
    record = {"messages": [{"role": "assistant", "content": "Welcome."}, *talk(1)["messages"]]}
    (item,) = run.run([record])
    assert [target.message for target in item.rendered.target_spans] == [2]
    assert run.counts.untrained_turns == 1
    assert "note: assistant turns without a prompt before them, untrained: 1" in run.counts.lines(tokens=False)


SUMS = FORGETS.replace("{{ m.content }}", "{{ (m.name + 1) if m.name else m.content }}")


def test_a_template_that_fails_on_some_rows_fails_them_alone(builtin: Registry) -> None:
    """In Jinja as in Python, `+` of a text and a number is a TypeError."""
    broken = talk(1, thoughts=False)
    broken["messages"][0]["name"] = "Ann"
    with pytest.raises(RecordError, match=r"^1: template 'forgets', line 2: TypeError: .*; to skip: --on-error skip$"):
        list(pipeline(builtin, source=SUMS).run([talk(1), broken]))
    run = pipeline(builtin, source=SUMS, on_error="skip")
    assert [item.rendered.row for item in run.run([talk(1), broken, talk(1)])] == [0, 2]
    assert run.counts.dropped_rows == {"template_failed": [1]}
    with pytest.raises(ConfigError, match="0 of 2 samples left; dropped: 2 template_failed; the first: 0: template"):
        list(pipeline(builtin, source=SUMS, on_error="skip").run([broken, broken]))


def test_the_end_marker_may_be_given(builtin: Registry, tokenizer_of: Any) -> None:
    source = FORGETS.replace("{{ m.content }}<|im_end|>", "{{ m.content }} STOP<|im_end|>")
    tokenizer = tokenizer_of("bytes")
    for end_marker, expected in ((None, " STOP<|im_end|>"), (" STOP", " STOP"), ("none", " STOP<|im_end|>")):
        (item,) = pipeline(builtin, tokenizer, source, end_marker=end_marker).run([talk(1)])
        assert marker(item.rendered) == expected
    bare = FORGETS.replace("<|im_end|>", "")
    (item,) = pipeline(builtin, tokenizer, bare).run([talk(1)])
    assert marker(item.rendered) == tokenizer.special_tokens.eos != ""  # at which a server stops
    (item,) = pipeline(builtin, tokenizer, bare, end_marker="none").run([talk(1)])
    assert marker(item.rendered) == ""


def marker(rendered: RenderedText) -> str:
    (target,) = rendered.target_spans
    return rendered.text[target.marker_start : target.end]


# --- fields without a place ----------------------------------------------------------------------------------------

PLAIN = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') if false }}{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED, SAID = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
WITHOUT_PLACE: Mapping[str, tuple[dict[str, Any], str]] = {
    "reasoning": ({"messages": [ASKED, SAID | {"reasoning_content": "Hm."}]}, "assistant reasoning"),
    "a name": ({"messages": [ASKED | {"name": "Ann"}, SAID]}, "user name"),
    "a system message": ({"messages": [{"role": "system", "content": "S."}, ASKED, SAID]}, "system message"),
    "tools": ({"messages": [ASKED, SAID], "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
}


@pytest.mark.parametrize("name", WITHOUT_PLACE)
def test_a_field_without_a_place_is_an_error_or_left_out(name: str, builtin: Registry, tokenizer_of: Any) -> None:
    row, what = WITHOUT_PLACE[name]
    tokenizer = tokenizer_of("bytes")
    with pytest.raises(RecordError, match="to render without it: --on-missing-field drop") as caught:
        list(pipeline(builtin, tokenizer, PLAIN).run([row]))
    assert caught.value.reason == "no_place_for_field"
    plain = list(pipeline(builtin, tokenizer, PLAIN).run([{"messages": [ASKED, SAID]}]))
    run = pipeline(builtin, tokenizer, PLAIN, on_missing_field="drop")
    assert [ids_of(item) for item in run.run([row, row])] == [ids_of(item) for item in plain] * 2
    assert run.counts.left_out == {f"{what} without a place in the template": 2}
    assert f"left out of the records: 2 × {what} without a place" in "\n".join(run.counts.lines(tokens=True))


def test_an_answer_without_a_thought_is_counted(builtin: Registry, tokenizer_of: Any) -> None:
    thought = "{% if m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}"
    thinks = PLAIN.replace("{{ m.content }}", thought + "{{ m.content }}")
    tokenizer, row = tokenizer_of("bytes"), {"messages": [ASKED, SAID]}
    thinking = {"messages": [ASKED, SAID | {"reasoning_content": "Hm."}]}
    kept, omitted, plain = (
        [ids_of(item) for item in pipeline(builtin, tokenizer, source, empty_thought=policy).run([row])]
        for source, policy in ((thinks, "keep"), (thinks, "omit"), (PLAIN, "omit"))
    )
    assert omitted == plain != kept
    run = pipeline(builtin, tokenizer, thinks, empty_thought="error", on_error="skip")
    assert [item.rendered.row for item in run.run([row, thinking, row])] == [1]
    assert run.counts.dropped == {"empty_thought": 2}


def ids_of(item: Sample) -> tuple[int, ...]:
    assert item.tokenized is not None
    return item.tokenized.input_ids


def test_an_answer_is_never_left_out(builtin: Registry) -> None:
    silent = PLAIN.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}")
    with pytest.raises(RecordError, match=r"messages\[1\]\.content: .*has no place") as caught:
        list(pipeline(builtin, None, silent, on_missing_field="drop").run([{"messages": [ASKED, SAID]}]))
    assert "--on-missing-field" not in str(caught.value)
