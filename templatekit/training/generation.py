"""Text generation: the answer of a model to a prompt, as a server would give it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from templatekit.training.model import unwrap


class Answer(NamedTuple):
    """The answer of a model to a prompt."""

    text: str
    """The answer without its stop token, cut before the stop string."""
    ids: tuple[int, ...]
    """The generated ids without the stop token."""
    stopped: Literal["token", "string", "length"]
    """Why the answer ended."""


def generate(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    *,
    decode: Callable[[Sequence[int]], str],
    max_new_tokens: int,
    stop_ids: Collection[int],
    stop_strings: Collection[str] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> Answer:
    """Continue the prompt until a stop id, a stop string or `max_new_tokens`.

    Decoding is greedy at temperature 0, else sampled; equal seeds give equal answers. The model's own generation
    settings (penalties, other stop tokens) are ignored. The state of torch's random generators is restored.
    """
    causal: Any = unwrap(model)
    length, sampled = len(prompt_ids), temperature > 0

    def found_stop_string(ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        text = decode(ids[0, length:].tolist()) if stop_strings else ""
        return torch.tensor([any(stop in text for stop in stop_strings)], device=ids.device)

    settings = cast("Any", GenerationConfig)(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        temperature=temperature if sampled else None,
        top_k=0 if sampled else None,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=min(stop_ids, default=0),  # used for rows that end early; a single prompt has no such rows
    )
    prompt = torch.tensor([list(prompt_ids)], device=causal.device)
    own_settings, training = causal.generation_config, causal.training
    causal.generation_config = settings
    causal.train(False)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            output = causal.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=settings,
                stopping_criteria=[found_stop_string],
            )
    finally:
        causal.generation_config = own_settings
        causal.train(training)
    ids = output[0, length:].tolist()
    ended = bool(ids) and ids[-1] in stop_ids
    content = tuple(ids[:-1] if ended else ids)
    text = decode(content)
    cuts = [text.index(stop) for stop in stop_strings if stop in text]
    if cuts:
        return Answer(text[: min(cuts)], content, "string")
    return Answer(text, content, "token" if ended else "length")
