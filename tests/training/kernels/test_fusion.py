"""Fused models give the results of unfused ones, and are unchanged afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.training.attention import dispatch as attention
from templatekit.training.attention import paths as path_attention
from templatekit.training.attention import tree as tree_attention
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.kernels import elementwise, memory
from templatekit.training.kernels.elementwise import rms_norm
from templatekit.training.kernels.fusion import Fusion, fuse
from templatekit.training.lora import attach_lora
from templatekit.training.model import unwrap
from templatekit.training.objective import Objective
from templatekit.training.step import train_step
from templatekit.types import TokenizedExample

MakeModel = Callable[..., PreTrainedModel]
Exactly = Callable[[PreTrainedModel], PreTrainedModel]


def _step(forward_pass: ForwardPass, examples: Sequence[TokenizedExample]) -> tuple[float, dict[str, Tensor]]:
    model = forward_pass.model
    model.zero_grad()
    total = 0.0
    for _, batch in forward_pass.micro_batcher.of_examples(examples, range(len(examples))):
        with forward_pass.loss(batch) as loss:
            torch.autograd.backward([loss])
        total += float(loss.detach())
    return total, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def _forward_passes(model: PreTrainedModel, precision: str = "fp32") -> tuple[ForwardPass, ForwardPass]:
    """Return a fused forward pass and an unfused one."""
    forward_pass = ForwardPass.of(model, FinetuneOptions.parse({"precision": precision, "pack_tokens": 60}))
    values = {name: getattr(forward_pass, name) for name in forward_pass.__slots__}
    return forward_pass, ForwardPass(**{**values, "fusion": Fusion()})


def _distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    error = sum(float((found[name] - gradient).double().square().sum()) for name, gradient in expected.items())
    return float((error / sum(float(gradient.double().square().sum()) for gradient in expected.values())) ** 0.5)


def test_a_model_in_fp32(tiny_model: MakeModel, kind: str, examples: list[TokenizedExample]) -> None:
    fused, plain = _forward_passes(tiny_model(kind))
    loss, gradients = _step(fused, examples)
    expected, plain_gradients = _step(plain, examples)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert _distance(gradients, plain_gradients) < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_in_bf16_is_as_exact_as_unfused(
    tiny_model: MakeModel, kind: str, examples: list[TokenizedExample], lora: bool
) -> None:
    if lora and ("moe" in kind or kind == "gpt2"):
        pytest.skip("adapters on experts and on GPT-2's layers are covered without LoRA")

    def model() -> PreTrainedModel:
        made = tiny_model(kind)
        return unwrap(attach_lora(made, rank=2, alpha=4, seed=0)) if lora else made

    exact = _step(_forward_passes(model())[1], examples)
    fused, plain = (_step(forward_pass, examples) for forward_pass in _forward_passes(model(), "bf16"))
    assert fused[0] == pytest.approx(exact[0], rel=2e-2)
    # bf16 is coarse for these models. The unfused gradients show how coarse.
    assert _distance(fused[1], exact[1]) < 2 * _distance(plain[1], exact[1]) + 1e-3


def test_negative_control_a_broken_norm(
    tiny_model: MakeModel, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, plain = _forward_passes(tiny_model())
    monkeypatch.setattr(elementwise, "_factor", lambda weight, offset, like: weight * 1.01)
    assert _distance(_step(fused, examples)[1], _step(plain, examples)[1]) > 1e-3


def test_the_parts_that_are_fused(tiny_model: MakeModel) -> None:
    assert str(fuse(tiny_model())) == "5 norms, 15 linear layers, 1 embeddings, 1 rotary embeddings"
    assert str(fuse(tiny_model("gemma2"))).startswith("9 norms")
    assert str(fuse(tiny_model("gpt2"))) == "1 linear layers, 2 embeddings"


@pytest.mark.parametrize("values", [{}, {"packing": False}, {"precision": "bf16"}, {"lora": True, "precision": "bf16"}])
def test_checkpointing_computes_the_same_again(
    tiny_model: MakeModel, kind: str, examples: list[TokenizedExample], values: dict[str, object]
) -> None:
    if values.get("lora") and ("moe" in kind or kind == "gpt2"):
        pytest.skip("adapters on experts and on GPT-2's layers are covered without LoRA")
    found = []
    for again in (False, True):
        options = FinetuneOptions.parse(
            {"precision": "fp32", "pack_tokens": 60, "lora": False, "activation_checkpointing": again, **values}
        )
        model = tiny_model(kind)
        if options.lora:
            attach_lora(model, rank=2, alpha=4, seed=0)
        forward_pass = ForwardPass.of(model, options)
        model.train(True)
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        # These hooks do not see what checkpointing saves in place of tensors.
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found.append((*_step(forward_pass, examples), sum(kept)))
    (loss, gradients, cached_bytes), (again_loss, again_gradients, fewer_bytes) = found
    assert again_loss == loss
    assert gradients.keys() == again_gradients.keys()
    assert all(torch.equal(again_gradients[name], gradient) for name, gradient in gradients.items())
    assert 2 * fewer_bytes < cached_bytes  # checkpointing saves memory


def test_a_model_that_cannot_be_checkpointed_is_named(tiny_model: MakeModel) -> None:
    model = tiny_model()
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="activation_checkpointing: LlamaForCausalLM does not provide for it"):
        ForwardPass.of(model, FinetuneOptions.parse({"activation_checkpointing": True}))


def test_a_step_is_described_in_one_line(tiny_model: MakeModel) -> None:
    def line(**values: object) -> str:
        return ForwardPass.of(tiny_model(), FinetuneOptions.parse({"precision": "fp32", **values})).describe()

    assert line() == (
        "step: fp32 products on cpu; packs of up to 2,048 tokens, what examples begin with computed once; "
        "attention: products over the prefix tree; in fewer passes: 5 norms, 15 linear layers, 1 embeddings, "
        "1 rotary embeddings; "
        "head: a product"
    )
    assert "bf16 products" in line(precision="bf16")
    assert "packs of up to 64 tokens, what examples begin with computed for each;" in line(share=False, pack_tokens=64)
    assert "; padded batches; attention: sdpa;" in line(packing=False)
    assert line(activation_checkpointing=True).endswith("; layers computed again in the backward pass")


class _Biased(nn.Module):
    """A norm that equals RMSNorm until its bias is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4)), 1e-6

    def forward(self, states: Tensor) -> Tensor:
        return rms_norm(states, self.weight, self.eps) + self.bias


