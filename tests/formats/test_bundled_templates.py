"""The bundled templates, byte for byte: as in their authors' own code, and as in golden files.

In `tests/golden/` the text from the generation boundary to the end of the end marker stands between ⟪ and ⟫, and ‖
stands before the end marker. `pytest --update-golden` writes the files anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.bundled import BUNDLED, CHAT, ONE_TURN, REWRITES, WITHOUT_SYSTEM, own_answer

from templatekit import Example, Message, RecordError, Registry, RenderedText, Template
from templatekit.formats.lookup import find_template
from templatekit.testing import texts
from templatekit.types import SpecialTokens

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOKENS = SpecialTokens(
    bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"})
)


def user(text: str, context: str = "") -> Message:
    return Message(role="user", content=text, context=context)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


SYSTEM = Message(role="system", content="Answer in one word.")
EXAMPLES: Mapping[str, Example] = {
    "plain": Example(messages=(user("Name a colour."), assistant("Red."))),
    "context": Example(
        messages=(user("Translate to French.", "Good morning.\n\nHow are you?"), assistant("Bonjour.\n\nÇa va ?"))
    ),
    "system": Example(messages=(SYSTEM, user("Name a colour."), assistant("Red."))),
    "turns": Example(messages=(SYSTEM, user("A?"), assistant("B."), user("  C?\n", "D"), assistant(""))),
}


@pytest.fixture(params=BUNDLED)
def template(request: pytest.FixtureRequest, builtin: Registry) -> Template:
    return find_template(request.param, builtin)


def marked(rendered: RenderedText) -> str:
    """The text with its targets in brackets."""
    signs: dict[int, str] = {}
    for target in rendered.target_spans:
        for place, sign in ((target.start, "⟪"), (target.marker_start, "‖"), (target.end, "⟫")):
            signs[place] = signs.get(place, "") + sign
    return "".join(signs.get(at, "") + rendered.text[at : at + 1] for at in range(len(rendered.text) + 1))


def test_every_bundled_template_is_tried_here(builtin: Registry) -> None:
    bundled = [name for name in builtin.templates if builtin.templates.owner(name).built_in]
    assert sorted(bundled) == sorted(BUNDLED)


def test_the_reference_names_every_bundled_template() -> None:
    reference = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    table = reference.partition("## Bundled templates")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z0-9-]+)` \|", table, flags=re.MULTILINE)) == sorted(BUNDLED)


@pytest.mark.parametrize("case", EXAMPLES)
def test_golden(template: Template, case: str, update_golden: bool) -> None:
    try:
        text = marked(template.render(EXAMPLES[case], TOKENS))
    except RecordError as error:
        text = f"refused ({error.reason}): {error}\n"
    path = GOLDEN / f"{template.name}.{case}.txt"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    assert path.is_file(), f"no golden file {path.name}; write it with --update-golden"
    assert text == path.read_bytes().decode()


def _outcome(work: Callable[[], object]) -> tuple[str, str | None] | None:
    try:
        work()
    except RecordError as error:
        return error.reason, error.field
    return None


@pytest.mark.parametrize("continue_final", [False, True])
@pytest.mark.parametrize("case", ["plain", "context", "system"])
def test_a_prompt_loses_no_message(
    template: Template, case: str, continue_final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that the whole text does not print is not in the prompt either; both refuse it with the same words."""
    refused = _outcome(lambda: template.render(EXAMPLES[case], TOKENS))

    def prompted() -> tuple[str, str | None] | None:
        return _outcome(lambda: template.prompt(EXAMPLES[case], TOKENS, continue_final=continue_final))

    assert prompted() == refused
    monkeypatch.setattr(Template, "_check_complete", lambda *anything: None)
    unchecked = prompted()
    if refused is not None and refused[0] == "no_place_for_field":
        assert unchecked is None, "without the check it would be lost in silence"


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}.{case}.txt" for name in BUNDLED for case in EXAMPLES}
    assert {path.name for path in GOLDEN.glob("*.*.txt")} == expected


# How the authors' own code writes an entry: (instruction, input, output) to (prompt, whole text without EOS).
Format = Callable[[str, str, str], tuple[str, str]]
BLURB = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def stanford(instruction: str, input: str, output: str) -> tuple[str, str]:
    """tatsu-lab/stanford_alpaca, train.py: PROMPT_DICT."""
    prompts = {
        "prompt_input": (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        ),
        "prompt_no_input": (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Response:"
        ),
    }
    chosen = prompts["prompt_input"] if input != "" else prompts["prompt_no_input"]
    prompt = chosen.format_map({"instruction": instruction, "input": input})
    return prompt, prompt + output


