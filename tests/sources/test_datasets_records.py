from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from templatekit.errors import SourceError
from templatekit.sources.datasets_records import HubSource, SavedSource

ROWS = [{"instruction": f"2020-01-{day:02}", "turns": [{"role": "user", "content": "x"}]} for day in range(1, 30)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    datasets.disable_progress_bars()
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:3])
    train.save_to_disk(folder / "one", num_shards=3)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder / "several")
    datasets.DatasetDict({"only": test}).save_to_disk(folder / "single")
    train.select([5, 3]).with_format("numpy", columns=["instruction"]).save_to_disk(folder / "formatted")
    test.select([]).save_to_disk(folder / "empty")
    return folder


def read(address: object) -> list[Any]:
    assert SavedSource().accepts(str(address))
    return list(SavedSource().read(str(address)))


def test_saved_folders(saved: Path) -> None:
    assert read(saved / "one") == ROWS
    assert read(saved / "several:train") == ROWS
    assert read(saved / "several:test") == ROWS[:3]
    assert read(saved / "single") == ROWS[:3]
    assert read(saved / "single:only") == ROWS[:3]
    assert read(saved / "several" / "test") == ROWS[:3]


def test_a_format_set_before_saving_changes_nothing(saved: Path) -> None:
    assert read(saved / "formatted") == [ROWS[5], ROWS[3]]


def test_splits_are_named(saved: Path) -> None:
    with pytest.raises(SourceError, match=r"several splits, train, test; expected one to be named: .*several:train"):
        read(saved / "several")
    with pytest.raises(SourceError, match=r"no split named 'tran'; did you mean 'train'\?"):
        read(saved / "several:tran")
    with pytest.raises(SourceError, match="no split named 'test'"):
        read(saved / "one:test")


def test_no_records(saved: Path) -> None:
    with pytest.raises(SourceError, match=r"no records|damaged or empty"):  # datasets may fail on it
        read(saved / "empty")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00001-of-00003.arrow"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "junk"])
def test_damaged_folders(saved: Path, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(saved / "one", tmp_path / "copy")
    file = tmp_path / "copy" / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "junk": b"{" + os.urandom(50)}[damage])
    if not SavedSource().accepts(str(tmp_path / "copy")):
        assert (name, damage) == ("state.json", "gone")
        return
    with pytest.raises(SourceError, match="damaged or empty folder"):
        read(tmp_path / "copy")


# The hub


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_without_a_network_it_fails_at_once(no_network: None) -> None:
    started = time.perf_counter()
    with pytest.raises(SourceError, match=r"the Hugging Face hub cannot be reached; found Name or service not known"):
        list(HubSource().read("tatsu-lab/alpaca"))
    assert time.perf_counter() - started < 1


def test_offline_mode_fails_at_once(tmp_path: Path) -> None:
    code = (
        "from templatekit.sources.datasets_records import HubSource\n"
        "from templatekit.errors import SourceError\n"
        "try: list(HubSource().read('tatsu-lab/alpaca:train'))\n"
        "except SourceError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.startswith(
        "tatsu-lab/alpaca:train: no such file here, and not readable from the Hugging Face hub"
    )
    assert "Traceback" not in done.stderr


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub of iterables, so that nothing is fetched."""
    kept: dict[str, Any] = {}

    def load_dataset(name: str, *, streaming: bool, trust_remote_code: bool) -> Any:
        assert streaming and not trust_remote_code
        found = kept[name]
        if isinstance(found, Exception):
            raise found
        return {split: datasets.IterableDataset.from_generator(rows) for split, rows in found.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # skips the trial connection to the hub
    return kept


def test_hub_names(hub: dict[str, Any]) -> None:
    hub["org/one"] = {"train": lambda: iter(ROWS)}
    hub["org/two"] = {"train": lambda: iter(ROWS), "test": lambda: iter(ROWS[:2])}
    hub["org/none"] = {"train": lambda: iter(())}
    assert list(HubSource().read("org/one")) == ROWS
    assert list(HubSource().read("org/two:test")) == ROWS[:2]
    with pytest.raises(SourceError, match="several splits, train, test; expected one to be named: org/two:train"):
        list(HubSource().read("org/two"))
    with pytest.raises(SourceError, match=r"no split named 'tst'; did you mean 'test'\?"):
        list(HubSource().read("org/two:tst"))
    with pytest.raises(SourceError, match="no records"):
        list(HubSource().read("org/none"))


def test_errors_of_the_hub_are_reported(hub: dict[str, Any]) -> None:
    hub["org/private"] = ConnectionError("Couldn't reach it")
    with pytest.raises(SourceError, match=r"org/private: .*found ConnectionError: .*Couldn't reach it"):
        list(HubSource().read("org/private"))

    def breaks() -> Any:
        yield ROWS[0]
        raise TimeoutError("gone")

    hub["org/breaks"] = {"train": breaks}
    items = HubSource().read("org/breaks")
    assert next(items) == ROWS[0]
    with pytest.raises(SourceError, match="found TimeoutError"):
        next(items)


@pytest.mark.parametrize(
    ("address", "accepted"),
    [
        ("tatsu-lab/alpaca", True),
        ("org/name-v1.1:train", True),
        ("alpaca", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("./a", False),
        ("../a", False),
        ("~/a", False),
        ("a/b:", False),
        ("a b/c", False),
        ("here/data", False),
        ("", False),
    ],
)
def test_what_a_hub_name_looks_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, accepted: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert HubSource().accepts(address) is accepted
