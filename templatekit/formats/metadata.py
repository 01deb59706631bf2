"""Reads a template's metadata from its leading Jinja comment, so that the file stays a valid chat template.

```jinja
{#- templatekit
description: Databricks' Dolly format.
stop: ["### End"]
#}
```
"""

from __future__ import annotations

import re
from typing import Literal

import yaml
from pydantic import Field

from templatekit.config.options import Options
from templatekit.config.strict_yaml import UniqueKeys
from templatekit.errors import ConfigError, TemplateError, shorten

_COMMENT = re.compile(r"\A\s*\{#[-+]?\s*templatekit\b(?P<body>.*?)-?#\}", re.DOTALL)

MAX_LENGTH = 10_000
"""The most characters of a leading comment. Parsing some nested YAML takes time quadratic in its length."""


class _TextLoader(UniqueKeys, yaml.BaseLoader):
    """Loads YAML scalars as text; refuses a key twice, and aliases, a few of which can expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Raise for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken here")
        return super().compose_node(parent, index)


class Capabilities(Options):
    """How a format differs from most, as declared; `templatekit check` expects the default of each undeclared key."""

    multi_turn: bool = Field(True, description="Renders conversations of several turns; instruction formats never do.")
    system: bool = Field(True, description="Renders a system message; for instruction formats the variables decide.")
    strips_content: bool = Field(False, description="Strips whitespace from the edges of texts.")
    splits_content: bool = Field(False, description="Searches texts, and prints them in parts or leaves parts out.")
    prefix_stable: bool = Field(True, description="Renders the first turns of a conversation as it renders them alone.")
    bos_once: bool = Field(True, description="Writes BOS at the very start or never.")


class TemplateMetadata(Options):
    """The keys of the leading comment."""

    description: str = Field("", description="One line for `templatekit templates list`.")
    stop: tuple[str, ...] = Field(
        (), description="Texts that end an answer: the model is trained to write them, and generation stops there."
    )
    end_marker: Literal["required", "none"] = Field(
        "required", description="`none` if an answer may end without a marker; the model may then not learn to stop."
    )
    special_tokens: tuple[str, ...] = Field(
        (), description="Texts that the format's authors add to the tokenizer; added with --add-special-tokens."
    )
    capabilities: Capabilities = Field(
        default_factory=Capabilities, description="How the format differs from most, for `templatekit check`."
    )


def read_metadata(source: str, name: str) -> TemplateMetadata:
    """The metadata in a template's source; without a leading comment every key has its default."""
    match = _COMMENT.match(source)
    if match is None:
        return TemplateMetadata()
    if len(match["body"]) > MAX_LENGTH:
        raise TemplateError(
            f"template {name!r}: found a leading comment of {len(match['body']):,} characters; "
            f"expected at most {MAX_LENGTH:,}"
        )
    try:
        values = yaml.load(match["body"], _TextLoader) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise TemplateError(f"template {name!r}: the leading comment is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise TemplateError(
            f"template {name!r}: the leading comment must hold `key: value` lines; found {shorten(values)}"
        )
    try:
        return TemplateMetadata.parse(values, source=f"template {name!r}, leading comment")
    except ConfigError as error:
        raise TemplateError(str(error)) from None
