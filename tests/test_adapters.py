"""The bundled adapters: the shapes they read, how they are told apart, and the way back."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit import Example, Message, RecordError, Registry
from templatekit.formats.lookup import choose_adapter

TEXT = st.text(max_size=20)
SOME = st.text(min_size=1, max_size=20)
TURNS = st.lists(st.tuples(st.sampled_from(["human", "gpt", "system", "observation"]), TEXT), min_size=1, max_size=4)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ROUND_TRIPS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "alpaca": st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT}, optional={"system": SOME}),
    "dolly": st.fixed_dictionaries(
        {"instruction": TEXT, "context": TEXT, "response": TEXT}, optional={"category": SOME}
    ),
    "prompt-completion": st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    "messages": st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.fixed_dictionaries(
                    {"role": SOME, "content": TEXT},
                    optional={
                        "reasoning_content": SOME,
                        "name": SOME,
                        "weight": st.floats(0, 10).filter(lambda weight: weight != 1),
                        "tool_calls": st.just([{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]),
                    },
                ),
                min_size=1,
                max_size=4,
            )
        },
        optional={"tools": st.just(TOOLS)},
    ),
    "sharegpt": st.builds(
        lambda turns, id: {"conversations": [{"from": who, "value": text} for who, text in turns], **id},
        TURNS,
        st.just({}) | st.just({"id": "x1"}),
    ),
}


def user(content: str, context: str = "") -> Message:
    return Message(role="user", content=content, context=context)


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
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
                          {"role": "assistant", "content": "c", "thinking": "t", "train": False}]},
            (user("ab"), assistant("c", reasoning="t", weight=0.0)),
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            (assistant("", tool_calls=({"id": "1"},)),),
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


def test_what_goes_beside_the_messages(builtin: Registry) -> None:
    dolly = builtin.adapters["dolly"].to_example({"instruction": "a", "response": "c", "category": "open_qa"})
    assert dolly.metadata == {"category": "open_qa"}
    turns = [{"from": "human", "value": "a"}]
    spellings: list[Any] = [TOOLS, json.dumps(TOOLS)]
    for tools in spellings:
        record: dict[str, Any] = {"conversations": turns, "tools": tools, "id": 7}
        sharegpt = builtin.adapters["sharegpt"].to_example(record)
        assert (sharegpt.tools, sharegpt.metadata) == (tuple(TOOLS), {"id": 7})


@pytest.mark.parametrize("name", ROUND_TRIPS)
@given(data=st.data())
def test_there_is_a_way_back(name: str, builtin: Registry, data: st.DataObject) -> None:
    record = data.draw(ROUND_TRIPS[name])
    adapter = builtin.adapters[name]
    example = adapter.to_example(record)
    assert adapter.to_record(example) == record
    assert adapter.to_example(adapter.to_record(example)) == example


def test_every_adapter_can_go_back(builtin: Registry) -> None:
    assert set(ROUND_TRIPS) == set(builtin.adapters)


def test_an_adapter_that_only_reads_says_so() -> None:
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
        ("question answer", None),
        ("", None),
        ("instruction", None),
    ],
)
def test_the_keys_tell_the_adapter(keys: str, name: str | None, builtin: Registry) -> None:
    found = dict.fromkeys(keys.split()).keys()
    if name is None:
        with pytest.raises(RecordError, match="no adapter reads records of this shape"):
            choose_adapter(found, builtin)
    else:
        assert choose_adapter(found, builtin).name == name
