"""The order of examples, against torch's own and against the figures of chapter 7."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import ConfigError
from templatekit.packing import pack_examples
from templatekit.training.collator import collate_padded
from templatekit.training.sampler import BatchSampler, epoch_order, total_steps
from templatekit.training.split import split_rows
from templatekit.types import RenderedText, TokenizedExample

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (10, 123), (935, 123), (100, 2**31)])
def test_epochs_are_those_of_a_data_loader(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    loader: DataLoader[int] = DataLoader(list(range(count)), batch_size=3, shuffle=True)  # type: ignore[arg-type]  # a list will do
    for epoch in range(4):
        assert epoch_order(count, seed, epoch) == tuple(int(item) for batch in loader for item in batch)


def test_epochs_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    epoch_order(50, 3, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_go_through_each_epoch_once() -> None:
    order = BatchSampler(count=10, batch_size=4, seed=5, drop_last=False)
    assert order.steps_per_epoch == 3
    for epoch in range(3):
        steps = [order.indices(3 * epoch + step) for step in range(3)]
        assert [len(step) for step in steps] == [4, 4, 2]
        assert tuple(document for step in steps for document in step) == epoch_order(10, 5, epoch)


def test_drop_last_leaves_out_what_fills_no_batch() -> None:
    order = BatchSampler(count=10, batch_size=4, seed=5, drop_last=True)
    assert order.steps_per_epoch == 2
    assert order.indices(2) == list(epoch_order(10, 5, 1)[:4])


def test_orders_without_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match="no examples to train on"):
        BatchSampler(count=0, batch_size=4, seed=0, drop_last=False)
    with pytest.raises(ConfigError, match="batch_size=4 with drop_last leaves no full batch of 3 examples"):
        BatchSampler(count=3, batch_size=4, seed=0, drop_last=True)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(2, None, 20), (0.25, None, 3), (0.001, None, 1), (2, 7, 7), (2, 70, 20)]
)
def test_a_run_ends_with_its_epochs_or_its_steps(epochs: float, max_steps: int | None, expected: int) -> None:
    assert total_steps(FinetuneOptions(epochs=epochs, max_steps=max_steps), 10) == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED}")
def test_the_first_epoch_of_chapter_7() -> None:
    rows = json.loads((SHARED / "data/ch07/instruction-data.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizers/gpt2/tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    assert end is not None
    parts = split_rows("train=0.85,test=0.1,validation=rest", len(rows), shuffle=False, seed=123)
    assert {name: len(part) for name, part in parts.items()} == {"train": 935, "test": 110, "validation": 55}
    examples = []
    for encoding in tokenizer.encode_batch([_chapter7_text(rows[row]) for row in parts["train"]]):
        ids = (*encoding.ids, end)
        weights = (0.0, *[1.0] * (len(ids) - 1))
        examples.append(TokenizedExample(input_ids=ids, loss_weights=weights, rendered=RenderedText(text="", spans=())))
    order = BatchSampler(count=len(examples), batch_size=8, seed=123, drop_last=True)
    batches = [
        collate_padded(pack_examples(examples, order.indices(step)), torch.device("cpu"), pad_id=end)
        for step in range(order.steps_per_epoch)
    ]
    assert len(batches) == 116
    shapes = [tuple(batch.input_ids.shape) for batch in batches]
    assert shapes[:5] == [(8, 61), (8, 76), (8, 73), (8, 68), (8, 65)]
    assert sum(batch.computed_tokens for batch in batches) == 65_080


def _chapter7_text(row: dict[str, str]) -> str:
    context = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{row['instruction']}{context}\n\n### Response:\n{row['output']}"
    )
