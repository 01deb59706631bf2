"""Wrong records, the section Rows of BAD_INPUTS: each error says where, what, and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.command_line import InProcess

from templatekit import (
    DataOptions,
    RecordError,
    RenderedText,
    TokenizedExample,
    Tokenizer,
    create_registry,
    prepare,
    render,
)
from templatekit.pipeline.pipeline import Pipeline
from templatekit.pipeline.preference import PreferencePipeline
from templatekit.testing.texts import JINJA, WHITESPACE
from templatekit.types import IGNORE_INDEX

SKIP = "; to skip: --on-error skip"
GOOD = {"instruction": "add", "input": "1, 2", "output": "3"}
PROMPT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PART_KEYS = ("role", "content", "from", "value", "tool_calls", "weight", "output", "name")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


class Result(NamedTuple):
    code: object
    out: list[dict[str, Any]]
    err: list[str]


@pytest.fixture
def run(in_process: InProcess) -> Callable[..., Result]:
    """`run(rows, "--adapter", "alpaca")` renders rows of a file through the command line."""

    def call(rows: Iterable[object], *options: str) -> Result:
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        Path("rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        said = in_process("render", "--dataset", "rows.jsonl", *options)
        return Result(said.code, [json.loads(line) for line in said.out.split("\n") if line], said.lines)

    return call


def text_of(record: Any, **options: Any) -> str:
    (item,) = render([record], **options)
    assert isinstance(item, RenderedText)
    return item.text


# Errors name the position, what was found, what is expected, and how to go on


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a", "output": 5}, "output: not text; found int 5; expected text"),
        ({"instruction": "a", "output": True}, "output: not text; found bool True; expected text"),
        ({"instruction": "a", "output": ["b"]}, "output: not text; found list ['b']; expected text"),
        ({"instruction": {"a": 1}, "output": "b"}, "instruction: not text; found dict {'a': 1}; expected text"),
        ({"instruction": "a", "input": 1.5, "output": "b"}, "input: not text; found float 1.5; expected text"),
        ({"instruction": "a", "output": None}, "output: missing; found null; expected text"),
        ({"instruction": None, "output": "a"}, "instruction: missing; found null; expected text"),
        ({"instruction": "a"}, "output: missing; found keys instruction; expected text"),
        ({}, "instruction: missing; found keys (none); expected text"),
        (
            {"instruction": "a", "outptu": "b"},
            "output: missing; found keys instruction, outptu; expected text; is 'outptu' meant? then "
            "--columns output=outptu",
        ),
        (
            {"Instruction": "a", "output": "b"},
            "instruction: missing; found keys Instruction, output; expected text; is 'Instruction' meant? then "
            "--columns instruction=Instruction",
        ),
        (
            {"instruction": "a", "output": "b" * 1000, "input": 2**200},
            "input: not text; found int 1606938044258990275541",
        ),
        (
            {"instruction": "a", "instances": []},
            "instances: found []; expected a list of objects with input and output",
        ),
        ({"instruction": "a", "instances": [{"output": 1}]}, "output: not text; found int 1; expected text"),
        (
            {"instruction": "a", "instances": [{"output": "1"}, {"output": "2"}]},
            "instances: found 2; expected one; write each as a record of its own",
        ),
        (
            {"instruction": "a", "output": "b", "response": "c"},
            "response: found 'c' beside the answer that is read; expected one answer; to leave it out: --columns "
            "unread=response",
        ),
        (
            {"instruction": "a", "output": "b", "instances": [{"output": "c"}]},
            "output: found 'b' beside the answer that is read; expected one answer; to leave it out: --columns "
            "unread=output",
        ),
        (
            {"instruction": "a", "context": "of Dolly", "response": "b"},
            "context: not Alpaca's; found 'of Dolly'; expected such text under 'input' (--columns input=context), or "
            "Dolly's records (--adapter dolly)",
        ),
    ],
)
def test_a_bad_alpaca_row(row: dict[str, Any], message: str, run: Callable[..., Result]) -> None:
    stopped = run([GOOD, row, GOOD], "--adapter", "alpaca")
    (line,) = stopped.err
    assert stopped.code == 2
    assert line.startswith(f"Error: rows.jsonl:1:{message}")
    assert line.endswith(SKIP)

    skipped = run([GOOD, row, GOOD], "--adapter", "alpaca", "--on-error", "skip")
    assert skipped.code == 0
    assert [item["row"] for item in skipped.out] == [0, 2]
    counts, dropped = skipped.err
    assert counts == "rows in: 3, rows out: 2, dropped: 1"
    assert dropped.startswith("dropped 1 × ")
    assert f" (rows 1); the first: rows.jsonl:1:{message}" in dropped
    assert SKIP not in dropped


@pytest.mark.parametrize(
    ("adapter", "row", "message"),
    [
        ("dolly", {"instruction": "a", "response": 5}, "response: not text; found int 5; expected text"),
        (
            "dolly",
            {"instruction": "a", "response": "b", "category": 5},
            "category: not text; found int 5; expected text",
        ),
        (
            "dolly",
            {"instruction": "a", "input": "x", "response": "b"},
            "input: not Dolly's; found 'x'; expected such text under 'context' (--columns context=input), or Alpaca's "
            "records (--adapter alpaca)",
        ),
        ("prompt-completion", {"prompt": "a", "completion": None}, "completion: missing; found null; expected text"),
        ("kto", {"prompt": "a", "completion": "b", "label": "true"}, "label: found 'true'; expected true or false"),
        ("preference", {"prompt": "a", "chosen": "b"}, "rejected: missing; found keys chosen, prompt; expected text"),
        (
            "preference",
            {"prompt": "a", "chosen": [{"role": "assistant", "content": 5}], "rejected": "b"},
            "chosen[0].content: not text; found int 5; expected text",
        ),
        (
            "transcript",
            {"transcript": "Hello."},
            "transcript: no transcript; found 'Hello.'; expected a text that begi",
        ),
        ("oasst", {"message_tree_id": "t"}, "prompt: found None; expected a message with role, text and replies"),
        ("text", {"text": None}, "text: missing; found null; expected text"),
        ("messages", {"messages": []}, "messages: found []; expected a list of at least one message"),
        ("messages", {"messages": "hi"}, "messages: found 'hi'; expected a list of at least one message"),
        ("messages", {"messages": ["hi"]}, "messages[0]: found 'hi'; expected an object with role and content"),
        ("messages", {"messages": [{"content": "a"}]}, "messages[0].role: missing; found keys content; expected text"),
        (
            "messages",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
            "messages[1].content: missing; found null; expected text",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0]: found a part of type 'image'; expected text: ",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text: not text; found int 1; expected text",
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "a", "weight": -1}]},
            "messages[0].weight: found -1; expected 0, or a number from 1e-9 to 1e9, or true or false",
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": {"a": 1}}]},
            "messages[0].tool_calls: found {'a': 1}; expected a list of objects",
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "a", "reasoning": "x", "thinking": "y"}]},
            "messages[0]: found different texts under reasoning, thinking; expected one",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": "a"}], "tools": "x"},
            "tools: found 'x'; expected a list of objects, or JSON of one; not JSON: ",
        ),
        ("sharegpt", {"conversations": {}}, "conversations: found {}; expected a list of at least one turn"),
        (
            "sharegpt",
            {"conversations": [{"from": "robot", "value": "a"}]},
            "conversations[0].from: unknown speaker; found 'robot'; expected one of human, user, gpt, ",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human"}]},
            "conversations[0].value: missing; found keys from; expected text",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{"}]},
            "conversations[1].value: found '{'; expected JSON with name and arguments; not JSON: ",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1, "a": 2}}'}]},
            """conversations[0].value: found '{"name": "f", "arguments": {"a": 1, "a": 2}}'; expected JSON with name """
            "and arguments; not JSON: a key twice in one object",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}], "tools": '[{"name": "f", "x": NaN}]'},
            """tools: found '[{"name": "f", "x": NaN}]'; expected a list of objects, or JSON of one; not JSON: NaN, """
            "Infinity or a number too large",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}], "tools": "[1]"},
            "tools: found '[1]'; expected a list of objects, or JSON of one",
        ),
    ],
)
def test_a_bad_row_of_another_shape(
    adapter: str, row: dict[str, Any], message: str, run: Callable[..., Result]
) -> None:
    result = run([row], "--adapter", adapter, "--template", "chatml")
    assert result.code == 2
    (line,) = result.err
    assert line.startswith(f"Error: rows.jsonl:0:{message}")
    assert line.endswith(SKIP)


WRONG_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "cut": ('{"city": "Os', "not JSON"),
    "plain text": ("Oslo", "not JSON"),
    "blanks": ("  ", "not JSON"),
    "NaN in text": ('{"city": NaN}', "NaN, Infinity or a number too large"),
    "NaN": ({"city": [math.nan]}, "NaN or Infinity"),
    "a key twice": ('{"city": 1, "city": 2}', "a key twice in one object"),
    "a number in text": ("5", "a number instead of an object"),
    "a number": (5, "a number instead of an object"),
    "true": (True, "true or false instead of an object"),
    "a list in text": ('["Oslo"]', "a list instead of an object"),
    "a list": (["Oslo"], "a list instead of an object"),
    "null in text": ("null", "null instead of an object"),
    "text of an object, twice": ('"{}"', "text instead of an object"),
    "deep": ('{"a":' * 300 + "1" + "}" * 300, "nested too deeply"),
}
RIGHT_ARGUMENTS: tuple[Any, ...] = ({}, {"city": "Oslo", "days": [1.5, None]}, '{"city": "Oslo"}', " {} ", "", None)


def call_with(arguments: Any, **message: Any) -> dict[str, Any]:
    """A conversation whose first answer calls a tool."""
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call], **message}
    result, answer = {"role": "tool", "content": "Rain."}, {"role": "assistant", "content": "It rains."}
    return {"messages": [{"role": "user", "content": "Weather?"}, calling, result, answer]}


@pytest.mark.parametrize("weight", [0, 1])
@pytest.mark.parametrize("template", ["qwen3", "chatml"])
@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_a_call_with_wrong_arguments_is_refused(name: str, template: str, weight: int) -> None:
    """By its own reason, trained or not, whatever the template would print of it, before any example is made."""
    arguments, why = WRONG_ARGUMENTS[name]
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    pipeline = Pipeline(DataOptions(template=template, on_error="skip"), create_registry())
    assert len([*pipeline.run([*rows, call_with(arguments, weight=weight)])]) == 1
    assert pipeline.counts.dropped_rows == {"bad_arguments": [1]}
    said = pipeline.counts.first_dropped["bad_arguments"]
    assert f"messages[1].tool_calls[0].function.arguments: {why}; found " in said
    assert "; expected a JSON object, or text of one" in said


@pytest.mark.parametrize("arguments", RIGHT_ARGUMENTS)
def test_a_call_with_right_arguments_is_not_refused(arguments: Any) -> None:
    pipeline = Pipeline(DataOptions(template="qwen3"), create_registry())
    assert [sample.rendered.row for sample in pipeline.run([call_with(arguments)])] == [0, 0]


def test_every_command_refuses_wrong_arguments(in_process: InProcess, tokenizer_of: Tokenizers) -> None:
    """`finetune` too: it reads by the same pipelines."""
    Path("rows.jsonl").write_text(json.dumps(call_with('{"city": "Os')) + "\n", encoding="utf-8")
    for command in ("render", "preview"):
        said = in_process(command, "--dataset", "rows.jsonl", "--template", "qwen3")
        assert said.code == 2
        assert "rows.jsonl:0:messages[1].tool_calls[0].function.arguments: not JSON; found" in said.err
    with pytest.raises(RecordError, match=r"function\.arguments: not JSON"):
        prepare([call_with('{"city": "Os')], template="qwen3", tokenizer=tokenizer_of("bytes"))


@pytest.mark.parametrize("answer", ["chosen", "rejected"])
def test_a_pair_with_wrong_arguments_is_refused(answer: str) -> None:
    """Whichever answer has them, and the same pair without them is not."""
    for arguments, dropped in (("5", {"bad_arguments": 1}), ("{}", {})):
        row: dict[str, Any] = {"prompt": [{"role": "user", "content": "Hi"}]}
        row |= {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
        row[answer] = call_with(arguments)["messages"][1:2]
        pipeline = PreferencePipeline(DataOptions(template="qwen3", on_error="skip"), create_registry())
        found = [*pipeline.process([row])]
        assert (pipeline.counts.dropped, len(found)) == (dropped, not dropped)


def test_a_line_that_is_no_json_can_be_skipped_too(run: Callable[..., Result]) -> None:
    stopped = run([GOOD, '{"instruction": "a", "outp', GOOD])
    assert stopped.code == 2
    assert stopped.err[0].startswith("Error: rows.jsonl:1: ")
    assert stopped.err[0].endswith(SKIP)
    skipped = run([GOOD, '{"instruction": "a", "outp', GOOD], "--on-error", "skip")
    assert (skipped.code, len(skipped.out)) == (0, 2)


def test_rows_keep_their_numbers_in_every_batch(run: Callable[..., Result]) -> None:
    bad = (3, 255, 256, 257, 511, 600)
    rows: list[object] = [{**GOOD, "output": 5} if row in bad else GOOD for row in range(700)]
    result = run(rows, "--on-error", "skip")
    assert [item["row"] for item in result.out] == [row for row in range(700) if row not in bad]
    assert "dropped 6 × bad_output (rows 3, 255, 256, 257, 511, …); the first: rows.jsonl:3:output" in result.err[2]


def test_where_nothing_is_left_the_reasons_are_given(run: Callable[..., Result]) -> None:
    result = run([{"instruction": "a", "output": 5}, {"instruction": "a", "output": 5}, {**GOOD, "output": None}],
                 "--on-error", "skip")  # fmt: skip
    assert (result.code, result.out) == (2, [])
    assert result.err == [
        "Error: 0 of 3 samples left; dropped: 2 bad_output; 1 missing_output; the first: rows.jsonl:0:output: not "
        "text; found int 5; expected text"
    ]


def test_rows_that_are_no_objects(run: Callable[..., Result]) -> None:
    for row in "[1, 2]", '"text"', "5", "null":
        result = run([GOOD, row])
        assert result.code == 2
        assert result.err[0].startswith("Error: rows.jsonl:1: ")
        assert "not an object; found " in result.err[0]
        assert result.err[0].endswith(SKIP)
    rows: list[Any] = [GOOD, 5, None, GOOD]
    with pytest.raises(RecordError, match=r"^1: found 5; expected a mapping with named fields; to skip"):
        list(render(rows))
    assert len(list(render(rows, on_error="skip"))) == 2


def test_half_a_character_is_refused_with_its_field(tokenizer_of: Any) -> None:
    rows = [GOOD, {**GOOD, "output": "x\ud83dy"}]
    for options in {}, {"tokenizer": tokenizer_of("bytes")}:
        with pytest.raises(RecordError, match=r"^1:messages\[1\]\.content: .*surrogate.*ud83d'; expected .*; to skip"):
            list(render(rows, **options))


# Several shapes in one file


def test_alpaca_rows_and_then_dolly_rows(run: Callable[..., Result]) -> None:
    dolly = {"instruction": "a", "context": "long text", "response": "b", "category": "closed_qa"}
    first_alpaca = run([GOOD, dolly])
    assert first_alpaca.code == 2
    assert first_alpaca.err[0].startswith("Error: rows.jsonl:1:context: not Alpaca's; found 'long text'")
    first_dolly = run([dolly, GOOD])
    assert first_dolly.code == 2
    assert first_dolly.err[0].startswith("Error: rows.jsonl:1:input: not Dolly's; found '1, 2'")
    skipped = run([GOOD, dolly, dolly, GOOD], "--on-error", "skip")
    assert [item["row"] for item in skipped.out] == [0, 3]
    assert "dropped 2 × not_alpaca (rows 1, 2)" in skipped.err[2]


def test_a_shape_that_nobody_reads(run: Callable[..., Result]) -> None:
    result = run([{"question": "a", "answer": "b"}])
    assert result.code == 2
    (line,) = result.err
    for part in ("rows.jsonl:0: ", "answer, question", "alpaca: instruction, output", "--columns", "--adapter", SKIP):
        assert part in line
    mapped = run([{"question": "a", "answer": "b"}], "--columns", "instruction=question,output=answer")
    assert mapped.code == 0
    assert mapped.out[0]["text"].endswith("### Instruction:\na\n\n### Response:b")


def test_keys_that_nobody_reads_are_said_once(run: Callable[..., Result]) -> None:
    rows = [GOOD, {**GOOD, "id": 1}, {**GOOD, "id": 2, "source": "web"}, {**GOOD, "id": 3}]
    result = run(rows)
    assert result.code == 0
    assert result.err == [
        "adapter: alpaca (inferred from the records' keys)",
        "rows in: 4, rows out: 4, dropped: 0",
        "note: keys that the adapter does not read: id (first in row 1), source (first in row 2)",
    ]


# Records that are fine


@pytest.mark.parametrize("record", [{}, {"input": None}, {"input": ""}])
def test_no_input_is_no_input(record: dict[str, Any]) -> None:
    assert text_of({"instruction": "a", "output": "b", **record}) == (
        f"{PROMPT}\n\n### Instruction:\na\n\n### Response:b"
    )
    with_context = {"instruction": "a", "response": "b", "context": record.get("input", "")}
    assert text_of(with_context, adapter="dolly", template="alpaca") == text_of({"instruction": "a", "output": "b"})


def test_an_empty_answer_is_rendered_and_counted(run: Callable[..., Result], tokenizer_of: Any) -> None:
    rows = [{**GOOD, "output": ""}, {**GOOD, "output": " \n"}, GOOD]
    result = run(rows, "--tokenizer", str(tokenizer_of.folder("bytes")))
    assert result.code == 0
    assert len(result.out) == 3
    assert result.err[-1] == "note: rows with an empty answer: 2"
    assert [token for token in result.out[0]["labels"] if token != IGNORE_INDEX] == result.out[0]["input_ids"][-1:]


def test_placeholders_mean_none_where_the_options_say_so(run: Callable[..., Result]) -> None:
    rows = [{**GOOD, "input": text} for text in ("<noinput>", " NoInput\n", "No input", "<noinput> here", "")]
    options = ("--empty-context", "<noinput>", "--empty-context", "noinput")
    texts = [item["text"] for item in run(rows, *options).out]
    assert ["### Input:" in text for text in texts] == [False, False, True, True, False]
    assert texts[0] == texts[1] == texts[4]
    texts = [item["text"] for item in run(rows).out]
    assert ["### Input:" in text for text in texts] == [True, True, True, True, False]


# Text stays text


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_an_answer_that_is_the_end_marker_s_text(name: str, tokenizer_of: Any) -> None:
    tokenizer: Tokenizer = tokenizer_of(name)
    eos = tokenizer.special_tokens.eos
    (item,) = render([{**GOOD, "output": eos}], tokenizer=tokenizer)
    assert isinstance(item, TokenizedExample)
    ids = item.input_ids
    assert [position for position, token in enumerate(ids) if token == tokenizer.id_of(eos)] == [len(ids) - 1]
    assert item.rendered.text.endswith(eos + eos)
    assert tokenizer.decode(ids).endswith(eos + eos)


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
@pytest.mark.parametrize("text", ["### Response:", "\n\n### Response:\n", *JINJA, *WHITESPACE, "    indented\n\tcode"])
def test_fields_are_kept_to_the_letter(field: str, text: str) -> None:
    for value in f"a{text}b", f"{text}b", f"a{text}":
        record = {**GOOD, field: value}
        (item,) = render([record], template="alpaca-lora")
        assert isinstance(item, RenderedText)
        found = {str(span.origin): item.text[span.start : span.end] for span in item.spans}
        kept = {
            "messages[0].content": record["instruction"],
            "messages[0].context": record["input"],
            "messages[1].content": record["output"],
        }
        assert {key: value for key, value in found.items() if key != "template"} == kept
        (target,) = item.target_spans
        assert item.text[target.start : target.marker_start] == record["output"]


def test_the_json_file_says_the_same(run: Callable[..., Result]) -> None:
    record = {"instruction": "{{ 7*7 }}{% raw %}", "input": "### Response:\n", "output": "    if x:\n\treturn\u2028"}
    (item,) = run([record]).out
    for value in record.values():
        assert value in item["text"]
    assert "49" not in item["text"]


# Any record gives an example, or an error that names the row


@given(data=st.data(), adapter=st.sampled_from(sorted(create_registry().adapters)))
def test_any_json_is_rendered_or_refused_by_name(data: st.DataObject, adapter: str) -> None:
    keys = create_registry().adapters[adapter].keys
    part = st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("role", "content", "from", "value", "tool_calls", "weight", "output", "name"), JSON_VALUES
        ),
    )
    record = data.draw(
        st.fixed_dictionaries({}, optional={key: JSON_VALUES | st.lists(part, max_size=3) for key in (*keys, "extra")})
    )
    before = json.dumps(record)
    try:
        (item,) = render([record], adapter=adapter, template="chatml")
    except RecordError as error:
        assert error.row == 0
        assert str(error).startswith("0:")
        assert SKIP in str(error)
        assert error.reason != "adapter_failed", error
    else:
        assert isinstance(item, RenderedText)
    assert json.dumps(record) == before
