"""mistral-common's tokenizers, as its wheel carries them and as transformers converts them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from templatekit import Message, Tokenizer
from templatekit.tokens.load import load_transformers_tokenizer

FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "v3-tekken": "tekken_240718.json",
}
"""Tokenizers of the wheel, by version; its two others (`v7m1`, `tekken_240911`) have the same texts, and images."""
LATER = ("v7-tekken", "v13-tekken")
"""Later versions, over the wheel's Tekken vocabulary: their own files differ in the list of control tokens alone."""
TEMPLATES = {
    "v1": "mistral-v1",
    "v2": "mistral-v3",
    "v3": "mistral-v3",
    "v3-tekken": "mistral-v3-tekken",
    "v7": "mistral-v7",
    **dict.fromkeys(LATER, "mistral"),
}
"""The bundled template of each version."""


def source_file(version: str, folder: Path) -> Path:
    """mistral-common's own file of a version; skips the test where the package is absent."""
    pytest.importorskip("mistral_common", reason="pip install mistral-common")
    if not FILES.get(version, "").endswith(".json") and version not in LATER:
        pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
        pytest.importorskip("google.protobuf", reason="pip install protobuf")
    spec = find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    data = Path(spec.origin).parent / "data"
    return _later(version, data / FILES["v3-tekken"], folder) if version in LATER else data / FILES[version]


def _later(version: str, tekken: Path, folder: Path) -> Path:
    """A Tekken file of a later version."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    definition = json.loads(tekken.read_text(encoding="utf-8"))
    names = [str(getattr(t["token_str"], "value", t["token_str"])) for t in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    names += ["[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"] if version == "v13-tekken" else []
    definition["config"]["version"] = version.partition("-")[0]
    definition["special_tokens"] = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
    ]
    path = folder / f"tekken-{version}.json"
    path.write_text(json.dumps(definition), encoding="utf-8")
    return path


def their_ids(version: str, folder: Path, messages: Sequence[Message]) -> tuple[int, ...]:
    """mistral-common's ids of a conversation: a prompt's where it ends in a question, else the whole text's."""
    from mistral_common.protocol.instruct import messages as theirs
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    kinds = {"system": theirs.SystemMessage, "user": theirs.UserMessage, "assistant": theirs.FinetuningAssistantMessage}
    request: Any = ChatCompletionRequest(
        messages=[kinds[message.role](content=message.content) for message in messages]
    )
    mode = "finetuning" if messages[-1].role == "assistant" else "test"
    return tuple(_tokenizer(version, mode, folder).encode_chat_completion(request).tokens)


@cache
def _tokenizer(version: str, mode: str, folder: Path) -> Any:
    path = source_file(version, folder)
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.from_file(path, mode=ValidationMode(mode))


def their_chat_template(version: str, folder: Path) -> str:
    """The chat template that mistral-common writes for a tokenizer of its own."""
    path = source_file(version, folder)
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

    return str(convert_tokenizer_to_chat_template(path))


@cache
def converted(version: str, folder: Path) -> Tokenizer:
    """The same tokenizer as a tokenizer.json, converted by transformers."""
    path = source_file(version, folder)
    target = folder / version
    target.mkdir(exist_ok=True)
    if path.suffix == ".json":
        from transformers.integrations.mistral.tokenizer import MistralConverter

        MistralConverter(str(path)).converted().save(str(target / "tokenizer.json"))
        (target / "tokenizer_config.json").write_text(json.dumps(_NAMED), encoding="utf-8")
        return Tokenizer.from_folder(target)
    shutil.copy(path, target / "tokenizer.model")
    # Not legacy: only the very first text gets a blank before it, as Mistral's own tokenizer.json files say.
    config = {**_NAMED, "tokenizer_class": "LlamaTokenizer", "legacy": False}
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    load_transformers_tokenizer(target).save_pretrained(target)
    _order_merges(path, target / "tokenizer.json")
    return Tokenizer.from_folder(target)


def _order_merges(model: Path, path: Path) -> None:
    """Puts the merges in the order of SentencePiece's scores, as Mistral's own tokenizer.json files have them.

    transformers 5.23 takes them in the order of ids, by which runs of blanks join before a word takes its blank.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers.tokenization_utils_base import generate_merges

    pieces: Any = SentencePieceProcessor(model_file=str(model))
    definition = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = definition["model"]["vocab"]
    scores = {piece: pieces.get_score(id) for piece, id in vocabulary.items()}
    definition["model"]["merges"] = generate_merges(vocabulary, scores)
    path.write_text(json.dumps(definition), encoding="utf-8")


_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
