"""What is fuzzed: for each target a few valid inputs, and a function that fails on anything but our own errors."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from testkit.odd_templates import TOKENS, check, conversations, made, templates

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.errors import RecordError, TemplatekitError
from templatekit.formats.sandbox.untrusted import UntrustedTemplate
from templatekit.hooks.contracts import TemplateFile
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.sources.opening import open_source
from templatekit.training.checkpoint import newest_checkpoint, restore, save_checkpoint
from templatekit.types import Example, Message

ROWS = [
    {"instruction": "Two plus two?", "input": "", "output": "Four."},
    {"instruction": "Größer?\u2028", "input": "2, 3", "output": 'He said "3".\n', "n": 1.5, "tags": ["a", None, True]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
]
_FLAT = [{"instruction": "a", "output": 'b, "c"\n'}, {"instruction": "", "output": "d"}] * 3


class Target(NamedTuple):
    """A function that is fuzzed."""

    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], str]
    """Returns in a word what came of an input. Raises for whatever a user must not see."""


@cache
def _registry() -> Registry:
    return create_registry()


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="templatekit-fuzz-"))


def _read(suffix: str, data: bytes) -> str:
    """Read a file: all rows are records or errors of a row, and a second reading gives the same."""
    path = _folder() / f"rows{suffix}"
    path.write_bytes(data)
    found = []
    for _ in range(2):
        rows: list[Any] = []
        try:
            rows += islice(open_source(str(path), _registry()), 10_000)
        except TemplatekitError as error:
            rows.append(str(error))
        assert all(isinstance(row, (Mapping, RecordError, str)) for row in rows)
        found.append([str(row) for row in rows])
    assert found[0] == found[1], "two readings differ"
    return "refused" if rows and isinstance(rows[-1], str) else "rows" if rows else "nothing"


def _render(data: bytes) -> str:
    """Load a template and render three turns with it."""
    try:
        template = UntrustedTemplate(TemplateFile(name="fuzz", source=data.decode(errors="replace")), strict=False)
        turn = (Message(role="user", content="Two plus two?"), Message(role="assistant", content="Four."))
        for example in (Example(messages=turn), Example(messages=turn * 3)):
            template.samples(example, TOKENS)
    except TemplatekitError as error:
        return type(error).__name__
    return "rendered"


def _recipe(data: bytes) -> str:
    """Parse a recipe's options."""
    from templatekit.cli.finetune import _read_recipe

    path = _folder() / "recipe.yaml"
    path.write_bytes(data)
    try:
        FinetuneOptions.parse(_read_recipe(path), source="recipe.yaml")
    except TemplatekitError as error:
        return type(error).__name__
    return "options"


_outcome = ""
"""What came of the last template: hypothesis calls a function that returns nothing."""


@settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=templates(), example=conversations())
def _check_turns(source: str, example: Example) -> None:
    global _outcome
    try:
        template = made(source)
    except TemplatekitError as error:
        _outcome = type(error).__name__
        return
    _outcome = check(source, template, example)


def _turns(data: bytes) -> str:
    """Compare a generated template's turns with transformers' renderings of each; the bytes are the choices."""
    used = cast("Any", _check_turns).hypothesis.fuzz_one_input(data)
    return "unused" if used is None else _outcome


def _choices() -> list[bytes]:
    """Bytes that choose many templates: a change of a few bytes seldom leads to another kind of template."""
    draw = random.Random(0)
    return [draw.randbytes(1024) for _ in range(1000)]


def _model(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@cache
def _run_folder() -> Path:
    folder = _folder() / "run"
    for step in (1, 2):
        model, optimizer = _model(step)
        save_checkpoint(folder, step=step, model=model, optimizer=optimizer, identity={}, keep=3)
    return folder


def _checkpoint(data: bytes) -> str:
    """Damage a file of the newer of two checkpoints: what is restored is what was saved at one of both steps."""
    folder = _folder() / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_run_folder(), folder)
    newest = max((folder / "checkpoints").iterdir())
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    number, offset, cut, *payload = (*data[:3], *([0] * (3 - len(data[:3]))), *data[3:])
    path = files[number % len(files)]
    content = bytearray(path.read_bytes())
    start = offset * max(1, len(content) // 256)
    content[start : start + len(payload)] = bytes(payload)
    path.write_bytes(content[:start] if cut % 4 == 1 else content)
    found, _ = newest_checkpoint(folder)
    assert found is not None, "neither checkpoint is left"
    model, optimizer = _model(0)
    restore(found, model, optimizer)
    saved = _model(found.step)[0].state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items()), "other weights"
    return f"step {found.step}"


def _parquet(write: Callable[[pa.Table, io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(pa.Table.from_pylist(_FLAT), file)
    return file.getvalue()


def _arrow(table: pa.Table, file: io.BytesIO) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def _lines() -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in (*_FLAT, *ROWS))


def _readers() -> dict[str, Target]:
    array = json.dumps(ROWS, indent=1).encode()
    csv = b'instruction,output\r\na,"b, ""c""\nd"\r\n,e\r\n'
    packed: dict[str, Callable[[bytes], bytes]] = {
        ".jsonl.gz": gzip.compress,
        ".jsonl.bz2": bz2.compress,
        ".jsonl.xz": lzma.compress,
        ".jsonl.zst": _zstd,
    }
    seeds: dict[str, Sequence[bytes]] = {
        ".jsonl": [_lines()],
        ".json": [array, json.dumps({"data": ROWS}).encode(), json.dumps({"train": ROWS, "test": ROWS}).encode()],
        ".csv": [csv],
        ".tsv": [csv.replace(b",", b"\t")],
        ".parquet": [_parquet(cast("Any", pa.parquet).write_table)],
        ".arrow": [_parquet(_arrow)],
        **{suffix: [pack(_lines()), pack(_lines()) + pack(_lines())] for suffix, pack in packed.items()},
    }
    return {f"reader{suffix}": Target(partial(list, found), partial(_read, suffix)) for suffix, found in seeds.items()}


def _templates() -> list[bytes]:
    return [file.source.encode() for file in _registry().templates.values()]


def _recipes() -> list[bytes]:
    mixed = {"mix": [{"dataset": "a.jsonl", "weight": 2}, "b.jsonl,weight=1"], "columns": {"a": "b"}, "epochs": 1.5}
    return [yaml.safe_dump(FinetuneOptions().model_dump(mode="json")).encode(), yaml.safe_dump(mixed).encode()]


TARGETS: dict[str, Target] = {
    **_readers(),
    "templates": Target(_templates, _render),
    "turns": Target(_choices, _turns),
    "checkpoints": Target(lambda: [bytes([file, 40, 0, 1, 2, 3]) for file in range(5)], _checkpoint),
    "recipes": Target(_recipes, _recipe),
}
