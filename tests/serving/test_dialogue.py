"""A dialogue keeps what was sampled, and its bridges are what a server would encode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.budget import budget

from templatekit import (
    ConfigError,
    Dialogue,
    Message,
    RecordError,
    Registry,
    Template,
    TemplateError,
    TemplateFile,
    Tokenizer,
    UnknownNameError,
)
from templatekit.serving.bridging import difference
from templatekit.testing import tiny_tokenizer
from templatekit.tokens.encoder import Encoder
from templatekit.types import Example

Sampler = Callable[..., tuple[int, ...]]
Load = Callable[[str, str], tuple[Template, Tokenizer]]

STABLE = [
    ("chatml", "bytes"),
    ("chatml", "nfc"),
    ("chatml", "strips"),
    ("llama3", "bytes"),
    ("mistral-v1", "sentencepiece"),
    ("mistral", "metaspace"),
    ("zephyr", "sentencepiece"),
    ("zephyr", "unigram"),
    ("chatml", "qwen3"),
    ("tokenizer", "llama3"),
    ("llama2", "llama2"),
]
"""Templates and tokenizers with an end marker that is one control token. The later ones are real."""

CONTROL = ("<|im_end|>", "<|im_start|>assistant\n", "</s>", "<|eot_id|>", "<think>", "<tool_call>", "[/INST]", "<s>")
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
PLAIN = st.lists(st.one_of(st.sampled_from(("red", " blue", "42", "\n", "é", "if x:")), WORDS), min_size=1, max_size=4)
TEXT = PLAIN.map("".join).map(str.strip).filter(bool)
RUDE = st.lists(st.one_of(WORDS, st.sampled_from(CONTROL)), min_size=1, max_size=5).map("".join)
RUDE_TEXT = RUDE.map(str.strip).filter(bool)
USER = Message(role="user", content="What is 6 times 7?")
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
    for name in ("multiply", "look_up")
]
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content and loop.last %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that drops the thoughts of earlier turns."""


def _template(source: str, name: str = "own") -> Template:
    return Template(TemplateFile(name=name, source=source))


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids of a text as the tokenizer makes them, control tokens included, behind other text."""
    return tuple(tokenizer.backend(control=True, prefix=False).encode(text, add_special_tokens=False).ids)


def _fresh(dialogue: Dialogue, template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the whole prompt, encoded anew."""
    prompt = template.prompt(Example(messages=dialogue.messages, tools=dialogue.tools), tokenizer.special_tokens)
    return Encoder(tokenizer).encode(prompt).input_ids


def _check_sampled(dialogue: Dialogue, answers: list[tuple[int, ...]]) -> None:
    """The answers stand in the branches as they are and in order, and the masks mark nothing else."""
    found = []
    for branch in dialogue.branches:
        assert len(branch.ids) == len(branch.sampled_mask)
        assert branch.ids == branch.prompt_ids + branch.completion_ids
        found += [id for id, sampled in zip(branch.ids, branch.sampled_mask, strict=True) if sampled]
    assert found == [id for answer in answers for id in answer]


@pytest.mark.parametrize(("template_name", "tokenizer_name"), STABLE)
@settings(max_examples=budget(20))
@given(turns=st.lists(st.tuples(RUDE_TEXT, TEXT), min_size=1, max_size=3), last=RUDE_TEXT)
def test_a_bridge_has_the_ids_of_the_fresh_prompt(
    load: Load,
    sample: Sampler,
    template_name: str,
    tokenizer_name: str,
    turns: list[tuple[str, str]],
    last: str,
) -> None:
    template, tokenizer = load(template_name, tokenizer_name)
    dialogue = Dialogue(template, tokenizer)
    answers = []
    question = turns[0][0]
    assert dialogue.add({"role": "user", "content": question}).ids == _fresh(dialogue, template, tokenizer)
    for question, answer in zip([*(question for question, _ in turns[1:]), last], turns, strict=True):
        answers.append(sample(template, tokenizer, dialogue, Message(role="assistant", content=answer[1])))
        assert dialogue.add_answer(answers[-1]).ended
        before = dialogue.ids
        bridge = dialogue.add({"role": "user", "content": question})
        assert bridge.divergence is None
        fresh = _fresh(dialogue, template, tokenizer)
        assert dialogue.ids == dialogue.prompt_ids == before + bridge.ids
        assert fresh[-len(bridge.ids) :] == bridge.ids
        assert fresh[-len(bridge.ids) - 1] == before[-1]
    _check_sampled(dialogue, answers)


