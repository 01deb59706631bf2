"""Preference data: every format gives the same pair; odd pairs are counted, wrong records are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from templatekit_transcript import read_transcript, write_transcript
from testkit.look import Eye

from templatekit import Adapter, Example, Message, PreferenceExample, RecordError, Registry, RenderedText, render
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing.texts import UNICODE, WHITESPACE

Eyes = Callable[[str], Eye]
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
WORDS = ("user", "assistant")


def messages(*texts: str, weight: float = 1.0) -> tuple[Message, ...]:
    """Alternating messages, the user's first; `weight` is for the assistant's."""
    return tuple(
        Message(role=WORDS[index % 2], content=text, weight=weight if index % 2 else 1.0)
        for index, text in enumerate(texts)
    )


def answer(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)


def openai(*texts: str) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages(*texts)]


def sharegpt(*texts: str) -> list[dict[str, str]]:
    return [{"from": NAMES[one.role], "value": one.content} for one in messages(*texts)]


def said(*texts: str) -> str:
    written: str = write_transcript(messages(*texts))
    return written


@pytest.fixture(scope="module")
def preference(builtin: Registry) -> Adapter:
    return builtin.adapters["preference"]


def pair_of(adapter: Adapter, record: Mapping[str, Any]) -> PreferenceExample:
    example = adapter.to_example(record)
    assert isinstance(example, PreferenceExample)
    return example


# Formats


def layouts(prompt: list[str], chosen: str, rejected: str) -> dict[str, Any]:
    """One pair in every format that can hold it."""
    one, other = (*prompt, chosen), (*prompt, rejected)
    ways = {
        "prompt as messages": {"prompt": openai(*prompt), "chosen": openai(*one)[-1:], "rejected": openai(*other)[-1:]},
        "answers as texts": {"prompt": openai(*prompt), "chosen": chosen, "rejected": rejected},
        "answers as objects": {"prompt": openai(*prompt), "chosen": openai(*one)[-1], "rejected": openai(*other)[-1]},
        "whole conversations": {"chosen": openai(*one), "rejected": openai(*other)},
        "with their prompt": {"prompt": openai(*prompt), "chosen": openai(*one), "rejected": openai(*other)},
        "with its last message": {"prompt": prompt[-1], "chosen": openai(*one), "rejected": openai(*other)},
        "sharegpt": {
            "conversations": sharegpt(*prompt), "chosen": sharegpt(*one)[-1], "rejected": sharegpt(*other)[-1]
        },
        "sharegpt, whole": {"chosen": sharegpt(*one), "rejected": sharegpt(*other)},
        "transcripts": {"chosen": said(*one), "rejected": said(*other)},
        "open transcript": {"prompt": said(*prompt, ""), "chosen": f" {chosen}", "rejected": f" {rejected}"},
        "open transcript, no blank": {"prompt": said(*prompt, ""), "chosen": chosen, "rejected": rejected},
        "open transcript, whole": {"prompt": said(*prompt, ""), "chosen": said(*one), "rejected": said(*other)},
    }  # fmt: skip
    if len(prompt) == 1:
        ways["texts"] = {"prompt": prompt[0], "chosen": chosen, "rejected": rejected}
        ways["instruction"] = {"instruction": prompt[0], "input": "", "chosen": chosen, "rejected": rejected}
    return ways


TEXT = st.text("ab:", min_size=1, max_size=5) | st.sampled_from(["Human: hi", "see:\nAssistant: x", "a\n\nb"])


@given(prompt=st.sampled_from([1, 3]).flatmap(lambda n: st.lists(TEXT, min_size=n, max_size=n)), answers=st.lists(TEXT,
       min_size=2, max_size=2, unique=True))  # fmt: skip
def test_every_format_gives_the_same_pair(prompt: list[str], answers: list[str], preference: Adapter) -> None:
    chosen, rejected = answers
    expected = PreferenceExample(
        messages=messages(*prompt, weight=0.0), chosen=answer(chosen), rejected=answer(rejected)
    )
    for name, record in layouts(prompt, chosen, rejected).items():
        assert pair_of(preference, record) == expected, name
    swapped = layouts(prompt, rejected, chosen)["transcripts"]
    assert pair_of(preference, swapped) != expected


def test_a_system_column_goes_first(preference: Adapter) -> None:
    system = Message(role="system", content="s")
    for record in layouts(["q", "a", "r"], "x", "y").values():
        pair = pair_of(preference, {**record, "system": "s"})
        assert pair.messages == (system, *messages("q", "a", "r", weight=0.0))
    own = {"role": "system", "content": "s"}
    record = {"prompt": [own, *openai("q")], "chosen": "x", "rejected": "y"}
    assert pair_of(preference, {**record, "system": "s"}).messages == (system, *messages("q"))
    with pytest.raises(
        RecordError, match=r"system: found 't' beside the conversation's own, 's'; expected one"
    ) as caught:
        preference.to_example({**record, "system": "t"})
    assert caught.value.reason == "two_system_messages"


def test_tools_and_input_are_kept(preference: Adapter) -> None:
    tools = [{"name": "t"}]
    spellings: list[Any] = [tools, json.dumps(tools)]
    for spelling in spellings:
        record = {"prompt": "q", "chosen": "x", "rejected": "y", "tools": spelling}
        assert pair_of(preference, record).tools == ({"type": "function", "function": {"name": "t"}},)
    for key in ("instruction", "prompt"):
        pair = pair_of(preference, {key: "q", "input": "i", "chosen": "x", "rejected": "y"})
        assert pair.messages == (Message(role="user", content="q", context="i"),)


# Odd pairs


def test_equal_answers_are_a_pair(preference: Adapter) -> None:
    for record in layouts(["q"], "x", "x").values():
        pair = pair_of(preference, record)
        assert (pair.messages, pair.chosen, pair.rejected) == (messages("q"), answer("x"), answer("x"))


@pytest.mark.parametrize("whole", [openai, sharegpt, said])
def test_pairs_that_differ_before_the_last_message(whole: Callable[..., Any], preference: Adapter) -> None:
    """The prompt is the messages that both start with, and the answers are all messages after them."""
    pair = pair_of(preference, {"chosen": whole("q", "a", "r", "x"), "rejected": whole("q", "b", "t", "y")})
    assert pair.messages == messages("q")
    assert pair.chosen == messages("q", "a", "r", "x")[1:]
    assert pair.rejected == messages("q", "b", "t", "y")[1:]
    longer = pair_of(preference, {"chosen": whole("q", "a"), "rejected": whole("q", "a", "r", "y")})
    assert (longer.messages, longer.chosen) == (messages("q"), answer("a"))
    assert longer.rejected == messages("q", "a", "r", "y")[1:]


def test_the_shared_prefix_consists_of_whole_messages(preference: Adapter) -> None:
    """It does not consist of characters: answers that start with the same characters keep them."""
    pair = pair_of(preference, {"chosen": said("q", "The sea"), "rejected": said("q", "The sky")})
    assert pair.chosen == answer("The sea")


def test_odd_pairs_are_used_and_counted(eye_of: Eyes) -> None:
    rows: list[dict[str, Any]] = [
        *layouts(["q"], "x", "y").values(),
        {"prompt": "q", "chosen": "x", "rejected": "x"},
        {"chosen": openai("q", "a", "r", "x"), "rejected": openai("q", "b", "r", "x")},
        {"chosen": said("q", ""), "rejected": said("q", "y")},
        {"prompt": "q", "chosen": "x", "rejected": ""},
    ]
    pipeline = eye_of("bytes").pipeline("alpaca", on_error="skip")
    items = list(pipeline.run(rows))
    counts = pipeline.counts
    assert counts.rows_in == len(rows) == 18
    assert counts.dropped == {"not_one_turn": 1}  # the one with a longer answer: a template of one turn
    assert counts.rows_out == len(items) == 17
    assert counts.left_out == {"rejected answer": 17}
    assert (counts.equal_pairs, counts.early_pairs, counts.empty_responses) == (1, 0, 1)
    early = eye_of("qwen3").pipeline("chatml")
    (item,) = early.run(rows[15:16])
    assert early.counts.early_pairs == 1
    assert "note: pairs that differ before the last message: 1" in early.counts.lines(tokens=True)
    assert item.rendered.text.count("<|im_start|>assistant") == 2


def test_the_chosen_answer_is_trained_and_no_other(eye_of: Eyes) -> None:
    for record in layouts(["one", "two", "three"], "good", "bad").values():
        seen = eye_of("qwen3").one(record, "chatml")
        assert seen.trained == ["good<|im_end|>"]
        assert "bad" not in seen.text
    every = {"messages": openai("one", "two", "three", "good"), "rejected": openai("one", "two", "three", "bad")}
    assert eye_of("qwen3").one(every, "chatml").trained == ["two<|im_end|>", "good<|im_end|>"]


def test_trl_only_the_assistants_part_of_a_completion_is_trained(eye_of: Eyes) -> None:
    record = {"prompt": openai("q", "a", "r"), "completion": openai("", "x", "the user's", "y")[1:]}
    assert eye_of("qwen3").one(record, "chatml").trained == ["x<|im_end|>", "y<|im_end|>"]


# Wrong records

NO_LABELS: tuple[object, ...] = ("true", "false", "1", 2, -1, 1.0, [True], {})
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("preference", {"prompt": "q", "chosen": "x"}, "missing_rejected", "rejected: missing; found keys chosen, prompt"),
    ("preference", {"prompt": "q", "chosen": None, "rejected": "y"}, "missing_chosen", "chosen: missing; found null"),
    (
        "preference",
        {"prompt": "q", "chosen": 5, "rejected": "y"},
        "bad_messages",
        "chosen: found 5; expected a list of",
    ),
    ("preference", {"prompt": "q", "chosen": [], "rejected": "y"}, "bad_messages", "chosen: found []; expected a list"),
    (
        "preference",
        {"prompt": 5, "chosen": "x", "rejected": "y"},
        "bad_messages",
        "prompt: found 5; expected a list of",
    ),
    (
        "preference",
        {"prompt": "q", "chosen": [{"role": "assistant", "content": 5}], "rejected": "y"},
        "bad_content",
        "chosen[0].content: not text; found int 5",
    ),
    (
        "preference",
        {"prompt": "q", "chosen": {"from": "robot", "value": "x"}, "rejected": "y"},
        "bad_role",
        "chosen[0].from: unknown speaker; found 'robot'",
    ),
    (
        "preference",
        {"question": "q", "chosen": "x", "rejected": "y"},
        "no_prompt",
        "prompt: no prompt; found keys chosen, question, rejected, and under 'chosen' 'x'; expected a prompt "
        "(--columns prompt=COLUMN), or transcripts that begin with 'Human: '",
    ),
    (
        "preference",
        {"chosen": said("q", "x", "r"), "rejected": said("q", "y")},
        "no_response",
        "chosen: ends with a message of 'user'; expected the assistant's last",
    ),
    (
        "preference",
        {"chosen": said("q", "x"), "rejected": said("r", "y")},
        "prompts_differ",
        "chosen[0]: chosen and rejected differ at a message of 'user'; expected one prompt, and answers of the "
        "assistant's; to train on the chosen conversations as they are: --columns transcript=chosen",
    ),
    (
        "preference",
        {"chosen": openai("q", "a", "r", "x"), "rejected": openai("q", "a", "t", "y")},
        "prompts_differ",
        "chosen[2]: chosen and rejected differ at a message of 'user'; expected one prompt, and answers of the "
        "assistant's; to train on the chosen conversations as they are: --columns messages=chosen",
    ),
    (
        "preference",
        {"chosen": sharegpt("q", "x"), "rejected": sharegpt("r", "y")},
        "prompts_differ",
        "chosen[0]: chosen and rejected differ at a message of 'user'; expected one prompt, and answers of the "
        "assistant's; to train on the chosen conversations as they are: --columns conversations=chosen",
    ),
    (
        "preference",
        {"chosen": openai("", "x")[1:], "rejected": openai("", "y")[1:]},
        "prompts_differ",
        "chosen[0]: chosen and rejected differ at a message of 'assistant'; expected one prompt",
    ),
    (
        "preference",
        {"prompt": "other", "chosen": openai("q", "x"), "rejected": openai("q", "y")},
        "prompt_not_shared",
        "prompt: found 'other'; expected a message that both chosen and rejected start with",
    ),
    (
        "preference",
        {"prompt": "q", "instruction": "r", "chosen": "x", "rejected": "y"},
        "two_prompts",
        "instruction: found a prompt under 'prompt' as well; expected one; to leave this one out: --columns "
        "unread=instruction",
    ),
    (
        "preference",
        {"prompt": openai("q"), "input": "i", "chosen": "x", "rejected": "y"},
        "input_without_instruction",
        "input: found 'i'; expected a text that it goes with",
    ),
    ("preference", {"prompt": "q", "chosen": "x", "rejected": "y", "system": 1}, "bad_system", "system: not text"),
    ("kto", {"prompt": "q", "completion": "x"}, "missing_label", "label: missing; found keys completion, prompt"),
    ("kto", {"prompt": "q", "completion": "x", "label": None}, "missing_label", "label: missing; found null"),
    *(
        (
            "kto",
            {"prompt": "q", "completion": "x", "label": label},
            "bad_label",
            f"label: found {label!r}; expected true",
        )
        for label in NO_LABELS
    ),
    ("kto", {"prompt": None, "completion": "x", "label": True}, "missing_prompt", "prompt: missing; found null"),
    (
        "prompt-completion",
        {"prompt": "q", "completion": openai("x")},
        "no_response",
        "completion: ends with a message of 'user'; expected the assistant's last",
    ),
    *(
        ("transcript", {"transcript": text}, "not_a_transcript", f"transcript: no transcript; found {text!r:.60}; ex")
        for text in ("", "hi", "Human", "Human:hi", "hi\n\nHuman: a", "Bob: hi\n\nHuman: x", "human: hi")
    ),
    ("text", {"text": 5}, "bad_text", "text: not text; found int 5"),
]


@pytest.mark.parametrize(("adapter", "record", "reason", "words"), BAD)
def test_a_wrong_record_is_refused_by_name(
    adapter: str, record: dict[str, Any], reason: str, words: str, builtin: Registry
) -> None:
    with pytest.raises(RecordError) as caught:
        builtin.adapters[adapter].to_example(record)
    assert str(caught.value).startswith(words)
    assert caught.value.reason == reason


@pytest.mark.parametrize("whole", [openai, sharegpt, said])
def test_the_remedy_that_an_error_names_works(
    whole: Callable[..., Any], preference: Adapter, builtin: Registry
) -> None:
    record = {"chosen": whole("q", "x"), "rejected": whole("r", "y")}
    with pytest.raises(RecordError) as caught:
        preference.to_example(record)
    column = str(caught.value).rpartition(" ")[2]
    (rendered,) = render([record], template="alpaca", columns=dict([column.split("=")]))
    assert isinstance(rendered, RenderedText)
    assert rendered.text.endswith("### Instruction:\nq\n\n### Response:x")


# Labels


@pytest.mark.parametrize("label", [True, False, 1, 0])
@pytest.mark.parametrize("prompt", ["q", openai("q", "a", "r")])
def test_a_bad_answer_is_not_trained(label: object, prompt: object, eye_of: Eyes, builtin: Registry) -> None:
    record = {"prompt": prompt, "completion": "x", "label": label}
    example = builtin.adapters["kto"].to_example(record)
    assert example.metadata == {"label": bool(label)}
    assert type(example.metadata["label"]) is bool
    trained = [message.content for message in example.messages if message.role == "assistant" and message.weight]
    assert trained == (["x"] if label else [])


# Transcripts

PIECES = st.lists(
    st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "\nHuman: ", "Human:", " ", "a", "hi.", *WHITESPACE, *UNICODE])
    | st.text(max_size=3),
    max_size=12,
).map("".join)


@given(start=st.sampled_from(["\n\nHuman: ", "\n\nAssistant: ", "\n\nHuman:\n"]), rest=PIECES)
def test_joining_the_messages_of_a_transcript_gives_the_transcript(start: str, rest: str) -> None:
    assert write_transcript(read_transcript(start + rest, "chosen")) == start + rest


@given(st.lists(st.tuples(st.sampled_from(WORDS), TEXT), min_size=1, max_size=5))
def test_reading_the_transcript_of_messages_gives_the_messages(turns: list[tuple[str, str]]) -> None:
    given = tuple(Message(role=role, content=text) for role, text in turns)
    assert read_transcript(write_transcript(given), "chosen") == given


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\nHuman: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("Human: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        (" \n\nHuman: a\n\nAssistant:", [("user", "a"), ("assistant", "")]),
        ("\n\nHuman: a\n\nAssistant: ", [("user", "a"), ("assistant", " ")]),
        ("\n\nHuman: a\n\nAssistant:\n- b", [("user", "a"), ("assistant", "\n- b")]),
        ("\n\nAssistant: hello\n\nHuman: a", [("assistant", "hello"), ("user", "a")]),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", [("user", "a"), ("user", "b"), ("assistant", "c")]),
        ('\n\nHuman: who says "Human: hi"?\n\nAssistant: I.', [("user", 'who says "Human: hi"?'), ("assistant", "I.")]),
        ("\n\nHuman: log:\nAssistant: x\n\nAssistant: y", [("user", "log:\nAssistant: x"), ("assistant", "y")]),
        ("\n\nHuman: \n\nHuman:me\n\nAssistant: y", [("user", " \n\nHuman:me"), ("assistant", "y")]),
    ],
)
def test_what_a_marker_is(text: str, expected: list[tuple[str, str]]) -> None:
    assert [(message.role, message.content) for message in read_transcript(text, "chosen")] == expected


# The type


def test_a_pair_knows_its_conversations() -> None:
    pair = PreferenceExample(
        messages=messages("q"), chosen=answer("x"), rejected=answer("y"), tools=({"name": "t"},), metadata={"id": 1}
    )
    expected = Example(messages=messages("q", "x"), tools=({"name": "t"},), metadata={"id": 1})
    assert pair.conversation("chosen") == expected
    assert type(pair.conversation("chosen")) is Example
    assert pair.conversation("rejected").messages == messages("q", "y")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": ()}, "an example needs at least one message"),
        ({"chosen": ()}, "an answer ends with an assistant's message; got nothing at the end of chosen"),
        ({"rejected": messages("q")}, "an answer ends with an assistant's message; got user at the end of rejected"),
    ],
)
def test_invalid_pairs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PreferenceExample(**{"messages": messages("q"), "chosen": answer("x"), "rejected": answer("y"), **changes})


def test_only_pairs_are_written(preference: Adapter) -> None:
    with pytest.raises(TypeError, match="found Example; expected a PreferenceExample"):
        preference.to_record(Example(messages=messages("q", "x")))


def test_messages_of_both_answers_are_checked(eye_of: Eyes) -> None:
    class Careless(Adapter):
        name = "careless"

        def to_example(self, record: Any) -> Example:
            answers: dict[str, Any] = {
                key: answer(record["text"] if key == record["key"] else "x") for key in ("chosen", "rejected")
            }
            return PreferenceExample(messages=messages("q"), **answers)

    eye = eye_of("bytes")
    for key, text in product(("chosen", "rejected"), (5, "fine")):
        pipeline = Pipeline(eye.pipeline("alpaca").options, eye.registry, adapter=Careless())
        if text == "fine":
            assert len(list(pipeline.run([{"key": key, "text": text}]))) == 1
        else:
            with pytest.raises(
                RecordError, match=r"adapter 'careless' returned messages\[1\]\.content=5; expected text"
            ):
                list(pipeline.run([{"key": key, "text": text}]))
