"""The place of the torture: data, a tiny model, the commands, and what each of them gives where nobody disturbs it."""

from __future__ import annotations

import importlib
import json
import os
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from testkit.forks import Ending, Fork
from testkit.ray_cluster import Cluster, running_cluster
from testkit.tiny_model import tiny_folder

from templatekit.cache import preparation
from templatekit.cache.code_hash import own_code
from templatekit.cli import main
from templatekit.hooks.loading import create_registry
from templatekit.pipeline import pipeline

Files = dict[str, bytes]
ROWS = 200
OLD = b"the old output\n" * 50
FOLDER_FORMAT = "datasets"
FORMATS = ("jsonl", "parquet", FOLDER_FORMAT)
METHODS = ("sft", "dpo")
EPOCHS, SAVE_EVERY = 4, 3


class Loss(Exception):
    """Something was lost, half or unexplained; the message says what."""


class Unbroken(NamedTuple):
    """What a command gives where nobody disturbs it."""

    result: Any
    seconds: float


class Place:
    """A folder with data and a model. Commands run in forks of this process, which has imported everything."""

    def __init__(self, folder: Path, run: Callable[[list[str]], object] = main) -> None:
        """`run` is the command line; the test of this test gives a faulty one."""
        for name in ("matplotlib.backends.backend_agg", "matplotlib.figure", "datasets", "templatekit.training.run"):
            importlib.import_module(name)
        for command in ("render", "finetune", "cache"):
            importlib.import_module(f"templatekit.cli.{command}")
        assert create_registry().templates
        own_code()  # hashed once, so that somebody who edits the package meanwhile changes no key of the cache
        self.folder = folder
        self.tally: Counter[str] = Counter()
        self.lasting: dict[str, float] = {}
        self._run = run
        self._numbers = count()
        self._unbroken: dict[str, Unbroken] = {}
        self._printed: dict[str, bytes] = {}
        self._cluster: Cluster | None = None
        self._open = ExitStack()
        self._interrupted: dict[str, Files] = {}
        self._saved: Files = {}
        self.model = folder / "model"
        tiny_folder(self.model)
        self.rows, self.questions = folder / "rows.jsonl", folder / "questions.json"
        self.rows.write_text("".join(json.dumps(_conversation(n)) + "\n" for n in range(ROWS)), encoding="utf-8")
        self.many = folder / "many.jsonl"
        self.many.write_text(self.rows.read_text(encoding="utf-8") * 20, encoding="utf-8")
        pairs = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(20)]
        self.questions.write_text(json.dumps(pairs), encoding="utf-8")
        self.preferences = folder / "preferences.json"
        compared = [{"prompt": p["prompt"], "chosen": p["completion"], "rejected": "I do not know."} for p in pairs]
        self.preferences.write_text(json.dumps(compared), encoding="utf-8")

    def new_folder(self) -> Path:
        """An empty folder."""
        folder = self.folder / f"trial-{next(self._numbers)}"
        folder.mkdir()
        return folder

    def start(
        self,
        command: list[str],
        *,
        file_bytes: int | None = None,
        stdout: Path | None = None,
        environment: Mapping[str, str] = {},
    ) -> Fork:
        """Start a command, with small chunks and shards of the cache."""

        def action() -> None:
            torch.set_num_threads(1)  # a fork has none of its parent's threads
            warnings.simplefilter("ignore", DeprecationWarning)  # as for every command; pytest makes errors of them
            os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "COLUMNS": "500", **environment}
            patch = pytest.MonkeyPatch()
            patch.setattr(preparation, "SHARD_RECORDS", 32)
            patch.setattr(pipeline, "CHUNK_SIZE", 20)
            self._run(command)

        return Fork(action, file_bytes=file_bytes, stdout=stdout)

    def call(self, action: Callable[[], object], what: str) -> None:
        """Call something in a fork, which has to succeed."""
        ending = Fork(action).ended()
        expect(ending.code == 0, what, [], ending)

    def succeed(self, command: list[str]) -> Ending:
        """Run a command, which has to succeed."""
        ending = self.start(command).ended()
        expect(ending.code == 0, "a command failed", command, ending)
        return ending

    def cluster(self) -> Cluster:
        """A Ray cluster, started at the first call."""
        if self._cluster is None:
            self._cluster = self._open.enter_context(running_cluster())
        return self._cluster

    def close(self) -> None:
        """End the cluster, where there is one."""
        self._open.close()

    def render(self, output: Path, *more: object, data: Path | None = None) -> list[str]:
        """The command that renders to a file or folder; its ending is the format."""
        options = ["--dataset", data or self.rows, "--tokenizer", self.model, "--template", "chatml"]
        return [*map(str, ["render", *options, "--format", output.suffix[1:], "--output", output, *more])]

    def render_to_stdout(self, *more: object, form: str) -> list[str]:
        """The command that renders to standard output."""
        options = ["--dataset", self.rows, "--tokenizer", self.model, "--template", "chatml", "--format", form]
        return [*map(str, ["render", *options, *more])]

    def finetune(self, folder: Path, *more: str, method: str = "sft") -> list[str]:
        """The command that trains, with checkpoints."""
        options = f"method={method} lora=false learning_rate=0.01 epochs={EPOCHS} batch_size=4 save_every={SAVE_EVERY} "
        options += "eval_every=5 keep_checkpoints=3 samples=1 max_new_tokens=2 precision=fp32 device=cpu"
        settings = [part for option in options.split() for part in ("--set", option)]
        data = self.preferences if method == "dpo" else self.questions
        given = ["--model", self.model, "--template", "chatml", "--dataset", data, "--output", folder]
        return [*map(str, ["finetune", *given, *settings, *more])]

    def rendered(self, form: str, *more: object, data: Path | None = None) -> Unbroken:
        """The output file, or the files of the output folder."""
        return self._once(f"{form} {more} {data}", lambda path: self.render(path, *more, data=data), form, content)

    def printed(self, command: list[str]) -> bytes:
        """What a command writes to standard output where nobody disturbs it."""
        key = " ".join(command)
        if key not in self._printed:
            files = [self.new_folder() / "stdout" for _ in range(2)]
            for file in files:
                ending = self.start(command, stdout=file).ended()
                expect(ending.code == 0, "a command failed", command, ending)
            first, second = (file.read_bytes() for file in files)
            expect(first == second, "two undisturbed runs differ", command)
            self._printed[key] = first
        return self._printed[key]

    def cached(self) -> Unbroken:
        """The cache after `render --cache`: the files of its shards."""
        use = partial(self.render, self.new_folder() / "out.jsonl", "--overwrite", "--cache", "--cache-dir")
        return self._once("cache", lambda path: use(path), "cache", shards)

    def trained(self, method: str = "sft") -> Unbroken:
        """The losses of a run, and its weights."""
        return self._once(f"trained {method}", partial(self.finetune, method=method), "run", training)

    def interrupted(self, method: str = "sft") -> Files:
        """The files of a run that was killed after some checkpoints."""
        if method not in self._interrupted:
            folder = self.new_folder() / "run"
            fork = self.start(self.finetune(folder, method=method))
            while not (folder / "checkpoints" / f"step-{3 * SAVE_EVERY:08d}").exists():
                time.sleep(0.002)
            fork.killed_after(0)
            self._interrupted[method] = files_of(folder)
        return self._interrupted[method]

    def saved(self) -> Files:
        """The files of the rows as a data set of `save_to_disk`."""
        if not self._saved:
            import datasets

            folder = self.new_folder() / "saved"
            rows = [_conversation(n) for n in range(ROWS)]
            self.call(lambda: datasets.Dataset.from_list(rows).save_to_disk(folder), "a data set is saved")
            self._saved = files_of(folder)
        return self._saved

    def old_output(self, output: Path, draw: random.Random) -> bytes | None:
        """Write an old output, or none: a folder is never replaced."""
        if output.suffix == f".{FOLDER_FORMAT}" or draw.random() < 0.5:
            return None
        output.write_bytes(OLD)
        return OLD

    def _once(
        self, key: str, command: Callable[[Path], list[str]], form: str, read: Callable[[Path], object]
    ) -> Unbroken:
        if key not in self._unbroken:
            path = self.new_folder() / f"out.{form}"
            self.succeed(command(path))
            again = path.parent.with_name(f"{path.parent.name}-again") / path.name
            again.parent.mkdir()
            began = time.monotonic()
            self.succeed(command(again))
            seconds = time.monotonic() - began
            if read(path) != read(again):
                raise Loss(f"two undisturbed runs differ: {command(path)}")
            self._unbroken[key] = Unbroken(read(path), seconds)
        return self._unbroken[key]


