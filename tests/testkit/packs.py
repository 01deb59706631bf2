"""The paths of a pack, and FlexAttention on machines without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch.nn.attention import flex_attention

from templatekit.training.attention import dispatch as attention
from templatekit.types import Segment


def use_flex_attention_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU run FlexAttention uncompiled. Its reference code has a backward pass, but PyTorch disables it."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(attention, "flex_unsupported_reason", lambda *kind: None)


def paths_of(segments: Sequence[Segment]) -> list[list[int]]:
    """Return the path of each segment: the tokens of its parents, then its own."""
    found: list[list[int]] = []
    for segment in segments:
        own = [*range(segment.start, segment.end)]
        found.append(own if segment.parent is None else found[segment.parent] + own)
    return found
