"""OpenAssistant's trees: both published forms, the paths through them, and the messages that are left out."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from templatekit_oasst import BestReplies
from testkit.look import Eye

from templatekit import Adapter, DataOptions, Message, PluginError, Record, RecordError, Registry, render
from templatekit.audit import audit
from templatekit.pipeline.pipeline import Pipeline

Eyes = Callable[[str], Eye]
Tree = dict[str, Any]


def ask(text: str, *replies: Tree, **more: Any) -> Tree:
    return {"message_id": f"id of {text}", "role": "prompter", "text": text, "replies": list(replies), **more}


def reply(text: object, *replies: Tree, **more: Any) -> Tree:
    return {"message_id": f"id of {text}", "role": "assistant", "text": text, "replies": list(replies), **more}


def tree(prompt: Tree, id: str = "t1") -> Tree:
    return {"message_tree_id": id, "tree_state": "ready_for_export", "prompt": prompt}


def rows_of(record: Tree) -> Iterator[Tree]:
    """The flat form: one row for each message, each before its replies, as in the published files."""
    stack: list[tuple[Tree, str | None]] = [(record["prompt"], None)]
    while stack:
        message, parent = stack.pop()
        row = {key: value for key, value in message.items() if key != "replies"}
        yield {**row, "parent_id": parent, **{key: record[key] for key in ("message_tree_id", "tree_state")}}
        stack += [(one, message["message_id"]) for one in reversed(message["replies"])]


FULL = tree(
    ask(
        "q",
        reply("worse", rank=1),
        reply(
            "best",
            ask("q2", reply("a2")),
            ask("unanswered"),
            ask("q3", reply("a3", rank=1), reply("a3 best", rank=0), rank=0),
            rank=0,
        ),
        reply("gone", ask("below", reply("further below")), rank=2, deleted=True),
        reply("unranked"),
        lang="en",
    )
)
BEST = ["q", "best", "q3", "a3 best"]
ALL = [BEST, ["q", "best", "q3", "a3"], ["q", "best", "q2", "a2"], ["q", "worse"], ["q", "unranked"]]
LEFT_OUT = {"deleted message": 1, "message below a deleted one": 2, "question without an answer": 1}


def texts_of(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages]


def flat(record: Tree) -> Tree:
    return {"records": list(rows_of(record))}


FORMS = pytest.mark.parametrize("form", [lambda record: record, flat], ids=["a tree a row", "a message a row"])


@FORMS
def test_the_best_path(form: Callable[[Tree], Tree], builtin: Registry) -> None:
    example = builtin.adapters["oasst"].to_example(form(FULL))
    assert texts_of(example.messages) == BEST
    assert [message.role for message in example.messages] == ["user", "assistant"] * 2
    assert example.metadata == {"message_tree_id": "t1", "tree_state": "ready_for_export", "lang": "en"}
    assert example.left_out == {**LEFT_OUT, "lower-ranked reply and what follows it": 5}


@FORMS
def test_every_path_trains_each_answer_once(form: Callable[[Tree], Tree], builtin: Registry) -> None:
    examples = list(builtin.adapters["oasst-all"].to_examples(form(FULL)))
    assert [texts_of(example.messages) for example in examples] == ALL
    trained = Counter(
        message.content
        for example in examples
        for message in example.messages
        if message.role == "assistant" and message.weight
    )
    assert trained == dict.fromkeys(["best", "a3 best", "a3", "a2", "worse", "unranked"], 1)
    assert [example.left_out for example in examples] == [LEFT_OUT, {}, {}, {}, {}]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A tree of any shape with at least one answer."""
    count = 0

    def message(make: Callable[..., Tree], depth: int) -> Tree:
        nonlocal count
        count += 1
        text = f"m{count}"
        other = ask if make is reply else reply
        below = [message(other, depth + 1) for _ in range(draw(st.integers(0, 2 if depth < 4 else 0)))]
        more: Tree = draw(st.fixed_dictionaries({}, optional={"rank": st.none() | st.integers(0, 3)}))
        if depth and draw(st.integers(0, 7)) == 0:
            more["deleted"] = True
        return make(text, *below, **more)

    root = message(ask, 0)
    root["replies"].append(reply("an answer"))
    return tree(root)


def used_and_left_out(adapter: Adapter, record: Tree) -> tuple[int, int]:
    """How many messages of a tree are in its examples, and how many are reported as left out."""
    examples = list(adapter.to_examples(record))
    texts = {text for example in examples for text in texts_of(example.messages)}
    return len(texts), sum(sum(example.left_out.values()) for example in examples)


