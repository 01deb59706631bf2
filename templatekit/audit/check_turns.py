"""The rule about templates that render a turn one way when it is the last, another way when the talk goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from templatekit.audit.values import Hit, Row, Sample, Setup
from templatekit.errors import RecordError, shorten

_CHECKED = 3
"""Turns of one conversation that are rendered anew: the cost stays linear in turns."""


def turn_dependent(row: Row, setup: Setup) -> Iterator[Hit]:
    """A trained earlier answer that would be rendered differently if it were the last."""
    if row.error is not None and row.error.reason == "prompt_is_no_prefix":
        yield Hit(detail=str(row.error))
    if setup.template.multi_turn:
        for sample in row.samples:
            if (hit := _first_difference(sample, setup)) is not None:
                yield hit


def _first_difference(sample: Sample, setup: Setup) -> Hit | None:
    example, text = sample.example, sample.rendered.text
    ends = {target.message: target.end for target in sample.rendered.target_spans}
    for turn in _turns(sample):
        alone = replace(example, messages=example.messages[: turn + 1])
        try:
            as_last = setup.template.render(alone, setup.special).text
        except RecordError:
            continue  # the template does not take the shorter conversation
        end = ends[turn]
        if not as_last.startswith(text[:end]):
            start = next((i for i, (a, b) in enumerate(zip(text[:end], as_last, strict=False)) if a != b), end)
            detail = f"as the last turn it goes on with {shorten(as_last[start : start + 60], 80)}"
            return Hit(detail=detail, sample=sample, start=start, end=end)
    return None


def _turns(sample: Sample) -> list[int]:
    """Earlier turns that are trained and worth a look: the last of them, the last that thinks or calls, the first."""
    messages = sample.example.messages
    earlier = [target for target in sample.rendered.target_spans if target.message < len(messages) - 1]
    turns = list(dict.fromkeys(target.message for target in earlier if sample.trains(target.start, target.end)))
    telling = [turn for turn in turns if messages[turn].reasoning or messages[turn].tool_calls]
    return list(dict.fromkeys([*turns[-1:], *telling[-1:], *turns[:1]]))[:_CHECKED]
