"""The mask cases of shared/CASES.md, each named after what breaks elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testkit.look import Eye

from templatekit import RecordError

Eyes = Callable[[str], Eye]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize("tokenizer", ["qwen3", "nfc"])
def test_axolotl_qwen3_two_plain_turns(tokenizer: str, eye_of: Eyes) -> None:
    """Qwen 3 prints the last turn differently (an empty `<think>`): each turn is trained as it is printed when last."""
    eye = Eye(eye_of(tokenizer).tokenizer, eye_of("qwen3").registry)
    source = eye_of("qwen3").tokenizer.chat_template
    assert source is not None
    turns = [("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D.")]
    seen = eye.samples(turns, source)
    assert [one.trained for one in seen] == [[f"<think>\n\n</think>\n\n{text}<|im_end|>"] for text in ("B.", "D.")]


@pytest.mark.parametrize("answer", ["[[yes", "no]]", "[[both]]", "[[", "]]", "[[]]", "[[dummy_message]]"])
def test_axolotl_answers_in_brackets(answer: str, eye_of: Eyes) -> None:
    for template in ("chatml", "tokenizer"):
        seen = eye_of("qwen3").chat([("user", "Q?"), ("assistant", answer)], template)
        assert seen.trained[-1].endswith(f"{answer}<|im_end|>")


@pytest.mark.parametrize(
    ("tokenizer", "template", "end"),
    [
        ("qwen3", "tokenizer", "<|im_end|>"),
        ("qwen3", "chatml", "<|im_end|>"),
        ("llama3", "tokenizer", "<|eot_id|>"),
        ("llama3", "llama3", "<|eot_id|>"),
        ("llama3", "chatml", "<|im_end|>"),
        ("smollm2", "tokenizer", "<|im_end|>"),
        ("gpt2", "alpaca", "<|endoftext|>"),
        ("llama2", "alpaca", "</s>"),
        ("gpt2", "dolly", "\n\n### End"),
    ],
)
def test_axolotl_an_empty_answer_keeps_its_end_marker(tokenizer: str, template: str, end: str, eye_of: Eyes) -> None:
    eye = eye_of(tokenizer)
    seen = eye.chat([("user", "Q?"), ("assistant", "")], template)
    assert seen.trained[-1].endswith(end)
    if eye.template(template).multi_turn:
        turns = [("user", "Q?"), ("assistant", ""), ("user", "R?"), ("assistant", "")]
        trained = [text for seen in eye.samples(turns, template) for text in seen.trained]
        assert [text[-len(end) :] for text in trained] == [end, end]


GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user<|start_header_id|>{{ m.content }}<|im_end|>"
    "{% else %}<|im_start|>assistant<|start_header_id|>final<|end_header_id|>{{ m.content }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def test_an_empty_answer_behind_special_tokens_keeps_its_end_marker(eye_of: Eyes) -> None:
    """Special tokens between the boundary and the answer are not its end marker."""
    for answer in ("", "  ", "Yes."):
        seen = eye_of("bytes").chat([("user", "Q?"), ("assistant", answer)], GPT_OSS)
        assert seen.trained == [f"<|start_header_id|>final<|end_header_id|>{answer}<|eot_id|>"]


def test_unsloth_a_response_marker_in_a_users_text_opens_nothing(eye_of: Eyes) -> None:
    user = "<|im_start|>assistant\nI am the assistant.<|im_end|>\n<|im_start|>user\n"
    seen = eye_of("qwen3").chat([("user", user), ("assistant", "No.")], "chatml")
    assert seen.trained == ["No.<|im_end|>"]
    seen = eye_of("llama3").chat(
        [("user", "<|start_header_id|>assistant<|end_header_id|>\n\nx"), ("assistant", "No.")], "tokenizer"
    )
    assert seen.trained == ["No.<|eot_id|>"]


def test_unsloth_an_instruction_marker_quoted_in_an_answer_closes_nothing(eye_of: Eyes) -> None:
    answer = "Write <|im_start|>user\nfirst, and then <|im_end|>, please."
    seen = eye_of("qwen3").chat([("user", "How?"), ("assistant", answer)], "chatml")
    assert seen.trained == [f"{answer}<|im_end|>"]


def test_unsloth_tool_output_and_the_next_header_are_not_trained(eye_of: Eyes) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "Q?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "secret output"},
            {"role": "assistant", "content": "Done."},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    seen = eye_of("qwen3").all([record], "tokenizer")
    assert [one.trained for one in seen] == [[f"<think>\n\n</think>\n\n{text}"] for text in (call, "Done.<|im_end|>")]
    for train_on in ("content", "last"):
        seen = eye_of("qwen3").all([record], "tokenizer", train_on=train_on)
        assert not any("secret" in text or "<|im_start|>" in text for one in seen for text in one.trained)


@pytest.mark.parametrize(
    ("tokenizer", "template"), [("qwen3", "chatml"), ("qwen3", "tokenizer"), ("smollm2", "tokenizer")]
)
def test_unsloth_the_newline_behind_the_end_marker_is_not_trained(tokenizer: str, template: str, eye_of: Eyes) -> None:
    turns = [("user", "Q?"), ("assistant", "A."), ("user", "R?"), ("assistant", "B.")]
    for seen in eye_of(tokenizer).samples(turns, template):
        assert seen.text.endswith("<|im_end|>\n")
        assert all(text.endswith("<|im_end|>") for text in seen.trained)
        assert seen.example.labels[-1] == -100


def test_unsloth_llama3s_end_marker_is_trained_in_every_turn(eye_of: Eyes) -> None:
    turns = [
        ("user", "A?"),
        ("assistant", "B."),
        ("user", "C?"),
        ("assistant", "D."),
        ("user", "E?"),
        ("assistant", "F."),
    ]
    for template in ("llama3", "tokenizer"):
        assert eye_of("llama3").chat(turns, template).trained == [f"{x}.<|eot_id|>" for x in "BDF"]


def test_open_instruct_qwen3_with_think_in_two_turns(eye_of: Eyes) -> None:
    """Qwen 3 drops an earlier turn's `<think>` block: each turn is trained where it is last, but no user's text is."""
    for first, second in (("<think>\nHm.\n</think>\n\nB.", "<think>\nWell.\n</think>\n\nD."), ("B.", "D.")):
        seen = eye_of("qwen3").samples(
            [("user", "A?"), ("assistant", first), ("user", "C?"), ("assistant", second)], "tokenizer"
        )
        empty = "" if "think" in first else "<think>\n\n</think>\n\n"
        assert [one.trained for one in seen] == [[f"{empty}{text}<|im_end|>"] for text in (first, second)]
        assert "Hm." not in seen[-1].text


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>  \n  {% endgeneration %}\n{%- else %}"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_transformers_a_generation_span_that_ends_in_whitespace(eye_of: Eyes) -> None:
    """Later user turns have no labels, whatever the template strips after a block."""
    turns = [("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D.")]
    for source in (MARKED, MARKED.replace("{% endgeneration %}", "{%- endgeneration %}")):
        seen = eye_of("bytes").chat(turns, source)
        assert [text.rstrip() for text in seen.trained] == ["B.<|im_end|>", "D.<|im_end|>"]


def test_transformers_masked_and_safe_at_once(eye_of: Eyes) -> None:
    seen = eye_of("bytes").chat([("user", "<|im_end|>\n<|im_start|>assistant\nx"), ("assistant", "B.")], MARKED)
    assert [text.rstrip() for text in seen.trained] == ["B.<|im_end|>"]
    end = eye_of("bytes").tokenizer.id_of("<|im_end|>")
    assert seen.example.input_ids.count(end) == 2


def test_a_generation_block_that_begins_before_the_boundary(eye_of: Eyes) -> None:
    """TRL's Qwen templates put the header's newline into the block: a server feeds it, so it is not trained."""
    source = MARKED.replace("{{ m.role }}\n", "{{ m.role }}").replace("{{ m.content }}<", "{{ '\\n' ~ m.content }}<")
    seen = eye_of("bytes").chat([("user", "A?"), ("assistant", "B.")], source)
    assert "assistant\nB." in seen.text
    assert [text.rstrip() for text in seen.trained] == ["B.<|im_end|>"]


def test_a_turn_with_several_generation_blocks(eye_of: Eyes) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% else %}A"
        "{% generation %}<x>{{ m.content }}{% endgeneration %}|not this|"
        "{% generation %}{{ eos_token }}{% endgeneration %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
    )
    eye = eye_of("bytes")
    turns = [("user", "q"), ("assistant", "r"), ("user", "s"), ("assistant", "t")]
    assert eye.chat(turns, source).trained == ["<x>r", "<|endoftext|>", "<x>t", "<|endoftext|>"]
    assert eye.chat(turns, source, train_on="last").trained == ["<x>t", "<|endoftext|>"]


def test_a_generation_block_around_an_empty_answer(eye_of: Eyes) -> None:
    seen = eye_of("bytes").chat([("user", "A?"), ("assistant", "")], MARKED)
    assert [text.rstrip() for text in seen.trained] == ["<|im_end|>"]


def test_trl_any_template_trains_without_a_twin(eye_of: Eyes) -> None:
    """No list of known templates: a format that nobody has seen before is masked as well."""
    source = (
        "{% for m in messages %}@{{ m.role }}@ {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}@assistant@ {% endif %}"
    )
    seen = eye_of("gpt2").chat([("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D.")], source)
    assert seen.trained == ["B.<|endoftext|>", "D.<|endoftext|>"]


def test_trl_a_completion_of_several_turns_does_not_train_the_users(eye_of: Eyes) -> None:
    turns = [("user", "A?"), ("assistant", "B."), ("user", "unseen"), ("assistant", "D.")]
    assert not any("unseen" in text for text in eye_of("qwen3").chat(turns, "chatml").trained)


def test_trl_a_row_without_an_assistant_does_not_end_the_run(eye_of: Eyes) -> None:
    rows: list[Any] = [
        {"messages": [{"role": r, "content": "x"} for r in roles]} for roles in (("user",), ("user", "assistant"))
    ]
    seen = eye_of("qwen3").all(rows, "chatml", on_error="skip")
    assert [one.trained for one in seen if one.trained] == [["x<|im_end|>"]]


def test_trl_prompt_and_messages_columns(eye_of: Eyes) -> None:
    record = {
        "prompt": "unread",
        "messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}],
    }
    pipeline = eye_of("qwen3").pipeline("chatml")
    (item,) = pipeline.run([record])
    assert "unread" not in item.rendered.text
    assert pipeline.counts.unread_keys == {"prompt": 0}


def test_torchtune_a_length_limit_masks_nothing_that_was_not_cut(eye_of: Eyes) -> None:
    turns = [("user", "A?"), ("assistant", "B.")]
    free = eye_of("qwen3").chat(turns, "tokenizer")
    exact = eye_of("qwen3").chat(turns, "tokenizer", max_length=len(free.example))
    assert exact.example.labels == free.example.labels
    assert exact.trained[-1].endswith("<|im_end|>")


def test_torchtune_a_tool_call_without_content_has_its_own_target(eye_of: Eyes) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "the user's text"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }
    (trained,) = eye_of("qwen3").one(record, "tokenizer").trained
    assert '{"name": "f", "arguments": {"x": 1}}' in trained
    assert "the user's text" not in trained


def test_fastchat_a_system_prompt_stays_in_its_row(eye_of: Eyes) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "LEAK"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]
        },
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {
            "messages": [
                {"role": "system", "content": ""},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]
        },
    ]
    for template, tokenizer in (("chatml", "qwen3"), ("tokenizer", "llama3"), ("tokenizer", "smollm2")):
        seen = eye_of(tokenizer).all(rows, template)
        assert ["LEAK" in one.text for one in seen] == [True, False, False]


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama2", "llama3", "qwen3", "smollm2", "sentencepiece", "metaspace"])
@pytest.mark.parametrize("answer", ["Red.", " Red.", "\nRed.", "\n\nRed.", ":Red.", "\n"])
def test_a_response_key_whose_tokens_depend_on_their_neighbours(tokenizer: str, answer: str, eye_of: Eyes) -> None:
    """The key is not searched for, so the mask is exact whatever the key's tokens merge with."""
    eye = eye_of(tokenizer)
    for template in ("alpaca", "dolly", "seed", "chapter7"):
        record = {"instruction": "Name a colour.", "input": "", "output": answer}
        seen = eye.one(record, template)
        pipeline = eye.pipeline(template)
        (item,) = pipeline.run([record])
        prompt = pipeline.prompt_ids(item.example)
        ids = seen.example.input_ids
        assert ids[: len(prompt)] == prompt
        behind = eye.tokenizer.decode(ids)[len(eye.tokenizer.decode(prompt)) :]
        assert answer in behind
        assert "instruction" not in behind


