"""Texts and records that break tokenizers and templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from templatekit import Record, Tokenizer

WORDS = (
    "Hello",
    "the answer",
    "42",
    "a b",
    "naïve café",
    "日本語",
    "Ünïcödé",
    "x" * 40,
    "def f():\n    return 1",
    "'s",
)
UNICODE = (
    "e\u0301",  # NFD
    "\u00e9",  # NFC
    "\u0301",  # a combining mark first
    "👩\u200d👩\u200d👧",  # joined by ZWJ
    "\u2581",  # SentencePiece's own blank
    "\ufeff",  # byte order mark
    "\x00",
    "\u202eabc\u202c",  # right to left
    "\U0010ffff\U00010000",
    "\ufffd",
    "\uff1c\uff54\uff48\uff49\uff4e\uff4b\uff1e",  # <think> in full width
    "\u1e9e\u0130ß",
    "\x1c\x85\u00a0\u3000\u2028",  # what counts as whitespace differs
)
WHITESPACE = (" ", "  ", "\n", "\n\n", "\n\n\n", "\r\n", "\t", " \n", "\n ", "    ")
JINJA = ("{{ 7*7 }}", "{% raw %}", "{#", "{% endfor %}", "{{ eos_token }}", "%s", "{}", "{name}", "{{name}}")
MARKERS = (
    "### Response:",
    "### Response:\n",
    "\n\n### Response:\n",
    "### Instruction:",
    "### Input:",
    "### End",
    "Input:",
    "<|user|>\n",
    "<|assistant|>:\n",
    "<|im_start|>assistant\n",
    "assistant",
    "user",
)
"""What the bundled templates write around the data."""


def control_strings(tokenizer: Tokenizer) -> list[str]:
    """The tokenizer's control tokens, a few of them where they are many, with those that occur in other models."""
    own = sorted(tokenizer.control_tokens)
    known = ["</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "[/INST]", "<think>", "</think>"]
    named = [text for text in own if "reserved" not in text][:30]
    return list(dict.fromkeys([*named, *known]))


def halves(control: Sequence[str]) -> list[str]:
    """Every control string cut in two: the pieces that must not join over a border."""
    return [half for text in control if len(text) > 1 for half in (text[: len(text) // 2], text[len(text) // 2 :])]


def nasty_texts(tokenizer: Tokenizer, *, max_size: int = 6) -> st.SearchStrategy[str]:
    """Texts put together from control strings, their halves, markers, odd Unicode, whitespace and Jinja syntax."""
    control = control_strings(tokenizer)
    fragments = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(WHITESPACE),
        st.sampled_from(control),
        st.sampled_from(halves(control)),
        st.sampled_from(UNICODE),
        st.sampled_from(MARKERS),
        st.sampled_from(JINJA),
        st.text(max_size=4),
    )
    return st.lists(fragments, max_size=max_size).map("".join)


def plain_texts(*, min_size: int = 1) -> st.SearchStrategy[str]:
    """Texts without control strings that neither begin nor end in whitespace."""
    word = st.sampled_from(
        ["Name", "three", "colours", "Paris", "is", "the capital", "of France.", "12", "it's", "(a)"]
    )
    return st.lists(word, min_size=min_size, max_size=6).map(" ".join)


def instruction_records(texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """(adapter, record) of one turn, in each adapter's own shape."""
    alpaca = st.fixed_dictionaries({"instruction": texts, "input": texts, "output": texts})
    dolly = st.fixed_dictionaries({"instruction": texts, "context": texts, "response": texts})
    pair = st.fixed_dictionaries({"prompt": texts, "completion": texts})
    turn = st.tuples(texts, texts)
    return st.one_of(
        alpaca.map(lambda record: ("alpaca", record)),
        dolly.map(lambda record: ("dolly", record)),
        pair.map(lambda record: ("prompt-completion", record)),
        turn.map(lambda turn: ("messages", {"messages": _chat([turn])})),
        turn.map(lambda turn: ("sharegpt", {"conversations": _sharegpt([turn])})),
    )


def conversations(
    texts: st.SearchStrategy[str], *, min_turns: int = 1, max_turns: int = 3
) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """(adapter, record) of several turns, with and without a system message."""
    turns = st.lists(st.tuples(texts, texts), min_size=min_turns, max_size=max_turns)
    system = st.none() | texts
    return st.one_of(
        st.builds(lambda turns, system: ("messages", {"messages": _chat(turns, system)}), turns, system),
        st.builds(lambda turns, system: ("sharegpt", {"conversations": _sharegpt(turns, system)}), turns, system),
    )


def _chat(turns: Sequence[tuple[str, str]], system: str | None = None) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def _sharegpt(turns: Sequence[tuple[str, str]], system: str | None = None) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in _chat(turns, system)]


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
"""Anything that a JSON file may hold."""


def damaged(record: Record, keys: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    """The record with some of its keys missing or holding anything at all."""
    return st.dictionaries(st.sampled_from(list(keys)), JSON_VALUES | st.just(...), max_size=3).map(
        lambda changes: {k: v for k, v in {**record, **changes}.items() if v is not ...}
    )
