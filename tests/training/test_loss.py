"""The loss is a sum over targets, however it is computed and however a step is cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from testkit.losses import weighted_loss
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.packing import pack_examples
from templatekit.training import loss as losses
from templatekit.training.collator import collate_padded
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.loss import ModelWithLoss, detect_head
from templatekit.training.objective import Objective
from templatekit.training.step import evaluate, train_step
from templatekit.types import TokenizedExample

CPU = torch.device("cpu")
MakeModel = Callable[..., PreTrainedModel]
MakeExample = Callable[..., TokenizedExample]


def _gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_the_loss_is_the_weighted_cross_entropy_of_the_next_tokens(
    tiny_model: MakeModel, kind: str, examples: list[TokenizedExample]
) -> None:
    model = tiny_model(kind)
    expected = 0.0
    for example in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
        each = cross_entropy(logits[:-1].float(), torch.tensor(example.input_ids[1:]), reduction="none")
        expected += float((each * torch.tensor(example.loss_weights[1:])).sum())
    batch = collate_padded(pack_examples(examples, range(len(examples))), CPU)
    head = detect_head(model)
    assert head is not None
    assert weighted_loss(ModelWithLoss(model, head), batch).item() == pytest.approx(expected, rel=1e-5)
    assert weighted_loss(ModelWithLoss(model, None), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("at_once", [64, 64 * 7])
def test_chunks_change_neither_loss_nor_gradient(
    tiny_model: MakeModel, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    model = tiny_model("gemma2")
    batch = collate_padded(pack_examples(examples, range(len(examples))), CPU)
    whole = weighted_loss(ModelWithLoss(model, detect_head(model)), batch)
    torch.autograd.backward([whole])
    expected = _gradients(model)
    model.zero_grad()
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", at_once)
    chunked = weighted_loss(ModelWithLoss(model, detect_head(model)), batch)
    torch.autograd.backward([chunked])
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(_gradients(model), expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_does_more_is_found_out(examples: list[TokenizedExample]) -> None:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0,
    )  # fmt: skip
    model = GraniteForCausalLM(config)
    assert detect_head(model) is None
    assert torch.isfinite(
        weighted_loss(ModelWithLoss(model, None), collate_padded(pack_examples(examples, [0, 1]), CPU))
    )
    assert model.training


def test_no_targets_give_zero_with_a_graph(tiny_model: MakeModel, make_example: MakeExample) -> None:
    model = tiny_model()
    batch = collate_padded(pack_examples([make_example([1, 2, 3], [0, 0, 0])], [0]), CPU)
    assert batch.total_weight == 0
    for head in (detect_head(model), None):
        model.zero_grad()
        loss = weighted_loss(ModelWithLoss(model, head), batch)
        assert loss.item() == 0
        torch.autograd.backward([loss])
        assert all((gradient == 0).all() for gradient in _gradients(model).values())
        assert _gradients(model)


def test_bf16_is_for_products_only(tiny_model: MakeModel, examples: list[TokenizedExample]) -> None:
    model = tiny_model()
    head = detect_head(model)
    assert head is not None
    batch = collate_padded(pack_examples(examples, range(len(examples))), CPU)
    exact = weighted_loss(ModelWithLoss(model, head), batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = weighted_loss(ModelWithLoss(model, head), batch)
        assert head(torch.ones(1, 32)).dtype == torch.float32
    assert rounded.dtype == torch.float32
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def _supervised(model: PreTrainedModel, **values: object) -> Objective:
    options = FinetuneOptions.parse({"precision": "fp32", "clip_norm": None, **values})
    return Objective(ForwardPass.of(model, options))


class _KeepGradients(torch.optim.SGD):
    """An optimizer that stores the gradients that it receives."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # torch's takes a loss too
        self.gradients = [weight.grad.clone() for weight in self.param_groups[0]["params"]]


@pytest.mark.parametrize("values", [{"pack_tokens": n} for n in (1, 17, 60, 4096)] + [{"packing": False}])
def test_any_cut_of_a_step_gives_the_same_gradients(
    tiny_model: MakeModel, examples: list[TokenizedExample], values: dict[str, object]
) -> None:
    model = tiny_model()
    found = []
    for given in ({"packing": True, "pack_tokens": 10_000}, values):
        optimizer = _KeepGradients(model.parameters(), lr=0)
        indices = list(range(len(examples)))
        random.Random(1).shuffle(indices)
        metrics = train_step(_supervised(model, **given), optimizer, examples, indices, clip_norm=None)
        found.append((metrics, optimizer.gradients))
    (whole, expected), (cut, gradients) = found
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
    assert (cut["tokens"], cut["target_tokens"]) == (whole["tokens"], whole["target_tokens"])
    assert cut["computed_tokens"] == cut["tokens"] or not values.get("packing", True)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", [{"pack_tokens": n} for n in (1, 17, 4096)] + [{"packing": False}])
