"""The time of a training step by kind of operation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

OPERATION_KINDS = {
    "matrix products": {"mm", "addmm", "bmm", "baddbmm", "addmv_", "mkldnn_linear"},
    "attention kernel": {"_scaled_dot_product_flash_attention_for_cpu"},
    "casts and copies": {"copy_", "cat", "index_select", "gather", "index", "clone"},
    "fresh memory": {"empty", "empty_strided", "fill_", "zero_", "resize_"},
    "softmax": {
        "_log_softmax",
        "_log_softmax_backward_data",
        "exp_",
        "amax",
        "logaddexp",
        "log_",
        "sub_",
        "masked_fill_",
    },
    "activations": {"silu", "silu_backward", "gelu", "gelu_backward", "tanh", "tanh_backward"},
    "norms": {"linalg_vector_norm", "native_layer_norm", "native_layer_norm_backward", "rsqrt_"},
    "adding and scaling": {"mul", "mul_", "add", "add_", "addcmul_", "div", "div_", "sum", "sub"},
    "optimizer": {"_fused_adamw_"},
}


def time_shares(step: Callable[[], Any]) -> dict[str, float]:
    """Each kind's share of one call's processor time. Operations of no kind, and Python itself, count as `other`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::").removesuffix("_backward" if "flash" in event.key else "\0")
        kind = next((kind for kind, names in OPERATION_KINDS.items() if name in names), "other")
        times[kind] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: time / total for kind, time in sorted(times.items(), key=lambda item: -item[1])}
