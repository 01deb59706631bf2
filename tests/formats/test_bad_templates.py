"""The section Templates of BAD_INPUTS, as a user sees it: one line, exit code 2, in bounded time, nothing written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from testkit.command_line import InProcess, Result

pytestmark = pytest.mark.usefixtures("worker")

CHAT = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
GROWS = "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}"
SECRET = "kept from templates"

BAD = {
    "a syntax error": (
        "{{ instruction }}\n{% if %}\n{{ response }}",
        "template 'bad', line 2: Expected an expression, got 'end of statement block'; found '{% if %}'",
    ),
    "an unknown variable": (
        "{{ instrution }}{{ response }}",
        "template 'bad', line 1: unknown variable 'instrution'; did you mean 'instruction'?",
    ),
    "the response never": ("{{ instruction }}", "template 'bad': nothing to train: it reads neither `response` nor"),
    "the response twice": ("{{ response }}{{ response }}", "template 'bad': uses `response` 2 times, on lines 1, 1"),
    "the response before the prompt": (
        "{{ response }}{{ instruction }}",
        "template 'bad': the response must be printed once, after all other fields; found response",
    ),
    "an endless loop": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + CHAT,
        "template 'bad', line 1 breaks the time bound: found no end after 1 s of processor time; row 0",
    ),
    "an endless loop in an instruction format": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ instruction }}{{ response }}",
        "template 'bad', line 1 breaks the time bound",
    ),
    "a gigabyte": (
        "\n{{ 'A' * 10 ** 9 }}" + CHAT,
        "template 'bad', line 2 breaks the memory bound: found more than 256 MB in use; row 0",
    ),
    "a text that doubles": (GROWS + CHAT, "template 'bad', line 1 breaks the memory bound"),
    "a compile-time bomb": (
        "{{ instruction }}\n{% if false %}{{ 9 ** (9 ** 9) }}{% endif %}{{ response }}",
        "template 'bad', line 2 breaks the time bound: found no end after 1 s of processor time",
    ),
    "its own words": (
        "{{ raise_exception('roles must alternate') }}" + CHAT,
        "rows.json:0: template 'bad' refuses: roles must alternate; to skip: --on-error skip",
    ),
    "an attribute escape": (
        "{{ ''.__class__.__mro__ }}" + CHAT,
        "rows.json:0: template 'bad', line 1: SecurityError: access to attribute '__class__' of 'str' object is unsafe",
    ),
    "an attribute escape through format": (
        "{{ '{0.__class__}'.format(messages) }}" + CHAT,
        "SecurityError: access to attribute '__class__' of 'list' object is unsafe",
    ),
    "another file": (
        "{% include 'secret.txt' %}" + CHAT,
        "line 1: SecurityError: a template is one file, and may not load 'secret.txt'",
    ),
    "another file, above": (
        "{% import '../secret.txt' as x %}" + CHAT,
        "line 1: SecurityError: a template is one file, and may not load '../secret.txt'",
    ),
    "a changed record": (
        "{{ messages.pop() }}" + CHAT,
        "line 1: SecurityError: access to attribute 'pop' of 'list' object is unsafe",
    ),
    "a long comment": (
        "{# templatekit\n" + "a" * 10_001 + "#}{{ response }}",
        "found a leading comment of 10,002 char",
    ),
    "a long source": (" " * 200_001 + "{{ response }}", "found 200,015 characters; expected at most 200,000"),
}


Run = Callable[..., Result]


@pytest.fixture
def run(in_process: InProcess) -> Run:
    """Renders two rows with a template's source."""
    Path("rows.json").write_text(json.dumps([{"instruction": "add", "output": text} for text in ("one", "boom")]))
    Path("secret.txt").write_text(SECRET)

    def run(source: str, *more: str) -> Result:
        Path("bad.jinja").write_text(source)
        return in_process("render", "--dataset", "rows.json", "--adapter", "alpaca", "--template", "bad.jinja", *more)

    return run


@pytest.mark.parametrize("name", BAD)
def test_one_line_says_what_is_wrong(name: str, run: Run) -> None:
    source, words = BAD[name]
    began = time.monotonic()
    result = run(source)
    assert (result.code, result.out) == (2, "")
    (line,) = result.lines
    assert words in line
    assert SECRET not in line
    assert time.monotonic() - began < 60, "however loaded the machine is"


def test_a_row_that_breaks_a_bound_ends_the_run_whatever_may_be_skipped(run: Run) -> None:
    """The template is at fault, not the row; the earlier rows are not written, except to standard output."""
    start, loop = GROWS.split("%}", 1)
    source = start + "%}{% if messages[1:] and messages[1].content == 'boom' %}" + loop + "{% endif %}" + CHAT
    result = run(source, "--on-error", "skip", "--output", "out.jsonl")
    assert result.code == 2
    assert result.lines == [
        "Error: template 'bad', line 1 breaks the memory bound: found more than 256 MB in use; row 1"
    ]
    assert not Path("out.jsonl").exists()