def alpaca_lora(instruction: str, input: str, output: str) -> tuple[str, str]:
    """tloen/alpaca-lora, templates/alpaca.json."""
    if input:
        prompt = f"{PAIRED}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    else:
        prompt = f"{BLURB}\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    return prompt, prompt + output


def chapter7(instruction: str, input: str, output: str) -> tuple[str, str]:
    """rasbt/LLMs-from-scratch, ch07: format_input and InstructionDataset."""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{instruction}"
    )
    input_text = f"\n\n### Input:\n{input}" if input else ""
    prompt = instruction_text + input_text
    return prompt, prompt + f"\n\n### Response:\n{output}"


def seed(instruction: str, input: str, output: str) -> tuple[str, str]:
    """The first tutorial: a space after two headers, and an input header that is always there."""
    prompt = f"{BLURB}\n\n### Instruction: \n{instruction}\n\n###Input: \n{input}\n\n### Response: \n"
    return prompt, prompt + output


def dolly(instruction: str, input: str, output: str) -> tuple[str, str]:
    """databrickslabs/dolly, training/consts.py: PROMPT_NO_INPUT_FORMAT, PROMPT_WITH_INPUT_FORMAT."""
    intro, end = BLURB, "### End"
    if input:
        prompt = f"{intro}\n\n### Instruction:\n{instruction}\n\nInput:\n{input}\n\n### Response:\n"
    else:
        prompt = f"{intro}\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    return prompt, prompt + f"{output}\n\n{end}"


def phi3_chapter7(instruction: str, input: str, output: str) -> tuple[str, str]:
    """rasbt/LLMs-from-scratch, ch07, exercise 7.1."""
    instruction_text = f"<|user|>\n{instruction}"
    input_text = f"\n{input}" if input else ""
    prompt = instruction_text + input_text + "\n<|assistant|>:\n"
    return prompt, prompt + output


def one_message(instruction: str, input: str) -> str:
    """Chat messages have no context field: the context follows the content after an empty line."""
    return f"{instruction}\n\n{input}" if input and instruction else instruction or input


def chatml(instruction: str, input: str, output: str) -> tuple[str, str]:
    """OpenAI's ChatML, without a system message."""
    prompt = f"<|im_start|>user\n{one_message(instruction, input)}<|im_end|>\n<|im_start|>assistant\n"
    return prompt, f"{prompt}{output}<|im_end|>\n"


