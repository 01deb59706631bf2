"""Shared prefixes are computed once, and loss and gradients stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.losses import weighted_loss
from testkit.packs import paths_of, use_flex_attention_on_cpu
from torch import Tensor
from transformers import PreTrainedModel

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.packing import pack_examples
from templatekit.training.attention import dispatch as attention
from templatekit.training.attention import paths as path_attention
from templatekit.training.attention import tree as tree_attention
from templatekit.training.attention.dispatch import isolate
from templatekit.training.collator import Batch, collate_packed
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.loss import ModelWithLoss, detect_head
from templatekit.types import RenderedText, Segment, TokenizedExample

CPU = torch.device("cpu")
MakeModel = Callable[..., PreTrainedModel]
Exactly = Callable[[PreTrainedModel], PreTrainedModel]
VOCABULARY = 64
EXACT = 1e-10
"""Relative to the largest gradient, in fp64."""

IDS = st.integers(0, VOCABULARY - 1)
WEIGHTS = st.sampled_from([0.0, 1.0, 1.0, 0.5])


@st.composite
def forests(draw: st.DrawFn) -> list[TokenizedExample]:
    """Examples that continue prefixes of each other: random prefix trees, with equal examples among them."""
    examples: list[list[tuple[int, float]]] = []
    for _ in range(draw(st.integers(1, 7))):
        stem: list[tuple[int, float]] = []
        if bool(examples) and draw(st.booleans()):
            stem = draw(st.sampled_from(examples))
        prefix = stem[: draw(st.integers(0, len(stem)))]
        # The ids are shared, the weights are not.
        start = [(token, draw(WEIGHTS)) for token, _ in prefix]
        examples.append(start + draw(st.lists(st.tuples(IDS, WEIGHTS), min_size=1 if examples else 2, max_size=14)))
    return [_example(row, example) for row, example in enumerate(examples)]


def _example(row: int, tokens: Sequence[tuple[int, float]]) -> TokenizedExample:
    return TokenizedExample(
        input_ids=tuple(token for token, _ in tokens),
        loss_weights=(0.0, *(weight for _, weight in tokens[1:])),
        rendered=RenderedText(text="", spans=(), row=row),
    )


def _batch(examples: Sequence[TokenizedExample], *, share: bool) -> Batch:
    return collate_packed(pack_examples(examples, range(len(examples)), share=share), CPU)


def _run(model: PreTrainedModel, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    assert batch.segments is not None
    head = detect_head(model)
    with isolate(model, batch.segments):
        loss = weighted_loss(ModelWithLoss(model, head), batch)
        torch.autograd.backward([loss])
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return float(loss.detach()), grads


def _difference(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> float:
    """The largest relative difference: of the loss, and of gradients relative to the largest gradient."""
    assert found[1].keys() == expected[1].keys()
    scale = max((float(gradient.abs().max()) for gradient in expected[1].values()), default=0.0) or 1.0
    gradients = (float((found[1][name] - gradient).abs().max()) / scale for name, gradient in expected[1].items())
    return max(abs(found[0] - expected[0]) / (abs(expected[0]) or 1.0), *gradients)


@pytest.fixture(params=["paths", "runs", "tree", "flex"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to compute attention. By default the CPU splits segments only into long runs, uses the tree for long
    prefixes, and never uses FlexAttention.
    """
    if request.param == "tree":
        monkeypatch.setattr(attention, "create_path_layout", lambda segments: None)
    elif request.param == "runs":
        monkeypatch.setattr(path_attention, "RUN_LENGTH", 2)
        monkeypatch.setattr(path_attention, "MAX_SCORES_PER_PRODUCT", 40)
    elif request.param == "flex":
        use_flex_attention_on_cpu(monkeypatch)
    return str(request.param)


@pytest.fixture
def model(tiny_model: MakeModel, in_fp64: Exactly, kind: str) -> PreTrainedModel:
    """Each kind of model in turn, in fp64."""
    if "moe" in kind:
        pytest.skip("torch's grouped products do not support fp64")
    return in_fp64(tiny_model(kind))


@pytest.mark.usefixtures("kernel")
@given(examples=forests())
def test_sharing_changes_neither_loss_nor_gradients(model: PreTrainedModel, examples: list[TokenizedExample]) -> None:
    shared, plain = _batch(examples, share=True), _batch(examples, share=False)
    assert (shared.tokens, shared.target_tokens) == (plain.tokens, plain.target_tokens)
    assert shared.total_weight == plain.total_weight
    assert shared.computed_tokens <= plain.computed_tokens
    assert _difference(_run(model, shared), _run(model, plain)) <= EXACT


def test_without_fp64_norms_the_gradients_differ_more(tiny_model: MakeModel, trees: list[TokenizedExample]) -> None:
    model = tiny_model().double()
    difference = _difference(_run(model, _batch(trees, share=True)), _run(model, _batch(trees, share=False)))
    assert EXACT < difference < 1e-6