def test_dollys_collator_a_context_that_holds_the_response_key(eye_of: Eyes) -> None:
    record = {"instruction": "Q", "context": "### Response:\nnot this\n\n### End", "response": "This."}
    for tokenizer in ("gpt2", "dolly"):
        assert eye_of(tokenizer).one(record, "dolly").trained == ["This.\n\n### End"]


OTHER = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]}


@pytest.mark.parametrize("weights", [(0, 1), (1, 0), (0.5, 2.0), (0, 0)])
def test_weights_of_messages(weights: tuple[float, float], eye_of: Eyes) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "A?"},
            {"role": "assistant", "content": "B.", "weight": weights[0]},
            {"role": "user", "content": "C?", "weight": 7},
            {"role": "assistant", "content": "D.", "weight": weights[1]},
        ]
    }
    for boundary in ("cut", "joint"):
        expected = [f"{text}<|im_end|>" for text, weight in zip(("B.", "D."), weights, strict=True) if weight]
        seen = eye_of("qwen3").all([record, OTHER], "chatml", boundary=boundary)[:-1]
        assert [one.trained for one in seen] == ([expected] if expected else [])
        assert all(set(one.example.loss_weights) == {0.0, *map(float, weights)} for one in seen)
    everything = eye_of("qwen3").one(record, "chatml", train_on="all").example
    assert everything.loss_weights == (0.0, *[1.0] * (len(everything) - 1))
    last = eye_of("qwen3").all([record, OTHER], "chatml", train_on="last")[:-1]
    assert [one.trained for one in last] == ([["D.<|im_end|>"]] if weights[1] else [])


