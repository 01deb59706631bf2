"""`templatekit check`."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from templatekit.cli.options import PLUGIN_DIR, add_options, load_registry
from templatekit.cli.terminal import print_json, say, show_status
from templatekit.config.cache_folder import cache_folder
from templatekit.config.data_options import DataOptions
from templatekit.errors import ConfigError

if TYPE_CHECKING:
    from templatekit.testing import Check, Outcome, Subject

HYPOTHESIS_STORAGE = "HYPOTHESIS_STORAGE_DIRECTORY"
"""The environment variable for hypothesis' folder, which is by default in the current folder."""


@click.command()
@click.argument("format", metavar="NAME|FILE")
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    metavar="DIR",
    help="Also try this tokenizer: a folder or a model's name; may be given several times.",
)
@add_options(DataOptions, only=["trust_remote_code"])
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Number of inputs for each check and tokenizer.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the inputs.")
@click.option("--time-budget", type=click.FloatRange(min=0, min_open=True), help="Stop after this many seconds.")
@click.option(
    "--expect-failure",
    "expected",
    multiple=True,
    metavar="CHECK=REASON",
    help="A check that the format is expected to fail, and why; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
@PLUGIN_DIR
def check(
    format: str,
    tokenizers: tuple[str, ...],
    trust_remote_code: bool | None,
    examples: int,
    seed: int,
    time_budget: float | None,
    expected: tuple[str, ...],
    as_json: bool,
    plugin_dirs: tuple[Path, ...],
) -> None:
    """Check an adapter, a template or a plugin against what formats promise.

    NAME names one or several of these, FILE is a .jinja template or a .py plugin. The checks run on generated records,
    from plain to extreme ones, with tiny tokenizers of every common kind. A failed check is shown with the smallest
    record that fails it. The exit code is 1 if a check fails, else 0.
    """
    # Not in the folder for temporary files, where another user could put a link at its name.
    os.environ.setdefault(HYPOTHESIS_STORAGE, str(cache_folder() / "hypothesis"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # for small texts threads cost more time than they save
    try:
        from templatekit.testing import MAIN, run_checks, subjects_of
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ConfigError(
            "check needs hypothesis, which is not installed: pip install 'templatekit[testing]'"
        ) from None

    registry = load_registry(plugin_dirs)
    on_terminal = sys.stderr.isatty()
    count_input = _input_counter(shown=on_terminal)
    with redirect_stdout(sys.stderr):  # the output of plugins' print calls is not part of the result
        tried = [*(() if format == "tokenizer" else MAIN), *tokenizers]
        subjects = subjects_of(format, tried, registry, trust_remote_code=bool(trust_remote_code))
        if not subjects:
            raise ConfigError("the tokenizer's own template needs a tokenizer; expected --tokenizer DIR")
        deadline = None if time_budget is None else time.monotonic() + time_budget
        outcomes: list[Outcome] = []
        for remaining, subject in zip(range(len(subjects), 0, -1), subjects, strict=True):
            outcomes += run_checks(
                subject,
                examples=examples,
                seed=seed,
                expected_failures=dict(map(_expectation, expected)),
                time_budget=None if deadline is None else max(0.0, deadline - time.monotonic()) / remaining,
                progress=partial(count_input, subject),
            )
        if on_terminal:
            show_status("")
    results = list(_group_outcomes(outcomes))
    if as_json:
        facts = {"checked": [result.as_dict() for result in results], "examples": examples, "seed": seed}
        print_json(facts)
    else:
        for line in _report_lines(results, examples, seed):
            say(line)
    if any(row.status in ("failed", "unexpected") for result in results for row in result.rows):
        click.get_current_context().exit(1)


def _expectation(text: str) -> tuple[str, str]:
    name, equals, reason = text.partition("=")
    if not equals or not reason.strip():
        raise ConfigError(f"--expect-failure: found {text!r}; expected CHECK=REASON")
    return name.strip(), reason.strip()


def _input_counter(*, shown: bool) -> Callable[[Subject], None]:
    """Return a function that counts an input of a subject, and shows both on one line of a terminal."""
    inputs = itertools.count(1)

    def count_input(subject: Subject) -> None:
        count = next(inputs)
        if shown and count % 20 == 0:
            show_status(f"{subject.name}, tokenizer {subject.tokenizer.name}: {count:,} inputs")

    return count_input


class _CheckResult(NamedTuple):
    """The outcomes of one check with all tokenizers."""

    check: Check[Any]
    status: str
    tried: int
    reasons: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> _CheckResult:
        """Combine the outcomes; the status is the worst one."""
        order = ("failed", "unexpected", "expected", "held", "not tried", "not applicable")
        status = min((outcome.status for outcome in outcomes), key=order.index)
        reasons = dict.fromkeys(o.reason for o in outcomes if o.status == status and o.reason)
        return cls(outcomes[0].check, status, sum(o.tried for o in outcomes), tuple(reasons), tuple(outcomes))

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {
            "check": self.check.name,
            "properties": list(self.check.properties),
            "promise": self.check.promise,
            "status": self.status,
            "tried": self.tried,
            "reason": "; ".join(self.reasons),
            "failures": [outcome.failure.as_dict() for outcome in self.outcomes if outcome.failure],
        }


class _FormatResult(NamedTuple):
    """The results of one adapter or template with all tokenizers."""

    subject: Subject
    tokenizers: tuple[str, ...]
    rows: tuple[_CheckResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {
            "name": self.subject.name,
            "takes": str(self.subject.scope) if self._any_tried else None,
            "declares": _declared_properties(self.subject),
            "tokenizers": list(self.tokenizers),
            "checks": [row.as_dict() for row in self.rows],
        }

    @property
    def _any_tried(self) -> bool:
        return any(row.tried for row in self.rows if row.check.name != "valid_records_are_rendered")

    def lines(self) -> Iterator[str]:
        """Yield a line for each check; checks that were not tried are grouped by their reasons."""
        takes = f": {self.subject.scope}" if self._any_tried else ""
        template = "" if self.subject.checked_template else f", with the template {self.subject.template.name}"
        yield f"{self.subject.name}{template}{takes}"
        declared = ", ".join(
            f"{name}: {str(value).lower()}" for name, value in _declared_properties(self.subject).items()
        )
        yield f"declares {declared or 'nothing'}; tokenizers {', '.join(self.tokenizers)}"
        width = max(len(row.check.name) for row in self.rows)
        for row in self.rows:
            if row.status in _STATUS_WORDS:
                line = f"  {_STATUS_WORDS[row.status]:8}{row.check.name:{width}}  {_details(row)}"
                yield line.rstrip()
        untried: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.status not in _STATUS_WORDS:
                untried.setdefault((row.status, "; ".join(row.reasons)), []).append(row.check.name)
        for (status, reason), names in untried.items():
            yield f"  {status}, since {reason}: {', '.join(names)}"


_STATUS_WORDS = {"held": "ok", "failed": "FAILED", "expected": "failed", "unexpected": "HOLDS"}


def _details(row: _CheckResult) -> str:
    if row.status == "failed":
        return f"with {', '.join(_tokenizer_name(o) for o in row.outcomes if o.status == 'failed')}"
    if row.status == "expected":
        return f"as expected: {'; '.join(row.reasons)}"
    if row.status == "unexpected":
        return f"though a failure was expected ({'; '.join(row.reasons)}): take that back"
    return f"tried {row.tried:,} times"


def _tokenizer_name(outcome: Outcome) -> str:
    return Path(outcome.subject.tokenizer.name).name


def _declared_properties(subject: Subject) -> dict[str, bool]:
    """Return the properties that the format declares and that differ from the default."""
    found: dict[str, bool] = {}
    if subject.checked_template:
        found = subject.capabilities.model_dump(exclude_defaults=True)
    if subject.checked_adapter and subject.checked_adapter.strips_content:
        found["strips_content"] = True
    return found


def _group_outcomes(outcomes: Iterable[Outcome]) -> Iterator[_FormatResult]:
    """Group the outcomes by format, then by check."""
    by_name: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.subject.name, {}).setdefault(outcome.check.name, []).append(outcome)
    for by_check in by_name.values():
        first = next(iter(by_check.values()))
        tokenizers = tuple(_tokenizer_name(outcome) for outcome in first)
        yield _FormatResult(first[0].subject, tokenizers, tuple(map(_CheckResult.of, by_check.values())))


def _report_lines(results: Sequence[_FormatResult], examples: int, seed: int) -> Iterator[str]:
    for result in results:
        yield from result.lines()
        yield ""
    for result in results:
        for row in result.rows:
            # Show one failure for each check: with the other tokenizers it is most likely the same.
            failure = next((o.failure for o in row.outcomes if o.status == "failed" and o.failure), None)
            if failure is not None:
                yield from f"{failure}".splitlines()
                yield ""
    yield _summary(Counter(row.status for result in results for row in result.rows), results, examples, seed)


def _summary(counts: Mapping[str, int], results: Sequence[_FormatResult], examples: int, seed: int) -> str:
    words = {
        "held": "held",
        "failed": "failed",
        "expected": "failed as expected",
        "unexpected": "held unexpectedly",
        "not tried": "not tried",
        "not applicable": "not applicable",
    }
    totals = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts.get(status))
    tried = sum(row.tried for result in results for row in result.rows)
    return f"{sum(counts.values())} checks: {totals}; {tried:,} trials (--examples {examples} --seed {seed})"
