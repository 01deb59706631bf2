"""The same training steps by others: TRL's trainer and LitGPT's loop, on the same ids, labels and weights."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.memory import begin_peak, state_gib
from templatekit.config import FinetuneOptions
from templatekit.registry import create_registry
from templatekit.tokens.load import resolve_model
from templatekit.types import TokenizedExample


def run_trl(options: FinetuneOptions, examples: list[TokenizedExample], rows: int, rate: float) -> dict[str, Any]:
    """TRL's trainer on the same ids and labels, so many rows a pass."""
    import datasets
    import torch
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from templatekit.training.model import load_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(resolve_model(options.model, create_registry()) or options.model)
        model = load_model(path, device=torch.device("cpu"))
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        data = datasets.Dataset.from_dict(
            {
                "input_ids": [list(example.input_ids) for example in examples],
                "labels": [list(example.labels) for example in examples],
            }
        )
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=options.batch_size // rows,
            num_train_epochs=1,
            learning_rate=rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            max_length=None,
            use_cpu=True,
            bf16=options.precision == "bf16",
            activation_checkpointing=False,
            train_sampling_strategy="sequential",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
        peak = begin_peak()
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        above = peak() - state_gib(model)
        first = trainer.state.log_history[0]
    return {
        "seconds": seconds,
        "computed_tokens": _padded(examples, rows),
        "loss": float(first["loss"]),
        "grad_norm": float(first["grad_norm"]),
        "above": above,
    }


def run_litgpt(options: FinetuneOptions, examples: list[TokenizedExample], rows: int, rate: float) -> dict[str, Any]:
    """LitGPT's model, batches, loss and loop (`litgpt/finetune/full.py`, without its validation), so many rows a pass.

    Its head has weights of its own, which in this model are those of the embeddings: one gradient more than elsewhere.
    """
    import lightning
    import torch
    from litgpt import GPT, Config
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy

    from templatekit.training.model import load_model

    config = Config.from_name("SmolLM2-135M-Instruct", padded_vocab_size=49152)
    theirs = load_model(resolve_model(options.model, create_registry()) or options.model, device=torch.device("cpu"))
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, weights, theirs.state_dict())
    precision: Any = "bf16-mixed" if options.precision == "bf16" else "32-true"
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = GPT(config)
    model.load_state_dict({name: weight.clone() for name, weight in weights.items()})
    del theirs, weights
    model.max_seq_length = max(map(len, examples))
    setup = fabric.setup(model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(setup.parameters(), lr=rate, weight_decay=0.0))
    collate = get_sft_collate_fn()
    samples = [
        {
            "input_ids": torch.tensor(example.input_ids),
            "labels": torch.tensor(example.labels),
            "token_counts": {"raw": len(example), "raw_plus_prompt_template": len(example)},
        }
        for example in examples
    ]
    passes = options.batch_size // rows
    losses: list[float] = []
    norm = measuring = 0.0
    peak = begin_peak()
    start = time.perf_counter()
    for number, first in enumerate(range(0, len(samples), rows), 1):
        batch = collate(samples[first : first + rows])
        last = number % passes == 0 or first + rows >= len(samples)
        with fabric.no_backward_sync(setup, enabled=not last):
            logits = setup(batch["input_ids"])
            loss = chunked_cross_entropy(logits[..., :-1, :], batch["labels"][..., 1:])
            fabric.backward(loss / passes)
        losses.append(float(loss.detach()))
        if last:
            if number == passes:
                began = time.perf_counter()
                norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
                measuring = time.perf_counter() - began
            optimizer.step()
            optimizer.zero_grad()
    return {
        "seconds": time.perf_counter() - start - measuring,
        "computed_tokens": _padded(examples, rows),
        "loss": sum(losses[:passes]) / passes,
        "grad_norm": norm,
        "above": peak() - state_gib(model),
    }


def _padded(examples: list[TokenizedExample], rows: int) -> int:
    batches = (examples[start : start + rows] for start in range(0, len(examples), rows))
    return sum(len(batch) * max(map(len, batch)) for batch in batches)
