"""Fuzzes readers, templates, turns, checkpoints and recipes, and prints what came of the inputs.

usage: python -m fuzz [--inputs N] [--engine mutate|atheris] [--seed N] [--only NAME ...]

`mutate` changes valid inputs at random, and repeats the same ones for the same seed. `atheris` is guided by coverage;
it is installed for this alone. Exits with 1 at the first input for which a user would see a traceback, a hang or other
rows; the input is left in a file. Run it with `tests` on the path: `make fuzz`.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.targets import Target


MAX_LENGTH = 4096
"""The most bytes of an input."""
SECONDS = 30
"""The most seconds that one input may take."""
_TOKENS = (
    *(bytes([byte]) for byte in b'"\\{}[],:\n\r\0\xff'),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"1e999", b"NaN", b"-0", b"9" * 400, b"null", b"\\ud800", b"[" * 200),
    *(b"{{", b"{%", b"%}", b"| join", b"*a"),
)
"""Bytes that often matter in text formats and templates."""


def mutated(seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """One of the seeds with one to eight changes."""
    data = draw.choice(seeds)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 8])):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice([1, 1, 2, 8, 64]))
        data = data[:start] + _changed(data[start:end], seeds, draw) + data[end:]
    return data[:MAX_LENGTH]


def _changed(part: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    kind = draw.randrange(6)
    if kind == 0:
        return draw.randbytes(draw.randint(0, 8))
    if kind == 1:
        return draw.choice(_TOKENS)
    if kind == 2:
        return part * 2
    if kind == 3:
        return bytes(byte ^ 1 << draw.randrange(8) for byte in part)
    if kind == 4:
        other = draw.choice(seeds)
        start = draw.randrange(len(other) + 1)
        return other[start : start + 64]
    return b""


class Failure(Exception):
    """An input for which a user would see what he must not see."""


def run_one(name: str, target: Target, data: bytes) -> str:
    """Run a target on an input; raise `Failure` where it fails or takes too long.

    The input stands in a file while the target runs, for the case that the process dies, and stays there after a
    failure.
    """
    path = Path(f"fuzz-{name}.input")
    path.write_bytes(data)
    began = time.monotonic()
    try:
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
        outcome = target.run(data)
    except Exception as error:
        said = f"{type(error).__name__}: {error}; the input is in {path}"
        raise Failure(f"{name}: {said}\n{traceback.format_exc()}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    if (took := time.monotonic() - began) > SECONDS / 2:
        raise Failure(f"{name}: {took:.0f} seconds; the input is in {path}")
    path.unlink()
    return outcome


def mutate(name: str, target: Target, inputs: int, seed: int) -> Counter[str]:
    """What came of so many mutated inputs."""
    draw = random.Random(f"{name} {seed}")
    seeds = target.seeds()
    return Counter(run_one(name, target, data) for data in (mutated(seeds, draw) for _ in range(inputs)))


def guided(name: str, inputs: int, seed: int) -> None:
    """Run a target under atheris, which ends this process."""
    import atheris

    with atheris.instrument_imports(include=["templatekit"]):
        from fuzz.targets import TARGETS
    corpus = Path(tempfile.mkdtemp())
    for number, data in enumerate(TARGETS[name].seeds()):
        (corpus / str(number)).write_bytes(data)
    outcomes: Counter[str] = Counter()

    def one_input(data: bytes) -> None:
        try:
            outcomes[run_one(name, TARGETS[name], data)] += 1
        except Failure as failure:
            print(failure, flush=True)
            os._exit(1)
        if outcomes.total() == inputs:
            print(line(name, outcomes), flush=True)
            os._exit(0)

    flags = [f"-max_len={MAX_LENGTH}", f"-seed={seed + 1}", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *flags], one_input)
    atheris.Fuzz()


def line(name: str, outcomes: Counter[str]) -> str:
    """The counts in words."""
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common(6))
    return f"{name}: {outcomes.total():,} inputs: {counts}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--engine", choices=["mutate", "atheris"], default="mutate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of targets; by default all")
    options = parser.parse_args(arguments)
    if options.engine == "atheris" and len(options.only or ()) == 1:
        guided(options.only[0], options.inputs, options.seed)
    from fuzz.targets import TARGETS

    for name in options.only or TARGETS:
        if name not in TARGETS:
            parser.error(f"no target {name!r}; expected one of {', '.join(TARGETS)}")
        began = time.monotonic()
        if options.engine == "atheris":
            command = [sys.executable, "-m", "fuzz", "--engine", "atheris", "--only", name]
            given = ["--inputs", str(options.inputs), "--seed", str(options.seed)]
            if code := subprocess.run([*command, *given], check=False).returncode:
                return code
            continue
        try:
            outcomes = mutate(name, TARGETS[name], options.inputs, options.seed)
        except Failure as failure:
            print(failure)
            return 1
        print(f"{line(name, outcomes)} ({time.monotonic() - began:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
