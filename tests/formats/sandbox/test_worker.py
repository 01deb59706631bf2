"""The worker process for untrusted templates gives the same results as this process, and can do nothing else."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from testkit.untrusted import CHAT, EXAMPLE, TEXT, TOKENS, untrusted_template

from templatekit import ConfigError, Example, Message, RecordError, RunError, Template, TemplateError, TemplateFile
from templatekit.formats.sandbox import untrusted
from templatekit.formats.sandbox.untrusted import UntrustedTemplate
from templatekit.formats.sandbox.worker import Worker, _ResponseUnpickler

UNUSUAL = {
    "times": "{{ '-' * 3 }}",
    "center": "{{ messages[0].role | center(9) }}",
    "format": "{{ '<%s|{}>'.format(messages[0].role) }}",
    "percent": "{{ '<%s>' % messages[0].role }}",
    "a large allowance": "{% for i in range(9999) %}{% for j in range(199) %}{% endfor %}{% endfor %}",
    "filters that import a module": "{{ messages[0].content | striptags | wordwrap(9) | urlize }}{{ 1 | pprint }}",
    "a generation block": "{% generation %}{{ 'x' * 2 }}{% endgeneration %}",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_worker_renders_as_this_process_does(name: str, worker: Worker) -> None:
    file = TemplateFile(name="unusual", source=UNUSUAL[name] + CHAT)
    template, same = UntrustedTemplate(file, strict=False), Template(file, strict=False)
    assert template.render(EXAMPLE, TOKENS, row=3) == same.render(EXAMPLE, TOKENS, row=3)
    assert template.prompt(EXAMPLE, TOKENS, row=3) == same.prompt(EXAMPLE, TOKENS, row=3)
    assert not template._in_process
    for attribute in ("name", "path", "original", "metadata", "kind", "source", "variables", "multi_turn"):
        assert getattr(template, attribute) == getattr(same, attribute)


@pytest.mark.parametrize("needs_worker", ["", "{{ 'x' * 2 }}"], ids=["here", "in the worker"])
def test_samples_and_end_markers_are_those_of_a_trusted_template(needs_worker: str, worker: Worker) -> None:
    """A sample's example keeps its metadata, which the worker never sees."""
    turns = (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}\n{% else %}A:{% if loop.last %}"
        "<{{ m.reasoning_content }}>{% endif %}{{ m.content }}<end>\n{% endif %}{% endfor %}"
    )
    file = TemplateFile(name="turns", source=needs_worker + turns + "{{ 'A:' if add_generation_prompt }}")
    answer = replace(EXAMPLE.messages[1], reasoning="Hm.")
    example = Example(messages=(EXAMPLE.messages[0], answer) * 2, metadata={"source": threading.Lock()})
    template, same = (kind(file, strict=False).ended_by("<end>") for kind in (UntrustedTemplate, Template))
    assert template.samples(example, row=4) == same.samples(example, row=4)
    assert template.samples(example, last_only=True) == same.samples(example, last_only=True)
    assert len(template.samples(example)) == 2


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("needs_worker", ["", "{{ 'x' * 2 }}"], ids=["here", "in the worker"])
def test_errors_are_the_same_here_and_there(needs_worker: str) -> None:
    source = needs_worker + "{% if messages[0].content == 'no' %}{{ raise_exception('not so') }}{% endif %}" + CHAT
    refused = Example(messages=(Message(role="user", content="no"), EXAMPLE.messages[1]))
    with pytest.raises(RecordError) as caught:
        untrusted_template(source).render(refused, TOKENS)
    assert (caught.value.reason, str(caught.value)) == ("template_refused", "template 'tried' refuses: not so")
    with pytest.raises(TemplateError, match="template 'tried', line 2: Expected an expression"):
        untrusted_template(needs_worker + "\n{% if %}" + CHAT)
    with pytest.raises(TemplateError, match="line 1: unknown variable 'mesages'"):
        UntrustedTemplate(TemplateFile(name="strict", source=needs_worker + "{{ mesages }}{{ response }}"))
    with pytest.raises(RecordError, match="line 1: UndefinedError: 'lipsum' is undefined"):
        untrusted_template(needs_worker + "{{ lipsum() }}" + CHAT).render(EXAMPLE, TOKENS)


def test_an_instruction_format_that_needs_the_worker(worker: Worker) -> None:
    file = TemplateFile(name="ruled", source="{{ instruction }}\n{{ '-' * 3 }}\n{{ response }}{{ eos_token }}")
    template = UntrustedTemplate(file)
    assert template.render(EXAMPLE, TOKENS) == Template(file).render(EXAMPLE, TOKENS)
    assert template.source == Template(file).source != file.source


