"""The bundled adapters one by one: the shapes they read, and how they are told apart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from templatekit import Example, Message, RecordError, Registry
from templatekit.formats.lookup import choose_adapter

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


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
def test_the_keys_tell_the_adapter(keys: str, name: str | None, builtin: Registry) -> None:
    found = dict.fromkeys(keys.split()).keys()
    if name is None:
        with pytest.raises(RecordError, match="no adapter reads records of this shape"):
            choose_adapter(found, builtin)
    else:
        assert choose_adapter(found, builtin).name == name


def test_every_adapter_stands_in_the_reference(builtin: Registry) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in builtin.adapters:
        assert f"| `{name}` |" in page
