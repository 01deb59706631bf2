"""Texts that break tokenizers and templates, and texts that do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from templatekit.formats.template import Template
from templatekit.tokens.tokenizer import Tokenizer

WORDS = ("a", "Hello", "the answer", "42", "a b", "naïve café", "日本語", "Ünïcödé", "def f():\n    return 1", "'s")
PLAIN = ("Name", "three", "colours", "Paris", "is", "the capital", "of France.", "12", "it's", "(a)")
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
    "\ud7ff\ue000",  # the neighbours of the surrogates
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
"""What well-known templates write around the data."""
CONTROL = ("</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "[/INST]", "<think>", "</think>")
"""Control tokens of well-known models: a tokenizer that lacks them must take them for text."""
RUNS = tuple(unit * 800 for unit in ("a", " ", "\n", "é", "\u2581"))
"""Long runs of one character."""


def control_strings(tokenizer: Tokenizer) -> list[str]:
    """The tokenizer's control tokens, a few of them where they are many, with those of well-known models."""
    own = [text for text in sorted(tokenizer.control_tokens) if "reserved" not in text]
    return list(dict.fromkeys([*own[:30], *CONTROL]))


def halves(control: Iterable[str]) -> list[str]:
    """Every control string cut in two: the pieces that must not join over a border."""
    return [half for text in control if len(text) > 1 for half in (text[: len(text) // 2], text[len(text) // 2 :])]


def markers_of(template: Template) -> list[str]:
    """What a template writes around the data, line by line and in whole pieces, without Jinja's own syntax."""
    body = re.sub(r"\{#.*?#\}", "", template.original, flags=re.DOTALL)
    outside = re.split(r"\{\{.*?\}\}|\{%.*?%\}", body, flags=re.DOTALL)
    quoted = re.findall(r"'((?:[^'\\\n]|\\.)+)'|\"((?:[^\"\\\n]|\\.)+)\"", body)
    inside = [text.replace("\\n", "\n") for pair in quoted for text in pair if re.search(r"[^\w\s]", text)]
    pieces = [text for text in (*outside, *inside) if text.strip()]
    lines = [line for text in pieces for line in text.splitlines(keepends=True) if line.strip()]
    return list(dict.fromkeys([*lines, *pieces]))


def adversarial_text(
    tokenizer: Tokenizer | None = None, template: Template | None = None, *, max_fragments: int = 5
) -> st.SearchStrategy[str]:
    """Texts put together from all that is known to break tokenizers and templates, whitespace at the edges included.

    With a tokenizer its control tokens and their halves are among it, with a template its own markers.
    """
    control: Sequence[str] = CONTROL if tokenizer is None else control_strings(tokenizer)
    markers = MARKERS if template is None else [*markers_of(template), *MARKERS]
    fragment = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(WHITESPACE),
        st.sampled_from(control),
        st.sampled_from(halves(control)),
        st.sampled_from(UNICODE),
        st.sampled_from(markers),
        st.sampled_from(JINJA),
        st.text(max_size=4),
    )
    edge = st.just("") | st.sampled_from(WHITESPACE)
    mixed = st.tuples(edge, st.lists(fragment, max_size=max_fragments).map("".join), edge).map("".join)
    # A long run in one text of some thirty: often enough to be seen, seldom enough to be cheap.
    return st.integers(0, 30).flatmap(lambda n: st.sampled_from(RUNS) if n == 30 else mixed)


def plain_text(*, min_size: int = 1) -> st.SearchStrategy[str]:
    """Texts without control strings that neither begin nor end in whitespace."""
    return st.lists(st.sampled_from(PLAIN), min_size=min_size, max_size=6).map(" ".join)


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
"""Anything that a JSON file may hold."""
