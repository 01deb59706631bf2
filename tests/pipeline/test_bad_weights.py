"""Loss weights that no loss can hold are refused with their row, from every file and in every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from testkit.at_hand import Tokenizers

from templatekit import ConfigError, DataOptions, RecordError, TokenizedExample, prepare, render
from templatekit.packing.packed_batch import pack_examples

USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
LAYOUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "messages[1].": lambda weight: {"messages": [USER, {**ANSWER, **weight}]},
    "conversations[1].": lambda weight: {
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", **weight}]
    },
    "completion[0].": lambda weight: {"prompt": [USER], "completion": [{**ANSWER, **weight}]},
    "chosen[0].": lambda weight: {"prompt": [USER], "chosen": [{**ANSWER, **weight}], "rejected": [ANSWER]},
}
BAD = [float("nan"), float("inf"), -float("inf"), -1.0, -1e-9, 1e39, 1e308, 1e-50]


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".arrow")
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("key", ["weight", "loss_weight", "train"])
@pytest.mark.parametrize("field", LAYOUTS)
@pytest.mark.parametrize("write", [json_lines, parquet, arrow])
def test_a_weight_that_no_loss_can_hold_is_refused_with_its_row(
    write: Callable[[Path, list[dict[str, Any]]], Path], field: str, key: str, tmp_path: Path
) -> None:
    for value in BAD:
        rows = [LAYOUTS[field]({key: weight}) for weight in (1.0, value)]
        path = write(tmp_path / "rows", rows)
        with pytest.raises(RecordError) as refused:
            list(render(path, template="chatml"))
        assert f"{path}:1:" in str(refused.value), "the row is named"
        assert field.partition("[")[0] in str(refused.value)
    list(render(write(tmp_path / "rows", [LAYOUTS[field]({key: 1.0})] * 2), template="chatml"))  # the control


def test_the_bounds_fit_into_what_is_trained_and_written(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("bytes")
    for weight in (1e-9, 1e9):
        row = LAYOUTS["messages[1]."]({"weight": weight})
        given: dict[str, Any] = {"template": "chatml", "tokenizer": tokenizer, "train_on": f"response={weight}"}
        (example,) = render([row], **given)
        assert isinstance(example, TokenizedExample)
        assert len(pack_examples([example], [0]).targets) == example.trained_tokens > 0
        (written,) = prepare([row], **given)["loss_weights"]
        assert np.isfinite(np.float32(written)).all()
        assert np.count_nonzero(np.float32(written)) == example.trained_tokens


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), -1, 0, 1e308, 1e-320])
def test_a_set_is_not_drawn_with_such_a_weight(weight: float) -> None:
    """The sum of two such weights would be infinite, or a set never be drawn."""
    sets = [{"dataset": "a.jsonl", "weight": weight}, {"dataset": "b.jsonl", "weight": weight}]
    with pytest.raises(ConfigError, match=r"mix\.0\.weight"):
        DataOptions.parse({"mix": sets})
    DataOptions.parse({"mix": [{**each, "weight": 0.5} for each in sets]})
