"""`DataOptions`: how records become tokenized examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WrapValidator, model_validator

from templatekit.config.addresses import Address
from templatekit.config.filter_expression import FilterExpression
from templatekit.config.options import JsonValue, Options, PositiveInt, refuse_bool
from templatekit.config.train_on import parse_train_on
from templatekit.errors import ConfigError
from templatekit.types import MAX_WEIGHT, MIN_WEIGHT, Boundary, ControlTokens, EmptyThought, TrainOn, Truncation

CACHE_OPTIONS = ("cache", "cache_dir")
"""The options of commands that cache the prepared examples."""

_NEAR_DUPLICATE = 0.8
"""The similarity from which texts are near duplicates, unless the option names another."""


def parse_dedup(text: str, *, option: str = "dedup") -> float:
    """Return the least similarity of duplicates: 1 for `exact`, 0.8 for `near`, 0.9 for `near=0.9`.

    Raises `ConfigError`.
    """
    name, equals, number = (part.strip() for part in text.partition("="))
    if name == "exact" and not equals:
        return 1.0
    try:
        threshold = float(number) if equals else _NEAR_DUPLICATE
    except ValueError:
        threshold = 0.0
    if name != "near" or not 0.1 <= threshold < 1:
        raise ConfigError(
            f"{option}: found {text!r}; expected exact, near, or near with a similarity from 0.1 to below 1: near=0.8"
        )
    return threshold


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Return a validator for an option whose value stays text: `parse` raises if the text is wrong."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _parse_address(text: object, parse_text: Callable[[object], str]) -> Address:
    if isinstance(text, Address):  # pydantic would make it a plain str of what is shown
        return text
    text = parse_text(text)
    if not text.strip():
        raise ValueError("expected a file, a folder, a URL, a hub name, `starter` or `-` (`.` is the current folder)")
    return Address(text)


DataAddress = Annotated[str, WrapValidator(_parse_address)]
"""The address of a data set: never empty, and its passwords and tokens are not shown (see `Address`)."""

Filter = Annotated[str, _parsed_by(FilterExpression)]


class MixedSet(Options):
    """One data set of a mixture. Fields that are None have the value of the same option of the whole mixture."""

    dataset: DataAddress = Field(description="The address of its records.")
    name: str | None = Field(None, description="Its name in rows and counts; by default its address.")
    weight: Annotated[float, BeforeValidator(refuse_bool), Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] | None = Field(
        None, description="How often its rows are drawn, relative to other sets; 1 if only other sets have a weight."
    )
    repeat: PositiveInt = Field(1, description="How many times its rows are read.")
    limit: PositiveInt | None = Field(None, description="Read at most this many of its records.")
    adapter: str | None = None
    template: str | None = None
    columns: dict[str, str] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    filter: tuple[Filter, ...] = Field((), description="Conditions in addition to those for all sets.")


def _parse_mixed_set(value: object) -> object:
    """Parse `ADDRESS,key=value,…`, the command line's form of a set, to a mapping; return any other value as it is."""
    if not isinstance(value, str):
        return value
    address, *settings = value.split(",")
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not (name and equals and text) or name in values:
            raise ValueError(f"expected ADDRESS,key=value,… with each key once; found {setting!r}")
        values[name.replace("-", "_")] = text
    return {"dataset": address.strip(), **values}