@pytest.mark.parametrize("name", ["oasst", "oasst-all"])
@given(record=trees(), seed=st.integers(0, 9))
def test_every_message_is_used_or_counted(name: str, record: Tree, seed: int, builtin: Registry) -> None:
    adapter = builtin.adapters[name]
    rows = list(rows_of(record))
    used, left_out = used_and_left_out(adapter, record)
    assert used + left_out == len(rows)
    assert list(adapter.to_examples({"records": rows})) == list(adapter.to_examples(record))
    mixed = rows.copy()
    random.Random(seed).shuffle(mixed)
    assert sum(used_and_left_out(adapter, {"records": mixed})) == len(rows)


@given(record=trees())
def test_the_best_path_is_the_first_of_all_paths(record: Tree, builtin: Registry) -> None:
    best = builtin.adapters["oasst"].to_example(record)
    (first, *_) = builtin.adapters["oasst-all"].to_examples(record)
    assert best.messages == first.messages
    assert best.messages[-1].role == "assistant"


def test_the_count_notices_a_lost_message(builtin: Registry) -> None:
    class Losing(BestReplies):
        def to_examples(self, record: Record) -> list[Any]:
            return [replace(example, left_out={}) for example in super().to_examples(record)]

    used, left_out = used_and_left_out(Losing(), FULL)
    assert used + left_out < len(list(rows_of(FULL)))


def test_a_message_whose_parent_is_missing_is_counted(builtin: Registry) -> None:
    rows = [row for row in rows_of(FULL) if row["text"] != "best"]
    example = builtin.adapters["oasst"].to_example({"records": rows})
    assert texts_of(example.messages) == ["q", "worse"]
    assert example.left_out["message whose parent is missing"] == 6


@pytest.mark.parametrize(
    ("record", "reason", "words"),
    [
        (tree(ask("q")), "no_response", "prompt: nobody answered; expected a reply of the assistant's"),
        (tree(ask("q", reply("a", deleted=True))), "no_response", "prompt: nobody answered"),
        (tree(ask("q", reply("a"), deleted=True)), "deleted_message", "prompt: the first message is deleted"),
        (
            {"message_tree_id": "t1", "prompt": "q"},
            "bad_message",
            "prompt: found 'q'; expected a message with role, te",
        ),
        (
            {"message_tree_id": "t1"},
            "bad_message",
            "prompt: found None; expected a message with role, text and replies",
        ),
        (tree(ask("q", reply(5))), "bad_text", "message 'id of 5'.text: not text; found int 5"),
        (
            tree({"role": "prompter", "text": "q", "replies": [{"role": "robot", "text": "a"}]}),
            "bad_role",
            "prompt.replies[0].role: unknown role; found 'robot'; expected prompter or assistant",
        ),
        (tree(ask("q", reply("a", rank="first"))), "bad_rank", "message 'id of a'.rank: found 'first'; expected a num"),
        (
            tree({**ask("q"), "replies": {}} | {"replies": "a"}),
            "bad_replies",
            "prompt.replies: found 'a'; expected a l",
        ),
        ({"records": [*rows_of(FULL), *rows_of(FULL)]}, "message_twice", "message_id: found 'id of q' twice; expected"),
        (
            {"records": list(rows_of(FULL))[1:]},
            "no_root",
            "parent_id: found 12 messages, of which 0 reply to none; expected one that does, and the messages of a "
            "tree one after the other: sort the file by message_tree_id",
        ),
        (next(rows_of(FULL)), "no_response", "prompt: nobody answered"),
        ({"records": ["a"]}, "bad_message", "records: found 'a'; expected messages"),
    ],
)
@pytest.mark.parametrize("name", ["oasst", "oasst-all"])
def test_a_wrong_tree_is_refused_by_name(name: str, record: Tree, reason: str, words: str, builtin: Registry) -> None:
    with pytest.raises(RecordError) as caught:
        list(builtin.adapters[name].to_examples(record))
    assert caught.value.reason == reason
    assert str(caught.value).startswith(words)


def test_messages_that_reply_to_each_other_do_not_loop(builtin: Registry) -> None:
    rows = [*rows_of(tree(ask("q", reply("a")))), {**reply("x"), "parent_id": "id of y"}]
    rows.append({**ask("y"), "parent_id": "id of x"})
    example = builtin.adapters["oasst"].to_example({"records": rows})
    assert example.left_out == {"message whose parent is missing": 2}


def test_deep_and_wide_trees_cost_no_more_than_their_messages(builtin: Registry) -> None:
    count = 20_000
    deep = [
        {**(ask if i % 2 == 0 else reply)(str(i)), "parent_id": f"id of {i - 1}" if i else None} for i in range(count)
    ]
    example = builtin.adapters["oasst"].to_example({"records": deep})
    assert len(example.messages) == count
    wide = tree(ask("q", *(reply(str(i), ask(f"{i}?")) for i in range(count))))
    assert len(list(builtin.adapters["oasst-all"].to_examples(wide))) == count


# Through the stages