def test_fractional_weights_count_once_in_a_step(
    tiny_model: MakeModel, examples: list[TokenizedExample], values: dict[str, object]
) -> None:
    """However a step is cut, its loss is the weighted sum over all targets, divided by their weight, in one graph."""
    draw = random.Random(3)
    mixed = []
    for example in examples:
        weights = [0.0, *(draw.choice([0.0, 0.1, 0.25, 1.0, 2.0]) for _ in example.input_ids[1:])]
        mixed.append(replace(example, loss_weights=tuple(weights)))
    model = tiny_model()
    optimizer = _KeepGradients(model.parameters(), lr=0)
    metrics = train_step(
        _supervised(model, **values),
        optimizer,
        mixed,
        range(len(mixed)),
        clip_norm=None,
    )
    model.zero_grad()
    total, weight = torch.zeros(()), 0.0
    for example in mixed:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
        each = cross_entropy(logits[:-1].float(), torch.tensor(example.input_ids[1:]), reduction="none")
        total = total + (each * torch.tensor(example.loss_weights[1:])).sum()
        weight += sum(example.loss_weights)
    torch.autograd.backward([total / weight])
    assert metrics["loss"] == pytest.approx(total.item() / weight, rel=1e-5)
    expected = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(optimizer.gradients, expected, rtol=1e-4, atol=1e-6)
    # The negative control: divided by the count of targets, the step would be different.
    assert metrics["loss"] != pytest.approx(total.item() / metrics["target_tokens"], rel=1e-2)


def test_a_mean_of_means_would_differ(tiny_model: MakeModel, examples: list[TokenizedExample]) -> None:
    """The negative control of the test above: micro-batches of few targets would weigh too much."""
    model = tiny_model()
    objective = _supervised(model, pack_tokens=17)
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    whole = train_step(objective, optimizer, examples, range(len(examples)), clip_norm=None)["loss"]
    parts = [batch for _, batch in objective.micro_batches(examples, range(len(examples)))]
    means = [
        weighted_loss(ModelWithLoss(model, objective.forward_pass.head), batch).item() / batch.total_weight
        for batch in parts
        if batch.total_weight
    ]
    assert sum(means) / len(means) != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("share", [None, 100.0, 1.1, 0.9, 0.01])
def test_gradients_are_clipped_to_their_norm(
    tiny_model: MakeModel, examples: list[TokenizedExample], share: float | None
) -> None:
    """A limit below their norm scales them; a limit above it changes no bit of them, like no limit."""
    model = tiny_model()
    objective, indices = _supervised(model), range(len(examples))
    optimizer = _KeepGradients(model.parameters(), lr=0)
    norm = train_step(objective, optimizer, examples, indices, clip_norm=None)["grad_norm"]
    whole = optimizer.gradients
    clip_norm = None if share is None else share * norm
    assert train_step(objective, optimizer, examples, indices, clip_norm=clip_norm)["grad_norm"] == norm
    if share is None or share > 1:
        assert all(map(torch.equal, optimizer.gradients, whole))
    else:
        shorter = [share * gradient for gradient in whole]
        torch.testing.assert_close(optimizer.gradients, shorter, rtol=1e-4, atol=1e-9)


def test_a_step_without_targets_changes_nothing(tiny_model: MakeModel, make_example: MakeExample) -> None:
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0)
    examples = [make_example([1, 2], [0, 0]), make_example([3], [1])]
    metrics = train_step(_supervised(model), optimizer, examples, [0, 1], clip_norm=1.0)
    assert (metrics["loss"], metrics["grad_norm"], metrics["tokens"], metrics["target_tokens"]) == (0, 0, 1, 0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_packed_and_padded_evaluation_agree(tiny_model: MakeModel, examples: list[TokenizedExample]) -> None:
    model = tiny_model()
    packed = evaluate(_supervised(model, pack_tokens=50), examples)["loss"]
    padded = evaluate(_supervised(model, packing=False, batch_size=5), examples)["loss"]
    assert packed == pytest.approx(padded, rel=1e-6)
    assert not model.training
