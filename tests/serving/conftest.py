from __future__ import annotations

from collections.abc import Callable

import pytest
from testkit.at_hand import Tokenizers

from templatekit import Dialogue, Message, Registry, Template, Tokenizer
from templatekit.formats.lookup import find_template
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import loss_spans
from templatekit.types import Example

Sampler = Callable[..., tuple[int, ...]]
Load = Callable[[str, str], tuple[Template, Tokenizer]]


@pytest.fixture(scope="session")
def load(builtin: Registry, tokenizer_of: Tokenizers) -> Load:
    """A template and a tokenizer by name; the template `tokenizer` is the tokenizer's own."""
    loaded: dict[tuple[str, str], Template] = {}

    def load(template: str, tokenizer: str) -> tuple[Template, Tokenizer]:
        found = tokenizer_of(tokenizer)
        if (template, tokenizer) not in loaded:
            loaded[template, tokenizer] = find_template(template, builtin, chat_template=found.chat_template)
        return loaded[template, tokenizer], found

    return load


@pytest.fixture(scope="session")
def sample() -> Sampler:
    """The ids of an answer as training has them: what a model that learned the format perfectly would sample."""

    def sample(template: Template, tokenizer: Tokenizer, dialogue: Dialogue, answer: Message) -> tuple[int, ...]:
        example = Example(messages=(*dialogue.messages, answer), tools=dialogue.tools)
        rendered = template.samples(example, tokenizer.special_tokens, last_only=True)[-1].rendered
        tokenized = Encoder(tokenizer, reuse=False).encode(rendered, loss_spans(rendered, "last"))
        trained = [bool(weight) for weight in tokenized.loss_weights]
        return tokenized.input_ids[trained.index(True) : len(trained) - trained[::-1].index(True)]

    return sample
