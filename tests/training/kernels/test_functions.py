"""Autograd functions give the results and gradients that autograd gives for plain code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from templatekit.training.attention.matmul import scaled_bmm
from templatekit.training.kernels import cross_entropy as chunked_cross_entropy
from templatekit.training.kernels.cross_entropy import linear_cross_entropy
from templatekit.training.kernels.elementwise import embedding_lookup, rms_norm, rotary_embedding

Function = Callable[..., Tensor]

SIZES = st.integers(1, 6)
SEEDS = st.integers(0, 2**31)


def _drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def _differ(found: Function, expected: Function, given: Sequence[Tensor], constants: Sequence[Tensor] = ()) -> float:
    """The largest difference between two functions' results, and between the gradients of a random sum of them."""
    results = []
    for function in (found, expected):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        result = function(*leaves, *constants)
        (factors,) = _drawn(1, tuple(result.shape))
        gradients = torch.autograd.grad((result * factors.to(result.dtype)).sum(), leaves)
        results.append([result.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    return max(float((one - other).abs().max()) for one, other in zip(*results, strict=True) if one.numel())


def _plain_norm(states: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + eps) * (weight + offset)


@given(rows=SIZES, heads=SIZES, width=SIZES, seed=SEEDS, offset=st.sampled_from([0.0, 1.0]))
def test_norm(rows: int, heads: int, width: int, seed: int, offset: float) -> None:
    given = _drawn(seed, (rows, heads, width), (width,))

    def difference(eps: float) -> float:
        return _differ(lambda x, w: rms_norm(x, w, 1e-3, offset), lambda x, w: _plain_norm(x, w, eps, offset), given)

    assert difference(1e-3) < 1e-10
    assert difference(1.0) > 1e-10  # the negative control


def test_norm_in_bf16() -> None:
    states, weight = (tensor.float() for tensor in _drawn(0, (5, 32), (32,)))
    norm = LlamaRMSNorm(32, eps=1e-6)
    norm.weight.data = weight
    with torch.autocast("cpu", torch.bfloat16):
        for given in (states, states.bfloat16()):
            expected = norm(given)
            found = rms_norm(given, weight, 1e-6)
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-6)


def _plain_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    return states * cos + torch.cat([-states[..., half:], states[..., :half]], dim=-1) * sin


@given(heads=SIZES, tokens=SIZES, half=SIZES, seed=SEEDS)
def test_rotary(heads: int, tokens: int, half: int, seed: int) -> None:
    # cos and sin of the halves need not be equal.
    states, cos, sin = _drawn(seed, (1, heads, tokens, 2 * half), (1, 1, tokens, 2 * half), (1, 1, tokens, 2 * half))
    assert _differ(rotary_embedding, _plain_rotary, [states], [cos, sin]) < 1e-12
    assert _differ(rotary_embedding, lambda x, c, s: _plain_rotary(x, c, -s), [states], [cos, sin]) > 1e-12


def test_rotary_in_bf16() -> None:
    query, key, cos, sin = (
        tensor.float() for tensor in _drawn(0, (1, 2, 7, 16), (1, 1, 7, 16), (1, 7, 16), (1, 7, 16))
    )
    query, key = query.bfloat16(), key.bfloat16()
    expected = apply_rotary_pos_emb(query, key, cos, sin)
    with torch.autocast("cpu", torch.bfloat16):
        found = [rotary_embedding(states, cos[:, None], sin[:, None]) for states in (query, key)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other.bfloat16(), rtol=2**-7, atol=1e-6)


@given(ids=st.lists(st.integers(0, 4), max_size=9), padding=st.sampled_from([None, 2]), seed=SEEDS)
def test_lookup(ids: list[int], padding: int | None, seed: int) -> None:
    """Ids may repeat, the weight may have a gradient already, and some ids may be padding."""
    weight, before, grad = _drawn(seed, (5, 3), (5, 3), (1, len(ids), 3))

    def gradient(function: Function, ids: list[int]) -> Tensor:
        leaf = weight.clone().requires_grad_()
        leaf.grad = before.clone() if seed % 2 else None
        rows = function(leaf, torch.tensor([ids], dtype=torch.int64), padding)
        assert torch.equal(rows.detach(), weight[ids][None])
        torch.autograd.backward([rows], [grad])
        assert leaf.grad is not None
        return leaf.grad

    expected = gradient(lambda leaf, ids, padding: embedding(ids, leaf, padding), ids)
    torch.testing.assert_close(gradient(embedding_lookup, ids), expected)
    if any(token != padding for token in ids):
        assert not torch.allclose(gradient(embedding_lookup, [(token + 1) % 5 for token in ids]), expected)


def _plain_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(hidden @ head.t(), targets, reduction="none")


@pytest.fixture(params=[(2**26, 2**19), (2 * 7 * 8, 7), (1, 1)], ids=["whole", "chunks", "rows"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_BYTES", request.param[0])
    monkeypatch.setattr(chunked_cross_entropy, "BLOCK_LOGITS", request.param[1])


@pytest.mark.usefixtures("_chunks")
@given(count=st.integers(0, 9), width=SIZES, seed=SEEDS)
def test_loss(count: int, width: int, seed: int) -> None:
    hidden, head = _drawn(seed, (count, width), (7, width))
    targets = torch.arange(count) * 3 % 7
    assert _differ(linear_cross_entropy, _plain_losses, [hidden, head], [targets]) < 1e-10
    if count:
        wrong = (targets + 1) % 7
        assert _differ(linear_cross_entropy, lambda h, w, t: _plain_losses(h, w, wrong), [hidden, head], [targets])


def test_loss_without_gradients() -> None:
    hidden, head = _drawn(0, (5, 4), (7, 4))
    targets = torch.arange(5)
    with torch.no_grad():
        found = linear_cross_entropy(hidden, head.requires_grad_(), targets)
    assert not found.requires_grad
    torch.testing.assert_close(found, _plain_losses(hidden, head.detach(), targets))


def test_loss_in_bf16() -> None:
    hidden, head = (tensor.float() for tensor in _drawn(0, (40, 16), (50, 16)))
    targets = torch.arange(40)
    narrow = [tensor.bfloat16().requires_grad_() for tensor in (hidden, head)]
    wide = [tensor.detach().float().requires_grad_() for tensor in narrow]
    found, expected = linear_cross_entropy(narrow[0], narrow[1], targets), _plain_losses(wide[0], wide[1], targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    pairs = zip(torch.autograd.grad(found.sum(), narrow), torch.autograd.grad(expected.sum(), wide), strict=True)
    for one, other in pairs:
        assert float((one.float() - other).norm()) < 2e-2 * float(other.norm())


def test_a_second_backward_pass_is_right_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second pass reuses the saved gradients of one chunk. With several chunks the first pass overwrites them."""
    hidden, head = (tensor.requires_grad_() for tensor in _drawn(0, (5, 4), (7, 4)))
    targets = torch.arange(5)

    def twice() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        total = linear_cross_entropy(hidden, head, targets).sum()
        first = torch.autograd.grad(total, [hidden, head], retain_graph=True)
        return first, torch.autograd.grad(total, [hidden, head])

    first, second = twice()
    assert all(map(torch.equal, first, second))
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_BYTES", 2 * 7 * 8)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        twice()


@given(
    rows=SIZES,
    queries=SIZES,
    keys=SIZES,
    width=SIZES,
    seed=SEEDS,
    values=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_scores(rows: int, queries: int, keys: int, width: int, seed: int, values: torch.dtype) -> None:
    """Values cast from bf16 lose nothing when the processor may compute their product in bf16."""
    first, second = (drawn.to(values) for drawn in _drawn(seed, (rows, queries, width), (rows, width, keys)))
    found = scaled_bmm(first.float(), second.float(), values, 0.3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), 0.3 * first.double() @ second.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [torch.bfloat16, torch.float32])
def test_bf16_products_are_allowed_only_for_bf16_values_and_only_during_the_product(
    monkeypatch: pytest.MonkeyPatch, values: torch.dtype
) -> None:
    backend: Any = torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    during = []

    def failing(*args: Any, **kwargs: Any) -> Tensor:
        during.append(backend.matmul.fp32_precision)
        raise ZeroDivisionError

    monkeypatch.setattr(torch, "baddbmm", failing)
    with pytest.raises(ZeroDivisionError):
        scaled_bmm(torch.ones(1, 2, 3), torch.ones(1, 3, 2), values)
    assert during == ["bf16" if values == torch.bfloat16 else before]
    assert backend.matmul.fp32_precision == before
