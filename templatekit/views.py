"""Displays rendered text with literals, fields and trained text in colour: in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.text import Text

_RICH = {"template": "dim", "field": "cyan", "computed": "magenta"}
_RICH_TRAINED = "bold green"
_RICH_TRAINED_LESS = "green"
"""The style of text with a weight below 1."""
_CSS = {"template": "color:#777", "field": "color:#06c", "computed": "color:#a3a"}
_CSS_TRAINED = "background:#d6f5d6;color:#064"
CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
CONTROL_PICTURES |= {0x7F: "␡"} | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
"""Visible characters for control characters: a record must not move the cursor or change the terminal's colours."""


class View(NamedTuple):
    """A text to display, with its origins and loss weights."""

    text: str
    spans: Sequence[Any]
    """`Span`s: the origin of every character, ordered, without gaps."""
    losses: Sequence[Any]
    """`LossSpan`s: the weights of the trained text, ordered, without overlap. Text outside of them is not trained."""
    caption: str = ""


class _Run(NamedTuple):
    text: str
    kind: str
    origin: str
    weight: float


def _runs(view: View) -> Iterator[_Run]:
    """Split the text into runs of one origin and one weight, and make its control characters visible."""
    edges = {edge for span in view.spans for edge in (span.start, span.end)}
    edges |= {edge for span in view.losses for edge in (span.start, span.end)}
    span_index, loss_index = 0, 0
    for start, end in pairwise(sorted(edges)):
        while view.spans[span_index].end <= start:
            span_index += 1
        while loss_index < len(view.losses) and view.losses[loss_index].end <= start:
            loss_index += 1
        trained = loss_index < len(view.losses) and view.losses[loss_index].start <= start
        weight = view.losses[loss_index].weight if trained else 0.0
        origin = view.spans[span_index].origin
        yield _Run(view.text[start:end].translate(CONTROL_PICTURES), origin.kind, str(origin), weight)


def legend() -> Text:
    """Return the legend of the colours of `to_rich`."""
    from rich.text import Text

    styles = (("template", _RICH["template"]), ("data", _RICH["field"]), ("trained", _RICH_TRAINED))
    return Text("  ").join(Text(name, style) for name, style in styles)


def to_rich(view: View) -> Text:
    """Return coloured text for a terminal: dim template, cyan data, green trained, bold if the weight is at least 1."""
    from rich.text import Text

    text = Text()
    for run in _runs(view):
        trained = _RICH_TRAINED if run.weight >= 1 else _RICH_TRAINED_LESS
        text.append(run.text, trained if run.weight else _RICH[run.kind])
    return text


def to_marked(view: View) -> str:
    """Return the text with ⟦ ⟧ around trained text, for output without colours; ⟦0.1|…⟧ if the weight is not 1."""
    marked: list[str] = []
    weight = 0.0
    for run in _runs(view):
        if run.weight != weight:
            marked.append("⟧" * bool(weight) + _opening_mark(run.weight))
            weight = run.weight
        marked.append(run.text)
    return "".join(marked) + "⟧" * bool(weight)


def _opening_mark(weight: float) -> str:
    return "" if not weight else "⟦" if weight == 1 else f"⟦{weight:g}|"


def to_html(view: View) -> str:
    """Return coloured HTML for a notebook; the title of each run names its origin and weight."""
    elements = []
    for run in _runs(view):
        style = _CSS_TRAINED if run.weight else _CSS[run.kind]
        title = f"{run.origin}, weight {run.weight:g}" if run.weight else run.origin
        elements.append(f'<span style="{style}" title="{escape(title)}">{escape(run.text)}</span>')
    caption = f'<div style="color:#777">{escape(view.caption)}</div>' if view.caption else ""
    return f'<pre style="white-space:pre-wrap">{"".join(elements)}</pre>{caption}'
