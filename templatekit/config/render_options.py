"""`RenderOptions`: how examples are written to files."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from templatekit.config.data_options import DataOptions
from templatekit.config.options import PositiveInt


class RenderOptions(DataOptions):
    """How examples, or packs of examples, are written to files."""

    pack_tokens: PositiveInt | None = Field(
        None,
        description="Write packs: whole examples, concatenated, with at most this many tokens in a row. This is also "
        "the default of --max-length.",
    )
    workers: PositiveInt | None = Field(
        None,
        description="Processes that render and encode; the result is the same for any number. By default one, with ray "
        "the cluster's cores.",
    )

    @model_validator(mode="before")
    @classmethod
    def _limit_length_to_pack(cls, values: Any) -> Any:
        """Set `max_length` to the size of a pack where it is missing: no pack can hold a longer example."""
        if isinstance(values, dict) and values.get("max_length") is None and values.get("pack_tokens") is not None:
            return {**values, "max_length": values["pack_tokens"]}
        return values

    @model_validator(mode="after")
    def _check_length(self) -> RenderOptions:
        if self.pack_tokens is not None and (self.max_length or 0) > self.pack_tokens:
            raise ValueError(
                f"max_length={self.max_length} beside pack_tokens={self.pack_tokens}: no pack has room for such an "
                "example; expected a max_length of at most that, or none"
            )
        return self
