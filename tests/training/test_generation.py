"""Answers end where a server would end them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from templatekit.training.attention.dispatch import isolate
from templatekit.training.generation import Answer, generate
from templatekit.training.lora import attach_lora
from templatekit.types import Segment

MakeModel = Callable[..., PreTrainedModel]
PROMPT = [5, 9, 33, 2, 1]


def _decode(ids: Sequence[int]) -> str:
    return "".join(f"<{token}>" for token in ids)


def _greedy(model: Any, length: int) -> list[int]:
    """The most likely tokens, computed without a cache."""
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(length):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def _answer(model: PreTrainedModel, **values: Any) -> Answer:
    return generate(model, PROMPT, decode=_decode, **{"max_new_tokens": 12, "stop_ids": [], **values})


def test_an_answer_is_greedy(tiny_model: MakeModel, kind: str) -> None:
    model = tiny_model(kind).train(False)
    ids = _greedy(model, 12)
    assert _answer(model) == Answer(_decode(ids), tuple(ids), "length")


def test_a_stop_token_ends_it_and_is_left_out(tiny_model: MakeModel) -> None:
    model = tiny_model()
    ids = _greedy(model, 12)
    stop = next(token for token in ids[1:] if token != ids[0])
    kept = ids[: ids.index(stop)]
    assert _answer(model, stop_ids=[63, stop]) == Answer(_decode(kept), tuple(kept), "token")
    assert model.training


def test_a_stop_string_over_two_tokens_ends_it_and_is_cut(tiny_model: MakeModel) -> None:
    model = tiny_model()
    ids = _greedy(model, 12)
    stop = f"{ids[3]}><{ids[4]}"
    text = _decode(ids)
    answer = _answer(model, stop_strings=["never", stop, stop[1:]])
    assert answer.text == text[: min(text.index(stop), text.index(stop[1:]))]
    assert answer.stopped == "string"
    assert answer.ids == tuple(ids[: len(answer.ids)])
    assert len(answer.ids) < 12


def test_the_models_own_settings_take_no_part(tiny_model: MakeModel) -> None:
    model: Any = tiny_model()
    ids = _greedy(model, 12)
    model.generation_config.eos_token_id = ids[1]
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.forced_eos_token_id = 3
    own = model.generation_config
    assert _answer(model).ids == tuple(ids)
    assert model.generation_config is own


def test_sampling_follows_its_seed_and_leaves_the_generator_alone(tiny_model: MakeModel) -> None:
    model = tiny_model()
    state = torch.get_rng_state()
    answers = [_answer(model, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert answers[0] == answers[1] != answers[2]
    assert all(len(set(answer.ids)) > 1 for answer in answers)


def test_it_answers_after_packs_and_with_adapters(tiny_model: MakeModel) -> None:
    model = tiny_model()
    ids = _greedy(model, 12)
    with isolate(model, [Segment(documents=(0,), start=0, end=3)]):
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    adapted = attach_lora(model, rank=2, alpha=4, seed=0)
    assert _answer(adapted).ids == tuple(ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_new_token_is_no_answer(tiny_model: MakeModel, temperature: float) -> None:
    assert len(_answer(tiny_model(), max_new_tokens=1, temperature=temperature).ids) == 1
