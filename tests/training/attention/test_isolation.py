"""A pack gives exactly the loss and the gradients of its examples, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from testkit.losses import weighted_loss
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from templatekit.errors import RunError
from templatekit.packing import pack, pack_examples
from templatekit.training.attention.dispatch import ATTENTION_NAME, isolate, packing_unsupported_reason
from templatekit.training.collator import Batch, collate_packed, collate_padded
from templatekit.training.loss import ModelWithLoss, detect_head
from templatekit.types import TokenizedExample

CPU = torch.device("cpu")
MakeModel = Callable[..., PreTrainedModel]
Exactly = Callable[[PreTrainedModel], PreTrainedModel]


def _run(model: PreTrainedModel, batches: Sequence[Batch], *, isolated: bool = True) -> tuple[float, dict[str, Tensor]]:
    """Return the summed loss of the batches, and its gradients."""
    model.zero_grad()
    head = detect_head(model)
    total = 0.0
    for batch in batches:
        isolation = isolate(model, batch.segments) if isolated and batch.segments else nullcontext()
        with isolation:
            loss = weighted_loss(ModelWithLoss(model, head), batch)
            torch.autograd.backward([loss])
        total += float(loss.detach())
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def _assert_close(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    """Equal up to the rounding of fp64, or of fp32 where a part of the model computes in fp32."""
    tolerance = 1e-10 if all(gradient.dtype == torch.float64 for gradient in expected[1].values()) else 2e-6
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    scale = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=tolerance * scale, msg=name)


def _alone(model: PreTrainedModel, examples: Sequence[TokenizedExample]) -> tuple[float, dict[str, Tensor]]:
    """Each example by itself, with the model's own attention."""
    return _run(model, [collate_padded(pack_examples(examples, [document]), CPU) for document in range(len(examples))])


def _pack(examples: Sequence[TokenizedExample]) -> Batch:
    return collate_packed(pack_examples(examples, range(len(examples))), CPU)


def test_a_pack_gives_the_loss_and_gradients_of_its_examples(
    tiny_model: MakeModel, in_fp64: Exactly, kind: str, examples: list[TokenizedExample]
) -> None:
    model = tiny_model(kind)
    if kind not in ("qwen2-moe-sliding", "gemma2"):  # whose grouped products and softmax are always in fp32
        model = in_fp64(model)
    original = model.config._attn_implementation
    assert packing_unsupported_reason(model) is None
    _assert_close(_run(model, [_pack(examples)]), _alone(model, examples))
    assert model.config._attn_implementation == original


def test_without_isolation_examples_see_each_other(
    tiny_model: MakeModel, kind: str, examples: list[TokenizedExample]
) -> None:
    model = tiny_model(kind)
    packed = _pack(examples)
    joined = Batch(
        input_ids=packed.input_ids,
        position_ids=None,
        segments=None,
        target_positions=packed.target_positions,
        targets=packed.targets,
        weights=packed.weights,
        total_weight=packed.total_weight,
        tokens=packed.tokens,
        padded_tokens=packed.padded_tokens,
        target_tokens=packed.target_tokens,
    )
    assert _run(model, [joined])[0] != pytest.approx(_alone(model, examples)[0], rel=1e-3)


def test_a_padded_batch_gives_the_loss_and_gradients_of_its_examples(
    tiny_model: MakeModel, kind: str, examples: list[TokenizedExample]
) -> None:
    model = tiny_model(kind)
    for pad_id in (0, 63):
        padded = collate_padded(pack_examples(examples, range(len(examples))), CPU, pad_id=pad_id)
        _assert_close(_run(model, [padded]), _alone(model, examples))


@pytest.mark.parametrize("budget", [1, 24, 40, 10_000])
def test_any_packing_of_a_step_gives_the_same_gradients(
    tiny_model: MakeModel, in_fp64: Exactly, examples: list[TokenizedExample], budget: int
) -> None:
    model = in_fp64(tiny_model())
    packs = pack([len(item) - 1 for item in examples], budget)
    batches = [collate_packed(pack_examples(examples, documents), CPU) for documents in packs]
    _assert_close(_run(model, batches), _alone(model, examples))