class _Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    def forward(self, states: Tensor) -> Tensor:
        return rms_norm(states - states.mean(-1, keepdim=True), self.weight, self.eps)


@pytest.mark.parametrize("norm", [_Biased, _Centred])
def test_other_norms_are_not_replaced(tiny_model: MakeModel, norm: Callable[[], nn.Module]) -> None:
    model = tiny_model()
    model.model.norm = norm()
    assert model.model.norm not in fuse(model).norms


def test_the_model_is_restored(tiny_model: MakeModel) -> None:
    model = tiny_model()
    import transformers.models.llama.modeling_llama as llama

    own, forward = llama.apply_rotary_pos_emb, model.model.norm.forward
    with pytest.raises(ZeroDivisionError), fuse(model).active():
        assert llama.apply_rotary_pos_emb is not own
        assert model.model.norm.forward != forward
        raise ZeroDivisionError
    assert llama.apply_rotary_pos_emb is own
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_frozen_weight_is_cast_once_and_after_a_change() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    fusion = Fusion(linears=[layer])
    states = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with fusion.active():
            first = layer(states)
            copy = fusion._copies[layer.weight].values
            assert torch.equal(layer(states), first)
            assert fusion._copies[layer.weight].values is copy
            layer.weight.mul_(2)
            changed = layer(states)
        assert torch.equal(changed, layer(states))
        assert not torch.equal(changed, first)


def _step_without_version(optimizer: torch.optim.Optimizer) -> None:
    """Change weights as optimizers with their own kernels do: PyTorch does not update the weights' versions."""
    for weight in optimizer.param_groups[0]["params"]:
        weight.data.add_(weight.grad, alpha=-0.1)


