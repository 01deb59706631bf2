"""A run goes on only from the model with which it began: every bit of it counts, and nothing but what it computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from testkit.tiny_model import tiny_folder
from transformers import AutoModelForCausalLM

import templatekit
from templatekit.errors import ConfigError, RunError
from templatekit.training import run as run_module
from templatekit.training.model import load_model, model_fingerprints

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(8)]
CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and a run of low-rank adapters, which can be copied."""
    place = tmp_path_factory.mktemp("place")
    tiny_folder(place / "model")
    (place / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        templatekit.finetune(options())
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def options(**more: Any) -> dict[str, Any]:
    return {
        "dataset": "rows.json", "model": "model", "template": "chatml", "max_steps": 2, "samples": 0, "output": "run",
        "max_new_tokens": 2, "precision": "fp32", "device": "cpu", "split": "train=rest", **more,
    }  # fmt: skip


def change_json(name: str, key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, key: value}))

    return change


def change_last_bit(folder: Path) -> None:
    """Change a weight as little as can be."""
    weights = load_file(folder / WEIGHTS)
    weight = weights["model.layers.1.mlp.down_proj.weight"]
    weight.view(torch.int32)[-1, -1] ^= 1
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def save_in_parts(folder: Path) -> None:
    """The same weights, in several files."""
    model = cast("Any", AutoModelForCausalLM).from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert not (folder / WEIGHTS).exists()


def touch(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes())


CHANGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a bit of a weight": (change_last_bit, ["model weights"]),
    "a number that the attention uses": (change_json("config.json", "rms_norm_eps", 1e-3), ["model configuration"]),
    "the end of a text": (change_json("tokenizer_config.json", "eos_token", "<|im_end|>"), ["tokenizer"]),
}
NO_CHANGES = {"nothing": lambda _: None, "times": touch, "files": save_in_parts,
              "who wrote it": change_json("config.json", "transformers_version", "5.0.0")}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_refused_by_name(change: str, place: Path) -> None:
    make, names = CHANGES[change]
    make(place / "model")
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ConfigError, match=r"is of another run: ") as raised:
        templatekit.finetune(options(resume=True, keep_checkpoints=5))
    differences = str(raised.value).partition("another run: ")[2].partition("; give the same")[0]
    assert [each.partition(" was ")[0] for each in differences.split("; ")] == names
    assert {path: path.read_bytes() for path in before} == before, "nothing of the run is written before it is refused"


@pytest.mark.parametrize("change", NO_CHANGES)
def test_the_same_model_goes_on(change: str, place: Path) -> None:
    NO_CHANGES[change](place / "model")
    assert templatekit.finetune(options(resume=True, keep_checkpoints=5)).resumed_from == 2
    assert "keep_checkpoints: 5" in (place / "run" / "recipe.yaml").read_text()


def test_without_the_fingerprint_a_changed_model_would_go_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what the adapters of another model look like: nothing is said."""
    monkeypatch.setattr(run_module, "model_fingerprints", lambda _: {"model weights": "equal"})
    shutil.rmtree(place / "run")
    templatekit.finetune(options())
    change_last_bit(place / "model")
    assert templatekit.finetune(options(resume=True)).resumed_from == 2


def test_dpo_keeps_its_reference_where_the_model_is_refused(place: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(8)]
    (place / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    pairs = options(dataset="pairs.json", method="dpo", output="dpo")
    templatekit.finetune(pairs)
    reference = (place / "dpo" / "reference.safetensors").read_bytes()
    change_last_bit(place / "model")
    said: list[str] = []
    with pytest.raises(ConfigError, match="model weights was"):
        templatekit.finetune({**pairs, "resume": True}, say=said.append)
    assert (place / "dpo" / "reference.safetensors").read_bytes() == reference
    assert not [line for line in said if "the reference is computed anew" in line]


def test_a_model_that_changes_during_a_run_is_not_merged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantized model is loaded again at the end, to merge the adapters."""
    pytest.importorskip("bitsandbytes")
    train = vars(run_module)["train"]

    def then_change(*arguments: Any, **more: Any) -> Any:
        result = train(*arguments, **more)
        change_last_bit(place / "model")
        return result

    monkeypatch.setattr(run_module, "train", then_change)
    with pytest.raises(RunError, match=r"model 'model' changed during the run.*--resume"):
        templatekit.finetune(options(output="narrow", quantize="4bit"))
    assert not (place / "narrow" / "config.json").exists()


def test_tied_weights_and_their_names_count(place: Path) -> None:
    model = load_model(place / "model", device=CPU)
    first = model_fingerprints(model)
    assert model_fingerprints(load_model(place / "model", device=CPU)) == first
    weights = dict(model.named_parameters())
    one, other = (weights[f"model.layers.0.mlp.{name}.weight"] for name in ("gate_proj", "up_proj"))
    with torch.no_grad():
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
    assert model_fingerprints(model)["model weights"] != first["model weights"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21, transformers 5.23
def test_adapters_in_the_folder_of_a_model_count_and_are_never_unpickled(place: Path) -> None:
    """transformers adds them to the model; a file of them that is a pickle is not even opened."""
    peft = pytest.importorskip("peft")
    folder = place / "model"
    plain = model_fingerprints(load_model(folder, device=CPU))
    model = cast("Any", AutoModelForCausalLM).from_pretrained(folder)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder)
    adapted = model_fingerprints(load_model(folder, device=CPU))
    assert adapted["model weights"] != plain["model weights"]
    assert adapted["model configuration"] == plain["model configuration"]
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    with pytest.raises(RunError, match=r"cannot be loaded: .*adapter_model\.safetensors"):
        load_model(folder, device=CPU)
