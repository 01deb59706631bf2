"""What a template says of itself, in a leading Jinja comment, so that the file stays a valid chat template.

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
from templatekit.errors import ConfigError, TemplateError, shorten

_COMMENT = re.compile(r"\A\{#-?\s*templatekit\b(?P<body>.*?)-?#\}", re.DOTALL)


LONGEST = 10_000
"""Characters of a leading comment: some nested YAML takes time that grows with its square."""


class _TextLoader(yaml.BaseLoader):
    """YAML whose scalars stay text, without aliases: a few of them may stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken here")
        return super().compose_node(parent, index)


class Capabilities(Options):
    """What a format declares that it does otherwise than most; `templatekit check` holds it to the rest."""

    multi_turn: bool = Field(True, description="Takes conversations of several turns; instruction formats never do.")
    system: bool = Field(True, description="Takes a system message; of instruction formats the variables tell.")
    strips_content: bool = Field(False, description="Takes whitespace off the edges of texts.")
    splits_content: bool = Field(False, description="Looks into texts, and prints them in parts or leaves some out.")
    prefix_stable: bool = Field(True, description="Renders the first turns of a conversation as it renders them alone.")
    bos_once: bool = Field(True, description="Writes BOS at the very beginning or never.")


class TemplateMetadata(Options):
    """The keys of the leading comment."""

    description: str = Field("", description="One line for `templatekit templates list`.")
    stop: tuple[str, ...] = Field((), description="Texts that end an answer: trained, and stopped at when generating.")
    end_marker: Literal["required", "none"] = Field(
        "required", description="`none` where an answer may end without a marker; the model then need not stop."
    )
    special_tokens: tuple[str, ...] = Field(
        (), description="Texts that the format's authors add to the tokenizer; added with --add-special-tokens."
    )
    capabilities: Capabilities = Field(
        default_factory=Capabilities, description="What the format does otherwise than most, for `templatekit check`."
    )


def read_metadata(source: str, name: str) -> TemplateMetadata:
    """The metadata of a template's source; without a leading comment every key has its default."""
    match = _COMMENT.match(source)
    if match is None:
        return TemplateMetadata()
    if len(match["body"]) > LONGEST:
        raise TemplateError(
            f"template {name!r}: found a leading comment of {len(match['body']):,} characters; "
            f"expected at most {LONGEST:,}"
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
