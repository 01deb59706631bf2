"""The memory that the libraries below PyTorch keep, measured from outside a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from templatekit.training.kernels.memory import limit_kernel_cache
from templatekit.training.model import uses_bf16

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc, and Linux's counts")

FREED = """
import resource, sys
from templatekit.training.kernels.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit("0")
for turn in range(6):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    one, other = bytearray(2**26), bytearray(2**25)
    del one, other
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KERNELS = """
import sys, torch
from pathlib import Path
from templatekit.training.kernels.memory import limit_kernel_cache
if sys.argv[1] == "few":
    limit_kernel_cache(64)
def mebibytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024
weight = torch.ones(64, 64, dtype=torch.bfloat16)
for tokens in range(16, 816):
    torch.ones(tokens, 64, dtype=torch.bfloat16) @ weight
    if tokens == 176:
        before = mebibytes()
print(mebibytes() - before)
"""


def _printed(program: str, how: str) -> int:
    environment = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program, how], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_memory_is_reused() -> None:
    assert _printed(FREED, "keep") * 10 < _printed(FREED, "plain")


@pytest.mark.skipif(not uses_bf16("auto", torch.device("cpu")), reason="oneDNN computes bf16 where CPUs do")
def test_kernels_of_earlier_shapes_are_dropped() -> None:
    assert _printed(KERNELS, "few") * 5 < _printed(KERNELS, "plain")


def test_environment_variables_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "to be forgotten")
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    limit_kernel_cache(8192)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == "512"