def write(path: Path, rows: list[Tree]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def forest(count: int) -> list[Tree]:
    return [
        tree(ask(f"q{i}", reply(f"a{i}", rank=1), reply(f"b{i}", ask(f"r{i}", reply(f"c{i}")), rank=0)), f"t{i}")
        for i in range(count)
    ]


@pytest.mark.parametrize("adapter", [None, "oasst", "oasst-all"])
def test_both_forms_give_the_same_texts(adapter: str | None, tmp_path: Path, builtin: Registry) -> None:
    """There are more trees than a batch holds, so rows of one tree are gathered across batches."""
    trees = forest(300)
    files = {
        write(tmp_path / "trees.jsonl", trees): 300,
        write(tmp_path / "messages.jsonl", [row for one in trees for row in rows_of(one)]): 300,
    }
    seen = []
    for file, rows in files.items():
        pipeline = Pipeline(DataOptions.parse({"dataset": file, "adapter": adapter, "template": "chatml"}), builtin)
        items = list(pipeline.run(pipeline.open()))
        counts = pipeline.counts
        assert (counts.rows_in, counts.rows_out) == (rows, rows)
        assert counts.samples == len(items) == (600 if adapter == "oasst-all" else 300)
        assert counts.left_out == ({} if adapter == "oasst-all" else {"lower-ranked reply and what follows it": 300})
        seen.append([(item.rendered.row, item.rendered.text) for item in items])
    assert seen[0] == seen[1]
    assert [row for row, _ in seen[0]] == [row for row in range(300) for _ in range(2 if adapter == "oasst-all" else 1)]


def test_a_limit_and_python_records_count_trees(builtin: Registry) -> None:
    rows = [row for one in forest(5) for row in rows_of(one)]
    assert len(list(render(rows, template="chatml", limit=3, registry=builtin))) == 3
    unread = {**rows[0], "user_id": "u"}
    pipeline = Pipeline(DataOptions.parse({"template": "chatml"}), builtin)
    assert len(list(pipeline.run(pipeline.reader.select([unread, *rows[1:]])))) == 5
    assert pipeline.counts.unread_keys == {"user_id": 0}


def test_an_unreadable_row_does_not_split_a_tree(tmp_path: Path, builtin: Registry) -> None:
    rows = [row for one in forest(2) for row in rows_of(one)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(2, "{broken")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    pipeline = Pipeline(DataOptions.parse({"dataset": str(path), "template": "chatml", "on_error": "skip"}), builtin)
    assert len(list(pipeline.run(pipeline.open()))) == 2
    assert (pipeline.counts.rows_in, pipeline.counts.dropped.total()) == (3, 1)


def test_an_unsorted_file_says_what_to_do(builtin: Registry) -> None:
    first, second = (list(rows_of(one)) for one in forest(2))
    pipeline = Pipeline(DataOptions.parse({"template": "chatml", "on_error": "skip"}), builtin)
    items = list(pipeline.run(pipeline.reader.select([*first[:3], *second, *first[3:]])))
    assert [item.rendered.row for item in items] == [0, 1]
    assert pipeline.counts.dropped == {"no_root": 1}
    assert "sort the file by message_tree_id" in pipeline.counts.first_dropped["no_root"]


def test_the_audit_counts_trees(tmp_path: Path, builtin: Registry) -> None:
    rows = [row for one in forest(300) for row in rows_of(one)]
    rows[0]["user_id"] = "u"
    options = DataOptions.parse({"dataset": write(tmp_path / "messages.jsonl", rows), "template": "chatml"})
    report = audit(options, registry=builtin)
    assert (report.adapter, report.rows, report.usable) == ("oasst", 300, 300)
    found = {finding.rule.code: finding for finding in report.findings}
    assert [part.what for part in found["unread-keys"].parts] == ["user_id"]


def test_each_answer_of_a_tree_is_trained_once(eye_of: Eyes) -> None:
    seen = eye_of("qwen3").all([FULL], "chatml", adapter="oasst-all")
    trained = Counter(text for one in seen for text in one.trained)
    assert trained == {f"{text}<|im_end|>": 1 for text in ("best", "a3 best", "a3", "a2", "worse", "unranked")}


def test_an_adapter_whose_group_raises_is_named(builtin: Registry) -> None:
    class Broken(BestReplies):
        name = "broken"

        def group(self, record: Record) -> str:
            return str(1 / 0)

    pipeline = Pipeline(DataOptions.parse({"template": "chatml"}), builtin, adapter=Broken())
    with pytest.raises(PluginError, match=r"adapter 'broken': group\(\) raised ZeroDivisionError"):
        list(pipeline.run(pipeline.reader.select([FULL])))


def test_an_adapter_that_gives_no_example_is_named(builtin: Registry) -> None:
    class Empty(BestReplies):
        name = "empty"

        def to_examples(self, record: Record) -> list[Any]:
            return []

    pipeline = Pipeline(DataOptions.parse({"template": "chatml"}), builtin, adapter=Empty())
    with pytest.raises(RecordError, match="adapter 'empty' returned no example; expected one or more"):
        list(pipeline.run([FULL]))
