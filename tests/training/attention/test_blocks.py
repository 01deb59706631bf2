"""What a GPU computes: who sees whom, and when the kernel is not trusted. `test_sharing` trains models by it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.packs import by_blocks, paths_of

from templatekit.training.attention import blocks as block_attention
from templatekit.training.attention.blocks import BlockLayout, lay_out_blocks, refusal
from templatekit.types import Segment

CPU = torch.device("cpu")
WINDOWS = st.none() | st.integers(1, 12)


@st.composite
def forests(draw: st.DrawFn) -> list[Segment]:
    """Segments in the order of a tree walk."""
    segments: list[Segment] = []
    open_ones: list[int] = []
    for number in range(draw(st.integers(1, 8))):
        del open_ones[draw(st.integers(0, len(open_ones))) :]
        start = segments[-1].end if segments else 0
        parent = open_ones[-1] if open_ones else None
        end = start + draw(st.integers(1, 6))
        segments.append(Segment(documents=(number,), start=start, end=end, parent=parent))
        open_ones.append(number)
    return segments


def seen(segments: Sequence[Segment], window: int | None) -> torch.Tensor:
    """Who sees whom, from the paths."""
    result = torch.zeros(segments[-1].end, segments[-1].end, dtype=torch.bool)
    for path in paths_of(segments):
        for place, token in enumerate(path):
            first = 0 if window is None else max(0, place - window + 1)
            result[token, path[first : place + 1]] = True
    return result


def table(layout: BlockLayout, window: int | None) -> torch.Tensor:
    places = torch.arange(len(layout.behind))
    return layout.sees(window)(places[:, None], places)


@given(segments=forests(), window=WINDOWS)
def test_a_token_sees_its_own_document_up_to_itself(segments: list[Segment], window: int | None) -> None:
    layout = lay_out_blocks(segments, CPU)
    assert torch.equal(table(layout, window), seen(segments, window))
    for path in paths_of(segments):
        assert layout.positions[path].tolist() == [*range(len(path))]


def test_negative_control_a_layout_without_parents() -> None:
    shared = [Segment(documents=(), start=0, end=3), Segment(documents=(0,), start=3, end=5, parent=0)]
    apart = [Segment(documents=(), start=0, end=3), Segment(documents=(0,), start=3, end=5)]
    assert not torch.equal(table(lay_out_blocks(apart, CPU), None), seen(shared, None))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_trial_tells_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    by_blocks(monkeypatch)
    assert block_attention._equal(CPU, torch.bfloat16, 16)
    own = BlockLayout.mask
    monkeypatch.setattr(BlockLayout, "mask", lambda layout, window: own(layout, 7))
    assert not block_attention._equal(CPU, torch.bfloat16, 16)


def test_where_the_kernel_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(CPU, torch.bfloat16, 64) == "no backward pass on cpu"
    somewhere = torch.device("cuda:0")
    assert refusal(somewhere, torch.float32, 64) == "torch.float32 is computed elsewhere, to its full precision"
    for broken, reason in (
        (lambda *kind: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *kind: False, "it gave other values than plain attention in torch.bfloat16 for heads of 63"),
        (lambda *kind: True, None),
    ):
        refusal.cache_clear()
        monkeypatch.setattr(block_attention, "_equal", broken)
        assert refusal(somewhere, torch.bfloat16, 63) == reason
    refusal.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("width", [64, 128])
def test_a_gpu_runs_it(width: int) -> None:
    assert refusal(torch.device("cuda:0"), torch.bfloat16, width) is None
