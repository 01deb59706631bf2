"""A plugin's adapter for records that hold a number, or a word that says what goes wrong; and rendering with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PLUGIN = """
import os, signal, time
from pathlib import Path
from templatekit import Adapter, Example, Message, RecordError, hookimpl

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(word):
    mark = Path(__file__).with_name(word.replace(" ", "_"))
    if not mark.exists():
        mark.touch()
        die()

class Numbers(Adapter):
    name = "numbers"
    description = "n"
    keys = ("n",)
    required = ("n",)

    def group(self, record):
        if record["n"] == "die reading":
            die_once(record["n"])
        return None

    def to_example(self, record):
        n = record["n"]
        if n == "die working":
            die_once(n)
        if n == "deadly":
            die()
        if n == "slow":
            time.sleep(0.02)
        if n == "bad":
            raise RecordError("bad", field="n", reason="odd")
        print("said by a plugin")
        answer = "1 2 " * (n if isinstance(n, int) else 1)
        asked = Message(role="user", content=f"Count to {n}")
        return Example(messages=(asked, Message(role="assistant", content=f"so {answer}")))

@hookimpl
def templatekit_adapters():
    return [Numbers()]
"""


class Ran(NamedTuple):
    """The output file, the messages and the exit code of a run."""

    file: bytes
    said: list[str]
    code: int


class Render:
    """`templatekit render` as a process, in a folder, with paths relative to it."""

    def __init__(
        self, folder: Path, tokenizer: Path, *, environment: Mapping[str, str] = {}, noise: Sequence[str] = ()
    ) -> None:
        """Lines of stderr with one of the words in `noise` do not count as messages of the command."""
        self.folder = folder
        self.environment = {**os.environ, **environment}
        self._noise = noise
        (folder / "plugins").mkdir()
        (folder / "plugins" / "numbers_plugin.py").write_text(PLUGIN, encoding="utf-8")
        shutil.copytree(tokenizer, folder / "tokenizer")

    def command(self, numbers: list[Any] | None, *arguments: str, output: str = "out.jsonl") -> list[str]:
        """The command that renders these numbers, or the data set that the arguments name."""
        options = {"tokenizer": "tokenizer", "plugin-dir": "plugins", "template": "chatml", "output": output}
        if numbers is not None:
            options["dataset"] = "rows.jsonl"
            self.write(numbers)
        named = [text for name, value in options.items() for text in (f"--{name}", value)]
        return [sys.executable, "-m", "templatekit", "render", *named, *arguments]

    def write(self, numbers: list[Any]) -> None:
        """Writes the records of these numbers."""
        lines = "".join(json.dumps({"n": n}) + "\n" for n in numbers)
        (self.folder / "rows.jsonl").write_text(lines, encoding="utf-8")

    def __call__(self, numbers: list[Any] | None, *arguments: str, output: str = "out.jsonl") -> Ran:
        command = self.command(numbers, *arguments, output=output)
        run = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, timeout=300, check=False
        )
        assert not run.stdout
        lines = [line for line in run.stderr.decode().splitlines() if not any(one in line for one in self._noise)]
        # Two processes print at once, and one may end within a line: a message of the command may then follow on that
        # line.
        said = "\n".join(lines).replace("said by a plugin", "").splitlines()
        return Ran(self._taken(output), [line for line in said if line], run.returncode)

    def _taken(self, output: str) -> bytes:
        """Remove the output and return its content; for a folder, that of its training data."""
        place = self.folder / output
        file = place / "train.jsonl" if place.is_dir() else place
        content = file.read_bytes() if file.exists() else b""
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        return content
