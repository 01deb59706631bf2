"""Packs that were written to files train like their examples: in our loop, with transformers, with TRL's collator."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from testkit.losses import weighted_loss
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithFlattening, PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from templatekit import Registry
from templatekit.packing import Sequences, pack_examples, pack_stream
from templatekit.packing.columns import TokenizedColumns
from templatekit.training.attention.dispatch import isolate
from templatekit.training.collator import collate_packed
from templatekit.training.loss import ModelWithLoss, detect_head
from templatekit.types import TokenizedExample

PACK_TOKENS = 40
READ = ("input_ids", "labels", "position_ids")
Make = Callable[..., TokenizedExample]
Row = dict[str, list[Any]]


@pytest.fixture
def trained(make_example: Make) -> list[TokenizedExample]:
    """Fifteen examples with weights of 0 and 1."""
    draw = random.Random(3)
    made = []
    for row in range(15):
        length = draw.randint(2, 24)
        prompt = draw.randint(1, length - 1)
        ids = [draw.randrange(64) for _ in range(length)]
        made.append(make_example(ids, [0.0] * prompt + [1.0] * (length - prompt), row))
    return made


@pytest.fixture
def rows(trained: list[TokenizedExample], builtin: Registry, tmp_path: Path) -> list[Row]:
    """Packs of them, as `datasets` reads them from a folder."""
    packs = pack_stream([Sequences.of(TokenizedColumns.of(trained))], PACK_TOKENS)
    exporter: Any = builtin.exporters["datasets"]
    exporter.write_packs(packs, tmp_path)
    found: list[Row] = load_from_disk(str(tmp_path)).to_list()
    assert 1 < len(found) < len(trained)
    return found


@pytest.fixture
def model(tiny_model: Callable[..., PreTrainedModel], in_fp64: Callable[[PreTrainedModel], PreTrainedModel]) -> Any:
    return in_fp64(tiny_model("llama"))


@pytest.fixture
def expected(model: Any, trained: list[TokenizedExample]) -> float:
    """The mean loss over all targets, with each example computed alone."""
    return mean_loss(model, [_tensors(input_ids=one.input_ids, labels=one.labels) for one in trained])


def _tensors(**values: Sequence[int]) -> dict[str, Tensor]:
    return {name: torch.tensor([list(value)]) for name, value in values.items()}


def mean_loss(model: Any, batches: list[dict[str, Tensor]]) -> float:
    """The mean over all targets of all batches, in fp64, which a model's own `loss` is not."""
    total, targets = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits, labels = model(**inputs, use_cache=False).logits[0, :-1], batch["labels"][0, 1:]
            total += float(cross_entropy(logits, labels, reduction="sum"))
            targets += int((labels != -100).sum())
    return total / targets


def test_transformers_model_takes_a_row_as_it_is(model: Any, rows: list[Row], expected: float) -> None:
    batches = [_tensors(**{name: row[name] for name in READ}) for row in rows]
    assert mean_loss(model, batches) == pytest.approx(expected, rel=1e-12)
    for batch in batches:
        batch.pop("position_ids")
    assert mean_loss(model, batches) != pytest.approx(expected, rel=1e-3)


def test_a_mask_of_ones_would_join_the_examples(model: Any, rows: list[Row], expected: float) -> None:
    """This is why packs are written without an attention mask."""
    batches = [_tensors(**{name: row[name] for name in READ}) for row in rows]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert mean_loss(model, batches) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_trls_collator_takes_rows(model: Any, rows: list[Row], expected: float, size: int) -> None:
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batches = [collate(rows[at : at + size]) for at in range(0, len(rows), size)]
    positions = torch.cat([batch["position_ids"][0] for batch in batches])
    assert positions.tolist() == [position for row in rows for position in row["position_ids"]]
    used = [{name: batch[name] for name in READ} for batch in batches]
    assert mean_loss(model, used) == pytest.approx(expected, rel=1e-12)


def test_a_collator_that_knows_no_lengths_joins_the_examples(model: Any, rows: list[Row], expected: float) -> None:
    """transformers' own flattens rows of one example each: the docs say so."""
    batches = [DataCollatorWithFlattening()([row]) for row in rows]
    assert mean_loss(model, batches) != pytest.approx(expected, rel=1e-3)


def test_our_loop_takes_rows(model: Any, rows: list[Row], make_example: Make, expected: float) -> None:
    total, targets, head = 0.0, 0.0, detect_head(model)
    for row in rows:
        examples, start = [], 0
        for length in row["seq_lengths"]:
            labels = row["labels"][start : start + length]
            ids = row["input_ids"][start : start + length]
            examples.append(make_example(ids, [float(label != -100) for label in labels]))
            start += length
        batch = collate_packed(pack_examples(examples, range(len(examples))), torch.device("cpu"))
        with isolate(model, batch.segments) if batch.segments else nullcontext():
            total += float(weighted_loss(ModelWithLoss(model, head), batch).detach())
        targets += sum(example.trained_tokens for example in examples)
    assert total / targets == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trls_trainer_trains_on_rows_as_it_is_told_to(
    tiny_model: Callable[..., PreTrainedModel],
    rows: list[Row],
    trained: list[TokenizedExample],
    tmp_path: Path,
    lengths: bool,
) -> None:
    """With the settings that docs/how-to.md gives: a loss as of examples by themselves, for which it needs lengths."""
    model = tiny_model("llama")
    alone = [_tensors(input_ids=one.input_ids, labels=one.labels) for one in trained]
    expected = mean_loss(model, alone)
    backend = Tokenizer(WordLevel({"<pad>": 0, "</s>": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    settings = SFTConfig(
        packing=False,
        padding_free=True,
        max_length=None,
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=len(rows),
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    given = Dataset.from_list(rows)
    given = given if lengths else given.remove_columns("seq_lengths")
    trainer = SFTTrainer(model=model, args=settings, train_dataset=given, processing_class=tokenizer)
    taken: Any = trainer.train_dataset
    assert sorted(map(len, taken["input_ids"])) == sorted(len(row["input_ids"]) for row in rows)
    assert (trainer.train().training_loss == pytest.approx(expected, rel=1e-5)) == lengths