def llama3(instruction: str, input: str, output: str) -> tuple[str, str]:
    """Meta's Llama 3: header ids, and every content trimmed."""
    prompt = (
        f"<s><|start_header_id|>user<|end_header_id|>\n\n{one_message(instruction, input).strip()}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    return prompt, f"{prompt}{output.strip()}<|eot_id|>"


def text(instruction: str, input: str, output: str) -> tuple[str, str]:
    """The template adds nothing."""
    prompt = one_message(instruction, input)
    return prompt, prompt + output


def llama2(instruction: str, input: str, output: str) -> tuple[str, str]:
    """meta-llama/llama, llama/generation.py: chat_completion."""
    prompt = f"<s>[INST] {one_message(instruction, input).strip()} [/INST]"
    return prompt, f"{prompt} {output.strip()} </s>"


def gemma(instruction: str, input: str, output: str) -> tuple[str, str]:
    """google/gemma-7b-it's and google/gemma-3-4b-it's chat templates."""
    content = one_message(instruction, input).strip()
    prompt = f"<s><start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n"
    return prompt, f"{prompt}{output.strip()}<end_of_turn>\n"


def phi3(instruction: str, input: str, output: str) -> tuple[str, str]:
    """microsoft/Phi-3-mini-4k-instruct's chat template."""
    prompt = f"<|user|>\n{one_message(instruction, input)}<|end|>\n<|assistant|>\n"
    return prompt, f"{prompt}{output}<|end|>\n</s>"


def zephyr(instruction: str, input: str, output: str) -> tuple[str, str]:
    """HuggingFaceH4/zephyr-7b-beta's chat template."""
    prompt = f"<|user|>\n{one_message(instruction, input)}</s>\n<|assistant|>\n"
    return prompt, f"{prompt}{output}</s>\n"


def qwen3(instruction: str, input: str, output: str) -> tuple[str, str]:
    """Qwen/Qwen3-8B's chat template: the last answer has a thinking block, if an empty one."""
    prompt = f"<|im_start|>user\n{one_message(instruction, input)}<|im_end|>\n<|im_start|>assistant\n"
    answer = output.lstrip("\n")
    return prompt, f"{prompt}<think>\n\n</think>\n\n{answer}<|im_end|>\n"


def vicuna(instruction: str, input: str, output: str) -> tuple[str, str]:
    """lm-sys/FastChat, fastchat/conversation.py: vicuna_v1.1."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    prompt = f"<s>{system} USER: {one_message(instruction, input)} ASSISTANT:"
    return prompt, f"{prompt} {output}</s>"


def blanked(text: str) -> str:
    """SentencePiece's dummy prefix: a blank before a text, none before no text."""
    return f" {text}" if text else ""


def mistral_v1(instruction: str, input: str, output: str) -> tuple[str, str]:
    """mistral-common, tokens/tokenizers/instruct.py: InstructTokenizerV1, over SentencePiece."""
    prompt = f"<s> [INST] {one_message(instruction, input)} [/INST]"
    return prompt, f"{prompt}{blanked(output)}</s>"


def mistral_sentencepiece(instruction: str, input: str, output: str) -> tuple[str, str]:
    """mistral-common, tokens/tokenizers/instruct.py: InstructTokenizerV2 to V7, over SentencePiece."""
    prompt = f"<s>[INST]{blanked(one_message(instruction, input))}[/INST]"
    return prompt, f"{prompt}{blanked(output.rstrip(' '))}</s>"


def mistral_tekken(instruction: str, input: str, output: str) -> tuple[str, str]:
    """The same over Tekken, which has no dummy prefix."""
    prompt = f"<s>[INST]{one_message(instruction, input)}[/INST]"
    return prompt, f"{prompt}{output.rstrip(' ')}</s>"


FORMATS: Mapping[str, Format] = {
    "text": text,
    "alpaca": stanford,
    "alpaca-lora": alpaca_lora,
    "chapter7": chapter7,
    "seed": seed,
    "dolly": dolly,
    "phi3-chapter7": phi3_chapter7,
    "chatml": chatml,
    "gemma": gemma,
    "gemma3": gemma,
    "llama2": llama2,
    "llama3": llama3,
    "mistral-v1": mistral_v1,
    "mistral-v3": mistral_sentencepiece,
    "mistral-v3-tekken": mistral_tekken,
    "mistral-v7": mistral_sentencepiece,
    "mistral": mistral_tekken,
    "phi3": phi3,
    "qwen3": qwen3,
    "vicuna": vicuna,
    "zephyr": zephyr,
}
ENDS = {
    "dolly": "\n\n### End",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "llama2": " </s>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    **dict.fromkeys(("chatml", "qwen3"), "<|im_end|>"),
}
"""The end marker; the others end in EOS."""
FIELDS = st.lists(
    st.one_of(
        st.sampled_from([*texts.WORDS, *texts.WHITESPACE, *texts.MARKERS, *texts.JINJA, *texts.UNICODE, "</s>"]),
        st.text(max_size=4),
    ),
    max_size=4,
).map("".join)


def check_target(rendered: RenderedText, prompt: str, answer: str, end: str) -> None:
    """Check one target: from the end of the prompt to the end of the end marker, which directly follows the answer."""
    (target,) = rendered.target_spans
    assert rendered.text[: target.start] == prompt
    assert rendered.text[target.marker_start : target.end] == end
    assert rendered.text[target.start : target.marker_start].endswith(answer)


@given(FIELDS, FIELDS, FIELDS)
def test_text_is_what_the_authors_code_writes(
    template: Template, instruction: str, context: str, response: str
) -> None:
    example = Example(messages=(user(instruction, context), assistant(response)))
    prompt, whole = FORMATS[template.name](instruction, context, response)
    rendered = template.render(example, TOKENS)
    eos = "" if template.name in (*CHAT, "dolly") else "</s>"
    assert rendered.text == whole + eos
    assert template.prompt(example, TOKENS).text == prompt
    check_target(rendered, prompt, own_answer(template.name, response), ENDS.get(template.name, "</s>"))


def test_the_target_check_notices_a_shifted_end(template: Template) -> None:
    example = EXAMPLES["plain"]
    rendered = template.render(example, TOKENS)
    prompt, _ = FORMATS[template.name]("Name a colour.", "", "Red.")
    end = ENDS.get(template.name, "</s>")
    check_target(rendered, prompt, "Red.", end)
    (target,) = rendered.target_spans
    for wrong in (
        replace(target, end=target.end - 1),
        replace(target, start=target.start + 1),
        replace(target, marker_start=target.marker_start - 1),
    ):
        with pytest.raises(AssertionError):
            check_target(replace(rendered, target_spans=(wrong,)), prompt, "Red.", end)


BLANKS = dict.fromkeys(("llama2", "mistral-v1", "mistral-v3", "mistral-v7", "vicuna"), " ")
"""The blanks that these templates write between the prompt and the answer."""


@pytest.mark.parametrize("name", [name for name in CHAT if name not in REWRITES])
@given(turns=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=4), system=st.none() | FIELDS)
def test_targets_begin_at_rendered_prompts_in_every_turn(
    name: str, turns: list[tuple[str, str]], system: str | None, builtin: Registry
) -> None:
    template = find_template(name, builtin)
    messages = [] if system is None else [Message(role="system", content=system)]
    messages += [message for question, answer in turns for message in (user(question), assistant(answer))]
    if name in WITHOUT_SYSTEM and system is not None:
        with pytest.raises(RecordError, match="no system message; found system"):
            template.render(Example(messages=tuple(messages)), TOKENS)
        return
    rendered = template.render(Example(messages=tuple(messages)), TOKENS)
    assert len(rendered.target_spans) == len(turns)
    end = ENDS.get(name, "</s>")
    for target in rendered.target_spans:
        before = Example(messages=tuple(messages[: target.message]))
        assert rendered.text[: target.start] == template.prompt(before, TOKENS).text
        own = own_answer(name, messages[target.message].content)
        answer = rendered.text[target.start : target.marker_start]
        assert answer.removeprefix(BLANKS.get(name, "")) == own
        assert rendered.text[target.marker_start : target.end] == end


