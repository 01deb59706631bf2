"""Who sees whom in a pack; and attention as a GPU computes it, where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch.nn.attention import flex_attention

from templatekit.training.attention import dispatch as attention
from templatekit.types import Segment


def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the CPU do what a GPU does, by FlexAttention's own reference: it has a backward pass, but is not to have."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(attention, "refusal", lambda *kind: None)


def paths_of(segments: Sequence[Segment]) -> list[list[int]]:
    """Of each segment its own tokens behind those of its parents."""
    found: list[list[int]] = []
    for segment in segments:
        own = [*range(segment.start, segment.end)]
        found.append(own if segment.parent is None else found[segment.parent] + own)
    return found
