"""Rendering on a Ray cluster: the rows, counts and errors of one process, also where a worker is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from testkit.at_hand import Tokenizers
from testkit.numbers import Render
from testkit.ray_cluster import Cluster, end, of_cluster, running_cluster

from templatekit import DataOptions, TemplatekitError
from templatekit.engines.jobs import Job, Worker, WorkerSetup
from templatekit.engines.ray import _Environment, ray_engine
from templatekit.hooks.registry import RegistryArguments
from templatekit.pipeline.outputs import ExporterConverter

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'templatekit[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two cores."""
    with running_cluster() as started:
        yield started


@pytest.fixture
def render(tmp_path: Path, tokenizer_of: Tokenizers, cluster: Cluster) -> Render:
    return Render(
        tmp_path,
        tokenizer_of.folder("bytes"),
        environment=cluster.environment,
        noise=("said by a plugin", " logging.cc", "(raylet)"),
    )


@needs_ray
@pytest.mark.parametrize("deadly", ["die working", "die reading"])
def test_the_same_rows_where_a_process_is_killed(render: Render, deadly: str) -> None:
    numbers: list[Any] = [n % 50 for n in range(2600)]
    numbers[700] = "bad"
    numbers[1300] = deadly
    options = ("--on-error", "skip", "--max-length", "90", "--json", "--stats")
    ray = render(numbers, "--engine", "ray", *options, output="out.parquet")
    assert not ray.code, ray.said
    assert (render.folder / "plugins" / deadly.replace(" ", "_")).exists(), "nobody was killed"
    one = render(numbers, *options, output="out.parquet")
    assert ray == one
    assert one.code == 0
    counts = json.loads(one.said[0])
    assert counts["rows_in"] == 2600
    assert counts["dropped"]["odd"] == 1
    assert len(one.file) > 10_000


@needs_ray
def test_a_chunk_that_kills_whoever_does_it_is_an_error(render: Render) -> None:
    ray = render([1, "deadly", 1], "--engine", "ray")
    assert ray.file == b""
    assert ray.code == 1
    assert ray.said[-1].startswith("Error: Ray raised ")
    assert "died" in ray.said[-1]
    assert not any("Traceback" in line for line in ray.said)


@needs_ray
def test_the_first_error_is_the_one_that_is_met(render: Render) -> None:
    numbers: list[Any] = [1] * 1200
    numbers[600] = numbers[1100] = "bad"
    one, ray = render(numbers), render(numbers, "--engine", "ray", "--workers", "2")
    assert one == ray
    assert one.code == 2
    assert one.file == b""
    assert "rows.jsonl:600:n: bad" in one.said[-1]


@pytest.mark.full
@needs_ray
def test_an_interrupt_ends_it_with_its_cluster(render: Render) -> None:
    del render.environment["RAY_ADDRESS"]
    folder = tempfile.mkdtemp(prefix="ray")
    render.environment["RAY_TMPDIR"] = folder
    command = render.command(["slow"] * 20_000, "--engine", "ray", "--workers", "1")
    process = subprocess.Popen(command, cwd=render.folder, env=render.environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    while not of_cluster(folder, "ray::MapBatches(_run_chunk)"):
        assert time.monotonic() < deadline, "no worker began"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 130
    assert said.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in said
    assert not list(render.folder.glob("*out.jsonl*"))
    while of_cluster(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = of_cluster(folder)
    end(folder)
    assert left == []


@needs_ray
def test_what_is_kept_is_the_same(render: Render) -> None:
    """A missing shard is made on the cluster; the shard after it is read from disk."""
    numbers = [n % 50 for n in range(8_700)]
    options = ("--cache", "--cache-dir", "cache")
    one = render(numbers, *options)
    assert one.code == 0
    kept = {path: path.read_bytes() for path in render.folder.glob("cache/*/*/0*/*")}
    (lost,) = render.folder.glob("cache/*/*/00000000")
    shutil.rmtree(lost)
    found = render(numbers, *options, "--engine", "ray", "--workers", "2")
    assert (found.file, [line for line in found.said if not line.startswith("cache: ")], found.code) == one
    assert {path: path.read_bytes() for path in render.folder.glob("cache/*/*/0*/*")} == kept
    assert len(kept) == 8


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templatekit.engines.ray.find_spec", lambda name: None)
    with pytest.raises(TemplatekitError, match=r"needs the package ray; found none; pip install 'templatekit\[ray\]'"):
        ray_engine(2)


def setup(**options: Any) -> WorkerSetup:
    return WorkerSetup(DataOptions.parse(options), RegistryArguments(), Job(ExporterConverter("jsonl")))


@needs_ray
def test_standard_input_is_refused() -> None:
    with pytest.raises(TemplatekitError, match="found standard input; expected a file"):
        next(ray_engine(2)(setup(dataset="-"), iter(())))


def test_what_is_wrong_elsewhere_names_the_machine() -> None:
    environment = _Environment.current(setup())._replace(machine="far away")
    with pytest.raises(
        TemplatekitError, match=r"^on .*, a machine of the Ray cluster: found .*; expected 0\.0, as where"
    ):
        environment._replace(version="0.0").entered().__enter__()
    with (
        pytest.raises(TemplatekitError, match=r"a machine of the Ray cluster: .*'nowhere'"),
        environment.entered() as given,
    ):
        Worker(given._replace(options=DataOptions(tokenizer="nowhere")))
    with (
        pytest.raises(TemplatekitError, match=r"^tokenizer|^'nowhere'|^model"),
        _Environment.current(setup()).entered() as given,
    ):
        Worker(given._replace(options=DataOptions(tokenizer="nowhere")))
