"""How rendered text shows itself: literals, fields and trained text in colour, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from templatekit.tokens.supervision import loss_spans
from templatekit.types import RenderedText, TokenizedExample, TrainOn

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


class _Run(NamedTuple):
    text: str
    kind: str
    origin: str
    weight: float


def _runs(shown: RenderedText | TokenizedExample, train_on: TrainOn) -> Iterator[_Run]:
    """The text in runs of one origin and one weight, its control characters as pictures."""
    if isinstance(shown, TokenizedExample):
        rendered, losses = shown.rendered, shown.loss_spans
    else:
        rendered, losses = shown, loss_spans(shown, train_on)
    edges = {edge for span in rendered.spans for edge in (span.start, span.end)}
    edges |= {edge for span in losses for edge in (span.start, span.end)}
    at, loss = 0, 0
    for start, end in pairwise(sorted(edges)):
        while rendered.spans[at].end <= start:
            at += 1
        while loss < len(losses) and losses[loss].end <= start:
            loss += 1
        origin = rendered.spans[at].origin
        weight = losses[loss].weight if loss < len(losses) else 0.0
        yield _Run(rendered.text[start:end].translate(PICTURES), origin.kind, str(origin), weight)


def legend() -> Text:
    """What the colours of `to_rich` mean."""
    from rich.text import Text

    parts = (("template", _RICH["template"]), ("data", _RICH["field"]), ("trained", _RICH_TRAINED))
    return Text("  ").join(Text(name, style) for name, style in parts)


def to_rich(shown: RenderedText | TokenizedExample, *, train_on: TrainOn = "response") -> Text:
    """Coloured text for a terminal: dim template, cyan data, green trained, bold where the weight is 1 or more.

    `train_on` is for a `RenderedText`, which does not say what is trained.
    """
    from rich.text import Text

    text = Text()
    for run in _runs(shown, train_on):
        trained = _RICH_TRAINED if run.weight >= 1 else _RICH_LESS
        text.append(run.text, trained if run.weight else _RICH[run.kind])
    return text


def to_marked(shown: RenderedText | TokenizedExample, *, train_on: TrainOn = "response") -> str:
    """The text with ⟦ ⟧ around what is trained, where there are no colours; ⟦0.1|…⟧ where the weight is not 1."""
    parts: list[str] = []
    weight = 0.0
    for run in _runs(shown, train_on):
        if run.weight != weight:
            parts.append("⟧" * bool(weight) + _opening(run.weight))
            weight = run.weight
        parts.append(run.text)
    return "".join(parts) + "⟧" * bool(weight)


def _opening(weight: float) -> str:
    return "" if not weight else "⟦" if weight == 1 else f"⟦{weight:g}|"


def to_html(shown: RenderedText | TokenizedExample, *, train_on: TrainOn = "response") -> str:
    """The same for a notebook; each run's title names its origin and weight."""
    parts = []
    for run in _runs(shown, train_on):
        style = _CSS_TRAINED if run.weight else _CSS[run.kind]
        title = f"{run.origin}, weight {run.weight:g}" if run.weight else run.origin
        parts.append(f'<span style="{style}" title="{escape(title)}">{escape(run.text)}</span>')
    caption = ""
    if isinstance(shown, TokenizedExample):
        cut = f", shortened: {shown.truncated}" if shown.truncated else ""
        caption = f'<div style="color:#777">{len(shown)} tokens, {shown.trained_tokens} trained{cut}</div>'
    return f'<pre style="white-space:pre-wrap">{"".join(parts)}</pre>{caption}'