def test_activation_checkpointing_recomputes_isolated(
    tiny_model: MakeModel, in_fp64: Exactly, examples: list[TokenizedExample]
) -> None:
    model = in_fp64(tiny_model())
    expected = _alone(model, examples)
    model.activation_checkpointing_enable()
    _assert_close(_run(model, [_pack(examples)]), expected)


def test_attention_applies_dropout(tiny_model: MakeModel, examples: list[TokenizedExample]) -> None:
    model = tiny_model()
    without = _run(model, [_pack(examples)])[0]
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.manual_seed(0)
    assert _run(model, [_pack(examples)])[0] != pytest.approx(without, rel=1e-4)


def test_models_that_cannot_be_packed_are_named() -> None:
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2))
    for model in (mamba, bloom):
        reason = packing_unsupported_reason(model)
        assert reason is not None
        assert type(model).__name__ in reason
        assert model.training


@pytest.mark.parametrize("share", [1, 1e-2, 1e-3, 1e-4])
def test_the_trial_detects_a_leak_outside_the_attention(tiny_model: MakeModel, share: float) -> None:
    model = tiny_model()
    norm = model.model.norm.forward
    model.model.norm.forward = lambda states: norm(states + share * states.cumsum(1))
    assert "see each other" in str(packing_unsupported_reason(model))


def test_the_trial_detects_other_positions_than_alone(tiny_model: MakeModel) -> None:
    model = tiny_model()
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda states, position_ids: rotary(
        states, position_ids * (2 if len(position_ids[0]) == 10 else 1)
    )
    assert "other logits than alone" in str(packing_unsupported_reason(model))


@pytest.mark.parametrize("never", [float("-inf"), torch.finfo(torch.float32).min])
def test_the_trial_measures_by_the_largest_finite_logit(tiny_model: MakeModel, never: float) -> None:
    model = tiny_model()
    head, norm = model.lm_head.forward, model.model.norm.forward
    model.lm_head.forward = lambda states: head(states).index_fill(-1, torch.tensor([3]), never)
    assert packing_unsupported_reason(model) is None
    model.model.norm.forward = lambda states: norm(states + 0.01 * states.cumsum(1))
    assert "see each other" in str(packing_unsupported_reason(model))


@pytest.mark.parametrize("constant", [0.0, float("inf"), -torch.finfo(torch.float32).max])
def test_the_trial_refuses_a_pack_without_any_logit_to_measure_by(tiny_model: MakeModel, constant: float) -> None:
    model = tiny_model()
    head = model.lm_head.forward
    model.lm_head.forward = lambda states: torch.full_like(head(states), constant)
    assert packing_unsupported_reason(model) is None
    model.lm_head.forward = lambda states: (
        torch.full_like(head(states), constant) if states.shape[1] == 10 else head(states)
    )
    assert "other logits than alone (they differ by inf" in str(packing_unsupported_reason(model))


def test_a_model_whose_fp32_rounding_is_large_can_be_packed(tiny_model: MakeModel) -> None:
    model = tiny_model()
    norm = model.model.norm.forward

    def noisy(states: Tensor) -> Tensor:
        # Rounding depends on the shape of products, and not on what other rows hold.
        found: Tensor = norm(states)
        return found * (1 + 4e-4 * (states.shape[1] % 2))

    model.model.norm.forward = noisy
    assert packing_unsupported_reason(model) is None


def test_the_attention_refuses_inputs_that_are_no_pack(tiny_model: MakeModel, examples: list[TokenizedExample]) -> None:
    model = tiny_model()
    packed = _pack(examples)
    assert packed.segments is not None
    with isolate(model, packed.segments), pytest.raises(RunError, match="within isolate"):
        model(input_ids=packed.input_ids[:, :5], use_cache=False)
    model.set_attn_implementation(ATTENTION_NAME)
    with pytest.raises(RunError, match="within isolate"):
        model(input_ids=packed.input_ids, use_cache=False)
