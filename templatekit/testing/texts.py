"""Strategies for texts: adversarial ones, which are known to break tokenizers and templates, and plain ones."""

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
    "\x1c\x85\u00a0\u3000\u2028",  # not whitespace everywhere
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
"""Texts that well-known templates write around fields."""
CONTROL = ("</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "[/INST]", "<think>", "</think>")
"""Control tokens of well-known models. A tokenizer without them must treat them as text."""
RUNS = tuple(unit * 800 for unit in ("a", " ", "\n", "é", "\u2581"))
"""Long runs of one character."""


def control_strings(tokenizer: Tokenizer) -> list[str]:
    """Up to 30 of the tokenizer's control tokens, and those of well-known models."""
    own = [text for text in sorted(tokenizer.control_tokens) if "reserved" not in text]
    return list(dict.fromkeys([*own[:30], *CONTROL]))


def halves(control: Iterable[str]) -> list[str]:
    """Both halves of every control string; they must not join across the edge of two texts."""
    return [half for text in control if len(text) > 1 for half in (text[: len(text) // 2], text[len(text) // 2 :])]


def markers_of(template: Template) -> list[str]:
    """The literals of a template, without Jinja syntax: the whole literals, and their lines."""
    body = re.sub(r"\{#.*?#\}", "", template.original, flags=re.DOTALL)
    outside = re.split(r"\{\{.*?\}\}|\{%.*?%\}", body, flags=re.DOTALL)
    quoted = re.findall(r"'((?:[^'\\\n]|\\.)+)'|\"((?:[^\"\\\n]|\\.)+)\"", body)
    in_code = [text.replace("\\n", "\n") for pair in quoted for text in pair if re.search(r"[^\w\s]", text)]
    literals = [text for text in (*outside, *in_code) if text.strip()]
    lines = [line for text in literals for line in text.splitlines(keepends=True) if line.strip()]
    return list(dict.fromkeys([*lines, *literals]))


def adversarial_text(
    tokenizer: Tokenizer | None = None, template: Template | None = None, *, max_fragments: int = 5
) -> st.SearchStrategy[str]:
    """Texts composed of fragments that are known to break tokenizers and templates, with whitespace at the edges.

    The control tokens of `tokenizer`, their halves, and the literals of `template` are among the fragments.
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
    # One text in about thirty is a long run: often enough to be tried, rare enough to stay fast.
    return st.integers(0, 30).flatmap(lambda n: st.sampled_from(RUNS) if n == 30 else mixed)


def plain_text(*, min_size: int = 1) -> st.SearchStrategy[str]:
    """Texts without control strings and without whitespace at the edges."""
    return st.lists(st.sampled_from(PLAIN), min_size=min_size, max_size=6).map(" ".join)


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
"""Any value that a JSON file may contain."""
