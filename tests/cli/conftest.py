"""The installed command as a user runs it: a process, with its whole output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(sys.executable).with_name("templatekit")


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


Templatekit = Callable[..., Result]


def clean_environment(changes: Mapping[str, str] = {}) -> dict[str, str]:
    """This process' environment without what changes the output, and with `changes`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if (not key.startswith(("TEMPLATEKIT_", "PYTHON", "COV_", "LC_")) or key == "TEMPLATEKIT_CACHE")
        and key not in ("LANG", "NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES")
    }
    return {**kept, "COLUMNS": "100", "LANG": "C.UTF-8", "TERM": "xterm-256color", **changes}


@pytest.fixture
def templatekit(tmp_path: Path) -> Templatekit:
    """`templatekit("render", "--limit", "1")` runs the installed script in an empty folder."""

    def run(*args: str | Path, env: Mapping[str, str] = {}, cwd: Path | None = None, prefix: str = "") -> Result:
        command = [str(SCRIPT), *map(str, args)]
        if prefix:  # what a shell does around it, such as closing streams
            command = ["bash", "-c", f"{prefix.replace('COMMAND', chr(34) + '$@' + chr(34))}", "bash", *command]
        done = subprocess.run(
            command,
            cwd=cwd or tmp_path,
            env=clean_environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with one token a byte, and `<|end|>` as its EOS: ids that can be told by hand."""
    import json

    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    folder = tmp_path_factory.mktemp("byte-tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