@pytest.mark.parametrize("budget", [17, 4096])
@pytest.mark.parametrize("large", [False, True])
def test_trained_weights_are_cast_once_a_step(
    tiny_model: MakeModel, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch, budget: int, large: bool
) -> None:
    """Bit for bit the result of casts for every micro-batch, with any optimizer, and with persistent buffers."""
    monkeypatch.setattr(torch.optim.SGD, "step", _step_without_version)
    monkeypatch.setattr("templatekit.training.kernels.fusion.needs_persistent_buffer", lambda weight: large)

    def trained(*, copied: bool = True) -> tuple[list[float], list[Tensor]]:
        torch.manual_seed(0)
        model = tiny_model()
        forward_pass = ForwardPass.of(model, FinetuneOptions.parse({"precision": "bf16", "pack_tokens": budget}))
        forward_pass.fusion.accumulates_gradients = copied
        forward_pass.fusion.embeddings = []  # they sum gradients in another order
        optimizer = torch.optim.SGD(model.parameters())
        documents = range(len(examples))
        steps = [train_step(Objective(forward_pass), optimizer, examples, documents, clip_norm=1.0) for _ in range(3)]
        return [number for step in steps for number in (step["loss"], step["grad_norm"])], [*model.parameters()]

    (numbers, weights), (expected, right) = trained(), trained(copied=False)
    assert numbers == expected
    assert all(map(torch.equal, weights, right))
    monkeypatch.setattr(Fusion, "invalidate_trained_copies", lambda fusion: None)
    assert trained()[0] != expected  # negative control: stale copies


def test_the_head_is_cast_once_a_step_too(tiny_model: MakeModel) -> None:
    head = tiny_model().get_output_embeddings()
    assert isinstance(head, nn.Linear)
    fusion = Fusion(linears=[head])
    assert fusion.weight(head) is head.weight
    with torch.autocast("cpu", torch.bfloat16):
        narrow = fusion.weight(head)
        assert narrow.dtype == torch.bfloat16
        assert fusion.weight(head) is narrow
        fusion.invalidate_trained_copies()
        assert fusion.weight(head) is not narrow
        assert Fusion().weight(head) is head.weight


def test_large_weights_reuse_the_memory_of_their_copies_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(4, 4, bias=False)
    weight = layer.weight
    fusion = Fusion(linears=[layer])

    def step() -> tuple[Tensor, Tensor]:
        """Return the copy and the gradient of one step."""
        with torch.autocast("cpu", torch.bfloat16), fusion.active():
            layer(torch.ones(3, 4)).sum().backward()
            copy, gradient = fusion._copies[weight].values, weight.grad
        assert gradient is not None
        assert torch.equal(copy, weight.bfloat16())
        assert torch.equal(gradient, torch.full((4, 4), 3.0))
        fusion.invalidate_trained_copies()
        weight.data.mul_(2)
        weight.grad = None
        return copy, gradient

    monkeypatch.setattr(memory, "_LARGE_BYTES", 64)
    (copy, gradient), (copy_after, gradient_after) = step(), step()
    assert copy is copy_after
    assert gradient is gradient_after
    monkeypatch.setattr(memory, "_LARGE_BYTES", 65)
    fusion = Fusion(linears=[layer])
    assert step()[0] is not step()[0]
    assert not fusion._gradient_buffers


def test_states_that_changed_are_cast_again() -> None:
    layer = nn.Linear(4, 4)
    states = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16), Fusion(linears=[layer]).active():
        first = layer(states)
        assert not torch.equal(layer(states.mul_(2)), first)


@pytest.mark.parametrize("way", [path_attention, tree_attention])
def test_recomputed_attention_weights_equal_saved_ones(
    tiny_model: MakeModel,
    in_fp64: Exactly,
    examples: list[TokenizedExample],
    monkeypatch: pytest.MonkeyPatch,
    way: Any,
) -> None:
    _, plain = _forward_passes(in_fp64(tiny_model()))
    if way is tree_attention:
        monkeypatch.setattr(attention, "create_path_layout", lambda segments: None)
    saved = _step(plain, examples)
    monkeypatch.setattr(way, "MAX_SAVED_KEYS", 0)
    again = _step(plain, examples)
    assert again[0] == saved[0]
    assert _distance(again[1], saved[1]) < 1e-12


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