@pytest.mark.parametrize("name", ONE_TURN)
@pytest.mark.parametrize(
    ("messages", "reason", "words"),
    [
        (
            (user("a"), assistant("b"), user("c"), assistant("d")),
            "not_one_turn",
            "found user, assistant, user, assistant",
        ),
        ((assistant("b"),), "not_one_turn", "found assistant"),
        ((Message(role="system", content="s"),), "not_one_turn", "found nothing"),
        ((user("a"),), "no_response", "needs an answer; found none"),
        ((SYSTEM, user("a"), assistant("b")), "no_place_for_field", "messages[0].content: template"),
        (
            (user("a"), Message(role="assistant", content="b", reasoning="r")),
            "no_place_for_field",
            "messages[1].reasoning",
        ),
        ((Message(role="user", content="a", name="n"), assistant("b")), "no_place_for_field", "messages[0].name"),
        (
            (user("a"), Message(role="assistant", content="b", tool_calls=({"x": 1},))),
            "no_place_for_field",
            "messages[1].tool_calls",
        ),
    ],
)
def test_what_a_one_turn_template_cannot_express(
    name: str, messages: tuple[Message, ...], reason: str, words: str, builtin: Registry
) -> None:
    with pytest.raises(RecordError) as caught:
        find_template(name, builtin).render(Example(messages=messages), TOKENS)
    assert caught.value.reason == reason
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CHAT if name != "qwen3"])
@pytest.mark.parametrize(
    ("message", "field"),
    [
        (Message(role="assistant", content="b", reasoning="because"), "messages[1].reasoning"),
        (Message(role="assistant", content="b", name="bob"), "messages[1].name"),
        (Message(role="assistant", content="b", tool_calls=({"x": 1},)), "messages[1].tool_calls"),
    ],
)
def test_a_chat_template_that_loses_a_field(name: str, message: Message, field: str, builtin: Registry) -> None:
    with pytest.raises(RecordError, match="has no place for this text of the assistant message") as caught:
        find_template(name, builtin).render(Example(messages=(user("a"), message)), TOKENS)
    assert (caught.value.field, caught.value.reason) == (field, "no_place_for_field")


def test_tools_are_not_lost(builtin: Registry) -> None:
    for name in BUNDLED:
        example = Example(messages=(user("a"), assistant("b")), tools=({"name": "t"},))
        if name == "qwen3":  # it prints them
            assert '{"name": "t"}' in find_template(name, builtin).render(example, TOKENS).text
            continue
        with pytest.raises(RecordError) as caught:
            find_template(name, builtin).render(example, TOKENS)
        assert caught.value.field == "tools"


def test_half_a_surrogate_pair_is_named(template: Template) -> None:
    example = Example(messages=(user("ok", "then \ud83d"), assistant("b")))
    with pytest.raises(RecordError) as caught:
        template.render(example, TOKENS)
    assert caught.value.reason == "bad_text"
    assert caught.value.field == "messages[0].context"
    with pytest.raises(RecordError, match="half of a surrogate pair"):
        template.prompt(example, TOKENS)


def test_instruction_formats_leave_bos_to_the_tokenizer(builtin: Registry) -> None:
    """BOS comes first if the tokenizer puts it before plain text, and is absent if the tokenizer does not."""
    template = find_template("alpaca", builtin)
    example = EXAMPLES["plain"]
    assert (
        template.render(example, replace(TOKENS, adds_bos=True)).text == "<s>" + template.render(example, TOKENS).text
    )
    first = template.render(example, replace(TOKENS, adds_bos=True)).spans[0]
    assert first.origin.is_template
    chat = find_template("chatml", builtin)
    assert chat.render(example, replace(TOKENS, adds_bos=True)).text == chat.render(example, TOKENS).text
