"""The training loop: it learns, records its steps, stops on request, and resumes as if it had not stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.training.loop import TrainResult, train
from templatekit.training.lora import attach_lora
from templatekit.training.step import evaluate
from templatekit.types import TokenizedExample

MakeModel = Callable[..., PreTrainedModel]
Line = Mapping[str, float]
STEP_KEYS = {
    "step",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "computed_tokens",
    "padded_tokens",
    "target_tokens",
    "seconds",
}


class Killed(Exception):
    """Raised in place of the end of a process."""


def _options(**values: object) -> FinetuneOptions:
    defaults = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-3, "precision": "fp32", "lora": False, "warmup": 2}
    return FinetuneOptions.parse({**defaults, **values})


def _lines(folder: Path) -> list[dict[str, float]]:
    """The metrics without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def _at_step(step: int, action: Callable[[], object]) -> Callable[[Line], None]:
    """A reporter that calls an action after a step."""

    def report(line: Line) -> None:
        if line["step"] == step and "loss" in line:
            action()

    return report


def _kill() -> None:
    raise Killed


def test_a_run_learns_and_writes_it_down(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    model = tiny_model()
    reported: list[Line] = []
    result = train(
        model, examples[:10], examples[10:], _options(epochs=8, eval_every=6), folder=tmp_path, report=reported.append
    )
    assert reported[0] == {"step": 0, "total_steps": 24}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == reported[1:]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert all(line.keys() == STEP_KEYS for line in steps)
    assert [line["step"] for line in steps] == list(range(1, 25))
    assert all(line.keys() == {"step", "eval_loss", "seconds"} for line in evaluations)
    assert [line["step"] for line in evaluations] == [0, 6, 12, 18, 24]
    assert sum(line["loss"] for line in steps[-3:]) < sum(line["loss"] for line in steps[:3]) / 2
    assert sum(line["tokens"] for line in steps[:3]) == sum(len(example) - 1 for example in examples[:10])
    assert sum(line["target_tokens"] for line in steps[:3]) == sum(example.trained_tokens for example in examples[:10])
    assert all(line["computed_tokens"] == line["tokens"] for line in steps)
    assert steps[0]["learning_rate"] == 2.5e-3
    assert steps[1]["learning_rate"] == steps[2]["learning_rate"] == 5e-3
    expected = TrainResult(
        steps=24, eval_before=evaluations[0]["eval_loss"], eval_after=evaluations[-1]["eval_loss"], resumed_from=None
    )
    assert result == expected
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000024"]
    assert not model.training


def test_packed_and_padded_runs_are_the_same(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    runs = []
    cuts: list[dict[str, object]] = [{"pack_tokens": 4096}, {"pack_tokens": 30}, {"packing": False}]
    for number, values in enumerate(cuts):
        folder = tmp_path / str(number)
        folder.mkdir()
        train(tiny_model(), examples, examples[:3], _options(**values), folder=folder)
        runs.append(_lines(folder))
    for other in runs[1:]:
        for mine, yours in zip(runs[0], other, strict=True):
            for key in ("loss", "eval_loss", "grad_norm", "tokens", "target_tokens"):
                assert mine.get(key, 0) == pytest.approx(yours.get(key, 0), rel=1e-3)
    assert sum(line.get("computed_tokens", 0) for line in runs[2]) > sum(line.get("tokens", 0) for line in runs[2])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("llama", {}),
        ("llama", {"packing": False, "schedule": "linear", "weight_decay": 0.1}),
        ("llama-tied", {"lora": True, "lora_rank": 2, "learning_rate": 0.05}),
        ("gpt2-dropout", {}),
    ],
)
def test_a_resumed_run_is_the_run_without_the_stop(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, kind: str, values: dict[str, object]
) -> None:
    options = _options(epochs=4, save_every=5, eval_every=4, **values)

    def model() -> PreTrainedModel:
        made = tiny_model(kind.removesuffix("-dropout"))
        if kind.endswith("dropout"):
            for module in made.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.2
        return attach_lora(made, rank=2, alpha=4, seed=1) if options.lora else made

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    expected = model()
    train(expected, examples[:10], examples[10:], options, folder=whole)
    with pytest.raises(Killed):
        train(model(), examples[:10], examples[10:], options, folder=stopped, report=_at_step(8, _kill))
    assert _lines(stopped)[-1]["step"] == 8
    torch.manual_seed(99)
    found = model()
    result = train(found, examples[:10], examples[10:], options.model_copy(update={"resume": True}), folder=stopped)
    assert result.resumed_from == 5
    assert _lines(stopped) == _lines(whole)
    assert [line["step"] for line in _lines(stopped) if "loss" in line] == list(range(1, 13))
    _assert_equal(_weights(found), _weights(expected))