def _conversation(number: int) -> dict[str, Any]:
    turns = [("user", f"{number} " * (number % 13 + 1)), ("assistant", f"It is {number}.")] * (number % 3 + 1)
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def content(path: Path) -> bytes | Files | None:
    """A file's bytes; the files of a folder, but for those with a random fingerprint; None where there is nothing."""
    if path.is_dir():
        found = files_of(path)
        return {name: b"" if name == "state.json" else data for name, data in found.items()}
    return path.read_bytes() if path.exists() else None


def files_of(folder: Path) -> Files:
    """All files of a folder by their relative paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_files(folder: Path, files: Files) -> None:
    """Write what `files_of` read."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def shards(cache: Path) -> Files:
    """The files of the shards of a cache."""
    return {str(p.relative_to(cache)): p.read_bytes() for p in sorted(cache.glob("prepared-*/*/[0-9]*/*"))}


def training(folder: Path) -> tuple[list[dict[str, float]], bytes]:
    """The losses of a run without its times, and the weights."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    return numbers, (folder / "model.safetensors").read_bytes()


def left_behind(folder: Path, *names: str) -> list[str]:
    """The files below a folder that begin with a dot, but for those with these names."""
    hidden = (path for path in folder.rglob("*") if path.name.startswith("."))
    return [str(path.relative_to(folder)) for path in hidden if path.name not in names]


def expect(true: bool, what: str, command: list[str], ending: Ending | None = None) -> None:
    """Raise `Loss` with the command and what it said."""
    if ending is not None and ("Traceback" in ending.said or "Error: unexpected" in ending.said):
        true, what = False, f"{what} (an error that nobody foresaw)"
    if not true:
        said = "" if ending is None else f"\nexit {ending.code}: {ending.said[-3000:]}"
        raise Loss(f"{what}\ntemplatekit {' '.join(command)}{said}")


def expect_explained(ending: Ending, command: list[str], *names: str, code: int | None = None) -> None:
    """Raise `Loss` unless a command failed with one error that has one of these names."""
    last = ending.said.strip().rpartition("\n")[2]
    clear = ending.code in ((1, 2) if code is None else (code,)) and last.startswith("Error: ")
    named = any(name in last for name in names)
    expect(clear and named, f"no clear error that names {' or '.join(names)}", command, ending)
