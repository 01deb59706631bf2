"""Direct preference optimization: the loss of the paper, its gradient, and a reference that does not change."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import RunError
from templatekit.packing import pack_groups, prefix_tree
from templatekit.training import dpo, loop
from templatekit.training.attention import dispatch as attention
from templatekit.training.collator import PairBatch, collate_pairs
from templatekit.training.dpo import REFERENCE, DPOObjective, ScoredPair, precompute_reference
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.loop import train
from templatekit.training.lora import attach_lora
from templatekit.training.step import evaluate, train_step
from templatekit.types import RenderedText, TokenizedExample, TokenizedPair

MakeModel = Callable[..., PreTrainedModel]
Exactly = Callable[[PreTrainedModel], PreTrainedModel]
VOCABULARY = 64
EXACT = 1e-9
IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
WAYS: list[dict[str, object]] = [{}, {"share": False}, {"packing": False}, {"pack_tokens": 1}]


def _answer(prompt: Sequence[int], answer: Sequence[int], row: int) -> TokenizedExample:
    return TokenizedExample(
        input_ids=(*prompt, *answer),
        loss_weights=(0.0,) * len(prompt) + (1.0,) * len(answer),
        rendered=RenderedText(text="", spans=(), row=row),
    )


def _pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], row: int = 0) -> TokenizedPair:
    return TokenizedPair(chosen=_answer(prompt, chosen, row), rejected=_answer(prompt, rejected, row))


@st.composite
def pairs(draw: st.DrawFn) -> list[TokenizedPair]:
    """Pairs, some of whose prompts and answers start alike."""
    prompts = [draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20)) for _ in range(2)]
    made = []
    for row in range(draw(st.integers(1, 5))):
        prompt = draw(st.sampled_from(prompts)) + draw(st.lists(st.integers(0, 5), max_size=3))
        begun = draw(st.lists(st.integers(0, 5), max_size=9))
        made.append(_pair(prompt, begun + draw(IDS), begun + draw(IDS), row))
    return made


@pytest.fixture
def some_pairs() -> list[TokenizedPair]:
    """Eight pairs, two a prompt."""
    made = random.Random(5)

    def ids(count: int) -> list[int]:
        return [made.randrange(VOCABULARY) for _ in range(count)]

    prompts = [ids(12) for _ in range(4)]
    return [_pair(prompts[row // 2], ids(made.randint(3, 9)), ids(made.randint(3, 9)), row) for row in range(8)]


def _options(**values: object) -> FinetuneOptions:
    defaults = {
        "method": "dpo",
        "precision": "fp32",
        "lora": False,
        "batch_size": 4,
        "epochs": 2,
        "learning_rate": 1e-3,
    }
    return FinetuneOptions.parse({**defaults, **values})


def _plain_logps(model: PreTrainedModel, example: TokenizedExample, *, mean: bool) -> Tensor:
    """The log-probabilities by definition, one answer at a time."""
    ids = torch.tensor(example.input_ids)
    logps = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0, :-1], dim=-1)
    each = logps.gather(1, ids[1:, None])[:, 0]
    weights = torch.tensor(example.loss_weights[1:], dtype=each.dtype)
    total = (each * weights).sum()
    return total / weights.sum() if mean else total


def _plain_loss(
    model: PreTrainedModel, reference: PreTrainedModel, made: Sequence[TokenizedPair], options: FinetuneOptions
) -> Tensor:
    mean = options.dpo_logps == "mean"
    losses = []
    for pair in made:
        with torch.no_grad():
            before = [_plain_logps(reference, one, mean=mean) for one in (pair.chosen, pair.rejected)]
        after = [_plain_logps(model, one, mean=mean) for one in (pair.chosen, pair.rejected)]
        margin = options.dpo_beta * ((after[0] - before[0]) - (after[1] - before[1]))
        smoothing = options.dpo_label_smoothing
        losses.append(-(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin))
    return torch.stack(losses).mean()


def _scored(
    reference: PreTrainedModel, made: Sequence[TokenizedPair], options: FinetuneOptions, folder: Path
) -> list[ScoredPair]:
    objective = DPOObjective(ForwardPass.of(reference, options), options)
    (folder / REFERENCE).unlink(missing_ok=True)
    return precompute_reference(objective, made, path=folder / REFERENCE, identity={}, warn=pytest.fail)


def _step(model: PreTrainedModel, scored: Sequence[ScoredPair], options: FinetuneOptions) -> tuple[float, list[Tensor]]:
    """Loss and gradients, computed from the change of the weights in one step of plain descent with rate 1."""
    objective = DPOObjective(ForwardPass.of(model, options), options)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    numbers = train_step(objective, optimizer, scored, range(len(scored)), clip_norm=None)
    return numbers["loss"], [old - weight.detach() for old, weight in zip(before, model.parameters(), strict=True)]


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest gradient."""
    scale = max(float(gradient.abs().max()) for gradient in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / (scale or 1.0)


@settings(max_examples=6)
@given(
    made=pairs(),
    way=st.sampled_from(WAYS),
    smoothing=st.sampled_from([0.0, 0.2]),
    logps=st.sampled_from(["sum", "mean"]),
)
def test_loss_and_gradients_are_the_definitions(
    tiny_model: MakeModel,
    in_fp64: Exactly,
    tmp_path: Path,
    made: list[TokenizedPair],
    way: dict[str, object],
    smoothing: float,
    logps: str,
) -> None:
    options = _options(**way, dpo_label_smoothing=smoothing, dpo_logps=logps, dpo_beta=0.3)
    reference = in_fp64(tiny_model(seed=1))
    scored = _scored(reference, made, options, tmp_path)
    expected_model = in_fp64(tiny_model())
    expected = _plain_loss(expected_model, reference, made, options)
    torch.autograd.backward([expected])
    gradients = [weight.grad for weight in expected_model.parameters()]
    loss, found = _step(in_fp64(tiny_model()), scored, options)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)
    scale = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
    if scale > 1e-6:  # equal answers have no gradient
        assert _distance(found, [g for g in gradients if g is not None]) < EXACT


