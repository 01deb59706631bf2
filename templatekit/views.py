"""Displays rendered text with literals, fields and trained text in colour: in a terminal and in a notebook.

`visible` is the one place that decides how foreign text, of records, templates, plugins and file names, is shown.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
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
_CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_CONTROL_PICTURES |= {0x7F: "␡"} | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_HIDDEN_CATEGORIES = {"Cf", "Co", "Cs", "Zl", "Zp"}
"""Unicode categories: format characters, private use, surrogates, line and paragraph separators."""
_SHOWN_FORMATS = frozenset("\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u08e2")
"""Format characters that are shown as they are: Persian and emoji need the joiners, and Arabic signs are visible."""


def visible(text: str) -> str:
    """The text with control characters as pictures, and characters that reorder or hide others as escapes.

    Such text must not move the cursor, change colours or pass for other text. Newlines and tabs stay.
    """
    text = text.translate(_CONTROL_PICTURES)
    if text.isascii():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _HIDDEN_CATEGORIES else char for char in text)


def _escape(char: str) -> str:
    if char in _SHOWN_FORMATS:
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


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
        yield _Run(visible(view.text[start:end]), origin.kind, str(origin), weight)


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
    from html import escape  # not for `templatekit --help`

    elements = []
    for run in _runs(view):
        style = _CSS_TRAINED if run.weight else _CSS[run.kind]
        title = f"{run.origin}, weight {run.weight:g}" if run.weight else run.origin
        elements.append(f'<span style="{style}" title="{escape(title)}">{escape(run.text)}</span>')
    caption = f'<div style="color:#777">{escape(view.caption)}</div>' if view.caption else ""
    return f'<pre style="white-space:pre-wrap">{"".join(elements)}</pre>{caption}'
