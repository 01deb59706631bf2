"""A Ray cluster of two cores on this machine, and its processes."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""The token that allows the use of the cluster. Without one, Ray writes a token into the user's home folder."""


class Cluster:
    """A running cluster, known by the folder that its processes have in their environment."""

    def __init__(self, address: str, folder: str) -> None:
        self.folder = folder
        self.environment = {**TOKEN, "RAY_ADDRESS": address}
        """The variables with which a command uses the cluster."""

    def processes(self, having: str = "") -> list[int]:
        """The processes whose command lines hold some words."""
        return of_cluster(self.folder, having)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster of two cores, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray")  # a short path: sockets lie in it
    limits = ["--num-cpus", "2", "--object-store-memory", str(200 << 20), "--include-dashboard", "false"]
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", "--port", str(port), "--temp-dir", folder, *limits]
    # A busy machine must not count as a dead one.
    patience = {"RAY_health_check_failure_threshold": "100"}
    environment = {**os.environ, **TOKEN, **patience, "RAY_TMPDIR": folder}
    cluster = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert cluster.stdout is not None
        for line in cluster.stdout:
            if "--block" in line:
                break
        yield Cluster(f"127.0.0.1:{port}", folder)
    finally:
        cluster.kill()  # a regular stop may take half a minute
        end(folder)
        cluster.wait(timeout=60)
        assert cluster.stdout is not None
        cluster.stdout.close()


def of_cluster(folder: str, having: str = "") -> list[int]:
    """The processes of a cluster that has this folder, whose command lines hold some words."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
            line = (entry / "cmdline").read_bytes() if folder.encode() in environment else b""
        except OSError:
            continue
        if having.encode() in line and line and b"templatekit" not in line:
            found.append(int(entry.name))
    return found


def end(folder: str) -> None:
    """End the remaining processes of the cluster of a folder."""
    for process in of_cluster(folder):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
