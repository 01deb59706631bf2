"""How rendered text shows itself: literals, fields and trained text in colour, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from rich.text import Text

_RICH = {"template": "dim", "field": "cyan", "computed": "magenta"}
_RICH_TRAINED = "bold green"
_RICH_LESS = "green"
"""Of weights below 1."""
_CSS = {"template": "color:#777", "field": "color:#06c", "computed": "color:#a3a"}
_CSS_TRAINED = "background:#d6f5d6;color:#064"
PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
PICTURES |= {0x7F: "␡"} | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
"""Control characters, made visible: a record must not move the cursor or change the colours of a terminal."""


class View(NamedTuple):
    """What is shown of a text."""

    text: str
    spans: Sequence[_Span]
    """Ordered and gap-free: the origin of every character."""
    losses: Sequence[_Weighted]
    """Ordered, without overlap: the weights of what is trained. What lies in none of them is not."""
    caption: str = ""


class _Span(Protocol):
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def origin(self) -> _Origin: ...


class _Origin(Protocol):
    @property
    def kind(self) -> str: ...


class _Weighted(Protocol):
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def weight(self) -> float: ...


class _Run(NamedTuple):
    text: str
    kind: str
    origin: str
    weight: float


def _runs(view: View) -> Iterator[_Run]:
    """The text in runs of one origin and one weight, its control characters as pictures."""
    edges = {edge for span in view.spans for edge in (span.start, span.end)}
    edges |= {edge for span in view.losses for edge in (span.start, span.end)}
    at, loss = 0, 0
    for start, end in pairwise(sorted(edges)):
        while view.spans[at].end <= start:
            at += 1
        while loss < len(view.losses) and view.losses[loss].end <= start:
            loss += 1
        trained = loss < len(view.losses) and view.losses[loss].start <= start
        weight = view.losses[loss].weight if trained else 0.0
        origin = view.spans[at].origin
        yield _Run(view.text[start:end].translate(PICTURES), origin.kind, str(origin), weight)


def legend() -> Text:
    """What the colours of `to_rich` mean."""
    from rich.text import Text

    parts = (("template", _RICH["template"]), ("data", _RICH["field"]), ("trained", _RICH_TRAINED))
    return Text("  ").join(Text(name, style) for name, style in parts)


def to_rich(view: View) -> Text:
    """Coloured text for a terminal: dim template, cyan data, green trained, bold where the weight is 1 or more."""
    from rich.text import Text

    text = Text()
    for run in _runs(view):
        trained = _RICH_TRAINED if run.weight >= 1 else _RICH_LESS
        text.append(run.text, trained if run.weight else _RICH[run.kind])
    return text


def to_marked(view: View) -> str:
    """The text with ⟦ ⟧ around what is trained, where there are no colours; ⟦0.1|…⟧ where the weight is not 1."""
    parts: list[str] = []
    weight = 0.0
    for run in _runs(view):
        if run.weight != weight:
            parts.append("⟧" * bool(weight) + _opening(run.weight))
            weight = run.weight
        parts.append(run.text)
    return "".join(parts) + "⟧" * bool(weight)


def _opening(weight: float) -> str:
    return "" if not weight else "⟦" if weight == 1 else f"⟦{weight:g}|"


def to_html(view: View) -> str:
    """The same for a notebook; each run's title names its origin and weight."""
    parts = []
    for run in _runs(view):
        style = _CSS_TRAINED if run.weight else _CSS[run.kind]
        title = f"{run.origin}, weight {run.weight:g}" if run.weight else run.origin
        parts.append(f'<span style="{style}" title="{escape(title)}">{escape(run.text)}</span>')
    caption = f'<div style="color:#777">{escape(view.caption)}</div>' if view.caption else ""
    return f'<pre style="white-space:pre-wrap">{"".join(parts)}</pre>{caption}'