@pytest.mark.parametrize("broken", ["answer_indices", "reference", "target_indices"])
def test_a_mixed_up_pair_is_noticed(
    tiny_model: MakeModel,
    in_fp64: Exactly,
    tmp_path: Path,
    some_pairs: list[TokenizedPair],
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = _options()
    reference = in_fp64(tiny_model(seed=1))
    scored = _scored(reference, some_pairs, options, tmp_path)
    expected = float(_plain_loss(in_fp64(tiny_model()), reference, some_pairs, options).detach())
    assert _step(in_fp64(tiny_model()), scored, options)[0] == pytest.approx(expected, rel=1e-10)
    collate = collate_pairs

    def mixed(*args: Any, **kwargs: Any) -> Any:
        batch = collate(*args, **kwargs)
        value = getattr(batch, broken)
        return PairBatch(
            **{name: getattr(batch, name) for name in PairBatch.__dataclass_fields__ if name != broken},
            **{broken: value.flip(0)},
        )

    monkeypatch.setattr(dpo, "collate_pairs", mixed)
    assert _step(in_fp64(tiny_model()), scored, options)[0] != pytest.approx(expected, rel=1e-4)


@settings(max_examples=15)
@given(made=pairs(), budget=st.integers(1, 80))
def test_a_pack_holds_whole_pairs_within_its_budget(made: list[TokenizedPair], budget: int) -> None:
    groups = [(pair.chosen.input_ids[:-1], pair.rejected.input_ids[:-1]) for pair in made]
    packs = pack_groups(groups, budget)
    assert sorted(number for part in packs for number in part) == list(range(len(made)))
    for part in packs:
        nodes = prefix_tree([answer for number in part for answer in groups[number]])
        assert len(part) == 1 or sum(node.end - node.start for node in nodes) <= budget


def test_a_prompt_is_computed_once_for_both_answers(
    tiny_model: MakeModel, tmp_path: Path, some_pairs: list[TokenizedPair]
) -> None:
    options = _options()
    scored = _scored(tiny_model(), some_pairs, options, tmp_path)
    objective = DPOObjective(ForwardPass.of(tiny_model(), options), options)
    ((_, batch),) = objective.micro_batches(scored, range(8))
    answers = sum(len(one) - 13 for pair in some_pairs for one in (pair.chosen, pair.rejected))
    assert batch.tokens == 16 * 12 + answers
    assert batch.computed_tokens == 4 * 12 + answers
    # The first answer tokens of a prompt that are the same stand once; all others are each answer's own.
    assert batch.target_tokens == answers + 16


def test_the_first_loss_is_ln_2_and_margins_rise(
    tiny_model: MakeModel, tmp_path: Path, some_pairs: list[TokenizedPair]
) -> None:
    train(tiny_model(), some_pairs, some_pairs[:2], _options(epochs=15, warmup=0), folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert evaluations[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["reward_margin"] > 0.5
    assert steps[-1]["reward_accuracy"] == 1
    assert steps[-1]["loss"] < 0.5
    for line in steps:
        assert line["reward_chosen"] - line["reward_rejected"] == pytest.approx(line["reward_margin"], abs=1e-5)
    assert evaluations[-1].keys() - {"seconds", "step", "eval_loss"} == {
        "eval_reward_chosen", "eval_reward_rejected", "eval_reward_margin", "eval_reward_accuracy",
    }  # fmt: skip


@pytest.mark.parametrize("way", [{}, {"lora": True}, {"packing": False}, {"drop_last": True, "batch_size": 3}])
def test_in_bf16_too_a_model_that_has_not_moved_has_no_reward(
    tiny_model: MakeModel, tmp_path: Path, way: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = random.Random(1)
    prompts = [[made.randrange(VOCABULARY) for _ in range(30)] for _ in range(5)]
    answers = [[made.randrange(VOCABULARY) for _ in range(made.randint(9, 40))] for _ in range(40)]
    some_pairs = [_pair(prompts[row % 5], answers[row], answers[row + 20], row) for row in range(20)]
    options = _options(**{"precision": "bf16", "batch_size": 2, "learning_rate": 1e-30, **way})

    def first_epoch(folder: Path) -> list[dict[str, float]]:
        model = attach_lora(tiny_model(), rank=2, alpha=4, seed=1) if options.lora else tiny_model()
        folder.mkdir()
        train(model, some_pairs, some_pairs[:3], options.model_copy(update={"epochs": 1}), folder=folder)
        return _without_time(folder)

    lines = first_epoch(tmp_path / "paths")
    # Over the tree, how a prompt is divided between packs decides how bf16 rounds.
    monkeypatch.setattr(attention, "create_path_layout", lambda segments: None)
    for line in [*lines, *first_epoch(tmp_path / "tree")]:
        of = "eval_" if "eval_loss" in line else ""
        assert line[f"{of}reward_chosen"] == line[f"{of}reward_rejected"] == 0
        assert line[f"{of}loss"] == pytest.approx(math.log(2), abs=1e-8)

    def in_other_packs(*values: Any, steps: object = (), **more: Any) -> list[ScoredPair]:
        return precompute_reference(*values, **more)

    monkeypatch.setattr(loop, "precompute_reference", in_other_packs)
    if options.packing:
        assert any(line.get("reward_chosen") for line in first_epoch(tmp_path / "other packs"))  # the negative control


def test_with_lora_the_reference_is_the_model_without_adapters(
    tiny_model: MakeModel, tmp_path: Path, some_pairs: list[TokenizedPair]
) -> None:
    options = _options(lora=True)
    bare = _scored(tiny_model(), some_pairs, options, tmp_path)
    adapted = _scored(attach_lora(tiny_model(), rank=2, alpha=4, seed=1), some_pairs, options, tmp_path)
    for one, other in zip(bare, adapted, strict=True):
        assert one.reference == pytest.approx(other.reference, rel=1e-5)


class Killed(Exception):
    """Raised in place of the end of a process."""


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_has_the_same_reference_and_losses(
    tiny_model: MakeModel, tmp_path: Path, some_pairs: list[TokenizedPair], lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options(epochs=4, save_every=3, lora=lora)

    def model() -> PreTrainedModel:
        return attach_lora(tiny_model(), rank=2, alpha=4, seed=1) if lora else tiny_model()

    def report(line: Any) -> None:
        if line["step"] == 5 and "loss" in line:
            raise Killed

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    train(model(), some_pairs, some_pairs[:2], options, folder=whole)
    with pytest.raises(Killed):
        train(model(), some_pairs, some_pairs[:2], options, folder=stopped, report=report)
    monkeypatch.setattr(dpo, "_score", lambda *_: pytest.fail("the reference was computed again"))
    resumed = options.model_copy(update={"resume": True})
    train(model(), some_pairs, some_pairs[:2], resumed, folder=stopped)
    assert _without_time(stopped) == _without_time(whole)


def _without_time(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip, "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01."), "cannot be read"),  # a pickle
    ],
)
def test_a_damaged_reference_is_said_and_made_anew(
    tiny_model: MakeModel,
    tmp_path: Path,
    some_pairs: list[TokenizedPair],
    damage: Callable[[Path], object],
    said: str,
) -> None:
    objective = DPOObjective(ForwardPass.of(tiny_model(), _options()), _options())
    path = tmp_path / REFERENCE
    warnings: list[str] = []

    def again(made: Sequence[TokenizedPair] = some_pairs) -> list[tuple[float, float]]:
        scored = precompute_reference(objective, made, path=path, identity={"model": "m"}, warn=warnings.append)
        return [pair.reference for pair in scored]

    expected = again()
    assert again() == expected
    assert not warnings
    damage(path)
    assert again() == expected
    assert said in warnings.pop()
    assert again() == expected
    assert not warnings
    changed = _pair([1], [2], [3], 0)
    for one, other in zip(again([changed, *some_pairs[1:]])[1:], expected[1:], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert "is of other pairs" in warnings.pop()


def test_a_reference_that_is_not_finite_names_its_rows(
    tiny_model: MakeModel, tmp_path: Path, some_pairs: list[TokenizedPair]
) -> None:
    model = tiny_model()
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RunError, match=r"rows \[0, 1, 2, 3, 4, 5, 6, 7\] no finite log-probability"):
        train(model, some_pairs, [], _options(), folder=tmp_path)


def test_micro_batches_of_any_size_weigh_pairs_alike(
    tiny_model: MakeModel, tmp_path: Path, some_pairs: list[TokenizedPair]
) -> None:
    options = _options()
    scored = _scored(tiny_model(seed=1), some_pairs, options, tmp_path)
    losses = []
    for way in WAYS:
        cut = _options(**way)
        objective = DPOObjective(ForwardPass.of(tiny_model(), cut), cut)
        losses.append(evaluate(objective, scored)["loss"])
    assert losses == pytest.approx([losses[0]] * len(WAYS), rel=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # TRL 1.16, transformers 5.23
def test_trl_has_the_same_loss(
    tiny_model: MakeModel, tmp_path: Path, some_pairs: list[TokenizedPair], model_folder: Path
) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    rows = [
        {
            "prompt_ids": list(pair.chosen.input_ids[:12]),
            "chosen_ids": list(pair.chosen.input_ids[12:]),
            "rejected_ids": list(pair.rejected.input_ids[12:]),
        }
        for pair in some_pairs
    ]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.3, report_to="none", use_cpu=True, bf16=False, max_length=None,
        activation_checkpointing=False,
    )  # fmt: skip
    reference = tiny_model(seed=1)
    trainer = trl.DPOTrainer(
        model=tiny_model(), ref_model=reference, args=arguments,
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    )  # fmt: skip
    batch = trainer.data_collator(rows)
    expected = trainer.compute_loss(trainer.model, batch)
    options = _options(dpo_beta=0.3)
    scored = _scored(reference, some_pairs, options, tmp_path)
    objective = DPOObjective(ForwardPass.of(tiny_model(), options), options)
    assert evaluate(objective, scored)["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.fixture
def model_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a tokenizer, which TRL asks for its padding token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    yield folder
