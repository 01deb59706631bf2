"""Eight-bit moments and four-bit frozen weights: what is saved, how exact it is, and that runs resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from testkit.tiny_model import tiny_folder
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.loop import train
from templatekit.training.lora import attach_lora
from templatekit.training.optimizer import make_optimizer
from templatekit.training.quantization import dequantized_weights, quantize
from templatekit.training.run import finetune
from templatekit.types import TokenizedExample

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # bitsandbytes' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
bitsandbytes = pytest.importorskip("bitsandbytes")


def _model(seed: int = 0) -> PreTrainedModel:
    """Wide enough for eight bits, which small weights do without."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _options(**values: object) -> FinetuneOptions:
    defaults = {"precision": "fp32", "batch_size": 4, "epochs": 4, "learning_rate": 5e-3, "warmup": 0}
    return FinetuneOptions.parse({**defaults, **values})


def _made(options: FinetuneOptions) -> PreTrainedModel:
    model = _model()
    if options.quantize:
        quantize(model)
    return attach_lora(model, rank=4, alpha=8, seed=0) if options.lora else model


def _losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _trained(options: FinetuneOptions, examples: Sequence[TokenizedExample], folder: Path, **more: Any) -> list[float]:
    folder.mkdir(exist_ok=True)
    train(_made(options), examples, [], options, folder=folder, **more)
    return _losses(folder)


NARROW: list[dict[str, object]] = [{"lora": False, "optimizer": "adamw8bit"}, {"quantize": "4bit"}]


@pytest.mark.parametrize("narrow", NARROW)
def test_a_narrow_run_learns_nearly_as_a_wide_one(
    tmp_path: Path, examples: list[TokenizedExample], narrow: dict[str, object]
) -> None:
    found = _trained(_options(**narrow), examples, tmp_path / "narrow")
    wide = _options(**{**narrow, "optimizer": "adamw", "quantize": None})
    expected = _trained(wide, examples, tmp_path / "wide")
    assert found != expected  # the losses differ slightly, so the option has an effect
    assert found == pytest.approx(expected, rel=0.05)
    assert found[-1] < 0.85 * found[0]


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("narrow", NARROW)
def test_a_narrow_run_resumes_to_the_bit(
    tmp_path: Path, examples: list[TokenizedExample], narrow: dict[str, object]
) -> None:
    options = _options(save_every=3, **narrow)
    expected = _trained(options, examples, tmp_path / "whole")

    def stop(line: Any) -> None:
        if line["step"] == 5 and "loss" in line:
            raise Killed

    with pytest.raises(Killed):
        _trained(options, examples, tmp_path / "stopped", report=stop)
    resumed = options.model_copy(update={"resume": True})
    assert _trained(resumed, examples, tmp_path / "stopped") == expected


def test_eight_bits_are_eight() -> None:
    def kept(name: str) -> list[Tensor]:
        model = _model()
        optimizer = make_optimizer(model, _options(lora=False, optimizer=name))
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]

    assert not any(each.dtype == torch.uint8 for each in kept("adamw"))
    narrow = sum(each.numel() for each in kept("adamw8bit") if each.dtype == torch.uint8)
    assert narrow == 2 * sum(weight.numel() for weight in _model().parameters() if weight.numel() >= 4096)


def test_four_bits_are_what_is_computed_with() -> None:
    model = _model()
    wide = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    quantize(model)
    narrow = dequantized_weights(model)
    assert len(narrow) == 14
    assert model.get_output_embeddings().weight.dtype == torch.float32
    same = _model()
    for name, weight in narrow.items():
        error = float((weight - wide[name]).norm() / wide[name].norm())
        assert 0.01 < error < 0.2
        same.get_parameter(name).data.copy_(weight)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        model.train(False)
        expected, found = same(input_ids=ids).logits, model(input_ids=ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(input_ids=ids).logits, found)  # the weights were not repacked
    assert all(torch.equal(weight, narrow[name]) for name, weight in dequantized_weights(model).items())


def test_in_bf16_the_layers_compute_in_bf16(examples: list[TokenizedExample]) -> None:
    model = _made(_options(quantize="4bit"))
    both = [ForwardPass.of(model, _options(quantize="4bit", precision=name)) for name in ("bf16", "fp32")]
    seen: list[torch.dtype] = []
    layer = both[0].model.get_submodule("model.layers.0.mlp.down_proj.base_layer")
    layer.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    losses = []
    for forward_pass in both:
        (_, batch) = next(forward_pass.micro_batcher.of_examples(examples, range(len(examples))))
        with forward_pass.loss(batch) as loss:
            losses.append(float(loss.detach()))
    assert seen == [torch.bfloat16, torch.float32]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("again", [False, True])
def test_packs_share_over_four_bits(examples: list[TokenizedExample], again: bool) -> None:
    gradients = []
    for values in ({"packing": False}, {"activation_checkpointing": again}):
        model = _made(_options(quantize="4bit"))
        forward_pass = ForwardPass.of(model, _options(quantize="4bit", **values))
        model.train(True)
        for _, batch in forward_pass.micro_batcher.of_examples(examples, range(len(examples))):
            with forward_pass.loss(batch) as loss:
                torch.autograd.backward([loss])
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    plain, packed = gradients
    assert plain.keys() == packed.keys()
    assert all("lora_" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-3, atol=1e-4)


def test_a_run_saves_what_it_trained_with(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    rows = [{"instruction": f"Say {word}.", "output": word * 3} for word in ("ab", "cd", "ef", "gh", "ij", "kl")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    values: dict[str, Any] = {
        "dataset": str(tmp_path / "rows.json"),
        "model": str(tmp_path / "model"),
        "precision": "fp32",
        "split": "train=rest",
        "eval_dataset": str(tmp_path / "rows.json"),  # the loss on other rows may not fall in six steps
        "epochs": 6,
        "learning_rate": 1e-2,
        "quantize": "4bit",
        "samples": 0,
    }
    run = finetune(values, output=tmp_path / "run")
    # The saved folder, which needs no bitsandbytes, has the loss that was measured on these rows.
    again = finetune(
        {**values, "quantize": None, "model": str(run.folder), "max_steps": 1, "learning_rate": 1e-12},
        output=tmp_path / "again",
    )
    assert run.eval_after is not None
    assert run.eval_before is not None
    assert run.eval_after < 0.99 * run.eval_before
    assert again.eval_before == pytest.approx(run.eval_after, rel=1e-4)


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="quantize='4bit' freezes the weights; found lora=False; expected --lora"):
        _options(quantize="4bit", lora=False)
    for values in ({"quantize": "4bit"}, {"optimizer": "adamw8bit"}):
        with pytest.raises(ConfigError, match="cannot be divided between processes; expected --distributed ddp"):
            _options(distributed="fsdp", **values)
    old = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no linear layers besides its head"):
        quantize(old)
    monkeypatch.setattr("templatekit.training.quantization.find_spec", lambda name: None)

    def build() -> object:
        return make_optimizer(_model(), _options(lora=False, optimizer="adamw8bit"))

    for action in (build, lambda: quantize(_model())):
        with pytest.raises(
            ConfigError, match=r"needs the package bitsandbytes: pip install 'templatekit\[quantized\]'"
        ):
            action()
