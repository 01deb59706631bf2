"""Each bundled adapter: the records that it reads, and the keys from which it is inferred."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from templatekit import DataOptions, Example, Message, RecordError, Registry
from templatekit.formats.lookup import choose_adapter
from templatekit.pipeline.pipeline import Pipeline

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def user(content: str, context: str = "", **more: Any) -> Message:
    return Message(role="user", content=content, context=context, **more)


def assistant(content: str, **more: Any) -> Message:
    return Message(role="assistant", content=content, **more)


@pytest.mark.parametrize(
    ("adapter", "record", "messages"),
    [
        ("alpaca", {"instruction": "a", "input": "b", "output": "c"}, (user("a", "b"), assistant("c"))),
        ("alpaca", {"instruction": "a", "input": None, "output": "c"}, (user("a"), assistant("c"))),
        ("alpaca", {"instruction": "a", "output": "c"}, (user("a"), assistant("c"))),
        ("alpaca", {"instruction": "a", "input": "b", "response": "c"}, (user("a", "b"), assistant("c"))),
        ("alpaca", {"instruction": "a", "output": "c", "response": ""}, (user("a"), assistant("c"))),
        ("alpaca", {"instruction": "a", "output": None, "response": "c"}, (user("a"), assistant("c"))),
        ("alpaca", {"instruction": "a", "output": "c", "instances": None}, (user("a"), assistant("c"))),
        ("alpaca", {"instruction": "a", "instances": [{"input": "b", "output": "c"}]},
         (user("a", "b"), assistant("c"))),
        (
            "alpaca",
            {"instruction": "a", "output": "c", "system": "s"},
            (Message(role="system", content="s"), user("a"), assistant("c")),
        ),
        ("dolly", {"instruction": "a", "context": "b", "response": "c"}, (user("a", "b"), assistant("c"))),
        ("dolly", {"instruction": "a", "response": "c", "category": None}, (user("a"), assistant("c"))),
        ("prompt-completion", {"prompt": "a", "completion": "c"}, (user("a"), assistant("c"))),
        (
            "prompt-completion",
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                        {"role": "user", "content": "c"}],
             "completion": [{"role": "assistant", "content": "d"}]},
            (user("a"), assistant("b", weight=0.0), user("c"), assistant("d")),
        ),
        (
            "prompt-completion",
            {"prompt": {"from": "human", "value": "a"}, "completion": {"from": "gpt", "value": "c"}},
            (user("a"), assistant("c")),
        ),
        ("kto", {"prompt": "a", "completion": "c", "label": True}, (user("a"), assistant("c"))),
        ("kto", {"prompt": "a", "completion": "c", "label": 0}, (user("a"), assistant("c", weight=0.0))),
        ("text", {"text": "a"}, (assistant("a"),)),
        ("transcript", {"transcript": "\n\nHuman: a\n\nAssistant: c"}, (user("a"), assistant("c"))),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
                          {"role": "assistant", "content": "c", "thinking": "t", "train": False}]},
            (
                user("a\nb", parts=({"type": "text", "text": "a"}, {"type": "text", "text": "b"})),
                assistant("c", reasoning="t", weight=0.0),
            ),
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            (assistant("", tool_calls=({"id": "1"},)),),
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None, "reasoning_content": "t"}]},
            (assistant("", reasoning="t"),),
        ),
        (
            "messages",
            {"messages": [{"role": "developer", "content": [
                {"type": "text", "text": "a", "image": None, "cache_control": {"type": "ephemeral"}},
                {"type": "input_text", "text": "b"}, {"text": "c"}, "d", {"type": "text", "value": "e"}]}]},
            (
                Message(
                    role="developer",
                    content="a\nb\nc\nd\ne",
                    parts=(
                        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                        *({"type": "text", "text": text} for text in "bcde"),
                    ),
                ),
            ),
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                          {"role": "assistant", "content": None, "refusal": "Not this."},
                          {"role": "assistant", "content": "Yes.", "refusal": None},
                          {"role": "user", "content": []}]},
            (
                assistant("No.", parts=({"type": "text", "text": "No."},)),
                assistant("Not this."), assistant("Yes."), user(""),
            ),
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                          {"role": "function", "name": "f", "content": "7"}]},
            (
                assistant("", tool_calls=({"type": "function", "function": {"name": "f", "arguments": "{}"}},)),
                Message(role="tool", content="7", name="f"),
            ),
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "See.",
                           "tool_calls": '[{"id": "1", "name": "f", "arguments": {"x": 1}}]'},
                          {"role": "tool", "tool_call_id": "1", "content": "7"}]},
            (
                assistant(
                    "See.",
                    tool_calls=({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},),
                ),
                Message(role="tool", content="7", tool_call_id="1"),
            ),
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": '[{"name": "f"}, {"name": "g", "arguments": "{}"}]'},
                               {"from": "tool", "value": "7"}]},
            (
                assistant("", tool_calls=(
                    {"type": "function", "function": {"name": "f"}},
                    {"type": "function", "function": {"name": "g", "arguments": "{}"}},
                )),
                Message(role="tool", content="7"),
            ),
        ),
        (
            "sharegpt",
            {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "c"}]},
            (Message(role="system", content="s"), user("a"), assistant("c")),
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]},
            (assistant("", tool_calls=({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},)),),
        ),
    ],
)  # fmt: skip
def test_a_record_becomes_messages(
    adapter: str, record: dict[str, Any], messages: tuple[Message, ...], builtin: Registry
) -> None:
    before = copy.deepcopy(record)
    assert builtin.adapters[adapter].to_example(record).messages == messages
    assert record == before


def test_tools_documents_and_metadata(builtin: Registry) -> None:
    dolly = builtin.adapters["dolly"].to_example({"instruction": "a", "response": "c", "category": "open_qa"})
    assert dolly.metadata == {"category": "open_qa"}
    turns = [{"from": "human", "value": "a"}]
    spellings: list[Any] = [TOOLS, json.dumps(TOOLS)]
    for tools in spellings:
        record: dict[str, Any] = {"conversations": turns, "tools": tools, "id": 7}
        sharegpt = builtin.adapters["sharegpt"].to_example(record)
        assert (sharegpt.tools, sharegpt.metadata) == (tuple(TOOLS), {"id": 7})


BARE = {"name": "add", "parameters": {"type": "object"}}
TOOL_SPELLINGS: list[Any] = [
    TOOLS,
    [BARE],
    [{"type": "function", **BARE}],
    json.dumps(TOOLS),
    json.dumps([BARE]),
    [json.dumps(TOOLS[0])],
    [json.dumps(BARE)],
]


@pytest.mark.parametrize("adapter", ["messages", "sharegpt"])
@pytest.mark.parametrize("tools", TOOL_SPELLINGS)
def test_tools_in_every_spelling_have_the_form_that_servers_receive(
    adapter: str, tools: Any, builtin: Registry
) -> None:
    turns: dict[str, Any] = {
        "messages": {"messages": [{"role": "user", "content": "a"}]},
        "sharegpt": {"conversations": [{"from": "human", "value": "a"}]},
    }[adapter]
    assert builtin.adapters[adapter].to_example({**turns, "tools": tools}).tools == tuple(TOOLS)
    nothing: tuple[Any, ...] = (None, "", [], "[]")
    for none in nothing:
        assert builtin.adapters[adapter].to_example({**turns, "tools": none}).tools == ()
    search = {"type": "web_search", "name": "web"}  # not a function: it stays as it is
    assert builtin.adapters[adapter].to_example({**turns, "tools": [search]}).tools == (search,)


def test_documents_as_objects_or_json(builtin: Registry) -> None:
    documents = [{"title": "Bees", "text": "Bees fly."}]
    turns: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
    for spelling in (documents, json.dumps(documents)):
        assert builtin.adapters["messages"].to_example({**turns, "documents": spelling}).documents == tuple(documents)
    with pytest.raises(RecordError, match=r"^documents: found \[7\]; expected a list of objects, or JSON of one"):
        builtin.adapters["messages"].to_example({**turns, "documents": [7]})


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio"}, 7, None])
def test_parts_that_are_not_text_are_refused_by_type(part: Any, builtin: Registry) -> None:
    record = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}
    with pytest.raises(RecordError, match=r"^messages\[0\]\.content\[1\]: found .*; expected ") as caught:
        builtin.adapters["messages"].to_example(record)
    assert caught.value.reason == "unsupported_part"
    assert not isinstance(part, dict) or part["type"] in str(caught.value)


def test_keys_inside_messages_are_reported_once(builtin: Registry) -> None:
    messages = [
        {"role": "user", "content": "a", "mood": "glad", "images": None},
        {"role": "assistant", "content": "b", "audio": {"id": 1}},
        {"role": "user", "content": "c", "mood": "sad"},
    ]
    adapter = builtin.adapters["messages"]
    assert adapter.unread({"messages": messages, "id": 7}) == {
        "id": 7,
        "messages[].mood": "glad",
        "messages[].audio": {"id": 1},
    }
    turns = [{"from": "human", "value": "a", "mood": "glad"}]
    assert builtin.adapters["sharegpt"].unread({"conversations": turns, "id": 7}) == {"conversations[].mood": "glad"}
    options = DataOptions.parse({"dataset": "none", "template": "chatml"})
    pipeline = Pipeline(options, builtin)
    list(pipeline.run([{"messages": [{"role": "assistant", "content": "b"}]}, {"messages": messages}]))
    assert pipeline.counts.unread_keys == {"messages[].mood": 1, "messages[].audio": 1}
    assert pipeline.counts.lines(tokens=False)[-1] == (
        "note: keys that the adapter does not read: messages[].audio (first in row 1), messages[].mood (first in row 1)"
    )


def test_an_adapter_that_only_reads_refuses_to_write() -> None:
    from templatekit import Adapter

    class Reads(Adapter):
        name = "reads"

        def to_example(self, record: Any) -> Example:
            return Example(messages=(user("a"),))

    with pytest.raises(NotImplementedError, match="adapter 'reads' reads records but does not write them"):
        Reads().to_record(Example(messages=(user("a"),)))


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ("instruction input output", "alpaca"),
        ("instruction output", "alpaca"),
        ("instruction input response", "alpaca"),
        ("instruction instances", "alpaca"),
        ("instruction input output text", "alpaca"),
        ("instruction context response category", "dolly"),
        ("instruction response", "dolly"),
        ("messages", "messages"),
        ("messages tools id", "messages"),
        ("conversations", "sharegpt"),
        ("id conversations system", "sharegpt"),
        ("prompt completion", "prompt-completion"),
        ("prompt completion label", "kto"),
        ("prompt completion text", "prompt-completion"),
        ("prompt chosen rejected", "preference"),
        ("prompt prompt_id chosen rejected messages score_chosen score_rejected", "preference"),
        ("chosen rejected", "preference"),
        ("conversations chosen rejected", "preference"),
        ("instruction input chosen rejected", "preference"),
        ("instruction input output chosen rejected", "preference"),
        ("instruction output chosen rejected", "preference"),
        ("instruction response chosen rejected", "preference"),
        ("messages rejected", "messages"),
        ("transcript rejected", "transcript"),
        ("text", "text"),
        ("text meta", "text"),
        ("message_tree_id tree_state prompt", "oasst"),
        ("message_id parent_id user_id created_date text role lang rank deleted message_tree_id", "oasst"),
        ("question answer", None),
        ("", None),
        ("instruction", None),
    ],
)
def test_the_adapter_is_inferred_from_the_keys(keys: str, name: str | None, builtin: Registry) -> None:
    found = dict.fromkeys(keys.split()).keys()
    if name is None:
        with pytest.raises(RecordError, match="no adapter reads records of this shape"):
            choose_adapter(found, builtin)
    else:
        assert choose_adapter(found, builtin).name == name


def test_every_adapter_is_in_the_reference(builtin: Registry) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in builtin.adapters:
        assert f"| `{name}` |" in page