def test_a_finished_run_has_nothing_left_to_do(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    first = train(tiny_model(), examples, examples[:2], _options(), folder=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = train(tiny_model(seed=5), examples, examples[:2], _options(resume=True), folder=tmp_path)
    assert (again.eval_before, again.eval_after) == (first.eval_before, first.eval_after)
    assert again.resumed_from == again.steps == 9
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_leaves(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="stopped and saved after step 4 of 9; --resume goes on from it"):
        train(
            tiny_model(),
            examples,
            examples[:2],
            _options(eval_every=4),
            folder=tmp_path,
            report=_at_step(4, lambda: os.kill(os.getpid(), number)),
        )
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert "eval_loss" not in _lines(tmp_path)[-1]
    train(tiny_model(), examples, examples[:2], _options(eval_every=4, resume=True), folder=tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    train(tiny_model(), examples, examples[:2], _options(eval_every=4), folder=whole)
    assert _lines(tmp_path) == _lines(whole)


def test_a_second_signal_leaves_at_once(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tiny_model(), examples, [], _options(), folder=tmp_path, report=_at_step(2, twice))
    assert not caught.value.args
    assert not (tmp_path / "checkpoints").exists()


KILLED_RUN = """
import pickle, sys
from pathlib import Path
import torch
from templatekit.training.loop import train
torch.set_num_threads(1)
model, examples, options = pickle.loads(Path(sys.argv[1]).read_bytes())
train(model, examples, examples[:2], options, folder=Path(sys.argv[2]))
"""


def test_sigkill_loses_the_steps_since_the_last_save_and_no_more(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    import pickle

    options = _options(epochs=200, save_every=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    (tmp_path / "run").write_bytes(pickle.dumps((tiny_model(), examples, options)))
    process = subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(tmp_path / "run"), str(killed)])
    metrics = killed / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or len(metrics.read_bytes().splitlines()) < 20):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = max(line["step"] for line in map(json.loads, metrics.read_text().splitlines()[:-1]))

    with pytest.raises(Killed):
        stop = _at_step(int(done) + 10, _kill)
        train(tiny_model(), examples, examples[:2], options, folder=whole, report=stop)
    with pytest.raises(Killed):
        resumed = options.model_copy(update={"resume": True})
        started: list[Line] = []

        def report(line: Line) -> None:
            started.append(line)
            stop(line)

        train(tiny_model(seed=3), examples, examples[:2], resumed, folder=killed, report=report)
    assert started[0]["step"] >= done - 2
    assert _lines(killed) == _lines(whole)


def test_a_loss_that_is_not_finite_names_step_and_rows(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    model = tiny_model()
    order: list[int] = []
    with torch.no_grad():
        model.model.embed_tokens.weight[17] = float("inf")
    order = [example.row for example in examples if 17 in example.input_ids[:-1]]
    assert 0 < len(order) < len(examples)
    with pytest.raises(RunError, match=r"step \d+, learning_rate=\S+: the loss is nan; rows \d+; look at") as caught:
        train(model, examples, [], _options(pack_tokens=1), folder=tmp_path)
    assert int(str(caught.value).split("rows ")[1].split(";")[0]) in order
    assert not (tmp_path / "checkpoints").exists()


def test_a_held_out_loss_that_is_not_finite_names_its_rows(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    model = tiny_model()
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RunError, match="step 0: the held-out loss is nan; rows 0, 1; look at these rows"):
        train(model, examples, examples[:2], _options(), folder=tmp_path)


def test_a_signal_during_an_evaluation_is_heeded_after_it(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (0, 2, 9):
        folder = tmp_path / str(step)
        folder.mkdir()
        calls = iter([0, 2, 4, 6, 8, 9])

        def interrupted(*arguments: Any, at: int = step, calls: Iterator[int] = calls) -> dict[str, float]:
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGINT)
            return evaluate(*arguments)

        monkeypatch.setattr("templatekit.training.loop.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"stopped and saved after step {step} of 9"):
            train(tiny_model(), examples, examples[:2], _options(eval_every=2), folder=folder)
        assert _lines(folder)[-1]["step"] == step
        assert (folder / "checkpoints").exists() == (step > 0)


def test_a_full_disk_is_an_error_with_its_name(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    model, limits = tiny_model(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(RunError, match=r"metrics.jsonl' cannot be written: File too large"):
            train(model, examples, [], _options(), folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_gradient_that_is_not_finite_changes_no_weight(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    model = tiny_model()
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = _weights(model)
    with pytest.raises(
        RunError, match=r"step 1, learning_rate=0.0025: the gradient is (inf|nan); rows \d+, \d+, \d+, \d+; look"
    ):
        train(model, examples, [], _options(), folder=tmp_path)
    _assert_equal(_weights(model), before)


def test_a_changed_run_is_refused_by_name(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    train(tiny_model(), examples, [], _options(), folder=tmp_path, fingerprints={"data": "a", "template": "b"})

    def resume(count: int = 12, data: str = "a", **values: object) -> None:
        fingerprints = {"data": data, "template": "b"}
        train(
            tiny_model(),
            examples[:count],
            [],
            _options(resume=True, **values),
            folder=tmp_path,
            fingerprints=fingerprints,
        )

    with pytest.raises(ConfigError, match=r"learning_rate was 0.005, is 0.1; give the same options"):
        resume(learning_rate=0.1)
    with pytest.raises(ConfigError, match=r"batch_size was 4, is 3; schedule was 'cosine', is 'linear'; give"):
        resume(batch_size=3, schedule="linear")
    with pytest.raises(ConfigError, match=r"data was 'a', is 'c'; give"):
        resume(data="c")
    with pytest.raises(ConfigError, match=r"training examples was 12, is 11"):
        resume(count=11)
    resume(keep_checkpoints=7, eval_every=3, output=str(tmp_path))


def test_a_run_is_not_begun_over_another(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    train(tiny_model(), examples, [], _options(max_steps=1), folder=tmp_path)
    with pytest.raises(ConfigError, match="holds checkpoints of a run; use --resume or another --output"):
        train(tiny_model(), examples, [], _options(max_steps=1), folder=tmp_path)


def test_resume_passes_over_damage_and_says_so(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    options = _options(save_every=4, keep_checkpoints=3)
    train(tiny_model(), examples, [], options, folder=tmp_path)
    expected = _lines(tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000009" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    resumed = options.model_copy(update={"resume": True})
    warnings: list[str] = []
    result = train(tiny_model(), examples, [], resumed, folder=tmp_path, warn=warnings.append)
    assert result.resumed_from == 8
    assert len(warnings) == 1
    assert "step-00000009' is damaged and left out: weights.safetensors has" in warnings[0]
    assert _lines(tmp_path) == expected
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="manifest.json is missing"), pytest.raises(RunError, match="is whole"):
        train(tiny_model(), examples, [], resumed, folder=tmp_path)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(tiny_model(), examples, [], _options(), folder=tmp_path, report=_at_step(3, _kill))
    result = train(tiny_model(), examples, [], _options(resume=True), folder=tmp_path)
    assert result.resumed_from is None
    assert [line["step"] for line in _lines(tmp_path)] == list(range(1, 10))


def test_examples_longer_than_the_model_are_refused(
    tiny_model: MakeModel, make_example: Callable[..., TokenizedExample], tmp_path: Path
) -> None:
    fits, longer = (make_example([1] * length, [1] * length, length) for length in (257, 258))
    with pytest.raises(ConfigError, match="rows 258 are longer than the model's 256 positions; use --max-length 256"):
        train(tiny_model("gpt2"), [fits], [longer], _options(), folder=tmp_path)
    train(tiny_model("gpt2"), [fits], [], _options(max_steps=1), folder=tmp_path)


def test_a_model_that_cannot_be_packed_is_named(
    tiny_model: MakeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    model: Any = tiny_model()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ConfigError, match=r"packing: .* layers of kind linear_attention.*; use --no-packing"):
        train(model, examples, [], _options(), folder=tmp_path)
    train(model, examples, [], _options(packing=False, max_steps=1), folder=tmp_path)
