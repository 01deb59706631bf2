"""Tests of FlexAttention: its masks, and when it is not used. `test_sharing` trains models with it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.packs import paths_of, use_flex_attention_on_cpu

from templatekit.training.attention import flex
from templatekit.training.attention.flex import FlexLayout, create_flex_layout, flex_unsupported_reason
from templatekit.types import Segment

CPU = torch.device("cpu")
WINDOWS = st.none() | st.integers(1, 12)


@st.composite
def forests(draw: st.DrawFn) -> list[Segment]:
    """Segments in the order of a tree walk."""
    segments: list[Segment] = []
    ancestors: list[int] = []
    for index in range(draw(st.integers(1, 8))):
        del ancestors[draw(st.integers(0, len(ancestors))) :]
        start = segments[-1].end if segments else 0
        parent = ancestors[-1] if ancestors else None
        end = start + draw(st.integers(1, 6))
        segments.append(Segment(documents=(index,), start=start, end=end, parent=parent))
        ancestors.append(index)
    return segments


def expected_mask(segments: Sequence[Segment], window: int | None) -> torch.Tensor:
    """Which tokens see each other, shape (queries, keys), computed from the paths."""
    result = torch.zeros(segments[-1].end, segments[-1].end, dtype=torch.bool)
    for path in paths_of(segments):
        for position, token in enumerate(path):
            first = 0 if window is None else max(0, position - window + 1)
            result[token, path[first : position + 1]] = True
    return result


def actual_mask(layout: FlexLayout, window: int | None) -> torch.Tensor:
    indices = torch.arange(len(layout.seen_until))
    return layout.mask_mod(window)(indices[:, None], indices)


@given(segments=forests(), window=WINDOWS)
def test_a_token_sees_its_own_document_up_to_itself(segments: list[Segment], window: int | None) -> None:
    layout = create_flex_layout(segments, CPU)
    assert torch.equal(actual_mask(layout, window), expected_mask(segments, window))
    for path in paths_of(segments):
        assert layout.positions[path].tolist() == [*range(len(path))]


def test_negative_control_a_layout_without_parents() -> None:
    shared = [Segment(documents=(), start=0, end=3), Segment(documents=(0,), start=3, end=5, parent=0)]
    separate = [Segment(documents=(), start=0, end=3), Segment(documents=(0,), start=3, end=5)]
    assert not torch.equal(actual_mask(create_flex_layout(separate, CPU), None), expected_mask(shared, None))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_trial_detects_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    use_flex_attention_on_cpu(monkeypatch)
    assert flex._matches_plain_attention(CPU, torch.bfloat16, 16)
    original = FlexLayout.block_mask
    monkeypatch.setattr(FlexLayout, "block_mask", lambda layout, window: original(layout, 7))
    assert not flex._matches_plain_attention(CPU, torch.bfloat16, 16)


def test_why_the_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flex_unsupported_reason(CPU, torch.bfloat16, 64) == "no backward pass on cpu"
    gpu = torch.device("cuda:0")
    assert (
        flex_unsupported_reason(gpu, torch.float32, 64) == "torch.float32 is computed elsewhere, to its full precision"
    )
    for broken, reason in (
        (lambda *kind: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *kind: False, "it gave other values than plain attention in torch.bfloat16 for heads of 63"),
        (lambda *kind: True, None),
    ):
        flex_unsupported_reason.cache_clear()
        monkeypatch.setattr(flex, "_matches_plain_attention", broken)
        assert flex_unsupported_reason(gpu, torch.bfloat16, 63) == reason
    flex_unsupported_reason.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_gpu_runs_the_kernel(head_dim: int) -> None:
    assert flex_unsupported_reason(torch.device("cuda:0"), torch.bfloat16, head_dim) is None
