"""Bundled chat templates beside the published ones that they follow, over generated conversations: the same text.

Published files are read from a wheel or from the folder beside the project; those of Llama 2 and Zephyr are restated
from their authors' code. mistral-common's templates are compared in `test_mistral_common`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.budget import budget
from testkit.bundled import ANY_ORDER
from testkit.published import source_of
from testkit.theirs import as_transformers

from templatekit import Example, Message, RecordError, Registry, Template
from templatekit.formats.lookup import find_template
from templatekit.testing import texts
from templatekit.types import SpecialTokens

TOKENS = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>"}))
Original = Callable[[Example, bool], str]
"""Maps (conversation, whether to add the generation prompt) to text; raises for what the original refuses."""


def of_jinja(source: str) -> Original:
    return lambda example, prompt: as_transformers(source, example, TOKENS, add_generation_prompt=prompt)


def llama2(example: Example, prompt: bool) -> str:
    """meta-llama/llama, llama/generation.py: chat_completion, with BOS and EOS as text."""
    system, turns = parted(example)
    alternating(turns)
    texts = [message.content for message in turns]
    if system is not None:
        texts[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{texts[0]}"
    pieces = [
        f"<s>[INST] {text.strip()} [/INST]" if index % 2 == 0 else f" {text.strip()} </s>"
        for index, text in enumerate(texts)
    ]
    return "".join(pieces)


def zephyr(example: Example, prompt: bool) -> str:
    """HuggingFaceH4/zephyr-7b-beta, tokenizer_config.json: chat_template."""
    headers = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
    text = "".join(f"{headers[message.role]}\n{message.content}</s>\n" for message in example.messages)
    return f"{text}<|assistant|>\n" if prompt else text


def vicuna(example: Example, prompt: bool) -> str:
    """lm-sys/FastChat: vicuna_v1.1, from the package itself. It takes an empty message for none."""
    conversation = pytest.importorskip("fastchat.conversation", reason="pip install --no-deps fschat")
    template = conversation.get_conv_template("vicuna_v1.1")
    system, turns = parted(example)
    alternating(turns)
    if system is not None:
        template.set_system_message(system)
    for message, role in zip(turns, (*template.roles,) * len(turns), strict=False):
        template.append_message(role, message.content)
    if prompt:
        template.append_message(template.roles[1], None)
    return "<s>" + str(template.get_prompt())


def parted(example: Example) -> tuple[str | None, Sequence[Message]]:
    first, *rest = example.messages
    return (first.content, rest) if first.role == "system" else (None, example.messages)


def alternating(turns: Sequence[Message]) -> None:
    assert [turn.role for turn in turns] == [("user", "assistant")[index % 2] for index in range(len(turns))]


def published(name: str, tokenizer_of: Any) -> Original:
    """The original of a bundled template; skips the test if no copy is available."""
    if name in RESTATED:
        return RESTATED[name]
    if name == "qwen3":
        config = json.loads((tokenizer_of.folder("qwen3") / "tokenizer_config.json").read_text(encoding="utf-8"))
        return of_jinja(config["chat_template"])
    return of_jinja(source_of(name))


RESTATED = {"llama2": llama2, "vicuna": vicuna, "zephyr": zephyr}
FOLLOWED = (*RESTATED, "gemma", "gemma3", "llama3", "phi3", "qwen3")
TEXTS = st.lists(
    st.sampled_from([*texts.WORDS, *texts.WHITESPACE, *texts.MARKERS, *texts.JINJA, *texts.UNICODE, "</s>"]),
    min_size=1,
    max_size=4,
).map("".join)
ROLES = st.sampled_from(["user", "assistant", "user", "assistant", "system"])


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    """Mostly questions and answers in turn, sometimes in another order."""
    system = [Message(role="system", content=draw(TEXTS))] if draw(st.booleans()) else []
    if draw(st.integers(0, 4)):
        roles = ["user", "assistant"] * draw(st.integers(1, 3))
        roles = roles[: len(roles) - draw(st.integers(0, 1))]
    else:
        roles = draw(st.lists(ROLES, min_size=1, max_size=4))
    return Example(messages=(*system, *(Message(role=role, content=draw(TEXTS)) for role in roles)))


def outcome(render: Callable[[], str]) -> str | None:
    """The text, or None for a refusal."""
    try:
        return render()
    except Exception:
        return None


def ours(template: Template, example: Example, prompt: bool) -> str:
    """The text as a server renders it, which must be the text of training."""
    served = as_transformers(template.source, example, TOKENS, add_generation_prompt=prompt)
    if prompt and example.messages[-1].role != "assistant":
        assert template.prompt(example, TOKENS).text == served
    if not prompt:
        try:
            assert template.render(example, TOKENS).text == served
        except RecordError as error:
            assert error.reason in ("prompt_is_no_prefix", "no_place_for_field"), error
    return served


@pytest.mark.parametrize("name", FOLLOWED)
@given(example=conversations(), prompt=st.booleans())
@settings(max_examples=budget(60))
def test_the_text_is_the_originals(
    name: str, example: Example, prompt: bool, tokenizer_of: Any, builtin: Registry
) -> None:
    template, original = find_template(name, builtin), published(name, tokenizer_of)
    mine, theirs = outcome(lambda: ours(template, example, prompt)), outcome(lambda: original(example, prompt))
    if mine is None and theirs is not None:
        roles = [message.role for message in example.messages]
        # The conversations of which originals lose a message, or print it as another role's turn.
        assert name not in ANY_ORDER and ("system" in roles[1:] or roles == ["system"])
        return
    assert mine == theirs


TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": st.sampled_from(["get", "böse"]), "description": TEXTS}),
        }
    ),
    max_size=2,
)
CALLS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["get", "böse"]),
        "arguments": st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=2) | TEXTS,
    }
)
THOUGHTS = st.sampled_from(["", "\n", "Hm.", "\nHm.\n", "<think>", "</think>", "<think>\nHm.\n</think>\n\n"])


@st.composite
def agents(draw: st.DrawFn) -> Example:
    """Conversations with tools, their calls and answers, and reasoning, in the field and in the text."""
    messages = [Message(role="system", content=draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        disguised = draw(st.sampled_from(["{}", "{}", "{}", "<tool_response>{}</tool_response>"]))
        messages.append(Message(role="user", content=disguised.format(draw(TEXTS))))
        for _ in range(draw(st.integers(0, 2))):
            calls = tuple(draw(st.lists(CALLS, min_size=1, max_size=2)))
            wrapped = tuple({"type": "function", "function": call} for call in calls) if draw(st.booleans()) else calls
            text = draw(st.just("") | TEXTS)
            messages.append(
                Message(role="assistant", content=text, tool_calls=wrapped, reasoning=draw(THOUGHTS).strip("\n"))
            )
            messages += [Message(role="tool", content=draw(TEXTS)) for _ in calls]
        thought = draw(THOUGHTS)
        messages.append(Message(role="assistant", content=f"{thought}{draw(TEXTS)}", reasoning=draw(THOUGHTS)))
    return Example(messages=tuple(messages[: len(messages) - draw(st.integers(0, 1))]), tools=tuple(draw(TOOLS)))


@given(example=agents(), prompt=st.booleans())
@settings(max_examples=budget(100))
def test_qwen3_with_tools_and_thinking(example: Example, prompt: bool, tokenizer_of: Any, builtin: Registry) -> None:
    template, original = find_template("qwen3", builtin), published("qwen3", tokenizer_of)
    ours = as_transformers(template.source, example, TOKENS, add_generation_prompt=prompt)
    assert ours == original(example, prompt)


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_qwen3_without_thinking(enable_thinking: bool, tokenizer_of: Any, builtin: Registry) -> None:
    source = find_template("qwen3", builtin).source
    config = json.loads((tokenizer_of.folder("qwen3") / "tokenizer_config.json").read_text(encoding="utf-8"))
    example = Example(messages=(Message(role="user", content="A?"),))
    more: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": enable_thinking}
    ours = as_transformers(source, example, TOKENS, **more)
    assert ours == as_transformers(config["chat_template"], example, TOKENS, **more)
    assert ours.endswith("</think>\n\n") is not enable_thinking


def test_unknown_roles_are_refused_where_originals_drop_or_print_them(tokenizer_of: Any, builtin: Registry) -> None:
    """Only here are the bundled templates stricter: no message that a client sends is lost."""
    example = Example(messages=(Message(role="user", content="A?"), Message(role="critic", content="lost")))
    for name in FOLLOWED:
        if name == "llama3":  # its headers hold any role
            continue
        with pytest.raises(Exception, match="found critic"):
            as_transformers(find_template(name, builtin).source, example, TOKENS)
    assert "lost" not in published("phi3", tokenizer_of)(example, False)
    assert "critic" in published("gemma", tokenizer_of)(example, False)


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_comparison_notices_a_character(name: str, tokenizer_of: Any, builtin: Registry) -> None:
    """Negative control: an original whose answer is one character longer."""
    template, original = find_template(name, builtin), published(name, tokenizer_of)
    question = Message(role="user", content="A?")
    example, longer = (Example(messages=(question, Message(role="assistant", content=text))) for text in ("B.", "B.!"))
    assert ours(template, example, False) == original(example, False) != original(longer, False)
