"""What a run shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console

from templatekit.training.metrics import MetricsFile, read_metrics
from templatekit.training.report import Progress, cost_of, plot_run

LINES: list[dict[str, float]] = [
    {"step": 0, "eval_loss": 1.25, "seconds": 2.0},
    *(
        {"step": step, "loss": 2.0 / step, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens": 400, "seconds": 0.5}
        for step in range(1, 5)
    ),
    {"step": 4, "eval_loss": 0.75, "seconds": 2.0},
]


def _shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with Progress(console=console) as progress:
        progress({"step": 0, "total_steps": 4})
        for line in LINES:
            progress(line)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_a_bar() -> None:
    shown = _shown(terminal=True)
    for part in ("4/4", "loss 0.500", "held-out 0.750", "800 tokens/s"):
        assert part in shown


def test_elsewhere_there_are_plain_lines() -> None:
    assert _shown(terminal=False).splitlines() == [
        "step 0: held-out loss 1.2500",
        "step 4/4: loss 0.5000, 800 tokens/s",
        "step 4: held-out loss 0.7500",
    ]


def test_the_bar_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress(LINES[0])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "held-out" in captured.err


def _metrics(folder: Path, lines: list[dict[str, float]] = LINES) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_losses_become_a_picture(tmp_path: Path) -> None:
    assert plot_run(_metrics(tmp_path), tmp_path / "loss.png") is None
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_no_losses_are_no_picture(tmp_path: Path) -> None:
    assert "holds none" in str(plot_run(tmp_path / "none.jsonl", tmp_path / "loss.png"))
    assert plot_run(_metrics(tmp_path, LINES[:1]), tmp_path / "loss.png") is None


def test_without_matplotlib_a_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templatekit.training.report.find_spec", lambda name: None)
    expected = "no picture of the losses: pip install 'templatekit[plots]'"
    assert plot_run(_metrics(tmp_path), tmp_path / "loss.png") == expected
    assert not (tmp_path / "loss.png").exists()


def test_matplotlib_waits_until_it_is_needed() -> None:
    code = "import sys, templatekit.training.report; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cost_is_that_of_all_steps(tmp_path: Path) -> None:
    counts = {"computed_tokens": 250, "padded_tokens": 600, "target_tokens": 90}
    lines = [line | counts if "loss" in line else line for line in LINES]
    cost = cost_of(_metrics(tmp_path, lines), torch.device("cpu"))
    assert asdict(cost) == {
        "seconds": 6.0,
        "step_seconds": 2.0,
        "tokens": 1600,
        "computed_tokens": 1000,
        "padded_tokens": 2400,
        "target_tokens": 360,
        "peak_memory": cost.peak_memory,
    }
    assert cost.line().startswith(
        "cost: 2 s of steps (800 tokens/s), 4 s of evaluations; 1,600 tokens (2,400 in padded batches), of which 1,000 "
        "were computed and 360 trained; peak memory "
    )
    nothing = cost_of(_metrics(tmp_path, LINES[:1]), torch.device("cpu"))
    assert "cost: 0 s of steps, 2 s of evaluations; 0 tokens" in nothing.line()


def test_half_a_line_at_the_end_is_left_out(tmp_path: Path) -> None:
    path = _metrics(tmp_path)
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert read_metrics(path) == LINES
    metrics = MetricsFile(tmp_path, up_to_step=3)
    metrics.write({"step": 4, "loss": 9.0})
    assert read_metrics(path) == [*LINES[:4], {"step": 4, "loss": 9.0}]
    MetricsFile(tmp_path, up_to_step=0)
    assert path.read_text() == ""


@pytest.mark.parametrize(
    "damage", [b"[1]", b"1", b"null", b"{}", b'{"loss": 1.0}', b'{"step": "4"}', b'{"step": 4, "loss": [1]}', b"\xff"]
)
def test_a_damaged_line_ends_the_file(damage: bytes, tmp_path: Path) -> None:
    path = _metrics(tmp_path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:3], damage + b"\n", *whole[3:]]))
    assert read_metrics(path) == LINES[:3]
    assert MetricsFile(tmp_path, up_to_step=4).lines == LINES[:3]
