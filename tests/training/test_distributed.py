"""Several processes train like one: the losses are equal, one process writes files, and all of them stop together."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from testkit.processes import Outcome, together
from testkit.tiny_model import tiny_folder
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.training.distributed import SINGLE_PROCESS, TrainingGroup, full_tensor
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.kernels import compiled
from templatekit.training.loop import train
from templatekit.training.lora import attach_lora
from templatekit.training.run_folder import run_folder
from templatekit.types import RenderedText, TokenizedExample, TokenizedPair

MakeModel = Callable[..., PreTrainedModel]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
KINDS = ["ddp", "fsdp"]


def _options(**values: object) -> FinetuneOptions:
    defaults = {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "precision": "fp32",
        "lora": False,
        "save_every": 2,
    }
    return FinetuneOptions.parse({**defaults, **values})


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _assert_same_run(found: Path, expected: Path) -> None:
    mine, theirs = _lines(found), _lines(expected)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds", "computed_tokens", "padded_tokens"}:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (one["step"], name)


def _made(options: FinetuneOptions, make: MakeModel) -> PreTrainedModel:
    model = make()
    return attach_lora(model, rank=2, alpha=4, seed=1) if options.lora else model


def _train(
    make: MakeModel, items: Sequence[Any], options: FinetuneOptions, folder: Path, **more: Any
) -> Callable[[TrainingGroup], dict[str, list[float]]]:
    """An action that trains and returns all weights."""

    def action(group: TrainingGroup) -> dict[str, list[float]]:
        model = _made(options, make)
        train(model, items, items[:3], options, folder=folder, group=group, **more)
        return {name: full_tensor(weight.detach()).flatten().tolist() for name, weight in model.named_parameters()}

    return action


def _sound(outcomes: list[Outcome]) -> list[Any]:
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return [outcome.value for outcome in outcomes]


@pytest.fixture
def some_pairs() -> list[TokenizedPair]:
    made = random.Random(5)

    def answer(prompt: list[int], row: int) -> TokenizedExample:
        own = [made.randrange(64) for _ in range(made.randint(3, 9))]
        weights = (0.0,) * len(prompt) + (1.0,) * len(own)
        return TokenizedExample(
            input_ids=(*prompt, *own), loss_weights=weights, rendered=RenderedText(text="", spans=(), row=row)
        )

    prompts = [[made.randrange(64) for _ in range(12)] for _ in range(9)]
    return [
        TokenizedPair(chosen=answer(prompt, row), rejected=answer(prompt, row)) for row, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("ddp", {}),
        ("fsdp", {}),
        ("fsdp", {"pack_tokens": 20, "lora": True, "learning_rate": 0.05}),
        ("ddp", {"packing": False, "batch_size": 5, "drop_last": True}),
        ("ddp", {"activation_checkpointing": True, "pack_tokens": 40}),
        ("fsdp", {"activation_checkpointing": True, "lora": True, "learning_rate": 0.05}),
        ("fsdp", {"batch_size": 1, "max_steps": 4}),
        ("ddp", {"method": "dpo", "learning_rate": 1e-3}),
        ("fsdp", {"method": "dpo", "learning_rate": 1e-3}),
    ],
    ids=[
        "ddp",
        "fsdp",
        "lora",
        "padded",
        "computed again",
        "computed again, lora",
        "one example a step",
        "dpo, ddp",
        "dpo, fsdp",
    ],
)
def test_two_processes_have_the_losses_of_one(
    tiny_model: MakeModel,
    examples: list[TokenizedExample],
    some_pairs: list[TokenizedPair],
    tmp_path: Path,
    kind: str,
    values: dict[str, Any],
) -> None:
    options = _options(distributed=kind, **values)
    items: Sequence[Any] = some_pairs if options.method == "dpo" else examples
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = _train(tiny_model, items, options, one)(SINGLE_PROCESS)
    weights = _sound(together(2, _train(tiny_model, items, options, two)))
    _assert_same_run(two, one)
    assert weights[0] == weights[1]
    for name, values_of in expected.items():
        assert weights[0][name] == pytest.approx(values_of, rel=1e-3, abs=2e-4), name
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == names


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # from PyTorch's compiler
@pytest.mark.full
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_with_compiled_layers(
    tiny_model: MakeModel,
    examples: list[TokenizedExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager")
    options = _options(distributed=kind, max_steps=2)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    _train(tiny_model, examples, options, one)(SINGLE_PROCESS)

    def action(group: TrainingGroup) -> None:
        lines: list[str] = []
        options_compiled = options.model_copy(update={"compile": True})
        _train(tiny_model, examples, options_compiled, two, say=lines.append)(group)
        assert any("2 compiled layers" in line for line in lines), lines

    _sound(together(2, action))
    _assert_same_run(two, one)


def test_three_processes_with_less_to_do_than_they_are(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    options = _options(batch_size=2, max_steps=3)
    one, three = tmp_path / "one", tmp_path / "three"
    one.mkdir()
    three.mkdir()
    _train(tiny_model, examples, options, one)(SINGLE_PROCESS)
    _sound(together(3, _train(tiny_model, examples, options, three)))
    _assert_same_run(three, one)


def test_a_mean_of_means_is_noticed(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process dividing by the weight of its own targets is the mistake that the comparison is for."""
    options = _options()
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    _train(tiny_model, examples, options, one)(SINGLE_PROCESS)
    honest = TrainingGroup.sum

    def own(group: TrainingGroup, values: Sequence[float]) -> list[float]:
        found = honest(group, values)
        return [2 * value for value in values] if len(values) == 1 and values[0] > 1 else found

    monkeypatch.setattr(TrainingGroup, "sum", own)
    together(2, _train(tiny_model, examples, options, two))
    with pytest.raises(AssertionError):
        _assert_same_run(two, one)


