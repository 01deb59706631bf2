"""`make torture`: kills, also on Ray, damage, full disks and races; exit 1 at the first loss, with its seed."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `testkit` and `torture`

from torture import KINDS
from torture.place import Loss, Place


def main() -> int:
    """Run every kind; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/torture", description=__doc__)
    for name, kind in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=kind.times, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", choices=KINDS, metavar="NAME", help=", ".join(KINDS))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, closing(Place(Path(folder))) as place:
        for name, kind in KINDS.items():
            if given.only not in (None, name):
                continue
            if kind.skipped:
                print(f"{name}: skipped, since {kind.skipped}", flush=True)
                continue
            done = number = 0
            wanted = getattr(given, name.replace("-", "_"))
            while done < wanted:
                try:
                    done += kind.trial(place, random.Random(given.seed + number))
                except (Loss, AssertionError) as loss:
                    again = f"--only {name} --{name} 1 --seed {given.seed + number}"
                    print(f"{name}: LOST\n{loss}\nagain: python tests/torture {again}")
                    return 1
                number += 1
                for path in Path(folder).glob("trial-*"):
                    shutil.rmtree(path, ignore_errors=True)
    for what, times in sorted(place.tally.items()):
        print(f"{times:6,}  {what}")
    print(f"nothing lost, nothing half, no traceback; {time.monotonic() - began:,.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
