"""The same training steps in TRL's trainer and LitGPT's loop, on the same ids, labels and weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedModel

from benchmarks.memory import gradient_and_optimizer_gib, watch_peak_memory
from benchmarks.models import small_model_path
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.types import TokenizedExample, TokenizedPair

TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "free": {"padding_free": True},
    "compile": {"torch_compile": True},
    "liger": {"use_liger_kernel": True},
    "flash": {},
}
"""Settings of TRL's trainer: padding-free rows, a compiled model, Liger's kernels, and FlashAttention's."""


def run_trl(
    options: FinetuneOptions,
    model: PreTrainedModel,
    items: Sequence[TokenizedExample] | Sequence[TokenizedPair],
    rows: int,
    settings: Sequence[str],
) -> dict[str, Any]:
    """Run TRL's trainer with `rows` rows a pass; for preference pairs its DPO trainer, with `rows` pairs a pass."""
    import datasets
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    path = small_model_path()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": options.batch_size // rows,
            "num_train_epochs": 1,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "max_length": None,
            "use_cpu": model.device.type == "cpu",
            "bf16": options.precision == "bf16",
            "activation_checkpointing": False,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        for name in settings:
            common |= TRL_SETTINGS[name]
        if "flash" in settings:
            model.set_attn_implementation("flash_attention_2")
        rest: dict[str, Any] = {"model": model, "processing_class": tokenizer}
        pairs = [item for item in items if isinstance(item, TokenizedPair)]
        examples = [item for item in items if isinstance(item, TokenizedExample)]
        trainer: SFTTrainer | DPOTrainer
        start = time.perf_counter()
        if pairs:
            data = datasets.Dataset.from_list([_trl_pair(pair) for pair in pairs])
            config = DPOConfig(
                **common,
                beta=options.dpo_beta,
                loss_type=["sigmoid_norm" if options.dpo_logps == "mean" else "sigmoid"],
                label_smoothing=options.dpo_label_smoothing,
                precompute_ref_log_probs=True,
            )
            with patch.object(
                DPOTrainer, "_prepare_dataset", lambda _, dataset, *__: dataset
            ):  # the data is tokenized already
                trainer = DPOTrainer(**rest, args=config, train_dataset=data)
        else:
            columns = {
                "input_ids": [list(example.input_ids) for example in examples],
                "labels": [list(example.labels) for example in examples],
            }
            trainer = SFTTrainer(**rest, args=SFTConfig(**common), train_dataset=datasets.Dataset.from_dict(columns))
        peak = watch_peak_memory(model.device)
        prepared = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - prepared
        above = peak() - gradient_and_optimizer_gib(model)
        log = trainer.state.log_history[0]
    texts = [
        [text for item in items[first : first + rows] for text in _texts(item)] for first in range(0, len(items), rows)
    ]
    count_tokens = _token_count if "free" in settings else _padded_token_count
    return {
        "seconds": seconds,
        "computed_tokens": sum(map(count_tokens, texts)),
        "loss": float(log["loss"]),
        "grad_norm": float(log["grad_norm"]),
        "above": above,
        **({"reference_seconds": prepared - start} if pairs else {}),
    }


def _texts(item: TokenizedExample | TokenizedPair) -> list[TokenizedExample]:
    return [item.chosen, item.rejected] if isinstance(item, TokenizedPair) else [item]


def _trl_pair(pair: TokenizedPair) -> dict[str, list[int]]:
    """A pair in TRL's form, which trains all tokens after the prompt. Untrained tokens at the end are left out."""
    prompts, answers = [], []
    for answer in (pair.chosen, pair.rejected):
        trained = [weight > 0 for weight in answer.loss_weights]
        begin, end = trained.index(True), len(trained) - trained[::-1].index(True)
        assert all(trained[begin:end]), "the answer has untrained tokens inside, which TRL would train"
        prompts.append(answer.input_ids[:begin])
        answers.append(list(answer.input_ids[begin:end]))
    assert prompts[0] == prompts[1]
    return {"prompt_ids": list(prompts[0]), "chosen_ids": answers[0], "rejected_ids": answers[1]}


def run_litgpt(
    options: FinetuneOptions, original: PreTrainedModel, examples: Sequence[TokenizedExample], rows: int
) -> dict[str, Any]:
    """Run LitGPT's model, batches, loss and loop with `rows` rows a pass.

    The loop is that of `litgpt/finetune/full.py`, without its validation. It supports only the small model, without
    `--shape`. LitGPT's head has separate weights, which in the original model are those of the embeddings. That makes
    one more gradient.
    """
    import lightning
    import torch
    from litgpt import GPT, Config
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy

    config = Config.from_name("SmolLM2-135M-Instruct", padded_vocab_size=49152)
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, weights, original.state_dict())
    precision: Any = "bf16-mixed" if options.precision == "bf16" else "32-true"
    fabric = lightning.Fabric(accelerator=original.device.type, devices=1, precision=precision)
    model = GPT(config)
    model.load_state_dict({name: weight.clone() for name, weight in weights.items()})
    del weights
    model.max_seq_length = max(map(len, examples))
    setup = fabric.setup(model)
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(setup.parameters(), lr=options.learning_rate or 0.0, weight_decay=0.0)
    )
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
    peak = watch_peak_memory(original.device)
    start = time.perf_counter()
    for number, first in enumerate(range(0, len(samples), rows), 1):
        batch = fabric.to_device(collate(samples[first : first + rows]))
        last = number % passes == 0 or first + rows >= len(samples)
        with fabric.no_backward_sync(setup, enabled=not last):
            logits = setup(batch["input_ids"])
            loss = chunked_cross_entropy(logits[..., :-1, :], batch["labels"][..., 1:])
            fabric.backward(loss / passes)
        losses.append(float(loss.detach()))
        if last:
            if number == passes:
                norm_start = time.perf_counter()
                norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
                measuring = time.perf_counter() - norm_start
            optimizer.step()
            optimizer.zero_grad()
    return {
        "seconds": time.perf_counter() - start - measuring,
        "computed_tokens": sum(
            _padded_token_count(examples[start : start + rows]) for start in range(0, len(examples), rows)
        ),
        "loss": sum(losses[:passes]) / passes,
        "grad_norm": norm,
        "above": peak() - gradient_and_optimizer_gib(model),
    }


def _token_count(examples: Sequence[TokenizedExample]) -> int:
    return sum(map(len, examples))


def _padded_token_count(examples: Sequence[TokenizedExample]) -> int:
    return len(examples) * max(map(len, examples))
