"""Options, checked. The command line's options, a recipe's keys and the Python keywords are these fields, by name."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from templatekit.config.expressions import Expression
from templatekit.config.train_on import parse_train_on
from templatekit.errors import ConfigError, nearest, shorten
from templatekit.types import Boundary, ControlTokens, TrainOn, Truncation

_NEAR = 0.8
"""The similarity from which texts are near duplicates, where none is named."""


def _checked_train_on(text: TrainOn) -> TrainOn:
    parse_train_on(text)
    return text


def parse_dedup(text: str, *, option: str = "dedup") -> float:
    """The similarity from which texts are repeats, of `exact` (1), `near` (0.8) or `near=0.9`; `ConfigError`."""
    name, equals, number = (part.strip() for part in text.partition("="))
    if name == "exact" and not equals:
        return 1.0
    try:
        threshold = float(number) if equals else _NEAR
    except ValueError:
        threshold = 0.0
    if name != "near" or not 0.1 <= threshold < 1:
        raise ConfigError(
            f"{option}: found {text!r}; expected exact, near, or near with a similarity from 0.1 to below 1: near=0.8"
        )
    return threshold


def _checked_filter(text: str) -> str:
    Expression(text)
    return text


def _checked_dedup(text: str) -> str:
    parse_dedup(text)
    return text


def _no_flag(value: object) -> object:
    """YAML's `yes` is no number, though Python would take it for 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _listed(value: object) -> object:
    """`a,b` as two names, on its own or among others."""
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(name for item in value for name in map(str.strip, item.split(",")) if name)
    return value


