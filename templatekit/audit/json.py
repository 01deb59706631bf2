"""The report as JSON, whose keys stay: docs/audit.md describes them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from templatekit.audit.text import marked
from templatekit.audit.values import Excerpt, Finding, Report

VERSION = 1
"""Rises where a key changes its meaning or goes; new keys may come at any time."""


def as_dict(report: Report) -> dict[str, Any]:
    """Plain values."""
    return {
        "version": VERSION,
        "dataset": report.dataset,
        "adapter": report.adapter,
        "template": report.template,
        "tokenizer": report.tokenizer,
        "train_on": report.train_on,
        "max_length": report.max_length,
        "rows": report.rows,
        "usable": report.usable,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "lengths": _lengths(report),
        "against": [asdict(other) for other in report.against],
        "findings": [_finding(finding) for finding in report.findings],
        "clean": list(report.clean),
        "not_checked": report.not_checked,
    }


def _lengths(report: Report) -> dict[str, Any] | None:
    if report.lengths is None:
        return None
    values = asdict(report.lengths)
    return {**values, "over": {str(limit): count for limit, count in report.lengths.over.items()}}


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.rule.code,
        "level": finding.rule.level,
        "title": finding.rule.title,
        "help": finding.rule.help,
        "count": finding.count,
        "share": finding.share,
        "rows": list(finding.rows),
        "parts": [asdict(part) for part in finding.parts],
        "example": _example(finding.example) if finding.example else None,
    }


def _example(example: Excerpt) -> dict[str, Any]:
    return {
        "row": example.row,
        "detail": example.detail,
        "text": marked(example),
        "runs": [asdict(run) for run in example.runs],
    }
