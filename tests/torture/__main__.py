"""`make torture`: kills, damage, full disks and races; exit 1 at the first loss, with the seed that repeats it."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `testkit` and `torture`

from torture import KINDS
from torture.place import Loss, Place


def main() -> int:
    """Run every kind; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/torture", description=__doc__)
    for kind, (default, _) in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=default, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", choices=KINDS, metavar="NAME", help=", ".join(KINDS))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        place = Place(Path(folder))
        for kind, (_, trial) in KINDS.items():
            if given.only not in (None, kind):
                continue
            done = number = 0
            wanted = getattr(given, kind.replace("-", "_"))
            while done < wanted:
                try:
                    done += trial(place, random.Random(given.seed + number))
                except (Loss, AssertionError) as loss:
                    again = f"--only {kind} --{kind} 1 --seed {given.seed + number}"
                    print(f"{kind}: LOST\n{loss}\nagain: python tests/torture {again}")
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