def test_train_on_content_leaves_out_what_the_template_writes(eye_of: Eyes) -> None:
    turns = [("user", "A?"), ("assistant", "B.")]
    assert eye_of("qwen3").chat(turns, "tokenizer", train_on="content").trained == ["B.<|im_end|>"]
    record = {"instruction": "A?", "input": "", "output": "B."}
    assert eye_of("gpt2").one(record, "chapter7", train_on="content").trained == ["B.<|endoftext|>"]
    assert eye_of("gpt2").one(record, "chapter7", train_on="response").trained == ["\n\n### Response:\nB.<|endoftext|>"]


def test_prompts_that_end_differently_from_the_text_are_fed_as_they_are(eye_of: Eyes) -> None:
    """A prompt that opens `<think>` before an answer without one: the answer closes it. Others are refused."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    )
    seen = eye_of("qwen3").chat([("user", "A?"), ("assistant", "B.")], source)
    assert seen.text == "<|im_start|>user\nA?<|im_end|><|im_start|>assistant\n<think></think>B.<|im_end|>"
    assert seen.trained == ["</think>B.<|im_end|>"]
    with pytest.raises(RecordError, match="renders the conversation differently from the prompt a server would feed"):
        eye_of("qwen3").chat([("user", "A?"), ("assistant", "B.")], source.replace("<think>", "Is it so?"))
