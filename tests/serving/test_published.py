"""Dialogues by the chat templates of many models: each bridge is the end of the next prompt, and no more of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testkit.budget import one_in
from testkit.published import CALL, GET, TRL, assistant, source_of, token_texts, tool, user

from templatekit import Dialogue, Message, Template, TemplateFile, Tokenizer
from templatekit.errors import TemplatekitError
from templatekit.serving.dialogue import History
from templatekit.testing import tiny_tokenizer
from templatekit.tokens.encoder import Encoder
from templatekit.types import Example

Sampler = Callable[..., tuple[int, ...]]
Turn = tuple[Message, Message]

CONVERSATIONS: dict[str, list[Turn]] = {
    "plain": [(assistant("It is 42."), user("Zebra?")), (assistant("Yes."), user("Quokka?"))],
    "thoughts": [
        (assistant("It is 42.", reasoning="six sevens"), user("Zebra?")),
        (assistant("Yes.", reasoning="the same"), user("Quokka?")),
    ],
    "tools": [(assistant("", tool_calls=(CALL,)), tool("Zebra.")), (assistant("Yes."), user("Quokka?"))],
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", one_in(4, TRL))
def test_a_bridge_is_the_end_of_the_next_prompt(name: str, kind: str, sample: Sampler) -> None:
    tokenizer = tiny_tokenizer("bytes", tuple(sorted({*token_texts(name)} - {"<|im_start|>", "<|im_end|>"})))
    template = Template(TemplateFile(name=name, source=source_of(name)), strict=False)
    histories: tuple[History, ...] = ("keep", "branch")
    for history in histories:
        dialogue = Dialogue(template, tokenizer, messages=[user("What is 6 times 7?")], history=history)
        if kind == "tools":
            dialogue = Dialogue(template, tokenizer, messages=dialogue.messages, tools=[GET], history=history)
        for answer, following in CONVERSATIONS[kind]:
            try:
                ids = sample(template, tokenizer, dialogue, answer)
            except TemplatekitError as error:  # the template has no place for such an answer
                assert kind != "plain", error
                return
            dialogue.add_answer(ids)
            bridge = dialogue.add(following)
            fresh = _fresh(dialogue, template, tokenizer)
            assert fresh[-len(bridge.ids) :] == bridge.ids
            if not bridge.begins_branch:
                text = tokenizer.decode(bridge.ids)
                assert text.count(following.content) == 1
                assert answer.content == "" or answer.content not in text
                assert dialogue.ids[-len(bridge.ids) - len(ids) : -len(bridge.ids)] == ids
        assert sum(dialogue.sampled_mask) <= len(dialogue.ids)


def _fresh(dialogue: Dialogue, template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    prompt = template.prompt(Example(messages=dialogue.messages, tools=dialogue.tools), tokenizer.special_tokens)
    return Encoder(tokenizer).encode(prompt).input_ids