def test_a_worker_that_dies_is_restarted(worker: Worker) -> None:
    template = untrusted_template("{{ '-' * 3 }}" + CHAT)
    assert template.render(EXAMPLE, TOKENS).text == "---" + TEXT
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker._process.pid, os.WEXITED | os.WNOWAIT)
    with patch.object(worker._process, "poll", return_value=None):  # as if it died once it had been looked at
        assert template.render(EXAMPLE, TOKENS).text == "---" + TEXT
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    worker._process.wait()
    assert template.render(EXAMPLE, TOKENS).text == "---" + TEXT


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("partial", [False, True], ids=["no response", "half a response"])
def test_a_killed_worker_is_not_blamed_on_the_template(
    sent: signal.Signals, partial: bool, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is sent once more; a second kill is an error of the run, which names what happened."""
    template = untrusted_template("{{ '-' * 3 }}" + CHAT)
    assert template.render(EXAMPLE, TOKENS).text == "---" + TEXT
    load, kills = _ResponseUnpickler.load, iter([sent])

    def load_or_kill(unpickler: Any) -> Any:
        number = next(kills, None)
        if number is None:
            return load(unpickler)
        assert worker._process is not None
        os.kill(worker._process.pid, number)
        worker._process.wait()
        if partial:
            raise pickle.UnpicklingError("pickle data was truncated")
        raise EOFError

    monkeypatch.setattr(_ResponseUnpickler, "load", load_or_kill)
    assert template.render(EXAMPLE, TOKENS, row=7).text == "---" + TEXT
    kills = iter([sent, sent])
    with pytest.raises(
        RunError, match=f"renders row 7 with template 'tried' was killed twice, by {sent.name}, which "
    ) as caught:
        template.render(EXAMPLE, TOKENS, row=7)
    assert not isinstance(caught.value, TemplateError)
    assert "bound" not in str(caught.value)
    assert template.render(EXAMPLE, TOKENS).text == "---" + TEXT


def test_a_worker_that_ends_by_itself_is_blamed_on_the_template(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a template that makes the interpreter crash does so again."""
    template = untrusted_template("{{ '-' * 3 }}" + CHAT)
    starts = []
    running = worker._running

    def running_until_crash() -> Any:
        process = running()
        starts.append(process.pid)
        os.kill(process.pid, signal.SIGSEGV)
        return process

    monkeypatch.setattr(worker, "_running", running_until_crash)
    with pytest.raises(
        TemplateError, match=r"breaks the process bound: found the end of the process .*, with status -11"
    ):
        template.render(EXAMPLE, TOKENS)
    assert len(starts) == 1


def test_an_interrupted_request_gets_no_late_response(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    template = untrusted_template("{{ '-' * 3 }}" + CHAT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_ResponseUnpickler, "load", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        template.prompt(EXAMPLE, TOKENS)
    assert template.render(EXAMPLE, TOKENS).text == "---" + TEXT


def test_a_worker_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "WORKER", Worker())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemplateError, match=r"needs a process of its own, which cannot be started: .*/nowhere/python"):
        untrusted_template("{{ '-' * 3 }}" + CHAT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_has_a_worker_of_its_own(worker: Worker) -> None:
    template = untrusted_template("{{ '-' * 3 }}" + CHAT)
    child = os.fork()
    if child == 0:
        try:
            right = template.render(EXAMPLE, TOKENS).text == "---" + TEXT
            worker.stop()
            os._exit(0 if right else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert template.render(EXAMPLE, TOKENS).text == "---" + TEXT


@pytest.mark.usefixtures("worker")
def test_threads_are_bounded_too() -> None:
    """Each thread has its own allowance."""
    found: list[object] = []

    def render(template: Template, times: int) -> None:
        for _ in range(times):
            try:
                found.append(template.render(EXAMPLE, TOKENS).text)
            except TemplateError as error:
                found.append(error)

    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    jobs = [(untrusted_template(CHAT), 200), (untrusted_template(endless + CHAT), 1)]
    threads = [threading.Thread(target=render, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(TEXT) == 200
    assert len([error for error in found if isinstance(error, TemplateError)]) == 1


CONFINED = """
import socket, subprocess
from templatekit.formats.sandbox.worker import confine
confine(256)
for attempt in (lambda: open("/etc/hostname"), lambda: open("/tmp/x", "w"), socket.socket,
                lambda: subprocess.run(["true"], capture_output=True), lambda: bytearray(300 << 20)):
    try:
        attempt()
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system's limits")
def test_the_worker_can_open_write_and_start_nothing() -> None:
    run = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["OSError", "OSError", "OSError", "OSError", "MemoryError"], run.stderr


def test_responses_are_values_of_this_package_alone() -> None:
    from io import BytesIO

    assert (
        _ResponseUnpickler(BytesIO(pickle.dumps(untrusted_template(CHAT).render(EXAMPLE, TOKENS)))).load().text == TEXT
    )
    for value in (os.system, Template, Path("x")):
        with pytest.raises(pickle.UnpicklingError):
            _ResponseUnpickler(BytesIO(pickle.dumps(value))).load()


@pytest.mark.parametrize("needs_worker", ["", "{{ 'x' * 2 }}"], ids=["here", "in the worker"])
def test_kwargs_and_accepted_forms_are_those_of_a_trusted_template(needs_worker: str, worker: Worker) -> None:
    source = "{{ greeting | default('') }}" + needs_worker + CHAT
    file = TemplateFile(name="greets", source="{#- templatekit\ndescription: Greets.\n#}" + source)
    template, same = UntrustedTemplate(file, strict=False), Template(file, strict=False)
    for kwargs in ({"greeting": "Hello {{"}, {"greeting": ["a", 1]}):
        changed, expected = template.with_kwargs(kwargs), same.with_kwargs(kwargs)
        assert changed.render(EXAMPLE, TOKENS) == expected.render(EXAMPLE, TOKENS)
        assert (changed.source, changed.metadata) == (expected.source, expected.metadata)
    prompt = template.prompt(EXAMPLE, TOKENS, continue_final=True)
    assert prompt == same.prompt(EXAMPLE, TOKENS, continue_final=True)
    assert [template.accepted_forms.content(role) for role in ("user", "system")] == ["text", "text"]
    assert template.accepted_forms.calls == same.accepted_forms.calls
    assert template._in_process == (not needs_worker)
    with pytest.raises(ConfigError, match=r"does not read 'greetings'; did you mean 'greeting'\?"):
        template.with_kwargs({"greetings": 1})
