"""Runs an audit: reads a data set, checks every rule and writes the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from templatekit.audit.context import audit_context
from templatekit.audit.findings import FindingCounter, LengthCounter
from templatekit.audit.report import Report
from templatekit.audit.row_stream import RowStream
from templatekit.audit.rule import LEVELS, Requirement, Rule
from templatekit.audit.rules import RULES
from templatekit.config.addresses import Address
from templatekit.config.data_options import DataOptions, parse_dedup
from templatekit.errors import NOTHING_TRAINED, ConfigError, RecordError, UnknownNameError
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Record

ROWS_SHOWN = 10
_PROGRESS_INTERVAL = 10_000
"""Rows between two calls of `progress`."""


def audit(
    options: DataOptions,
    records: Iterable[Record | RecordError] | None = None,
    *,
    registry: Registry | None = None,
    against: Sequence[str] = (),
    shared: str = "exact",
    ignored: Iterable[str] = (),
    shown: int = ROWS_SHOWN,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Read the whole data set that `options` name, or the given records, and report what is wrong with it.

    Every row is checked in full. Unusable records are reported whatever `on_error` says, and texts longer than
    `max_length` are not shortened.

    Args:
        against: Addresses of other data sets, whose rows should not be in this one.
        shared: `exact` reports rows that equal a row of another data set. `near` or `near=0.9`, as in the option
            `dedup`, also reports similar rows.
        ignored: Codes of rules to leave out.
        shown: How many row numbers a finding stores.
        progress: Called with the number of rows, every 10,000 rows.
    """
    # The pipeline drops and shortens nothing for its length: rules report the effects of --max-length.
    reading = options.model_copy(update={"on_error": "skip", "truncation": "drop", "max_length": None, "shuffle": None})
    pipeline = Pipeline(reading, registry or create_registry())
    threshold = parse_dedup(shared, option="shared")
    if threshold < 1 and not against:
        raise ConfigError(f"shared={shared!r} compares with other data sets; found none; expected --against too")
    rules, not_checked = _applicable(set(ignored), options, against, near=threshold < 1)
    context = audit_context(pipeline, options)
    codes = {rule.code for rule in rules}
    stream = RowStream(
        pipeline,
        compare_encodings="unstable-boundary" in codes,
        round_trips="text-normalized" in codes,
        limit=pipeline.length_limit(options),
        against=[Address(address) for address in against],
        similarity=threshold if "nearly-shared-rows" in codes else None,
    )
    counters = [FindingCounter(rule=rule, rows_shown=shown) for rule in rules]
    lengths = LengthCounter()
    rows = usable = 0
    for counter in counters:
        if counter.rule.check_template is not None:
            counter.add(counter.rule.check_template(context), None, context)
    row_checks = [(counter, counter.rule.check_row) for counter in counters if counter.rule.check_row is not None]
    for row in stream.rows(pipeline.open() if records is None else pipeline.reader.select(records)):
        rows += 1
        usable += bool(row.samples) or (row.error is not None and row.error.reason == NOTHING_TRAINED)
        for sample in row.samples:
            lengths.add(sample.length, row.number)
        for counter, check_row in row_checks:
            counter.add(check_row(row, context), row.number, context)
        if progress is not None and rows % _PROGRESS_INTERVAL == 0:
            progress(rows)
    counts = stream.counts
    findings = [counter.finding(rows) for counter in counters if counter.count]
    return Report(
        dataset=options.dataset,
        adapter=pipeline.adapter.name if pipeline.adapter else None,
        template=pipeline.template.name,
        tokenizer=pipeline.tokenizer.name if pipeline.tokenizer else None,
        train_on=options.train_on,
        max_length=options.max_length,
        rows=rows,
        usable=usable,
        tokens=counts.tokens if pipeline.tokenizer else None,
        trained_tokens=counts.trained_tokens if pipeline.tokenizer else None,
        lengths=lengths.result("tokens" if pipeline.tokenizer else "characters"),
        against=tuple(other.summary for other in stream.others),
        findings=tuple(sorted(findings, key=lambda finding: (LEVELS.index(finding.rule.level), -finding.count))),
        clean=tuple(counter.rule.code for counter in counters if not counter.count),
        not_checked=not_checked,
    )


def _applicable(
    ignored: set[str], options: DataOptions, against: Sequence[str], *, near: bool
) -> tuple[list[Rule], dict[str, str]]:
    """The rules that can be checked, and for each of the others the options that it needs; without ignored codes."""
    known = [rule.code for rule in RULES]
    for code in sorted(ignored.difference(known)):
        raise UnknownNameError("audit rule", code, known)
    missing: dict[Requirement, bool] = {
        "tokenizer": options.tokenizer is None,
        "max_length": options.max_length is None,
        "against": not against,
        "shared": not near,
    }
    applicable, not_checked = [], {}
    for rule in RULES:
        if rule.code in ignored:
            continue
        needed = [f"--{option.replace('_', '-')}" for option in rule.requires if missing[option]]
        if needed:
            not_checked[rule.code] = " and ".join(needed)
        else:
            applicable.append(rule)
    return applicable, not_checked