class DataOptions(Options):
    """How records become tokenized examples."""

    nested: ClassVar[Mapping[str, type[Options]]] = {"mix": MixedSet}

    # Records
    dataset: DataAddress = Field("starter", description="A file, a folder, a hub name, or `starter`, the bundled set.")
    mix: tuple[Annotated[MixedSet, BeforeValidator(_parse_mixed_set)], ...] = Field(
        (),
        description="One of several sets to mix, in place of --dataset: `ADDRESS,weight=2,template=chatml,…`, with "
        "name, weight, repeat, limit, adapter, template; may be given several times.",
    )
    mix_strategy: Literal["concat", "once", "first_exhausted", "all_exhausted"] | None = Field(
        None,
        description="Read one set after the other (concat), or draw rows by weight: each row once, until the first set "
        "ends, or until all sets have ended, repeating the short ones. By default all_exhausted if a set has a weight, "
        "else concat.",
    )
    adapter: str | None = Field(None, description="The adapter for the records; by default inferred from their keys.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Rename keys: `instruction=question,response=answer`."
    )
    empty_context: tuple[str, ...] = Field(
        (), description="A context that means none, such as `<noinput>`; may be given several times."
    )

    # Text
    template: str = Field("alpaca", description="A template's name, a .jinja file, or `tokenizer` for the model's own.")
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Values for variables that the template reads, such as `enable_thinking=false`.",
    )

    # Tokens and loss weights
    tokenizer: str | None = Field(None, description="A folder with tokenizer.json, or a model's name.")
    trust_remote_code: bool = Field(
        False,
        description="Run the Python that lies in the folder of a model or tokenizer, where it needs its own; else it "
        "is never run.",
    )
    train_on: Annotated[TrainOn, _parsed_by(parse_train_on)] = Field(
        "response",
        description="What is trained: response, content, last or all. Weights may follow, also for roles and fields: "
        "`response=1,context=0.1,user=0.2`.",
    )
    end_marker: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="The text that ends an answer, or `none`; by default inferred from the template and the tokenizer.",
    )
    control_tokens: ControlTokens = Field(
        "template",
        description="Where text may become control tokens: in the template alone, or everywhere, also in the data.",
    )
    boundary: Boundary = Field(
        "cut",
        description="Encode prompt and response separately, as serving does, or jointly, as some recipes did.",
    )
    reuse: bool = Field(
        True,
        description="Encode a repeated word once, where that is proven to give the same ids; or encode every text as a "
        "whole.",
    )
    max_length: PositiveInt | None = Field(None, description="The maximum length of an example, in tokens.")
    truncation: Truncation = Field(
        "drop",
        description="What happens to longer examples: they are dropped, stop the run (error), or lose their oldest "
        "turns, the end of their context or the end of their last response.",
    )

    # Which records, in which order
    limit: PositiveInt | None = Field(None, description="Read at most this many records.")
    filter: tuple[Filter, ...] = Field(
        (),
        description="Keep only records that meet this condition on their columns, such as `len(response) > 10`; may be "
        "given several times.",
    )
    dedup: Annotated[str, _parsed_by(parse_dedup)] | None = Field(
        None, description="Skip records that repeat an earlier one: `exact`, `near`, or `near=0.9`."
    )
    shuffle: Annotated[int, BeforeValidator(refuse_bool), Field(ge=0)] | None = Field(
        None, description="Shuffle the records with this seed."
    )
    shuffle_buffer: PositiveInt = Field(
        10_000, description="How many records the shuffle buffer holds; fewer if they are large."
    )
    max_record_size: PositiveInt = Field(
        16,
        description="The largest record, in MB of its text; a larger one is an error in its row, and so is white space "
        "of this size before a row.",
    )
    on_error: Literal["stop", "skip"] = Field("stop", description="What to do with a record that cannot be used.")
    on_missing_field: Literal["error", "drop"] = Field(
        "error",
        description="What to do with reasoning, a name, tools, documents or a system message for which the template "
        "has no place: the record cannot be used (error), or is rendered without it and counted (drop).",
    )
    empty_thought: EmptyThought = Field(
        "keep",
        description="What an answer without a thought gets where the template has an empty one for it, such as "
        "`<think></think>`: the empty one (keep), nothing (omit; an error where the prompt itself opens the thought), "
        "or it is an error.",
    )

    # Cache
    cache: bool = Field(
        False,
        description="Cache the prepared examples on disk: later runs read them, and a run that was stopped continues "
        "from them.",
    )
    cache_dir: Path | None = Field(
        None, description="The cache's folder; by default TEMPLATEKIT_CACHE, or templatekit in the user's cache folder."
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
        weighted = [mixed.dataset for mixed in self.mix if mixed.weight is not None]
        if weighted and self.mix_strategy == "concat":
            raise ValueError(f"{weighted[0]!r} has a weight, and mix_strategy='concat' draws nothing; leave one out")
        return self