@pytest.mark.parametrize(("before", "after"), [("fsdp", None), (None, "ddp"), ("ddp", "fsdp")])
def test_a_checkpoint_resumes_on_another_number_of_processes(
    tiny_model: MakeModel,
    examples: list[TokenizedExample],
    tmp_path: Path,
    before: str | None,
    after: str | None,
) -> None:
    one, moved = tmp_path / "one", tmp_path / "moved"
    one.mkdir()
    moved.mkdir()
    _train(tiny_model, examples, _options(), one)(SINGLE_PROCESS)

    def run(kind: str | None, **more: Any) -> list[Any]:
        options = _options(distributed=kind or "ddp", **more)

        def stop(line: Any) -> None:
            if line["step"] == 3 and "loss" in line and not options.resume:
                os.kill(os.getpid(), signal.SIGTERM)

        action = _train(tiny_model, examples, options, moved, report=stop)
        return together(2 if kind else 1, action)

    stopped = run(before)
    assert [outcome.error for outcome in stopped] == [
        "KeyboardInterrupt: stopped and saved after step 3 of 6; --resume goes on from it"
    ] * len(stopped)
    _sound(run(after, resume=True))
    _assert_same_run(moved, one)


def test_one_process_is_asked_to_stop_and_all_do(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    def action(group: TrainingGroup) -> None:
        def stop(line: Any) -> None:
            if line["step"] == 2 and "loss" in line and not group.is_main:
                os.kill(os.getpid(), signal.SIGINT)

        train(tiny_model(), examples, [], _options(save_every=None), folder=tmp_path, group=group, report=stop)

    for outcome in together(2, action):
        assert outcome.error == "KeyboardInterrupt: stopped and saved after step 2 of 6; --resume goes on from it"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_ends_all(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, kind: str
) -> None:
    """The process that computed the pack names the rows; the others say that another process failed."""

    def action(group: TrainingGroup) -> None:
        model = tiny_model()
        with torch.no_grad():
            model.model.embed_tokens.weight[17] = float("inf")
        options = _options(pack_tokens=1, distributed=kind, save_every=None)
        train(model, examples, [], options, folder=tmp_path, group=group)

    errors = [str(outcome.error) for outcome in together(2, action)]
    assert any("the loss is nan; rows" in error for error in errors)
    for error in errors:
        assert "the loss is nan; rows" in error or "another process of this run failed" in error
    assert not (tmp_path / "checkpoints").exists()


def test_a_process_that_dies_ends_the_others(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    def action(group: TrainingGroup) -> None:
        def die(line: Any) -> None:
            if line["step"] == 2 and "loss" in line and not group.is_main:
                os.kill(os.getpid(), signal.SIGKILL)

        train(tiny_model(), examples, [], _options(save_every=1), folder=tmp_path, group=group, report=die)

    first, second = together(2, action)
    assert second.exitcode == -signal.SIGKILL
    assert str(first.error).startswith("OtherProcessFailed: another process of this run is gone")


def test_a_full_disk_ends_all(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("templatekit.training.checkpoint.save_file", full)
    first, second = together(2, _train(tiny_model, examples, _options(), tmp_path))
    assert "No space left on device" in str(first.error)
    assert "OtherProcessFailed: the first process failed: checkpoint of step 2" in str(second.error)


def test_every_pack_is_done_once_and_all_have_equally_many(
    tiny_model: MakeModel, examples: list[TokenizedExample]
) -> None:
    batcher = ForwardPass.of(tiny_model(), _options(pack_tokens=30)).micro_batcher
    for size in (1, 2, 3, 5):
        shares = []
        for rank in range(size):
            own = replace(batcher, group=TrainingGroup(rank=rank, size=size))
            shares.append(list(own.of_examples(examples, range(len(examples)))))
        assert sorted(d for share in shares for part, _ in share for d in part) == list(range(len(examples)))
        assert len({len(share) for share in shares}) == 1


@pytest.mark.slow
def test_torchrun_and_the_command_line(tmp_path: Path) -> None:
    """The documented command, as processes."""
    rows = [{"prompt": f"{n}?", "completion": f"It is {n}."} for n in range(8)]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    tiny_folder(tmp_path / "model")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "templatekit",
        "finetune", "--dataset", str(data), "--template", "chatml", "--model", str(tmp_path / "model"),
        "--max-steps", "2", "--samples", "1", "--max-new-tokens", "2", "--precision", "fp32", "--device", "cpu",
        "--distributed", "fsdp", "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("adapter prompt-completion") == 1
    assert "2 processes, fsdp" in done.stderr
    assert done.stdout.count("steps in") == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_what_the_first_process_finds_wrong_is_everyones(tmp_path: Path) -> None:
    def action(group: TrainingGroup) -> None:
        options = FinetuneOptions.parse({"output": tmp_path, "resume": True})
        group.run_on_main(lambda: run_folder(options))

    first, second = together(2, action)
    assert str(first.error).startswith("ConfigError: --resume: no run and no checkpoint in")
    assert str(second.error).startswith("OtherProcessFailed: the first process failed: --resume: no run")