@pytest.mark.usefixtures("kernel")
def test_sharing_in_fp32(tiny_model: MakeModel, kind: str, trees: list[TokenizedExample]) -> None:
    model = tiny_model(kind)
    assert _difference(_run(model, _batch(trees, share=True)), _run(model, _batch(trees, share=False))) < 1e-5


@pytest.fixture
def trees(tiny_model: MakeModel) -> list[TokenizedExample]:
    """Two levels of prefixes, two equal examples, one that another continues, and one that shares nothing."""
    torch.manual_seed(3)
    drawn = iter(torch.randint(0, VOCABULARY, (200,)).tolist())

    def tokens(count: int, weight: float) -> list[tuple[int, float]]:
        return [(next(drawn), weight) for _ in range(count)]

    stem, branch = tokens(20, 0.0), tokens(12, 0.5)
    rows = [stem + tokens(5, 1.0), stem + branch + tokens(9, 1.0), stem + branch + tokens(3, 1.0)]
    return [_example(row, example) for row, example in enumerate([*rows, rows[0], stem + branch, tokens(7, 1.0)])]


def test_shared_prefixes_are_computed_once(trees: list[TokenizedExample]) -> None:
    batch = _batch(trees, share=True)
    assert batch.computed_tokens == 20 + 4 + 11 + 9 + 3 + 6
    assert batch.tokens == sum(len(example) - 1 for example in trees)
    # The equal examples' targets, and those on the branch that three examples train, are one each.
    assert len(batch.targets) == 5 + 12 + 9 + 3 + 6
    assert batch.target_tokens == 5 + 5 + 3 * 12 + 9 + 3 + 6


