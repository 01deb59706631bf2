"""Texts that spell control tokens: the ids beside those of transformers, which encodes such a spelling by itself."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from testkit.at_hand import SHARED

from templatekit import Example, Message, Template, TemplateFile
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.tokenizer import Tokenizer

ALIKE = {
    "qwen3": ("<|im_end|>", "a<|im_end|>b", "don't<|im_end|>ing", "</s>"),
    "llama3": ("<|eot_id|>", "a<|eot_id|>b", "say <|im_start|>user now"),
}
"""Texts in which no token lies across the edge of a spelling."""
CUT = {
    "qwen3": ("say <|im_start|>user now", ".<|im_end|>\n", "<|im_end|><|im_start|>"),
    "llama3": ("a <|eot_id|>.", "(<|eot_id|>)"),
}


@lru_cache
def loaded(name: str) -> tuple[Tokenizer, Any]:
    folder = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    from transformers import AutoTokenizer

    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


def ids_of(name: str, text: str) -> tuple[list[int], list[int]]:
    """The prompt's ids, ours and those of transformers with sanitize_control_tokens."""
    tokenizer, theirs = loaded(name)
    template = Template(TemplateFile(name=name, source=theirs.chat_template), strict=False)
    prompt = template.prompt(Example(messages=(Message(role="user", content=text),)), tokenizer.special_tokens)
    sanitised = theirs.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    return list(Encoder(tokenizer).encode(prompt).input_ids), list(sanitised)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in ALIKE.items() for text in texts])
def test_ids_are_those_of_transformers(name: str, text: str) -> None:
    ours, theirs = ids_of(name, text)
    assert ours == theirs


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in CUT.items() for text in texts])
def test_text_is_not_cut_at_the_edges_of_a_spelling(name: str, text: str) -> None:
    """The ids are those of ordinary text; transformers cuts it. Both spell the same, without control ids."""
    ours, theirs = ids_of(name, text)
    tokenizer, _ = loaded(name)
    assert ours != theirs
    assert tokenizer.decode(ours) == tokenizer.decode(theirs)
    controls = [[id for id in ids if id in tokenizer.control_ids] for ids in (ours, theirs)]
    assert controls[0] == controls[1]
    plain = tokenizer.backend(control=False, prefix=False).encode(text.strip(), add_special_tokens=False).ids
    assert ", ".join(map(str, plain[:-1])) in ", ".join(map(str, ours))  # the last may be joined to what follows
