"""An audit from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from templatekit.audit.lengths import LengthCounter
from templatekit.audit.rules import chosen
from templatekit.audit.setup import setup_of
from templatekit.audit.stream import Stream
from templatekit.audit.tally import Tally, by_severity
from templatekit.audit.values import Need, Report, Rule
from templatekit.config.options import DataOptions, parse_dedup
from templatekit.errors import NOTHING_TRAINED, ConfigError, RecordError
from templatekit.hooks.registry import Registry, create_registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Record

ROWS_SHOWN = 10
_PROGRESS = 10_000
"""Rows between two reports of progress."""


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
    """Reads the whole set that `options` name, or the records given, and reports what is wrong with it.

    Every row is read to its end: records that cannot be used are reported, whatever `on_error` says, and texts longer
    than `max_length` are looked at whole. `against` are addresses of other data sets; with `shared` as `near` or
    `near=0.9`, as of the option `dedup`, rows that are nearly in one of them are told of too. `ignored` are codes of
    rules to leave out, `shown` row numbers a finding keeps; `progress` is called with the number of rows, now and then.
    """
    # Every row is looked at whole; what --max-length would do to it is for the rules to say.
    reading = options.model_copy(update={"on_error": "skip", "truncation": "drop", "max_length": None, "shuffle": None})
    pipeline = Pipeline(reading, registry or create_registry())
    threshold = parse_dedup(shared, option="shared")
    if threshold < 1 and not against:
        raise ConfigError(f"shared={shared!r} compares with other data sets; found none; expected --against too")
    rules, not_checked = _applicable(chosen(ignored), options, against, near=threshold < 1)
    setup = setup_of(pipeline, options)
    codes = {rule.code for rule in rules}
    stream = Stream(
        pipeline,
        edges="unstable-boundary" in codes,
        lossy="text-normalized" in codes,
        limit=pipeline.limit_of(options),
    )
    near = threshold if "nearly-shared-rows" in codes else None
    compared = tuple(stream.compare_with(dataset, near=near) for dataset in against)
    tallies = [Tally(rule=rule, shown=shown) for rule in rules]
    lengths = LengthCounter()
    rows = usable = 0
    for tally in tallies:
        if tally.rule.setup is not None:
            tally.add(tally.rule.setup(setup), None, setup)
    by_row = [(tally, tally.rule.row) for tally in tallies if tally.rule.row is not None]
    for row in stream.rows(pipeline.open() if records is None else pipeline.reader.gathered(records)):
        rows += 1
        usable += bool(row.samples) or (row.error is not None and row.error.reason == NOTHING_TRAINED)
        for sample in row.samples:
            lengths.add(sample.length, row.number)
        for tally, check in by_row:
            tally.add(check(row, setup), row.number, setup)
        if progress is not None and rows % _PROGRESS == 0:
            progress(rows)
    counts = stream.counts
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
        against=compared,
        findings=by_severity(tally.finding(rows) for tally in tallies if tally.count),
        clean=tuple(tally.rule.code for tally in tallies if not tally.count),
        not_checked=not_checked,
    )


def _applicable(
    rules: Iterable[Rule], options: DataOptions, against: Sequence[str], *, near: bool
) -> tuple[tuple[Rule, ...], dict[str, str]]:
    """The rules that have something to look at, and for the others what they need."""
    lacking: dict[Need, bool] = {
        "tokenizer": options.tokenizer is None,
        "max_length": options.max_length is None,
        "against": not against,
        "shared": not near,
    }
    kept, without = [], {}
    for rule in rules:
        missing = [f"--{need.replace('_', '-')}" for need in rule.needs if lacking[need]]
        if missing:
            without[rule.code] = " and ".join(missing)
        else:
            kept.append(rule)
    return tuple(kept), without
