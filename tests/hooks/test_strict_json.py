"""JSON text in a field is read as strictly as a file of JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit import RecordError, Registry, strict_json
from templatekit.config.data_options import DataOptions
from templatekit.hooks.record_fields import MAX_DEPTH
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources import json_decoder

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def nested(depth: int) -> str:
    return '{"a": [' * (depth // 2) + '{"a": 1}' * (depth % 2) + "]}" * (depth // 2)


@given(VALUES)
def test_plain_values_are_read_as_they_are(value: Any) -> None:
    assert strict_json(json.dumps(value)) == value


def test_the_limit_is_that_of_files() -> None:
    assert MAX_DEPTH == json_decoder.MAX_DEPTH


@pytest.mark.parametrize("more", [1, 2, 700, 100_000])
def test_nesting_has_a_limit(more: int) -> None:
    for fits in nested(MAX_DEPTH), nested(MAX_DEPTH - 1), f"[{', '.join(['[{}]'] * 1000)}]", json.dumps("[" * 999):
        assert strict_json(fits) == json.loads(fits)
    with pytest.raises(ValueError, match="nested too deeply"):
        strict_json(nested(MAX_DEPTH + more))


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 900, 100_000])
def test_arguments_that_are_nested_deeply_end_no_run(depth: int, builtin: Registry) -> None:
    """Beyond the limit the row is refused."""
    call = {"type": "function", "function": {"name": "f", "arguments": nested(depth)}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    pipeline = Pipeline(DataOptions.parse({"template": "qwen3"}), builtin)
    if depth > MAX_DEPTH:
        with pytest.raises(RecordError, match=r"0\].function.arguments: nested too deeply; found"):
            list(pipeline.run([{"messages": messages}]))
        return
    [sample] = pipeline.run([{"messages": messages}])
    assert f'"arguments": {nested(depth)}' in sample.rendered.text
