"""The cases of shared/CASES.md under "Truncation, loss, packing", each by the project that gets it wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from testkit.look import Eye
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from templatekit import IGNORE_INDEX, ConfigError, TokenizedExample
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.packing import pack_examples
from templatekit.training.collator import collate_padded
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.objective import Objective
from templatekit.training.step import train_step

Eyes = Callable[[str], Eye]
POLICIES = ("turns", "context", "response")
WORDS = "one two three four five six seven eight nine ten eleven twelve "


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_for(eye: Eye) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=eye.tokenizer.vocabulary_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.3,
        )
    )


def rows_of_answers(*lengths: int) -> list[dict[str, Any]]:
    """Rows with a prompt and an answer of this many words."""
    return [{"instruction": "Count.", "input": "", "output": " ".join(WORDS.split()[:count])} for count in lengths]


def long_row(field: str) -> dict[str, Any]:
    return {"instruction": "Say it.", "input": "a word", "output": "It is said.", field: WORDS * 8}


# Cut prompts and lost end markers


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("tokenizer", "template"), [("bytes", "chatml"), ("qwen3", "chatml"), ("llama3", "llama3")])
def test_llamafactory_the_prompts_tail_is_never_cut(policy: str, tokenizer: str, template: str, eye_of: Eyes) -> None:
    """At every limit, the turn end and the assistant's header come before every answer, or the row is dropped."""
    eye = eye_of(tokenizer)
    header = {"chatml": "<|im_end|>\n<|im_start|>assistant\n"}.get(
        template, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    record = long_row("input" if policy == "context" else "output" if policy == "response" else "instruction")
    if policy == "turns":
        record = {"messages": [{"role": r, "content": WORDS + r} for _ in range(4) for r in ("user", "assistant")]}
    whole = len(eye.one(record, template).example)
    outcomes = []
    for limit in range(1, whole, 7):
        pipeline = eye.pipeline(template, max_length=limit, truncation=policy)
        try:
            (item,) = pipeline.run([record])
        except ConfigError:
            assert pipeline.counts.dropped == {"too_long": 1}
            outcomes.append(False)
            continue
        outcomes.append(True)
        example = item.tokenized
        assert example is not None and len(example) <= limit
        for target in example.rendered.target_spans:
            assert example.rendered.text[: target.start].endswith(header)
        first = next(place for place, label in enumerate(example.labels) if label != IGNORE_INDEX)
        prompt_ids = pipeline.prompt_ids(replace(item.example, messages=item.example.messages[:2]))
        assert example.input_ids[:first] == prompt_ids
    assert outcomes == sorted(outcomes) and set(outcomes) == {False, True}


@pytest.mark.parametrize("tokenizer", ["bytes", "sentencepiece", "strips", "qwen3", "llama2"])
def test_axolotl_litgpt_torchtune_an_end_marker_is_there_iff_the_answer_is_whole(tokenizer: str, eye_of: Eyes) -> None:
    """Long answers neither lose their end marker unnoticed nor get one that is trained although they were cut."""
    eye = eye_of(tokenizer)
    record = long_row("output")
    whole = eye.one(record, "chatml")
    ends = []
    for limit in range(len(whole.example) - 60, len(whole.example) + 1):
        seen = eye.one(record, "chatml", max_length=limit, truncation="response")
        (trained,) = seen.trained
        ends.append(trained.endswith("<|im_end|>"))
        assert trained.count("<|im_end|>") == seen.text.count("<|im_end|>") - 1 == int(ends[-1])
        assert (seen.example.truncated is None) == (limit == len(whole.example))
        assert ends[-1] == (trained == whole.trained[0])
        if limit < len(whole.example):
            assert not [out for policy in ("drop", "turns") for out in out_of(eye, record, limit, policy)]
    assert ends == sorted(ends) and ends.count(True) < 10


def out_of(eye: Eye, record: dict[str, Any], limit: int, policy: str) -> list[TokenizedExample | None]:
    """The samples of a row that comes together with a short row."""
    items = eye.pipeline("chatml", max_length=limit, truncation=policy).run([record, *rows_of_answers(1)])
    return [item.tokenized for item in items if item.rendered.row == 0]


def test_torchtune_the_last_end_marker_is_trained_wherever_it_is_left(eye_of: Eyes) -> None:
    """Qwen's final <|im_end|> is trained with every limit and policy that leaves the answer complete."""
    eye = eye_of("qwen3")
    turns = [("user", f"{WORDS}?"), ("assistant", "A."), ("user", "And now?"), ("assistant", "B.")]
    end = eye.tokenizer.id_of("<|im_end|>")
    free = eye.samples(turns, "tokenizer")[-1]
    for limit in range(len(free.example) // 2, len(free.example) + 3):
        for policy in ("turns", "response"):
            try:
                samples = eye.samples(turns, "tokenizer", max_length=limit, truncation=policy)
            except ConfigError:
                continue
            for seen in samples:
                last = [label for label in seen.example.labels if label != IGNORE_INDEX][-1]
                assert (last == end) == seen.trained[-1].endswith(("A.<|im_end|>", "B.<|im_end|>"))
                assert policy == "response" or last == end
    shorter = eye.samples(turns, "tokenizer", max_length=len(free.example) - 1, truncation="turns")
    assert shorter[-1].trained[-1].endswith("B.<|im_end|>")


# Rows without a target


@pytest.mark.parametrize("policy", ["drop", *POLICIES])
def test_ms_swift_litgpt_trl_axolotl_no_row_is_left_without_a_target(policy: str, eye_of: Eyes) -> None:
    """Rows whose targets would be cut off are dropped and counted, packed or not: none can give NaN."""
    eye = eye_of("bytes")
    rows = [long_row("instruction"), *rows_of_answers(1, 3), long_row("instruction")]
    pipeline = eye.pipeline("chatml", max_length=120, truncation=policy)
    items = list(pipeline.run(rows))
    assert [item.rendered.row for item in items] == [1, 2]
    assert pipeline.counts.dropped_rows == {"too_long": [0, 3]}
    assert all(item.tokenized and item.tokenized.trained_tokens for item in items)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_ms_swift_litgpt_rows_that_are_masked_as_a_whole_are_dropped_and_counted(on_error: str, eye_of: Eyes) -> None:
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    masked = [turns[0], {**turns[1], "weight": 0}]
    pipeline = eye_of("bytes").pipeline("chatml", on_error=on_error, max_length=100)
    items = list(pipeline.run([{"messages": masked}, {"messages": turns}, {"messages": turns[:1]}]))
    assert [item.rendered.row for item in items] == [1]
    assert pipeline.counts.dropped_rows == {"nothing_trained": [0, 2]}


@pytest.mark.parametrize("packing", [True, False])
def test_ms_swift_a_batch_without_targets_gives_zero_and_no_nan(packing: bool, eye_of: Eyes) -> None:
    eye = eye_of("bytes")
    masked = [replace(e, loss_weights=(0.0,) * len(e)) for e in examples_of(eye, 3, 5)]
    model = model_for(eye)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    numbers = train_step(supervised(model, packing=packing), sgd(model), masked, [0, 1], clip_norm=1.0)
    assert (numbers["loss"], numbers["grad_norm"], numbers["target_tokens"]) == (0.0, 0.0, 0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


# The loss of a step


def examples_of(eye: Eye, *lengths: int, **options: Any) -> list[TokenizedExample]:
    return [seen.example for seen in eye.all(rows_of_answers(*lengths), "chatml", **options)]


def supervised(model: LlamaForCausalLM, **options: Any) -> Objective:
    return Objective(ForwardPass.of(model, FinetuneOptions.parse({"precision": "fp32", **options})))


def sgd(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)


def losses_of(model: LlamaForCausalLM, example: TokenizedExample) -> list[tuple[float, float]]:
    """(loss, weight) of every target of one example alone, with the model's own attention."""
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        each = cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
    return [(float(loss), weight) for loss, weight in zip(each, example.loss_weights[1:], strict=True) if weight]


def weighted_mean(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(loss * weight for loss, weight in pairs) / sum(weight for _, weight in pairs)


def test_axolotl_litgpt_open_instruct_micro_batches_are_no_mean_of_means(eye_of: Eyes) -> None:
    """transformers #34191: the step's loss is the mean over its targets, however it is cut."""
    eye = eye_of("bytes")
    examples = examples_of(eye, 1, 12, 2, 11, 1)
    model = model_for(eye)
    each = [losses_of(model, example) for example in examples]
    expected = weighted_mean([pair for pairs in each for pair in pairs])
    for options in ({"pack_tokens": 1}, {"pack_tokens": 90}, {"pack_tokens": 4096}, {"packing": False}):
        step = train_step(supervised(model, **options), sgd(model), examples, range(5), clip_norm=None)
        assert step["loss"] == pytest.approx(expected, rel=1e-5)
    of_means = sum(weighted_mean(pairs) for pairs in each) / len(each)
    assert of_means != pytest.approx(expected, rel=1e-3)


def test_llamafactory_ms_swift_fractional_weights_are_normalised_over_the_whole_step(eye_of: Eyes) -> None:
    """Equal weights change nothing; different weights are normalised over the step, not within a micro-batch."""
    eye = eye_of("bytes")
    examples = examples_of(eye, 2, 9, 5)
    model = model_for(eye)

    def loss(weights: Sequence[float], **options: Any) -> float:
        scaled = [
            replace(example, loss_weights=tuple(weight * by for by in example.loss_weights))
            for example, weight in zip(examples, weights, strict=True)
        ]
        return train_step(supervised(model, **options), sgd(model), scaled, range(3), clip_norm=None)["loss"]

    assert loss([0.1] * 3) == pytest.approx(loss([1.0] * 3), rel=1e-5)
    each = [losses_of(model, example) for example in examples]
    mixed = [0.1, 1.0, 0.25]
    expected = weighted_mean([(one, by * w) for pairs, by in zip(each, mixed, strict=True) for one, w in pairs])
    for options in ({"pack_tokens": 1}, {"pack_tokens": 4096}, {"packing": False}):
        assert loss(mixed, **options) == pytest.approx(expected, rel=1e-5)
    within = sum(weighted_mean(pairs) for pairs in each) / 3
    assert within != pytest.approx(expected, rel=1e-3)


# Packing and padding


def test_llamafactory_packed_examples_do_not_see_each_other(eye_of: Eyes) -> None:
    """#8277: the loss of a pack is that of its examples alone; without isolation it differs."""
    eye = eye_of("bytes")
    examples = examples_of(eye, 3, 8, 5, 12)
    model = model_for(eye)
    alone = weighted_mean([pair for example in examples for pair in losses_of(model, example)])
    packed = train_step(supervised(model, pack_tokens=4096), sgd(model), examples, range(4), clip_norm=None)
    assert packed["computed_tokens"] <= packed["tokens"]
    assert packed["loss"] == pytest.approx(alone, rel=1e-5)
    joined = replace(
        examples[0],
        input_ids=tuple(id for example in examples for id in example.input_ids),
        loss_weights=tuple(weight for example in examples for weight in example.loss_weights),
    )
    assert weighted_mean(losses_of(model, joined)) != pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
def test_transformers_trl_padding_with_eos_masks_no_end_marker(pad: str, eye_of: Eyes) -> None:
    """#23530, trl #976: targets are known by their position, so no target is lost if pad == EOS."""
    eye = eye_of("bytes")
    examples = examples_of(eye, 2, 12)
    end, pad_id = eye.tokenizer.id_of("<|im_end|>"), eye.tokenizer.id_of(pad)
    assert end is not None and pad_id is not None
    batch = collate_padded(pack_examples(examples, [0, 1]), torch.device("cpu"), pad_id=pad_id)
    assert batch.targets.tolist().count(end) == 2
    assert len(batch.targets) == sum(example.trained_tokens for example in examples)
    assert batch.input_ids[0].tolist().count(pad_id) > 5
    assert [example.labels.count(end) for example in examples] == [1, 1]


# Over-long rows


@pytest.mark.parametrize("policy", ["drop", *POLICIES])
def test_ms_swift_an_over_long_row_is_never_replaced_by_another(policy: str, eye_of: Eyes) -> None:
    """The samples of a row have only its text, and every row is a sample or counted."""
    eye = eye_of("bytes")
    rows = [*rows_of_answers(1, 2), long_row("input"), long_row("output"), *rows_of_answers(3)]
    pipeline = eye.pipeline("chatml", max_length=300, truncation=policy)
    items = list(pipeline.run(rows))
    counts = pipeline.counts
    assert [item.rendered.row for item in items] == sorted({item.rendered.row for item in items})
    assert counts.rows_in == 5 == len(items) + counts.dropped["too_long"]
    shortened = {"context": [2], "response": [3]}.get(policy, [])
    assert counts.truncated_rows.get(policy, []) == shortened
    assert {item.rendered.row for item in items} == {0, 1, 4, *shortened}
    for item in items:
        answer = item.rendered.text.rpartition("assistant\n")[2].partition("<|im_end|>")[0]
        assert answer and rows[item.rendered.row]["output"].startswith(answer)
