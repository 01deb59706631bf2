"""Start-up of the command line and of `import templatekit`, without plugins and with many installed ones.

usage: python -m benchmarks.startup [PLUGINS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.clock import shortest_seconds

PLUGIN = """
from templatekit import Adapter, Example, Message, hookimpl

class Dummy(Adapter):
    name = "dummy-{number}"
    required = keys = ("question-{number}", "answer")

    def to_example(self, record):
        question = Message(role="user", content=record["question-{number}"])
        return Example(messages=(question, Message(role="assistant", content=record["answer"])))

@hookimpl
def templatekit_adapters():
    return [Dummy()]
"""
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import templatekit": [sys.executable, "-c", "import templatekit"],
    "templatekit --help": [sys.executable, "-m", "templatekit", "--help"],
    "templatekit adapters": [sys.executable, "-m", "templatekit", "adapters"],
    "templatekit render --limit 1": [sys.executable, "-m", "templatekit", "render", "--limit", "1"],
}


def install(site: Path, count: int) -> None:
    """Install this many plugins in a folder, as pip would."""
    for number in range(count):
        dist_info = site / f"templatekit_dummy_{number}-1.0.dist-info"
        dist_info.mkdir(parents=True)
        (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: templatekit-dummy-{number}\nVersion: 1.0\n")
        (dist_info / "entry_points.txt").write_text(f"[templatekit]\ndummy-{number} = templatekit_dummy_{number}\n")
        (site / f"templatekit_dummy_{number}.py").write_text(PLUGIN.format(number=number))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), count)
        print(f"{'milliseconds':30} {'no plugins':>12} {f'{count} plugins':>12}")
        for name, command in COMMANDS.items():
            cells = []
            for path in ("", folder):
                environment = {**os.environ, "PYTHONPATH": path}

                def work(command: list[str] = command, environment: dict[str, str] = environment) -> None:
                    subprocess.run(
                        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
                    )

                cells.append(f"{shortest_seconds(7, work) * 1e3:12.0f}")
            print(f"{name:30} {' '.join(cells)}")


if __name__ == "__main__":
    main()
