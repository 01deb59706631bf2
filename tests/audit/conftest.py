from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from testkit.command_line import Result, Templatekit
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from templatekit.audit import Report, audit
from templatekit.config.data_options import DataOptions
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
MakeTokenizer = Callable[..., Path]
RunAudit = Callable[..., Report]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return create_registry(select=())


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> MakeTokenizer:
    """Saves a tokenizer with one token per byte, `merges`, ChatML's control tokens and `<think>`."""

    def make(
        name: str = "tokenizer",
        *,
        special: Sequence[str] = SPECIAL,
        eos: str = "<|im_end|>",
        merges: Sequence[tuple[str, str]] = (),
        nfc: bool = False,
        stops: object = None,
    ) -> Path:
        pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
        backend = tokenizers.Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        if nfc:
            backend.normalizer = normalizers.NFC()
        backend.add_special_tokens(list(special))
        backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
        folder = tmp_path / name
        folder.mkdir()
        backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if stops is not None:
            ids = [backend.token_to_id(stop) for stop in stops] if isinstance(stops, list) else stops
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        return folder

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[Sequence[object], str], Path]:
    """Writes rows as JSON Lines."""

    def write(rows: Sequence[object], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run_audit(
    tmp_path: Path, registry: Registry, write_rows: Callable[..., Path], make_tokenizer: MakeTokenizer
) -> RunAudit:
    """Audits rows with ChatML or a template's source; `tokenizer` gives the options of `make_tokenizer`."""

    def run(
        rows: Sequence[object],
        *,
        template: str = "chatml",
        tokenizer: Mapping[str, Any] | None = {},
        against: Sequence[object] = (),
        ignored: Sequence[str] = (),
        shared: str = "exact",
        shown: int = 10,
        **options: Any,
    ) -> Report:
        if "{" in template:
            path = tmp_path / "template.jinja"
            path.write_text(template, encoding="utf-8")
            template = str(path)
        if tokenizer is not None:
            options["tokenizer"] = str(make_tokenizer(**tokenizer))
        others = [str(write_rows(against, "against.jsonl"))] if against else []
        values = {"dataset": str(write_rows(rows)), "template": template, **options}
        chosen = DataOptions.parse(values)
        return audit(chosen, registry=registry, against=others, shared=shared, ignored=ignored, shown=shown)

    return run


Command = Callable[..., Result]


@pytest.fixture
def command(templatekit: Templatekit) -> Command:
    """Runs `templatekit audit` as a process."""
    return lambda *args, **changes: templatekit("audit", *args, env={"NO_COLOR": "1", **changes})
