"""`FinetuneOptions`: all options of a training run, from the model to the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from templatekit.config.data_options import DataAddress, DataOptions
from templatekit.config.options import PositiveInt


def _split_names(value: object) -> object:
    """Split `a,b`, alone or in a list, into the two names; return any other value as it is."""
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(name for item in value for name in map(str.strip, item.split(",")) if name)
    return value


class FinetuneOptions(DataOptions):
    """The options of a training run."""

    # Run
    method: Literal["sft", "dpo"] = Field(
        "sft", description="Train on answers, or on which of two answers is preferred (direct preference optimization)."
    )
    model: str = Field(
        "smollm2-135m-instruct", description="A folder, a .gguf file, a hub name, or a name that a plugin resolves."
    )
    output: Path | None = Field(None, description="The run's folder; by default a new one under runs/.")
    resume: bool = Field(False, description="Continue from the newest complete checkpoint in the output folder.")

    # Data
    eval_dataset: DataAddress | None = Field(
        None, description="A data set to evaluate on; by default a split of the training data."
    )
    workers: PositiveInt | None = Field(
        None,
        description="Processes that render and encode; the result is the same for any number. By default one; under "
        "torchrun, the number for each process.",
    )
    split: str = Field(
        "train=rest,validation=0.1",
        description="The splits in order, with their fractions; one is `rest`: train=0.85,test=0.1,validation=rest.",
    )
    split_order: Literal["shuffled", "sequential"] = Field(
        "shuffled", description="Split the rows after a seeded shuffle, or in the order in which they are read."
    )

    # Adapters
    lora: bool = Field(True, description="Train low-rank adapters (LoRA), or all weights.")
    lora_rank: PositiveInt = Field(16, description="Rank of the adapters.")
    lora_alpha: PositiveInt = Field(32, description="Scale of the adapters: alpha / rank.")
    quantize: Literal["4bit"] | None = Field(
        None, description="Hold the frozen weights under LoRA in four bits: an eighth of their memory (bitsandbytes)."
    )
    add_special_tokens: bool = Field(False, description="Add the special tokens that the template's metadata lists.")

    # Batches
    epochs: Annotated[float, Field(gt=0)] = Field(2.0, description="Number of passes over the training rows.")
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps.")
    batch_size: PositiveInt = Field(8, description="Examples in one optimizer step.")
    packing: bool = Field(True, description="Concatenate examples without padding, or pad them to a rectangle.")
    share: bool = Field(
        True, description="Compute a prefix that several examples share once per pack, or once per example."
    )
    pack_tokens: PositiveInt = Field(2048, description="Token budget of one forward and backward pass.")
    activation_checkpointing: bool = Field(
        False,
        description="Save memory: keep only the input of each layer, and compute the layer again in the backward pass.",
    )
    compile: bool = Field(
        False, description="Compile the model's layers first, which takes a minute: fewer passes over memory on a GPU."
    )
    drop_last: bool = Field(False, description="Drop an epoch's last batch if it is not full.")

    # Direct preference optimization
    dpo_beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="How strongly DPO keeps the model near its starting weights: the reward of a log-ratio of 1."
    )
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="The share of pairs whose labels DPO assumes to be swapped."
    )
    dpo_logps: Literal["sum", "mean"] = Field(
        "sum", description="DPO's log-probability of an answer: the sum over its tokens, or their mean."
    )

    # Optimizer and learning rate
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Peak learning rate; by default 5e-4 with LoRA and 5e-5 without; with DPO 5e-5 and 1e-6.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="How the learning rate falls after warm-up."
    )
    warmup: Annotated[float, Field(ge=0)] = Field(
        0.03, description="Warm-up: below 1 a fraction of the steps, else a number of steps."
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW, or AdamW with moments in eight bits: a quarter of their memory (bitsandbytes)."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's weight decay.")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's decay of the first moment.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="AdamW's decay of the second moment.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="The gradient norm above which gradients are clipped."
    )

    # Hardware
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Compute matrix products in bf16 (autocast) or in fp32; auto takes bf16 where the hardware has it.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, mps.")
    seed: int = Field(123, description="The seed of splits, batch order and initial adapters.")

    # Evaluation and checkpoints
    eval_every: PositiveInt | None = Field(
        None, description="Evaluate after every so many steps; always before and after training."
    )
    eval_limit: PositiveInt | None = Field(None, description="Evaluate on at most this many examples.")
    save_every: PositiveInt | None = Field(
        None, description="Save a checkpoint after every so many steps; always at the end."
    )
    keep_checkpoints: PositiveInt = Field(2, description="Keep this many of the newest checkpoints.")
    keep_best: bool = Field(
        False, description="Also keep the checkpoint with the lowest held-out loss, and end with its weights."
    )
    patience: PositiveInt | None = Field(
        None, description="Stop after this many evaluations in a row without a lower held-out loss."
    )
    min_delta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="How much lower a held-out loss must be to count for --patience."
    )
    distributed: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Under torchrun: the whole model in every process, or each weight divided between them."
    )
    report_to: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...], BeforeValidator(_split_names)
    ] = Field((), description="Trackers that also receive the metrics: tensorboard,trackio,wandb,mlflow.")
    samples: Annotated[int, Field(ge=0)] = Field(
        3, description="Number of held-out prompts to answer before and after training."
    )
    max_new_tokens: PositiveInt = Field(64, description="The maximum length of these answers, in tokens.")

    @model_validator(mode="after")
    def _check_evaluations(self) -> FinetuneOptions:
        wanting = [name for name in ("keep_best", "patience") if getattr(self, name)]
        if wanting and self.eval_every is None:
            raise ValueError(f"{wanting[0]} compares held-out losses; found no eval_every; expected --eval-every too")
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> FinetuneOptions:
        if self.quantize is not None and not self.lora:
            raise ValueError(f"quantize={self.quantize!r} freezes the weights; found lora=False; expected --lora too")
        for name, given in (("quantize", self.quantize), ("optimizer", self.optimizer)):
            if given in ("4bit", "adamw8bit") and self.distributed == "fsdp":
                raise ValueError(f"{name}={given!r} cannot be divided between processes; expected --distributed ddp")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or its default for this method and for LoRA."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.method == "dpo":
            return 5e-5 if self.lora else 1e-6
        return 5e-4 if self.lora else 5e-5
