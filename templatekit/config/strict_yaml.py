"""YAML without its traps: a key twice in one mapping is an error, where YAML's own readers keep the last value."""

from __future__ import annotations

from typing import Any

import yaml


class UniqueKeys(yaml.composer.Composer):
    """A part of a loader that raises `YAMLError` for a mapping with a key twice."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Compose a mapping and compare its keys, before merges (`<<`) add those that they may override."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(None, None, f"found key {key.value!r} twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node


class _Loader(UniqueKeys, yaml.SafeLoader):
    """Loads plain values."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises `ValueError` for a text that is no YAML, and for a key twice in one mapping."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
