"""Compiled layers give the same results for all sizes, and run uncompiled outside of training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from testkit.budget import one_in
from torch import Tensor
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.kernels import compiled
from templatekit.training.lora import attach_lora
from templatekit.training.objective import Objective
from templatekit.training.step import evaluate, train_step
from templatekit.types import TokenizedExample

MakeModel = Callable[..., PreTrainedModel]

# PyTorch's compiler raises warnings about its own code, and about gradients that it looks up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class _Compiler:
    """Traces forward and backward passes as the real compiler does, runs them unchanged and counts them."""

    def __init__(self, factor: float = 1.0) -> None:
        self.graphs = 0
        self.factor = factor

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        made: Callable[..., Any] = aot_eager(graph, [*inputs])

        def run(*args: Any) -> Any:
            return [out * self.factor if isinstance(out, Tensor) else out for out in made(*args)]

        return run if self.factor != 1 else made


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> _Compiler:
    made = _Compiler()
    monkeypatch.setattr(compiled, "COMPILER", made)
    torch.compiler.reset()
    return made


def _options(**values: Any) -> FinetuneOptions:
    return FinetuneOptions.parse({"precision": "fp32", "pack_tokens": 60, "lora": False, **values})


def _trained(model: PreTrainedModel, examples: list[TokenizedExample], **values: Any) -> list[float]:
    """Loss, gradient norm and held-out loss of three steps, each on other examples."""
    objective = Objective(ForwardPass.of(model, _options(**values)))
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    found = []
    for step in range(3):
        model.train()
        numbers = train_step(objective, optimizer, examples, range(step, 12, 2), clip_norm=1.0)
        found += [numbers["loss"], numbers["grad_norm"], evaluate(objective, examples[: 4 + step])["loss"]]
    return found


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("kind", "precision"), one_in(2, [("llama", "fp32"), ("gemma2", "fp32"), ("gpt2", "bf16"), ("llama", "bf16")])
)
def test_steps(tiny_model: MakeModel, examples: list[TokenizedExample], kind: str, precision: str) -> None:
    found, expected = (_trained(tiny_model(kind), examples, compile=on, precision=precision) for on in (True, False))
    assert found == pytest.approx(expected, rel=0.02 if precision == "bf16" else 1e-5)


@pytest.mark.usefixtures("compiler")
@pytest.mark.full
@pytest.mark.parametrize("values", [{"packing": False}, {"share": False}, {"activation_checkpointing": True}])
def test_steps_of_other_kinds(tiny_model: MakeModel, examples: list[TokenizedExample], values: dict[str, Any]) -> None:
    found, expected = (_trained(tiny_model(), examples, compile=given, **values) for given in (True, False))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.full
@pytest.mark.usefixtures("compiler")
def test_steps_of_adapters(tiny_model: MakeModel, examples: list[TokenizedExample]) -> None:
    def found(*, compile_layers: bool) -> list[float]:
        model = attach_lora(tiny_model(), rank=2, alpha=4, seed=0)
        return _trained(model, examples, compile=compile_layers)

    assert found(compile_layers=True) == pytest.approx(found(compile_layers=False), rel=1e-5)


@pytest.mark.full
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_steps_with_the_real_compiler(tiny_model: MakeModel, examples: list[TokenizedExample]) -> None:
    torch.compiler.reset()
    found, expected = (_trained(tiny_model(), examples, compile=given) for given in (True, False))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("compiler")
def test_activation_checkpointing_saves_memory_in_compiled_layers(
    tiny_model: MakeModel, examples: list[TokenizedExample]
) -> None:
    kept = [0, 0]
    for again in (False, True):
        model = tiny_model()
        forward_pass = ForwardPass.of(model, _options(compile=True, activation_checkpointing=again))
        model.train()

        def keep(tensor: Tensor, again: bool = again) -> Tensor:
            kept[again] += tensor.numel() * tensor.element_size()
            return tensor

        for _, batch in forward_pass.micro_batcher.of_examples(examples, range(len(examples))):
            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
                forward_pass.loss(batch) as loss,
            ):
                torch.autograd.backward([loss])
    assert 2 * kept[True] < kept[False]


def test_all_sizes_and_layers_share_one_graph(
    compiler: _Compiler, tiny_model: MakeModel, examples: list[TokenizedExample]
) -> None:
    model = tiny_model()
    objective = Objective(ForwardPass.of(model, _options(compile=True)))
    before = compiler.graphs
    assert before
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for count in (1, 2, 5, 12):
        model.train()
        train_step(objective, optimizer, examples, range(count), clip_norm=1.0)
        evaluate(objective, examples[:count])
    assert compiler.graphs == before


def test_layers_run_uncompiled_outside_of_training(compiler: _Compiler, tiny_model: MakeModel) -> None:
    model = tiny_model()
    forward_pass = ForwardPass.of(model, _options(compile=True))
    assert "in fewer passes: 1 linear layers, 2 compiled layers" in forward_pass.describe()
    before = compiler.graphs
    model(input_ids=torch.arange(5)[None])
    assert compiler.graphs == before
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_wrong_compiler_is_refused(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(compiled, "COMPILER", _Compiler(factor=1.1))
    with pytest.raises(ConfigError, match=r"compile: LlamaForCausalLM gives loss .* without it .*; leave it out"):
        ForwardPass.of(tiny_model(), _options(compile=True))


def test_a_model_that_cannot_be_compiled_is_refused(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    monkeypatch.setattr(compiled, "COMPILER", none)
    with pytest.raises(ConfigError, match=r"compile: .*no compiler here.*; leave it out"):
        ForwardPass.of(tiny_model(), _options(compile=True))


def test_a_model_without_named_layers_is_refused(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(model, "_no_split_modules", None)
    with pytest.raises(ConfigError, match="compile: LlamaForCausalLM does not name its layers; leave it out"):
        ForwardPass.of(model, _options(compile=True))