def test_the_whole_is_the_fresh_prompt_where_the_answers_are(load: Load, sample: Sampler) -> None:
    """Negative control: ids that the tokenizer would not give for the answer's text are in no fresh prompt."""
    for sampled_letters in (False, True):
        template, tokenizer = load("chatml", "bytes")
        dialogue = Dialogue(template, tokenizer, messages=[USER])
        answer = sample(template, tokenizer, dialogue, Message(role="assistant", content="The capital of France"))
        if sampled_letters:
            answer = (*(id for letter in "The capital of France" for id in _ids(tokenizer, letter)), answer[-1])
        assert dialogue.prompt_ids == _fresh(dialogue, template, tokenizer)
        dialogue.add_answer(answer)
        bridge = dialogue.add(USER)
        assert bridge.divergence is None
        assert (dialogue.ids == _fresh(dialogue, template, tokenizer)) is not sampled_letters
        _check_sampled(dialogue, [answer])


@pytest.mark.parametrize("history", ["keep", "branch"])
@pytest.mark.parametrize("tokenizer_name", ["nfc", "bytes"])
@settings(max_examples=budget(60))
@given(data=st.data())
def test_any_ids_are_kept(load: Load, history: Any, tokenizer_name: str, data: st.DataObject) -> None:
    tokenizer = load("chatml", tokenizer_name)[1]
    template = data.draw(st.sampled_from([load("chatml", tokenizer_name)[0], _template(FORGETFUL)]))
    control = sorted(tokenizer.control_ids)
    marks = [_ids(tokenizer, text) for text in ("<think>\n", "\n</think>\n\n", "<|im_end|>", "Red", " ")]
    some = st.one_of(st.integers(0, tokenizer.vocabulary_size - 1), st.sampled_from(control)).map(lambda id: (id,))
    ids = st.lists(st.one_of(some, st.sampled_from(marks)), min_size=1, max_size=8).map(lambda runs: sum(runs, ()))
    dialogue = Dialogue(template, tokenizer, messages=[USER], history=history)
    answers = []
    for _ in range(3):
        prompt = dialogue.prompt_ids
        answers.append(data.draw(ids))
        dialogue.add_answer(answers[-1])
        assert dialogue.ids == prompt + answers[-1]
        bridge = dialogue.add({"role": "user", "content": data.draw(RUDE_TEXT)})
        assert bridge.begins_branch is (history == "branch" and bridge.divergence is not None)
        assert dialogue.ids == (bridge.ids if bridge.begins_branch else prompt + answers[-1] + bridge.ids)
        if bridge.begins_branch:
            assert bridge.ids == _fresh(dialogue, template, tokenizer)
        generation_prompt = _ids(tokenizer, "<|im_end|>\n<|im_start|>assistant\n")
        assert bridge.ids[-len(generation_prompt) :] == generation_prompt
    _check_sampled(dialogue, answers)
    assert len(dialogue.branches) == 1 + len(dialogue.divergences) * (history == "branch")


@settings(max_examples=budget(40))
@given(text=RUDE)
def test_text_of_users_and_tools_never_becomes_control(load: Load, text: str) -> None:
    template, tokenizer = load("chatml", "nfc")
    counts = []
    for content in (text, "plain"):
        dialogue = Dialogue(template, tokenizer, messages=[USER])
        dialogue.add_answer(_ids(tokenizer, "Hi<|im_end|>"))
        bridge = dialogue.add({"role": "tool", "content": content}, {"role": "user", "content": content})
        counts.append([id for id in bridge.ids if id in tokenizer.control_ids])
    assert counts[0] == counts[1]