def _json_like(value: Any) -> Any:
    """Sees that a value can be written into a template: YAML has dates and NaN, too."""
    if isinstance(value, dict):
        return {_json_like(key): _json_like(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_like(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and isfinite(value)):
        return value
    raise ValueError(f"expected text, a number, true, false or null; found {shorten(value)}; quote it where it is text")


Positive = Annotated[int, BeforeValidator(_no_flag), Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
JsonLike = Annotated[Any, AfterValidator(_json_like)]
Model = TypeVar("Model", bound="Options")


class Options(BaseModel):
    """Base of all option sets: unknown names and wrong types are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls: type[Model], values: Mapping[str, Any], *, source: str | None = None) -> Model:
        """Checks values; raises `ConfigError` that names each wrong one, with what was expected.

        `source` says where they stand, if not in the call itself.
        """
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            lines = [_explain(cls, detail) for detail in error.errors()]
            raise ConfigError((f"{source}: " if source else "") + "; ".join(lines)) from None


def _explain(cls: type[Options], detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = MixedSet.model_fields if detail["loc"][0] == "mix" else cls.model_fields
        return f"unknown option {name!r}; {nearest(str(detail['loc'][-1]), known)}"
    message = str(detail["msg"]).removeprefix("Value error, ").partition(", unable to")[0]
    expected = message.removeprefix("Input should be ")
    if expected != message:
        message = f"expected {'a number ' if expected.startswith(('greater', 'less')) else ''}{expected}"
    return f"{name}: found {shorten(detail['input'])}; {message[:1].lower()}{message[1:]}" if name else message


class MixedSet(Options):
    """One set of a mixture. What is left out is as in the options around it."""

    dataset: str = Field(description="Where its records are.")
    name: str | None = Field(None, description="Its name in rows and counts; by default where it is.")
    weight: Annotated[float, BeforeValidator(_no_flag), Field(gt=0)] | None = Field(
        None, description="How often it is drawn from, beside the others; 1 where others have a weight."
    )
    repeat: Positive = Field(1, description="How many times it is gone through.")
    limit: Positive | None = Field(None, description="Read at most this many records of it.")
    adapter: str | None = None
    template: str | None = None
    columns: dict[str, str] | None = None
    chat_template_kwargs: dict[str, JsonLike] | None = None
    filter: tuple[Annotated[str, AfterValidator(_checked_filter)], ...] = Field(
        (), description="Conditions, beside those for all sets."
    )


def _mixed_set(value: object) -> object:
    """A set as the command line has it, `ADDRESS,key=value,…`, as a mapping."""
    if not isinstance(value, str):
        return value
    address, *settings = value.split(",")
    found: dict[str, str] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not (name and equals and text) or name in found:
            raise ValueError(f"expected ADDRESS,key=value,… with each key once; found {setting!r}")
        found[name.replace("-", "_")] = text
    return {"dataset": address.strip(), **found}


class DataOptions(Options):
    """From records to tokenized examples."""

    dataset: str = Field("starter", description="A file, a folder, a hub name, or `starter`, the bundled set.")
    mix: tuple[Annotated[MixedSet, BeforeValidator(_mixed_set)], ...] = Field(
        (),
        description="Several sets in place of --dataset, one each time: `ADDRESS,weight=2,template=chatml,…`, with "
        "name, weight, repeat, limit, adapter, template.",
    )
    mix_strategy: Literal["concat", "once", "first_exhausted", "all_exhausted"] | None = Field(
        None,
        description="One set after the other, or rows drawn by weight: each once, until one set ends, or until all "
        "have, short ones anew. By default all_exhausted where a set has a weight, else concat.",
    )
    adapter: str | None = Field(None, description="The shape of the records; told by their keys if left out.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Rename keys: `instruction=question,response=answer`."
    )
    empty_context: tuple[str, ...] = Field(
        (), description="Inputs that mean none, such as `<noinput>`; may be given several times."
    )
    template: str = Field("alpaca", description="A template's name, a .jinja file, or `tokenizer` for the model's own.")
    chat_template_kwargs: dict[str, JsonLike] = Field(
        default_factory=dict,
        description="Values for variables that the template reads, such as `enable_thinking=false`.",
    )
    tokenizer: str | None = Field(None, description="A folder with tokenizer.json, or a model's name.")
    train_on: Annotated[TrainOn, AfterValidator(_checked_train_on)] = Field(
        "response",
        description="What is trained: response, content, last or all, and how much, also of roles and fields: "
        "`response=1,context=0.1,user=0.2`.",
    )
    end_marker: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="The text that ends an answer, or `none`; by default told from the template and tokenizer."
    )
    control_tokens: ControlTokens = Field(
        "template", description="Whose text may become control tokens: the template's alone, or the data's too."
    )
    boundary: Boundary = Field(
        "cut", description="Encode prompt and response apart, as serving does, or jointly, as some recipes did."
    )
    reuse: bool = Field(
        True, description="Encode equal words once where that is proven to give the same ids, or each text as a whole."
    )
    max_length: Positive | None = Field(None, description="Longest example, in tokens.")
    truncation: Truncation = Field(
        "drop",
        description="What becomes of longer examples: dropped, an error, or shortened: without their oldest turns, "
        "with less of their context, or with less of their last response.",
    )
    limit: Positive | None = Field(None, description="Read at most this many records.")
    filter: tuple[Annotated[str, AfterValidator(_checked_filter)], ...] = Field(
        (),
        description="Keep the records that meet this condition on their columns, as `len(response) > 10`; may be given "
        "several times.",
    )
    dedup: Annotated[str, AfterValidator(_checked_dedup)] | None = Field(
        None, description="Leave out what repeats an earlier record: `exact`, or `near`, or `near=0.9`."
    )
    shuffle: Annotated[int, BeforeValidator(_no_flag), Field(ge=0)] | None = Field(
        None, description="Take the records in an order that this seed decides."
    )
    shuffle_buffer: Positive = Field(10_000, description="Records that shuffling holds at a time.")
    on_error: Literal["stop", "skip"] = Field("stop", description="What a record that cannot be used does.")
    cache: bool = Field(
        False,
        description="Keep the examples on disk: a later run takes them from there, one that was stopped goes on.",
    )
    cache_dir: Path | None = Field(
        None, description="Where; by default TEMPLATEKIT_CACHE, or templatekit in the user's folder of caches."
    )

    @model_validator(mode="after")
    def _check_truncation(self) -> DataOptions:
        if self.truncation != "drop" and self.max_length is None:
            found = f"truncation={self.truncation!r}"
            raise ValueError(f"{found} counts tokens; found no max_length; expected --max-length too")
        return self

    @model_validator(mode="after")
    def _check_mix(self) -> DataOptions:
        if not self.mix and self.mix_strategy is not None:
            raise ValueError(f"mix_strategy={self.mix_strategy!r} mixes several sets; found none; expected --mix too")
        if self.mix and self.dataset != "starter":
            raise ValueError(f"dataset={self.dataset!r} beside mix; expected one of them; name it as a --mix too")
        weighted = [one.dataset for one in self.mix if one.weight is not None]
        if weighted and self.mix_strategy == "concat":
            raise ValueError(f"{weighted[0]!r} has a weight, and mix_strategy='concat' draws nothing; leave one out")
        return self


WORKERS = "Processes that render and encode; the result is the same for any number. By default one"


class RenderOptions(DataOptions):
    """Examples, or packs of them, as files."""

    pack_tokens: Positive | None = Field(
        None,
        description="Write packs: whole examples end to end, at most so many tokens a row. Longer examples are as "
        "with this --max-length.",
    )
    workers: Positive | None = Field(None, description=f"{WORKERS}, with ray the cluster's cores.")

    @model_validator(mode="before")
    @classmethod
    def _bound_lengths(cls, values: Any) -> Any:
        """No pack holds a longer example, so what is said of lengths holds of this one too."""
        if isinstance(values, dict) and values.get("max_length") is None and values.get("pack_tokens") is not None:
            return {**values, "max_length": values["pack_tokens"]}
        return values

    @model_validator(mode="after")
    def _check_lengths(self) -> RenderOptions:
        if self.pack_tokens is not None and (self.max_length or 0) > self.pack_tokens:
            raise ValueError(
                f"max_length={self.max_length} beside pack_tokens={self.pack_tokens}: no pack has room for such an "
                "example; expected a max_length of at most that, or none"
            )
        return self


CACHE = ("cache", "cache_dir")
"""Options of what keeps its examples."""


class FinetuneOptions(DataOptions):
    """A training run."""

    method: Literal["sft", "dpo"] = Field(
        "sft", description="Train on answers, or on which of two answers is preferred (direct preference optimization)."
    )
    model: str = Field("smollm2-135m-instruct", description="A folder, a .gguf file, a resolver's or a hub name.")
    output: Path | None = Field(None, description="The run's folder; by default a new one under runs/.")
    resume: bool = Field(False, description="Go on from the newest whole checkpoint in the output folder.")

    eval_dataset: str | None = Field(None, description="Held-out records from a place of their own.")
    workers: Positive | None = Field(None, description=f"{WORKERS}; of a run by torchrun, in each of its processes.")
    split: str = Field(
        "train=rest,validation=0.1",
        description="Names and fractions in order, one of them `rest`: train=0.85,test=0.1,validation=rest.",
    )
    split_order: Literal["shuffled", "sequential"] = Field(
        "shuffled", description="Split a seeded shuffle, or the rows as they lie, in the order the split states."
    )

    lora: bool = Field(True, description="Train low-rank adapters, or all weights.")
    lora_rank: Positive = Field(16, description="Rank of the adapters.")
    lora_alpha: Positive = Field(32, description="Scale of the adapters: alpha / rank.")
    quantize: Literal["4bit"] | None = Field(
        None, description="Keep frozen weights under LoRA in four bits: an eighth of their memory (bitsandbytes)."
    )
    add_special_tokens: bool = Field(False, description="Add the special tokens that the template's metadata lists.")

    epochs: Annotated[float, Field(gt=0)] = Field(2.0, description="Passes over the training rows.")
    max_steps: Positive | None = Field(None, description="Stop after this many optimizer steps.")
    batch_size: Positive = Field(8, description="Examples in one optimizer step.")
    packing: bool = Field(True, description="Lay examples end to end without padding, or pad them to a rectangle.")
    share: bool = Field(True, description="Compute what several examples of a pack begin with once, or for each.")
    pack_tokens: Positive = Field(2048, description="Token budget of one forward and backward pass.")
    activation_checkpointing: bool = Field(
        False, description="Keep a layer's input alone, and compute the layer again in the backward pass: less memory."
    )
    compile: bool = Field(
        False, description="Compile the model's layers first, which takes a minute: fewer passes over memory on a GPU."
    )
    drop_last: bool = Field(False, description="Leave out an epoch's last batch where it is not full.")

    dpo_beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="How closely DPO keeps to the starting weights: the reward of a log-ratio of 1."
    )
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="The share of pairs that DPO takes to be labelled the wrong way round."
    )
    dpo_logps: Literal["sum", "mean"] = Field(
        "sum", description="DPO's log-probability of an answer: its tokens' sum, or their mean."
    )

    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak rate; by default 5e-4 with LoRA and 5e-5 without, with DPO 5e-5 and 1e-6."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="How the rate falls after warm-up.")
    warmup: Annotated[float, Field(ge=0)] = Field(
        0.03, description="Warm-up: a fraction of the steps below 1, or a number of steps."
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW, or with its moments in eight bits: a quarter of their memory (bitsandbytes)."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's weight decay.")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's decay of the first moment.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="AdamW's decay of the second moment.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(1.0, description="Largest gradient norm.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="Autocast matrix products to bf16 or not.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, mps.")
    seed: int = Field(123, description="Of splits, order and initial adapters.")

    eval_every: Positive | None = Field(None, description="Evaluate every so many steps; always before and after.")
    eval_limit: Positive | None = Field(None, description="Evaluate on at most so many examples.")
    save_every: Positive | None = Field(None, description="Save a checkpoint every so many steps; always at the end.")
    keep_checkpoints: Positive = Field(2, description="Keep so many of the newest checkpoints.")
    keep_best: bool = Field(
        False, description="Keep the checkpoint with the lowest held-out loss too, and end with its weights."
    )
    patience: Positive | None = Field(
        None, description="Stop after so many evaluations in a row without a lower held-out loss."
    )
    min_delta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="By how much a held-out loss has to be lower to count for --patience."
    )
    distributed: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Under torchrun: the whole model in every process, or each weight divided between them."
    )
    report_to: Annotated[tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...], BeforeValidator(_listed)] = (
        Field((), description="Trackers to tell of the run as well: tensorboard,trackio,wandb,mlflow.")
    )
    samples: Annotated[int, Field(ge=0)] = Field(3, description="Held-out prompts answered before and after.")
    max_new_tokens: Positive = Field(64, description="Longest sampled answer.")

    @model_validator(mode="after")
    def _check_evaluations(self) -> FinetuneOptions:
        wanting = [name for name in ("keep_best", "patience") if getattr(self, name)]
        if wanting and self.eval_every is None:
            raise ValueError(f"{wanting[0]} compares held-out losses; found no eval_every; expected --eval-every too")
        return self

    @model_validator(mode="after")
    def _check_bits(self) -> FinetuneOptions:
        if self.quantize is not None and not self.lora:
            raise ValueError(f"quantize={self.quantize!r} freezes the weights; found lora=False; expected --lora too")
        for name, given in (("quantize", self.quantize), ("optimizer", self.optimizer)):
            if given in ("4bit", "adamw8bit") and self.distributed == "fsdp":
                raise ValueError(f"{name}={given!r} cannot be divided between processes; expected --distributed ddp")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The rate that the schedule starts from, with its default filled in."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.method == "dpo":
            return 5e-5 if self.lora else 1e-6
        return 5e-4 if self.lora else 5e-5