@pytest.mark.parametrize("broken", ["prefixes", "merge", "keys", "causal_mask"])
def test_negative_control_a_broken_attention(
    tiny_model: MakeModel, in_fp64: Exactly, trees: list[TokenizedExample], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_fp64(tiny_model())
    expected = _run(model, _batch(trees, share=False))
    layout_of = {"prefixes": "create_tree_layout", "keys": "create_path_layout", "causal_mask": "create_path_layout"}
    if broken in ("prefixes", "merge"):
        monkeypatch.setattr(attention, "create_path_layout", lambda segments: None)
    if broken == "merge":
        monkeypatch.setattr(tree_attention, "_merge", lambda output, lse, part, part_lse: output.add_(part))
    else:
        original = getattr(attention, layout_of[broken])

        def without(segments: Sequence[Segment]) -> Any:
            layout = original(segments)
            if broken == "prefixes":
                return replace(layout, prefixes=())
            change: Callable[[Tensor], Tensor] = (
                torch.zeros_like if broken == "causal_mask" else partial(torch.flip, dims=[0])
            )
            changed = (group._replace(**{broken: change(getattr(group, broken))}) for group in layout.groups)
            return replace(layout, groups=tuple(changed))

        monkeypatch.setattr(attention, layout_of[broken], without)
    assert not _difference(_run(model, _batch(trees, share=True)), expected) <= 1e-3  # or NaN


def test_long_rows_go_through_the_kernel(
    tiny_model: MakeModel, in_fp64: Exactly, trees: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_fp64(tiny_model())
    expected = _run(model, _batch(trees, share=True))
    calls = _count_kernel_calls(monkeypatch)
    monkeypatch.setattr(attention, "create_path_layout", lambda segments: None)
    monkeypatch.setattr(tree_attention, "MAX_SCORED_KEYS", 3)
    assert _difference(_run(model, _batch(trees, share=True)), expected) <= EXACT
    assert calls[0] > 0


def test_paths_are_not_used_where_they_copy_much(
    trees: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = _segments(trees)
    assert path_attention.create_path_layout(segments) is not None
    stem = [(token % VOCABULARY, 0.0) for token in range(60)]
    family = [_example(row, [*stem, (row, 1.0), (row + 1, 1.0)]) for row in range(20)]
    assert path_attention.create_path_layout(_segments(family)) is None
    monkeypatch.setattr(path_attention, "MAX_KEYS_PER_TOKEN", 100)
    assert path_attention.create_path_layout(_segments(family)) is not None


def _count_kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls = [0]
    kernel = tree_attention._kernel

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return kernel(*args, **kwargs)

    monkeypatch.setattr(tree_attention, "_kernel", counting)
    return calls


def test_the_general_attention_agrees(
    tiny_model: MakeModel, in_fp64: Exactly, trees: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_fp64(tiny_model())
    expected = _run(model, _batch(trees, share=True))
    # A window that hides nothing, but is treated as if it did: that selects the masked attention.
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 1000
    monkeypatch.setattr("templatekit.training.attention.dispatch._Pack.fits_window", lambda pack, window: False)
    assert _difference(_run(model, _batch(trees, share=True)), expected) <= EXACT


@pytest.mark.usefixtures("kernel")
def test_in_bf16_sharing_is_as_exact_as_packing(
    tiny_model: MakeModel, in_fp64: Exactly, trees: list[TokenizedExample]
) -> None:
    model = tiny_model()
    exact = _run(in_fp64(tiny_model()), _batch(trees, share=False))[0]
    for share in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found = _run(model, _batch(trees, share=share))[0]
        assert found == pytest.approx(exact, rel=1e-2)


@settings(max_examples=10)
@given(examples=forests(), share=st.booleans(), budget=st.integers(1, 60))
def test_any_split_of_a_step_gives_the_same_loss(
    tiny_model: MakeModel, examples: list[TokenizedExample], share: bool, budget: int
) -> None:
    model = tiny_model()
    expected = _run(model, _batch(examples, share=False))[0]
    options = FinetuneOptions(share=share, pack_tokens=budget, precision="fp32")
    forward_pass = ForwardPass.of(model, options)
    batches = list(forward_pass.micro_batcher.of_examples(examples, range(len(examples))))
    assert sorted(d for part, _ in batches for d in part) == [d for d, e in enumerate(examples) if len(e) > 1]
    total = 0.0
    for _, batch in batches:
        with forward_pass.loss(batch) as loss:
            total += float(loss.detach())
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_with_dropout_no_prefix_is_shared(tiny_model: MakeModel, trees: list[TokenizedExample]) -> None:
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    (_, batch) = next(ForwardPass.of(model, FinetuneOptions()).micro_batcher.of_examples(trees, range(len(trees))))
    assert batch.computed_tokens == batch.tokens


def _segments(examples: Sequence[TokenizedExample]) -> tuple[Segment, ...]:
    return pack_examples(examples, range(len(examples)), share=True).segments


@given(examples=forests(), run=st.integers(1, 8), together=st.integers(1, 400))
def test_the_layout_of_paths_holds_every_token_once(examples: list[TokenizedExample], run: int, together: int) -> None:
    segments = _segments(examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_attention, "RUN_LENGTH", run)
        patch.setattr(path_attention, "MAX_SCORES_PER_PRODUCT", together)
        patch.setattr(path_attention, "MAX_KEYS_PER_TOKEN", 100)
        layout = path_attention.create_path_layout(segments)
    assert layout is not None
    tokens = torch.cat([group.queries for group in layout.groups])
    assert tokens[layout.output_index].tolist() == list(range(len(layout.output_index)))
    lengths = [segment.end - segment.start for segment in segments]
    assert sum(group.rows for group in layout.groups) == sum(max(1, round(length / run)) for length in lengths)
    paths = {path[-1]: path for segment in paths_of(segments) for path in accumulate([token] for token in segment)}
    for group in layout.groups:
        assert group.query_length <= 1.5 * run
        assert group.rows == 1 or group.rows * group.query_length * group.key_length <= together
        assert group.causal_mask.shape == (group.rows, group.query_length, group.key_length - group.unmasked)
        hidden = torch.nn.functional.pad(group.causal_mask, (group.unmasked, 0))
        # What a query sees is its document up to itself.
        for row, query in enumerate(group.queries.view(group.rows, -1).tolist()):
            keys = group.keys.view(group.rows, -1)[row]
            for place, token in enumerate(query):
                assert keys[hidden[row, place] == 0].tolist() == paths[token]


def test_groups_are_the_cheapest_runs() -> None:
    def cost(groups: Sequence[Sequence[int]]) -> int:
        each = ((len(g), max(sizes[i][1] for i in g), max(sizes[i][0] for i in g)) for g in groups)
        return sum(rows * queries * keys + path_attention.PRODUCT_COST for rows, queries, keys in each)

    sizes = [(200, 180), (190, 50), (60, 40), (58, 30), (20, 20), (8, 8)]
    found = path_attention._cheapest_groups(sizes)
    assert sorted(index for group in found for index in group) == list(range(6))
    for cuts in range(2**5):
        ends = [place + 1 for place in range(5) if cuts >> place & 1] + [6]
        other = [list(range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        assert cost(found) <= cost(other)
    assert 1 < len(found) < 6


@given(examples=forests())
def test_the_layout_holds_every_token_once(examples: list[TokenizedExample]) -> None:
    segments = _segments(examples)
    layout = tree_attention.create_tree_layout(segments)
    tokens = torch.cat([group.tokens for group in layout.groups]) if layout.groups else torch.empty(0)
    length = sum(segment.end - segment.start for segment in segments)
    assert tokens[layout.output_index].tolist() == list(range(length))
    for group in layout.groups:
        padding = 0 if group.real is None else int((~group.real).sum())
        assert padding <= group.tokens.numel() // 4


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
