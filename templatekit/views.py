"""How rendered text shows itself: literals, fields and trained text in colour, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from templatekit.types import LossSpan, RenderedText, TokenizedExample

if TYPE_CHECKING:
    from rich.text import Text

LEGEND = (("template", "template"), ("field", "from the data"), ("trained", "trained"))
_RICH = {"template": "dim", "field": "cyan", "computed": "magenta"}
_RICH_TRAINED = "bold green"
_CSS = {"template": "color:#777", "field": "color:#06c", "computed": "color:#a3a"}
_CSS_TRAINED = "background:#d6f5d6;color:#064"


class _Run(NamedTuple):
    text: str
    kind: str
    origin: str
    weight: float


def _runs(shown: RenderedText | TokenizedExample) -> Iterator[_Run]:
    """The text in runs of one origin and one weight."""
    if isinstance(shown, TokenizedExample):
        rendered, losses = shown.rendered, shown.loss_spans
    else:
        rendered = shown
        losses = tuple(
            LossSpan(start=target.start, end=target.end, weight=shown.message_weights[target.message])
            for target in shown.target_spans
        )
    edges = {0, len(rendered.text)}
    edges |= {edge for span in rendered.spans for edge in (span.start, span.end)}
    edges |= {edge for span in losses for edge in (span.start, span.end)}
    for start, end in pairwise(sorted(edges)):
        origin = next(span.origin for span in rendered.spans if span.start <= start < span.end)
        weight = next((span.weight for span in losses if span.start <= start < span.end), 0.0)
        yield _Run(rendered.text[start:end], origin.kind, str(origin), weight)


def to_rich(shown: RenderedText | TokenizedExample) -> Text:
    """Coloured text for a terminal: dim template, cyan data, green trained."""
    from rich.text import Text

    text = Text()
    for run in _runs(shown):
        text.append(run.text, _RICH_TRAINED if run.weight else _RICH[run.kind])
    return text


def to_marked(shown: RenderedText | TokenizedExample) -> str:
    """The text with ⟦ ⟧ around what is trained, where there are no colours."""
    parts: list[str] = []
    trained = False
    for run in _runs(shown):
        if bool(run.weight) != trained:
            parts.append("⟧" if trained else "⟦")
            trained = not trained
        parts.append(run.text)
    return "".join(parts) + ("⟧" if trained else "")


def to_html(shown: RenderedText | TokenizedExample) -> str:
    """The same for a notebook; each run's title names its origin and weight."""
    parts = []
    for run in _runs(shown):
        style = _CSS_TRAINED if run.weight else _CSS[run.kind]
        title = f"{run.origin}, weight {run.weight:g}" if run.weight else run.origin
        parts.append(f'<span style="{style}" title="{escape(title)}">{escape(run.text)}</span>')
    caption = ""
    if isinstance(shown, TokenizedExample):
        caption = f'<div style="color:#777">{len(shown)} tokens, {shown.trained_tokens} trained</div>'
    return f'<pre style="white-space:pre-wrap">{"".join(parts)}</pre>{caption}'
