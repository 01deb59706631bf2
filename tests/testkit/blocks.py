"""Attention as a GPU computes it, where there is none."""

from __future__ import annotations

import pytest
from torch.nn.attention import flex_attention

from templatekit.training import attention


def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the CPU do what a GPU does, by FlexAttention's own reference: it has a backward pass, but is not to have."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(attention, "refusal", lambda *kind: None)
