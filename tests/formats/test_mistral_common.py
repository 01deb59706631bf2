"""The Mistral templates give the ids of mistral-common, for prompts and for whole conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from testkit import mistral
from testkit.budget import budget
from testkit.theirs import as_transformers

from templatekit import DataOptions, Example, Message, RecordError, Registry, Template, Tokenizer
from templatekit.formats.lookup import find_template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing import texts
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import loss_spans
from templatekit.types import SpecialTokens

DIFFERENCES: Mapping[str, tuple[Sequence[str], str]] = {
    "an empty answer": (("user", "assistant:"), "trained"),
    "two turns of one role": (("user", "user", "assistant"), "refused"),
    "a system message behind a question": (("user", "system", "user", "assistant"), "refused"),
    "several system messages": (("system", "system", "user", "assistant"), "refused"),
    "a tool's result": (("user", "assistant", "tool", "assistant"), "refused"),
}
"""The differences of mistral-common: it refuses an empty answer, joins turns of one role and system messages (v7 and
later leave system messages where they are), and has tools. docs/reference.md says so.
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mistral")


@pytest.fixture(scope="session", params=mistral.TEMPLATES)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def tokenizer(version: str, folder: Path) -> Tokenizer:
    return mistral.converted(version, folder)


@pytest.fixture
def template(version: str, builtin: Registry) -> Template:
    return find_template(mistral.TEMPLATES[version], builtin)


def our_ids(template: Template, tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids of a prompt, or of a conversation whose last answer is trained."""
    example = Example(messages=tuple(messages))
    if messages[-1].role != "assistant":
        return Encoder(tokenizer).encode(template.prompt(example, tokenizer.special_tokens)).input_ids
    rendered = template.render(example, tokenizer.special_tokens)
    return Encoder(tokenizer).encode(rendered, loss_spans(rendered, "response")).input_ids


ROLES = ("user", "assistant")
TEXTS = st.lists(
    st.sampled_from([*texts.WORDS, *texts.WHITESPACE, *texts.UNICODE, "[INST]", "[/INST]", "</s>", "x  y", "12."]),
    max_size=4,
).map("".join)
CONVERSATIONS = st.builds(
    lambda system, turns, last: [
        *([Message(role="system", content=system)] if system is not None else []),
        *(Message(role=role, content=text) for pair in turns for role, text in zip(ROLES, pair, strict=True)),
        *([Message(role="user", content=last or "a")] if last is not None or not turns else []),
    ],
    st.none() | TEXTS,
    st.lists(st.tuples(TEXTS, TEXTS.filter(bool)), max_size=3),
    st.none() | TEXTS,
)


@given(messages=CONVERSATIONS)
@settings(max_examples=budget(60))
def test_the_same_ids(
    messages: list[Message], version: str, template: Template, tokenizer: Tokenizer, folder: Path
) -> None:
    assert our_ids(template, tokenizer, messages) == mistral.their_ids(version, folder, messages)


def test_the_comparison_notices_a_blank(version: str, tokenizer: Tokenizer, folder: Path, builtin: Registry) -> None:
    """Negative control: the template for the other kind of vocabulary differs only in blanks."""
    other = {"mistral-v3": "mistral-v3-tekken", "mistral-v7": "mistral", "mistral-v1": "mistral-v3"}
    swapped = {**other, **{value: key for key, value in other.items()}}[mistral.TEMPLATES[version]]
    messages = [Message(role="user", content="Hello there."), Message(role="assistant", content="Hi.")]
    assert our_ids(find_template(swapped, builtin), tokenizer, messages) != mistral.their_ids(version, folder, messages)


@given(messages=CONVERSATIONS)
def test_the_same_text_as_their_chat_template(
    messages: list[Message], version: str, template: Template, folder: Path
) -> None:
    """Except where their chat template and their tokenizer differ: in blanks around empty text and after an answer."""
    tokens = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>"}))
    assume(all(message.content.strip(" ") == message.content != "" for message in messages))
    example = Example(messages=tuple(messages))
    assert as_transformers(template.source, example, tokens) == as_transformers(
        mistral.their_chat_template(version, folder), example, tokens
    )


@pytest.mark.parametrize("case", DIFFERENCES)
def test_what_is_done_otherwise(case: str, version: str, template: Template, tokenizer: Tokenizer) -> None:
    turns, outcome = DIFFERENCES[case]
    messages = [Message(role=turn.rstrip(":"), content="" if turn.endswith(":") else "a") for turn in turns]
    if outcome == "trained":
        assert our_ids(template, tokenizer, messages)[-1] == tokenizer.id_of("</s>")
        return
    with pytest.raises(RecordError, match=f"template '{template.name}' refuses: .* in turn; found") as caught:
        our_ids(template, tokenizer, messages)
    assert caught.value.reason == "template_refused"


def test_tools_are_refused(template: Template) -> None:
    example = Example(
        messages=(Message(role="user", content="a"), Message(role="assistant", content="b")), tools=({"name": "t"},)
    )
    with pytest.raises(RecordError, match=r"tools: template .* has no place for this text"):
        template.render(example)


def test_the_pipeline_trains_these_ids(
    version: str, template: Template, tokenizer: Tokenizer, folder: Path, builtin: Registry
) -> None:
    """The pipeline gives the ids that were compared, and labels for the answers and their EOS."""
    options = DataOptions.parse({"dataset": "none", "adapter": "messages"})
    pipeline = Pipeline(options, builtin, template=template, tokenizer=tokenizer)
    turns = [("system", "S"), ("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D.")]
    samples = list(pipeline.run([{"messages": [{"role": role, "content": text} for role, text in turns]}]))
    # Where the system message moves with the last question, the first answer is trained in a separate text.
    assert len(samples) == (2 if template.name.startswith("mistral-v3") else 1)
    trained: list[int] = []
    for sample in samples:
        assert sample.tokenized is not None
        messages = sample.example.messages
        assert sample.tokenized.input_ids == mistral.their_ids(version, folder, messages)
        ends = {target.message + 1 for target in sample.rendered.target_spans}
        answers = [
            place
            for end in sorted(ends)
            for place in range(*(len(mistral.their_ids(version, folder, messages[:n])) for n in (end - 1, end)))
        ]
        assert [place for place, label in enumerate(sample.tokenized.labels) if label >= 0] == answers
        trained += ends
    assert sorted(trained) == [3, 5]