def test_a_sampled_control_token_is_kept(load: Load) -> None:
    """Negative control of the property before: what the model sampled may be control, and stays so."""
    template, tokenizer = load("chatml", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    dialogue.add_answer(_ids(tokenizer, "a <tool_call> b<|im_end|>"))
    dialogue.add(USER)
    assert _ids(tokenizer, "<tool_call>")[0] in dialogue.ids


@pytest.mark.parametrize("ended", [True, False])
def test_a_missing_stop_token_is_added_by_the_bridge(load: Load, ended: bool) -> None:
    template, tokenizer = load("chatml", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    answer = _ids(tokenizer, "It is 42" + "<|im_end|>" * ended)
    assert dialogue.add_answer(answer).ended is ended
    bridge = dialogue.add(USER)
    assert bridge.divergence is None
    assert dialogue.ids == _fresh(dialogue, template, tokenizer)
    (stop,) = _ids(tokenizer, "<|im_end|>")
    assert (bridge.ids[0] == stop) is not ended
    _check_sampled(dialogue, [answer])


def test_a_thought_that_was_cut_is_closed(load: Load) -> None:
    template, tokenizer = load("qwen3", "nfc")
    for history in ("keep", "branch"):
        dialogue = Dialogue(template, tokenizer, messages=[USER], history=history)
        answer = dialogue.add_answer(_ids(tokenizer, "<think>\nlet me"))
        assert set(answer.problems) == {"open_thought", "no_end"}
        bridge = dialogue.add({"role": "user", "content": "well?"})
        assert bridge.divergence is not None
        assert [dropped.text for dropped in bridge.divergence.dropped] == ["let me"]
        text = "".join(piece.text for piece in tokenizer.pieces(bridge.ids))
        if history == "keep":
            assert text.startswith("\n</think>\n\n<|im_end|>\n<|im_start|>user\nwell?")
        else:
            assert "let me" not in text


def test_a_call_that_was_cut_is_left_over(load: Load) -> None:
    template, tokenizer = load("qwen3", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER], tools=TOOLS)
    dialogue.add_answer(_ids(tokenizer, 'Wait.\n<tool_call>\n{"name": "mul'))
    bridge = dialogue.add({"role": "user", "content": "well?"})
    assert bridge.divergence is not None
    assert bridge.divergence.reason == "not_in_form"
    assert bridge.divergence.dropped == ((1, "leftover", '\n<tool_call>\n{"name": "mul'),)
    text = "".join(piece.text for piece in tokenizer.pieces(bridge.ids))
    assert text == "<|im_end|>\n<|im_start|>user\nwell?<|im_end|>\n<|im_start|>assistant\n"


def _call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(("template_name", "tokenizer_name"), [("qwen3", "nfc"), ("tokenizer", "qwen3")])
@pytest.mark.parametrize("history", ["keep", "branch"])
def test_tools_then_a_question_that_drops_the_thoughts(
    load: Load, template_name: str, tokenizer_name: str, history: Any
) -> None:
    template, tokenizer = load(template_name, tokenizer_name)
    system = {"role": "system", "content": "Be brief."}
    dialogue = Dialogue(template, tokenizer, messages=[system, USER], tools=TOOLS, history=history)
    calls = "\n".join([_call("multiply", '{"a": 6, "b": 7}'), _call("look_up", '{"q": "é"}')])
    texts = [
        f"<think>\ntwo calls\n</think>\n\n{calls}<|im_end|>",
        "<think>\nanother\n</think>\n\nOne more.\n" + _call("multiply", '{"a": 1}') + "<|im_end|>",
        "<think>\ndone\n</think>\n\n42<|im_end|>",
        "<think>\nsure\n</think>\n\nYes<|im_end|>",
    ]
    answers = [_ids(tokenizer, text) for text in texts]
    assert [len(dialogue.add_answer(answers[0]).message.tool_calls)] == [2]
    first = dialogue.add({"role": "tool", "content": "42"}, {"role": "tool", "content": "<|im_end|>"})
    assert len(dialogue.add_answer(answers[1]).message.tool_calls) == 1
    second = dialogue.add({"role": "tool", "content": "1"})
    assert (first.divergence, second.divergence) == (None, None)
    assert dialogue.ids == _fresh(dialogue, template, tokenizer)
    dialogue.add_answer(answers[2])
    third = dialogue.add({"role": "user", "content": "Are you sure?"})
    assert third.divergence is not None
    assert third.divergence.reason == "dropped"
    assert third.divergence.dropped == (
        (2, "reasoning", "two calls"),
        (5, "reasoning", "another"),
        (7, "reasoning", "done"),
    )
    assert dialogue.divergences == (third.divergence,)
    assert str(third.divergence).startswith("the template leaves out messages[2].reasoning, messages[5].reasoning, ")
    dialogue.add_answer(answers[3])
    _check_sampled(dialogue, answers)
    examples = dialogue.examples(row=3)
    assert [example.trained_tokens for example in examples] == (
        [sum(map(len, answers))] if history == "keep" else [sum(map(len, answers[:3])), len(answers[3])]
    )
    assert [branch.divergence for branch in dialogue.branches] == [None, third.divergence][: len(examples)]
    kept = "two calls" in "".join(piece.text for piece in tokenizer.pieces(examples[-1].input_ids))
    assert kept is (history == "keep")


def test_a_change_is_told_once(load: Load) -> None:
    """With `keep`, the next turns are compared with what the template wrote, not with what was sent."""
    template, tokenizer = load("qwen3", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    dialogue.add_answer(_ids(tokenizer, "<think>\nhm\n</think>\n\n42<|im_end|>"))
    assert dialogue.add(USER).divergence is not None
    dialogue.add_answer(_ids(tokenizer, "42<|im_end|>"))
    bridge = dialogue.add(USER)
    assert bridge.divergence is None
    assert bridge.ids == _fresh(dialogue, template, tokenizer)[-len(bridge.ids) :]


@pytest.mark.parametrize(
    ("answer", "sent", "written"),
    [
        (
            '<tool_call>\n{"name":"multiply","arguments":{}}\n</tool_call><|im_end|>',
            '"multiply","arguments":',
            ' "multiply", "arguments": ',
        ),
        ("42 <|im_end|>", " ", ""),
        ("42<|endoftext|>", "<|endoftext|>", "<|im_end|>"),
        ("a<|im_start|>b<|im_end|>", "<|im_start|>b", ""),
    ],
)
def test_an_answer_that_is_not_in_the_templates_form(load: Load, answer: str, sent: str, written: str) -> None:
    template, tokenizer = load("qwen3", "nfc")
    if answer.startswith("42 "):
        template = _template(FORGETFUL.replace("{{ message.content }}", "{{ message.content | trim }}"))
    dialogue = Dialogue(template, tokenizer, messages=[USER], tools=TOOLS if "tool" in answer else ())
    dialogue.add_answer(_ids(tokenizer, answer))
    bridge = dialogue.add({"role": "tool" if "tool" in answer else "user", "content": "7"})
    assert bridge.divergence is not None
    assert bridge.divergence.reason == "not_in_form"
    assert (bridge.divergence.sent, bridge.divergence.written) == (sent, written)
    (stop,) = _ids(tokenizer, "<|im_end|>")
    assert bridge.ids[0] != stop  # each ends with a token at which servers stop


def test_a_template_that_moves_the_tools() -> None:
    """Mistral's write them before the last user's turn."""
    tokenizer = tiny_tokenizer("nfc")
    start = "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    moving = FORGETFUL.replace(
        start, f"{start}{{% if loop.last and tools %}}TOOLS {{{{ tools | tojson }}}}{{% endif %}}"
    )
    for history in ("keep", "branch"):
        template = _template(moving)
        dialogue = Dialogue(template, tokenizer, messages=[USER], tools=TOOLS, history=history)
        answer = _ids(tokenizer, "42<|im_end|>")
        dialogue.add_answer(answer)
        bridge = dialogue.add({"role": "user", "content": "Are you sure?"})
        assert bridge.divergence is not None
        assert bridge.divergence.reason == "rewritten"
        assert bridge.divergence.sent.startswith("TOOLS [{")
        assert bridge.begins_branch is (history == "branch")
        if history == "branch":
            assert bridge.ids == _fresh(dialogue, template, tokenizer)
        else:
            assert "".join(piece.text for piece in tokenizer.pieces(bridge.ids)).startswith("\n<|im_start|>user\nTOOLS")
        _check_sampled(dialogue, [answer])


def test_an_answer_behind_a_prompt_that_opens_a_thought() -> None:
    tokenizer = tiny_tokenizer("nfc")
    keeps = FORGETFUL.replace(" and loop.last", "").replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    for source in (keeps, keeps.replace("message.reasoning_content %}", "message.reasoning_content and loop.last %}")):
        template = _template(source)
        dialogue = Dialogue(template, tokenizer, messages=[USER])
        answer = dialogue.add_answer(_ids(tokenizer, "hm\n</think>\n\n42<|im_end|>"))
        assert (answer.message.reasoning, answer.message.content) == ("hm", "42")
        bridge = dialogue.add(USER)
        if source is keeps:
            assert bridge.divergence is None
            assert dialogue.ids == _fresh(dialogue, template, tokenizer)
        else:
            assert bridge.divergence is not None
            assert bridge.divergence.dropped == ((1, "reasoning", "hm"),)
            assert bridge.divergence.sent == "<think>\nhm\n</think>\n\n"


def test_a_template_that_writes_the_name_of_a_call_again() -> None:
    """The answer ends where its end marker is, not behind the header of the tool's result."""
    source = (
        "{% for message in messages %}<|im_start|>{{ message.role }}"
        "{% if message.role == 'tool' %} {{ messages[loop.index0 - 1].tool_calls[0].function.name }}{% endif %}"
        "{{ '\\n' }}{{ message.content }}"
        "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tiny_tokenizer("nfc")
    dialogue = Dialogue(_template(source), tokenizer, messages=[USER])
    dialogue.add_answer(_ids(tokenizer, '<tool_call>{"name":"multiply","arguments":{}}</tool_call><|im_end|>'))
    bridge = dialogue.add({"role": "tool", "content": "7"})
    assert bridge.divergence is not None
    expected = "\n<|im_start|>tool multiply\n7<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(piece.text for piece in tokenizer.pieces(bridge.ids)) == expected


@pytest.mark.parametrize("answer", ["42<|endoftext|>", "42", "<think>\n4"])
def test_a_template_that_ends_the_last_answer_otherwise(answer: str) -> None:
    """As gpt-oss ends it with `<|return|>`: the sampled token stands for the one that earlier answers have."""
    tokenizer = tiny_tokenizer("nfc")
    source = FORGETFUL.replace(
        "<|im_end|>", "{{ '<|endoftext|>' if loop.last and message.role == 'assistant' else '<|im_end|>' }}"
    )
    dialogue = Dialogue(_template(source), tokenizer, messages=[USER])
    assert dialogue.add_answer(_ids(tokenizer, answer)).ended is answer.endswith("|>")
    bridge = dialogue.add({"role": "user", "content": "Sure?"})
    expected = "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    if not answer.endswith("|>"):
        expected = "<|im_end|>" + expected
    if answer.startswith("<think>"):
        expected = "\n</think>\n\n" + expected
    assert "".join(piece.text for piece in tokenizer.pieces(bridge.ids)) == expected
    assert (bridge.divergence is None) is (answer == "42")


def test_an_answer_of_nothing_but_a_thought(load: Load) -> None:
    """Its place in the next prompt shows no character of it."""
    template, tokenizer = load("qwen3", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    dialogue.add_answer(_ids(tokenizer, "<think>\nhm\n</think>\n\n<|im_end|>"))
    bridge = dialogue.add({"role": "user", "content": "well?"})
    expected = "\n<|im_start|>user\nwell?<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(piece.text for piece in tokenizer.pieces(bridge.ids)) == expected


def test_a_stop_token_that_begins_the_next_turn() -> None:
    """As with GLM, which stops at `<|user|>`: the bridge does not write it again."""
    tokenizer = tiny_tokenizer("nfc")
    template = _template(FORGETFUL.replace("<|im_end|>\n", ""))
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    dialogue.add_answer(_ids(tokenizer, "42<|im_start|>"))
    bridge = dialogue.add(USER)
    assert bridge.divergence is None
    assert dialogue.ids == _fresh(dialogue, template, tokenizer)


def test_names_are_looked_up(load: Load, builtin: Registry) -> None:
    template, tokenizer = load("chatml", "nfc")
    for found in (Dialogue("chatml", tokenizer, messages=[USER]), Dialogue(template, tokenizer, messages=[USER])):
        assert found.prompt_ids == _fresh(found, template, tokenizer)
    with pytest.raises(UnknownNameError, match="did you mean 'chatml'"):
        Dialogue("chatm", tokenizer, registry=builtin)
    with pytest.raises(TemplateError, match="the tokenizer's own chat template"):
        Dialogue("tokenizer", tokenizer)


def test_a_template_that_leaves_out_an_answer() -> None:
    """It does not show where the answer ends, so only a branch can go on."""
    tokenizer = tiny_tokenizer("nfc")
    kept = "{% for message in messages if message.role == 'user' or messages[-1].role == 'assistant' %}"
    template = _template(FORGETFUL.replace("{% for message in messages %}", kept))
    for history in ("keep", "branch"):
        dialogue = Dialogue(template, tokenizer, messages=[USER], history=history)
        dialogue.add_answer(_ids(tokenizer, "<think>\nhm\n</think>\n\n<|im_end|>"))
        if history == "keep":
            with pytest.raises(RecordError, match=r"does not show where the answer ends; .* use history='branch'"):
                dialogue.add(USER)
        else:
            assert dialogue.add(USER).begins_branch


def test_an_id_that_the_tokenizer_lacks_is_kept(load: Load) -> None:
    """A model may have more rows than its tokenizer has tokens."""
    template, tokenizer = load("chatml", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    answer = (*_ids(tokenizer, "42"), tokenizer.vocabulary_size + 7, *_ids(tokenizer, "<|im_end|>"))
    assert dialogue.add_answer(answer).message.content == "42\ufffd"
    dialogue.add(USER)
    _check_sampled(dialogue, [answer])


def test_a_fork_goes_on_by_itself(load: Load) -> None:
    template, tokenizer = load("chatml", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    prompt = dialogue.prompt_ids
    forks = [dialogue.fork() for _ in range(2)]
    for fork, text in zip(forks, ("red", "blue"), strict=True):
        fork.add_answer(_ids(tokenizer, text))
    assert [fork.ids for fork in forks] == [prompt + _ids(tokenizer, text) for text in ("red", "blue")]
    assert dialogue.prompt_ids == prompt


def test_log_probabilities_stand_beside_their_ids(load: Load) -> None:
    template, tokenizer = load("chatml", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    answer = _ids(tokenizer, "It is 42<|im_end|>")
    dialogue.add_answer(answer, logprobs=[-0.5] * len(answer))
    dialogue.add(USER)
    (branch,) = dialogue.branches
    assert branch.completion_logprobs is not None
    for known, sampled in zip(branch.completion_logprobs, branch.completion_mask, strict=True):
        assert known == (-0.5 if sampled else 0.0)
    dialogue.add_answer(answer)
    assert dialogue.branches[0].completion_logprobs is None


def test_an_example_shows_what_is_trained(load: Load) -> None:
    template, tokenizer = load("qwen3", "nfc")
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    dialogue.add_answer(_ids(tokenizer, "<think>\nhm\n</think>\n\n42<|im_end|>"))
    dialogue.add({"role": "user", "content": "Yes?"})
    dialogue.add_answer(_ids(tokenizer, "Yes"))
    (example,) = dialogue.examples(weight=0.5, row=7)
    text = example.rendered.text
    assert example.row == 7
    assert set(example.loss_weights) == {0.0, 0.5}
    assert [text[t.start : t.end] for t in example.rendered.target_spans] == [
        "<think>\nhm\n</think>\n\n42<|im_end|>",
        "Yes",
    ]
    assert [text[t.marker_start : t.end] for t in example.rendered.target_spans] == ["<|im_end|>", ""]
    assert [text[s.start : s.end] for s in example.rendered.spans if s.origin.message == 1] == ["hm", "42"]
    assert [span.start for span in example.rendered.spans[1:]] == [span.end for span in example.rendered.spans[:-1]]
    assert example.rendered.spans[-1].end == example.loss_spans[-1].end == len(text)
    assert "3 trained" not in example.view().caption or example.trained_tokens == 3


def test_errors_say_what_comes_next(load: Load) -> None:
    template, tokenizer = load("chatml", "nfc")
    misspelt: Any = "keeep"
    with pytest.raises(ConfigError, match="history='keeep': expected keep or branch; did you mean 'keep'"):
        Dialogue(template, tokenizer, history=misspelt)
    with pytest.raises(RecordError, match=r"messages\[0\]: nothing to answer"):
        _ = Dialogue(template, tokenizer).prompt_ids
    with pytest.raises(RecordError, match=r"messages\[1\]: an answer without ids"):
        Dialogue(template, tokenizer, messages=[USER]).add_answer([])
    with pytest.raises(RecordError, match="an id below 0; found -100"):
        Dialogue(template, tokenizer, messages=[USER]).add_answer([1, -100])
    dialogue = Dialogue(template, tokenizer, messages=[USER])
    answer = _ids(tokenizer, "42<|im_end|>")
    with pytest.raises(RecordError, match=r"\d ids with 1 log probabilities; expected one for each id"):
        dialogue.add_answer(answer, logprobs=[0.0])
    with pytest.raises(RecordError, match="behind a prompt that has no answer yet; add all of them in one call"):
        dialogue.add(USER)
    dialogue.add_answer(answer)
    before = dialogue.ids
    with pytest.raises(RecordError, match="an answer behind an answer; join the ids"):
        dialogue.add_answer(answer)
    with pytest.raises(RecordError, match="the last message is an answer, so there is no prompt"):
        _ = dialogue.prompt_ids
    with pytest.raises(RecordError, match="no messages; expected what follows the answer"):
        dialogue.add()
    with pytest.raises(RecordError, match=r"messages\[3\]: an assistant's message; .* add_answer takes the ids"):
        dialogue.add(USER, {"role": "assistant", "content": "x"})
    with pytest.raises(RecordError, match="role: missing"):
        dialogue.add({"content": "x"})
    assert dialogue.ids == before
    assert dialogue.add(USER).divergence is None


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("a<|return|>b", "a<|end|>b", ("<|return|>", "<|end|>")),
        ("abc", "abc", ("", "")),
        ("a<t>hm</t>b", "ab", ("<t>hm</t>", "")),
        ("x<a><b>y", "x<b>y", ("<a>", "")),
        ("abc", "axc", ("b", "x")),
        ("", "a", ("", "a")),
        ("aa", "aaa", ("", "a")),
    ],
)
def test_difference(one: str, other: str, found: tuple[str, str]) -> None:
    assert difference(one, other) == found


@pytest.mark.parametrize("wrong", ["text", [1.5], ["a"], [None]])
def test_what_is_no_id_is_refused(wrong: Any) -> None:
    dialogue = Dialogue("chatml", tiny_tokenizer("bytes"), messages=[USER])
    with pytest.raises(RecordError, match="expected the ids"):
        dialogue.add_answer(wrong)
    with pytest.raises(RecordError, match="expected messages"):
        dialogue.add(wrong)
    with pytest.raises(RecordError, match="expected messages"):
        Dialogue(dialogue.template, dialogue.tokenizer, messages=wrong if isinstance(wrong, list) else [wrong])
