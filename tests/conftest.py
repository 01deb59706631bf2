"""Fixtures and settings for all tests: profiles, the files beside the project, tokenizers, golden files."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for `testkit`: importlib mode leaves sys.path alone
from testkit.at_hand import ALL_TOKENIZERS, GENERATED, SHARED, Tokenizers
from testkit.budget import DEFAULT_EXAMPLES, FULL, FULL_EXAMPLES, LONG_EXAMPLES, PROFILE
from testkit.command_line import InProcess, Templatekit
from testkit.look import Eye
from testkit.untrusted import EXACT

from templatekit import Registry, Tokenizer, create_registry
from templatekit.formats.sandbox import untrusted
from templatekit.formats.sandbox.worker import Worker
from templatekit.testing import TINY

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the suite in the background makes it ignore SIGINT; processes that tests start would inherit
    # this.
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # for small texts threads cost more time than they save
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core a worker: more threads would wait for each other

if "TEMPLATEKIT_CACHE" not in os.environ:
    # One cache for all processes of the suite: the tokenizer is read from the built-in model only once.
    _CACHE = tempfile.TemporaryDirectory(prefix="templatekit-tests-")
    os.environ["TEMPLATEKIT_CACHE"] = _CACHE.name

_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
# CI tries the same examples in every run, so that a failure there comes from the change under test.
_COMMON["derandomize"] = bool(os.environ.get("CI"))
settings.register_profile("default", max_examples=DEFAULT_EXAMPLES, **_COMMON)
settings.register_profile("full", max_examples=FULL_EXAMPLES, **_COMMON)
settings.register_profile("long", max_examples=LONG_EXAMPLES, **{**_COMMON, "derandomize": False})
settings.load_profile(PROFILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.txt anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that are marked `full`, except in the full profile."""
    if not FULL:
        left = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["generated"] = session.config.stash.get(GENERATED, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up the count of a worker when it ends."""
    generated = getattr(node, "workeroutput", {}).get("generated", 0)
    node.config.stash[GENERATED] = node.config.stash.get(GENERATED, 0) + generated


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if generated := config.stash.get(GENERATED, 0):
        terminalreporter.write_line(f"conformance: {generated:,} generated examples over everything bundled")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and tokenizers; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data and tokenizers are absent: no folder {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def builtin() -> Registry:
    """The registry of this installation."""
    return create_registry()


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizers]:
    """Gives tokenizers by name."""
    yield Tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="session", params=TINY)
def tiny_tokenizer(request: pytest.FixtureRequest, tokenizer_of: Tokenizers) -> Tokenizer:
    """Each tiny tokenizer in turn."""
    return tokenizer_of(request.param)


@pytest.fixture(scope="session", params=ALL_TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tokenizer_of: Tokenizers) -> Tokenizer:
    """Each tokenizer in turn, the real ones where present."""
    return tokenizer_of(request.param)


@pytest.fixture
def templatekit(tmp_path: Path) -> Templatekit:
    """The installed command, in an empty folder."""
    return Templatekit(tmp_path)


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[InProcess]:
    """The command line, in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield InProcess(capsys)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """Renders the templates that need a process of their own, within narrow limits."""
    worker = Worker(EXACT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrusted, "WORKER", worker)
        yield worker
    worker.stop()


@pytest.fixture(scope="session")
def eye_of(tokenizer_of: Tokenizers, builtin: Registry) -> Callable[[str], Eye]:
    """Looks at records through a tokenizer, by name."""
    return lambda name: Eye(tokenizer_of(name), builtin)
