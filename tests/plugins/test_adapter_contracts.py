"""Contract tests of every bundled adapter: purity, a `RecordError` with a field, the round trip, and real files."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.theirs import as_transformers

from templatekit import (
    Adapter,
    DataOptions,
    Example,
    Message,
    Record,
    RecordError,
    Registry,
    create_registry,
)
from templatekit.formats.lookup import choose_adapter
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing import CHECKS, texts
from templatekit.testing.inputs import MalformedRecord
from templatekit.testing.records import paths_of, with_value

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, None]}}}
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": {"text": "a", "role": "prompter", "lang": "en", "replies": [{"text": "b", "role": "assistant"}]},
}
GOOD: Mapping[str, list[dict[str, Any]]] = {
    "alpaca": [
        {"instruction": "a", "input": "b", "output": "c", "system": "s"},
        {"instruction": "a", "instances": [{"input": "b", "output": "c"}]},
    ],
    "dolly": [{"instruction": "a", "context": "b", "response": "c", "category": "d"}],
    "messages": [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n", "weight": 0.5},
                {"role": "assistant", "content": "b", "reasoning_content": "r", "tool_calls": [CALL], "train": True},
            ],
            "tools": [{"name": "t"}],
        }
    ],
    "sharegpt": [
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "o"},
                {"from": "gpt", "value": "b"},
            ],
            "system": "s",
            "tools": '[{"name": "t"}]',
            "id": 7,
        }
    ],
    "prompt-completion": [
        {"prompt": "a", "completion": "b"},
        {
            "prompt": USER,
            "completion": [ASSISTANT, {"role": "tool", "content": "t"}, ASSISTANT],
            "tools": [{"name": "t"}],
        },
    ],
    "kto": [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT], "label": 0},
    ],
    "preference": [
        {"prompt": "a", "chosen": "b", "rejected": "c", "system": "s"},
        {"prompt": [USER, ASSISTANT, USER], "chosen": [ASSISTANT], "rejected": ASSISTANT, "tools": [{"name": "t"}]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT, USER, ASSISTANT]},
        {"prompt": "a", "chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
        {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " b", "rejected": "c"},
        {"instruction": "a", "input": "i", "chosen": "b", "rejected": "c", "system": "s"},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
    ],
    "oasst": [TREE],
    "oasst-all": [TREE],
    "text": [{"text": "a"}],
    "transcript": [{"transcript": "\n\nHuman: a\n\nAssistant: b"}],
}


def check_reads_or_refuses(adapter: Adapter, record: Record) -> Example | None:
    """The result must be an example or a `RecordError` that names the field, and the record must not change."""
    CHECKS["bad_records_are_refused_by_name"].attempt(MalformedRecord(adapter=adapter, record=record))
    try:
        return adapter.to_example(record)
    except RecordError:
        return None


@pytest.fixture(params=sorted(GOOD))
def adapter(request: pytest.FixtureRequest, builtin: Registry) -> Adapter:
    return builtin.adapters[request.param]


def test_every_bundled_adapter_is_tested_here(builtin: Registry) -> None:
    bundled = {name for name in builtin.adapters if builtin.adapters.owner(name).built_in}
    assert bundled == set(GOOD), "give each adapter good records here"


def test_good_records_are_read_and_known_by_their_keys(adapter: Adapter, builtin: Registry) -> None:
    for record in GOOD[adapter.name]:
        assert check_reads_or_refuses(adapter, record) is not None
        if adapter.required:  # an error must name the others
            assert choose_adapter(record.keys(), builtin).name == adapter.name
        assert record.keys() <= set(adapter.keys)


def test_the_round_trip_gives_the_same_example(adapter: Adapter) -> None:
    for record in GOOD[adapter.name]:
        example = adapter.to_example(record)
        written = adapter.to_record(example)
        assert adapter.to_example(written) == example
        assert adapter.to_record(adapter.to_example(written)) == written
        json.dumps(written)


TEXT = st.text(max_size=20)
SOME = st.text(min_size=1, max_size=20)
PARTS = st.lists(TEXT.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
TURNS = st.lists(st.tuples(st.sampled_from(["human", "gpt", "system", "observation"]), TEXT), min_size=1, max_size=4)
PROMPTS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=2).map(
    lambda turns: [
        {"role": "system", "content": "s"},
        *(
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ),
        {"role": "user", "content": "last"},
    ]
)
ANSWERS = st.tuples(TEXT, SOME).map(
    lambda texts: [
        {"role": "assistant", "content": texts[0], "reasoning_content": texts[1]},
        {"role": "tool", "content": texts[1]},
        {"role": "assistant", "content": texts[0]},
    ]
)


def branch(texts: list[str]) -> dict[str, Any]:
    """A tree with one path, which ends in an answer."""
    replies: list[dict[str, Any]] = []
    for index, text in reversed(list(enumerate(texts))):
        replies = [{"role": ("prompter", "assistant")[index % 2], "text": text, "replies": replies}]
    return replies[0]


TREES = st.builds(
    lambda texts, more: {"prompt": branch([*texts, "why?", "because"]), **more},
    st.lists(st.tuples(TEXT, TEXT), max_size=2).map(lambda pairs: [text for pair in pairs for text in pair]),
    st.just({}) | st.just({"message_tree_id": "t1", "tree_state": "ready_for_export"}),
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ROUND_TRIPS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "alpaca": st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT}, optional={"system": SOME}),
    "dolly": st.fixed_dictionaries(
        {"instruction": TEXT, "context": TEXT, "response": TEXT}, optional={"category": SOME}
    ),
    "prompt-completion": st.fixed_dictionaries({"prompt": TEXT | PROMPTS, "completion": TEXT | ANSWERS}),
    "messages": st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.fixed_dictionaries(
                    {"role": SOME.filter(lambda role: role != "function"), "content": TEXT | PARTS},
                    optional={
                        "reasoning_content": SOME,
                        "name": SOME,
                        "tool_call_id": SOME,
                        "weight": (st.just(0.0) | st.floats(1e-9, 10)).filter(lambda weight: weight != 1),
                        "tool_calls": st.just([{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]),
                    },
                ),
                min_size=1,
                max_size=4,
            )
        },
        optional={"tools": st.just(TOOLS), "documents": st.just([{"title": "Bees", "text": "Bees fly."}])},
    ),
    "sharegpt": st.builds(
        lambda turns, id: {"conversations": [{"from": who, "value": text} for who, text in turns], **id},
        TURNS,
        st.just({}) | st.just({"id": "x1"}),
    ),
    "kto": st.fixed_dictionaries({"prompt": TEXT | PROMPTS, "completion": TEXT, "label": st.booleans()}),
    "preference": st.fixed_dictionaries(
        {"prompt": TEXT | PROMPTS, "chosen": TEXT | ANSWERS, "rejected": TEXT | ANSWERS},
        optional={"tools": st.just(TOOLS)},
    ),
    "oasst": TREES,
    "oasst-all": TREES,
    "text": st.fixed_dictionaries({"text": TEXT}),
    "transcript": st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), TEXT), min_size=1).map(
        lambda turns: {"transcript": "".join(f"\n\n{who}: {text}" if text else f"\n\n{who}:" for who, text in turns)}
    ),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
@given(data=st.data())
def test_a_record_in_the_adapters_own_form_is_written_unchanged(
    name: str, builtin: Registry, data: st.DataObject
) -> None:
    record = data.draw(ROUND_TRIPS[name])
    adapter = builtin.adapters[name]
    example = adapter.to_example(record)
    assert adapter.to_record(example) == record
    assert adapter.to_example(adapter.to_record(example)) == example


def test_every_adapter_writes_records(builtin: Registry) -> None:
    assert set(ROUND_TRIPS) == set(builtin.adapters)


@given(data=st.data())
def test_any_record_is_read_or_refused(adapter: Adapter, data: st.DataObject) -> None:
    record = data.draw(
        st.dictionaries(st.sampled_from(adapter.keys) | st.text(max_size=5), texts.JSON_VALUES, max_size=4)
    )
    check_reads_or_refuses(adapter, record)


@given(data=st.data())
def test_good_records_with_one_random_value_are_read_or_refused(adapter: Adapter, data: st.DataObject) -> None:
    record: Record = data.draw(st.sampled_from(GOOD[adapter.name]))
    for _ in range(data.draw(st.integers(1, 2))):
        if not record:
            break
        place = data.draw(st.sampled_from(list(paths_of(record))), label="place")
        record = with_value(record, place, data.draw(texts.JSON_VALUES | st.just(...), label="value"))
    example = check_reads_or_refuses(adapter, record)
    assert example is None or check_reads_or_refuses(adapter, record) == example


WEIGHTS: list[tuple[dict[str, Any], float]] = [
    ({}, 1.0),
    ({"weight": 0.5}, 0.5),
    ({"loss_weight": 0}, 0.0),
    ({"train": True, "weight": None}, 1.0),
    ({"train": False}, 0.0),
    ({"train": False, "weight": 3}, 0.0),
    ({"weight": 0.5, "loss_weight": 0.5, "train": 2}, 0.5),
    ({"weight": 1e9, "loss_weight": 1e-9, "train": 1e-9}, 1e-9),
    ({"weight": 1e9, "loss_weight": 0}, 0.0),
]
BAD_WEIGHTS: list[object] = [
    *(-1, -1e-9, 1e-50, 1e39, 1e308, 10**400, float("nan"), float("inf"), -float("inf")),
    *("1", "no", [1], {}, Decimal(1)),
]


def weighted(adapter: str, **keys: object) -> dict[str, Any]:
    """A conversation whose answer holds these keys."""
    if adapter == "messages":
        return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **keys}]}
    return {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", **keys}]}


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
@pytest.mark.parametrize(("keys", "weight"), WEIGHTS)
def test_weights_under_several_keys_multiply(name: str, keys: dict[str, Any], weight: float, builtin: Registry) -> None:
    adapter = builtin.adapters[name]
    example = adapter.to_example(weighted(name, **keys))
    assert [message.weight for message in example.messages] == [1.0, weight]
    assert adapter.unread(weighted(name, **keys)) == {}
    assert adapter.to_example(adapter.to_record(example)) == example


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
@pytest.mark.parametrize("key", ["weight", "loss_weight", "train"])
@pytest.mark.parametrize("value", BAD_WEIGHTS, ids=repr)
def test_an_invalid_weight_is_refused_by_name(name: str, key: str, value: object, builtin: Registry) -> None:
    record = weighted(name, **{key: value})
    assert check_reads_or_refuses(builtin.adapters[name], record) is None
    with pytest.raises(RecordError, match="expected 0, or a number from 1e-9 to 1e9, or true or false") as raised:
        builtin.adapters[name].to_example(record)
    assert raised.value.field == f"{next(iter(record))}[1].{key}"
    assert raised.value.reason == "bad_weight"


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
@pytest.mark.parametrize("value", [1e9, 1e-9])
def test_a_product_of_weights_that_no_loss_can_hold_is_refused(name: str, value: float, builtin: Registry) -> None:
    record = weighted(name, weight=value, loss_weight=value)
    with pytest.raises(RecordError, match=r"the product of weight, loss_weight is 1e.18; expected 0, or") as raised:
        builtin.adapters[name].to_example(record)
    assert raised.value.field == f"{next(iter(record))}[1].weight"
    assert raised.value.reason == "bad_weight"


class Careless(Adapter):
    """Breaks the contract in the way that the record names."""

    name = "careless"

    def to_example(self, record: Record) -> Example:
        if "mutate" in record:
            record["seen"] = True  # type: ignore[index]
        if "nameless" in record:
            raise RecordError("wrong")
        if "number" in record:
            return Example(messages=(Message(role="user", content=3),))  # type: ignore[arg-type]
        return Example(messages=(Message(role="user", content=record["text"]),))


@pytest.mark.parametrize(
    "record",
    [{"text": "a", "mutate": 1}, {"nameless": 1}, {"number": 1}, {}],
    ids=["mutate", "nameless", "number", "bare"],
)
def test_the_contract_check_notices(record: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_reads_or_refuses(Careless(), record)
    assert check_reads_or_refuses(Careless(), {"text": "a"}) is not None


FILES = {
    "alpaca/alpaca_original_head_1805.json": ("alpaca", 1_805),
    "alpaca/alpaca_cleaned_short_12k.json": ("alpaca", 12_000),
    "alpaca/alpaca_long_2000.json": ("alpaca", 2_000),
    "alpaca/self_instruct_seed_tasks_175.jsonl": ("alpaca", 175),
    "dolly/dolly_litgpt_fixture.jsonl": ("dolly", 12),
    "dolly/dolly_unrendered_151.jsonl": ("dolly", 151),
    "chat/sharegpt_fastchat_dummy_500.json": ("sharegpt", 500),
    "chat/sharegpt_glaive_toolcall_en_300.json": ("sharegpt", 300),
    "chat/messages_loss_weight_v1_sft_500.jsonl": ("messages", 500),
    "other/identity_91.json": ("alpaca", 91),
    "other/prompt_completion_wwdc25_valid.jsonl": ("prompt-completion", 144),
    "other/text_wikisql_1000.jsonl": ("text", 1_000),
    "preference/dpo_en_demo_300.json": ("preference", 300),
    "ch07/instruction-data.json": ("alpaca", 1_100),
    "ch07/instruction-data-with-preference.json": ("preference", 1_100),
    "ch07/instruction-examples.json": ("alpaca", 200),
}


def run(address: Path, template: str, registry: Registry, **options: Any) -> tuple[Pipeline, list[Any]]:
    parsed = DataOptions.parse({"dataset": str(address), "template": template, "on_error": "skip", **options})
    pipeline = Pipeline(parsed, registry)
    return pipeline, list(pipeline.run(pipeline.open()))


@pytest.mark.parametrize("name", FILES)
def test_real_files(name: str, shared: Path, builtin: Registry) -> None:
    """Read every row with the adapter that is inferred from the keys; each is rendered, or counted with a reason."""
    adapter, rows = FILES[name]
    template = {"sharegpt": "chatml", "messages": "chatml", "preference": "chatml", "text": "text"}.get(
        adapter, "alpaca"
    )
    pipeline, prepared = run(shared / "data" / name, template, builtin)
    assert pipeline.adapter is not None
    assert pipeline.adapter.name == adapter
    assert pipeline.counts.rows_in == rows
    assert pipeline.counts.rows_out == len(prepared) == rows - sum(pipeline.counts.dropped.values())
    expected = {"no_place_for_field": 300} if "glaive" in name else {}
    if "glaive" in name:  # ChatML refuses tools and tool calls, for which it has no place
        assert set(pipeline.counts.dropped) == set(expected)
    else:
        assert pipeline.counts.dropped == Counter()
    for item in prepared:
        check_whole(item.example, item.rendered.text)


def test_no_file_is_left_open(shared: Path, builtin: Registry) -> None:
    """A reader that is left open raises a ResourceWarning when it is collected, which is an error here."""
    for name in FILES:
        run(shared / "data" / name, "chatml", builtin, limit=3)
    gc.collect()


def check_whole(example: Example, text: str) -> None:
    """Every text of the example is in the rendered text."""
    for message in example.messages:
        assert message.content in text
        assert message.context in text
    assert "None" not in text or any("None" in m.content + m.context for m in example.messages)


def test_the_check_of_real_files_notices_lost_text(shared: Path, builtin: Registry) -> None:
    _, prepared = run(shared / "data/dolly/dolly_litgpt_fixture.jsonl", "dolly", builtin)
    item = next(item for item in prepared if item.example.messages[0].context)
    check_whole(item.example, item.rendered.text)
    with pytest.raises(AssertionError):
        check_whole(item.example, item.rendered.text.replace(item.example.messages[0].context, ""))


def test_every_file_fits_every_template_or_is_refused_by_reason(shared: Path, builtin: Registry) -> None:
    """Any adapter works with any template; a conversation that a template cannot express is counted with its reason."""
    for name, (adapter, rows) in FILES.items():
        for template in ("alpaca", "dolly", "chatml", "llama3"):
            try:
                pipeline, _ = run(shared / "data" / name, template, builtin, limit=60)
            except Exception as error:
                assert "0 of" in str(error), (name, template, error)
                continue
            assert set(pipeline.counts.dropped) <= {"not_one_turn", "no_place_for_field"}, (name, template)
            assert pipeline.counts.rows_in == min(rows, 60), (name, adapter)


def test_every_tool_call_of_the_real_conversations_is_rendered(
    shared: Path, builtin: Registry, tokenizer_of: Tokenizers
) -> None:
    """All 300 rows with Qwen 3's own template equal transformers' rendering and contain every call and answer."""
    tokenizer = tokenizer_of("qwen3")
    address = shared / "data/chat/sharegpt_glaive_toolcall_en_300.json"
    _, prepared = run(address, "tokenizer", builtin, tokenizer=tokenizer.name)
    rows = json.loads(address.read_text(encoding="utf-8"))
    kept = {item.rendered.row: item for item in prepared}
    for row, item in kept.items():
        for message in item.example.messages:
            assert message.content in item.rendered.text
        turns = [turn for turn in rows[row]["conversations"] if turn["from"] == "function_call"]
        calls = [call for message in item.example.messages for call in message.tool_calls]
        assert [call["function"] for call in calls] == [json.loads(turn["value"]) for turn in turns]
        assert tokenizer.chat_template is not None
        assert item.rendered.text == as_transformers(tokenizer.chat_template, item.example, tokenizer.special_tokens)
    assert len(kept) > 250
    assert sum(len(m.tool_calls) for item in kept.values() for m in item.example.messages) > 200


def test_loss_weights_of_the_real_messages(shared: Path, builtin: Registry) -> None:
    _, prepared = run(shared / "data/chat/messages_loss_weight_v1_sft_500.jsonl", "chatml", builtin)
    weights = Counter(m.weight for item in prepared for m in item.example.messages if m.role == "assistant")
    path = shared / "data/chat/messages_loss_weight_v1_sft_500.jsonl"
    messages = [m for line in path.read_text(encoding="utf-8").splitlines() for m in json.loads(line)["messages"]]
    expected = Counter(float(m.get("loss_weight", 1)) for m in messages if m["role"] == "assistant")
    assert weights == expected


def test_an_adapter_of_a_plugin_folder_keeps_the_same_contract(tmp_path: Path) -> None:
    """In the pipeline, exceptions of such an adapter become a `RecordError` with a reason."""
    (tmp_path / "mine.py").write_text(
        "import templatekit\n\n"
        "class Mine(templatekit.Adapter):\n"
        "    name = 'mine'\n"
        "    keys = required = ('q', 'a')\n"
        "    def to_example(self, record):\n"
        "        return templatekit.Example(messages=(templatekit.Message(role='user', content=record['q'].strip()),\n"
        "            templatekit.Message(role='assistant', content=record['a'])))\n\n"
        "@templatekit.hookimpl\n"
        "def templatekit_adapters():\n"
        "    return [Mine()]\n",
        encoding="utf-8",
    )
    registry = create_registry(plugin_dirs=[tmp_path])
    options = DataOptions.parse({"dataset": "none", "template": "chatml", "on_error": "skip"})
    pipeline = Pipeline(options, registry)
    rows: list[Record] = [{"q": "a", "a": "b"}, {"q": 3, "a": "b"}, {"q": "a", "a": "b", "c": 1}]
    assert [item.rendered.row for item in pipeline.run(rows)] == [0, 2]
    assert pipeline.counts.dropped == {"adapter_failed": 1}
