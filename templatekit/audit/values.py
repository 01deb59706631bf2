"""What rules look at, and what they answer.

```
records ──stream──▶ Row, with its Samples ──Rule.row───▶ Hit ──tally──▶ Finding ──▶ Report
                    Setup                 ──Rule.setup─▶ Hit
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from templatekit import types
from templatekit.config.options import DataOptions
from templatekit.errors import RecordError
from templatekit.formats.template import Template
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import LossSpan, SpecialTokens, TokenizedExample

Level: TypeAlias = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""The most severe first."""

Need: TypeAlias = Literal["tokenizer", "max_length", "against", "shared"]
"""An option without which a rule has nothing to look at."""


class Edge(NamedTuple):
    """A text's ids by cuts and as a whole, where the two differ."""

    cut: tuple[int, ...]
    whole: tuple[int, ...]


class Lossy(NamedTuple):
    """A field's text that the tokenizer does not give back."""

    message: int
    field: str
    text: str
    decoded: str


class Elsewhere(NamedTuple):
    """A row of another data set."""

    dataset: str
    row: int
    similarity: float | None = None
    """The estimated share of runs of three words that both have; None where what is compared is equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedSample(types.Sample):
    """One sample of a row, with what only the whole stream or a batch can tell of it."""

    losses: tuple[LossSpan, ...]
    """Loss weights in characters, gap-free."""
    length: int
    """In tokens; without a tokenizer in characters."""
    trained: tuple[int, int] | None
    """Positions of the first and the last trained token (without a tokenizer: character); None where none is."""
    edge: Edge | None = None
    lossy: tuple[Lossy, ...] = ()
    fitted: TokenizedExample | None = None
    """What `--truncation` makes of it where it is longer than `--max-length`; None where it drops it."""
    goes_on: bool = False
    """The row's next sample holds these messages and more: then rows are compared by that one."""
    same_text: int | None = None
    """The first row with this very text."""
    same_prompt: int | None = None
    """The first row with this text up to the last answer, and another answer."""
    shared_text: Elsewhere | None = None
    shared_prompt: Elsewhere | None = None
    nearly_shared: Elsewhere | None = None
    """The most similar row of another data set, where none has this very text."""

    def trains(self, start: int, end: int) -> bool:
        """Whether a character of `rendered.text[start:end]` carries loss."""
        return any(span.weight > 0 for span in self.losses if span.start < end and span.end > start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A record and what became of it: samples, or an error."""

    number: int
    unread: Mapping[str, Any] = field(default_factory=dict)
    """What the record holds under keys that the adapter does not read."""
    samples: tuple[AuditedSample, ...] = ()
    error: RecordError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTokens:
    """The ids at which a server that loads the tokenizer's folder stops."""

    ids: tuple[int, ...]
    where: str
    """What says so."""


class Marker(NamedTuple):
    """A text that the template writes around fields, such as `### Response:`."""

    text: str
    leads: bool
    """Stands at the start of a line, and counts only there: it begins with a letter, so that prose may hold it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is the same for every row."""

    options: DataOptions
    template: Template
    special: SpecialTokens
    tokenizer: Tokenizer | None
    markers: tuple[Marker, ...]
    end_marker: str
    """What the template writes behind an answer; "" where that is not known."""
    trailing: str
    """What it writes behind the last end marker."""
    stops: StopTokens | None


class Hit(NamedTuple):
    """Something a rule found."""

    what: str = ""
    """Of several kinds that a rule tells apart, which; counted apart in the report."""
    detail: str = ""
    """What the excerpt alone does not show."""
    sample: AuditedSample | None = None
    start: int | None = None
    """Where the place in the sample's text begins; None for all of it."""
    end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that an audit looks for. Its function is pure: equal rows give equal hits."""

    code: str
    level: Level
    title: str
    help: str
    """One sentence: what it means, and what to do."""
    needs: tuple[Need, ...] = ()
    row: Callable[[Row, Setup], Iterable[Hit]] | None = None
    setup: Callable[[Setup], Iterable[Hit]] | None = None
    explain: Callable[[Hit, Setup], Hit] | None = None
    """Fills in the place and the detail of the one hit that is shown, where they cost too much for every hit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A part of an excerpt: characters of one origin, trained or not, inside or outside the place."""

    text: str
    """With control and format characters as pictures."""
    kind: Literal["template", "field", "computed"]
    origin: str
    trained: bool
    here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """The one place that a finding shows."""

    row: int | None
    """None for what belongs to no row."""
    detail: str
    runs: tuple[Run, ...] = ()
    cut_left: bool = False
    """Text goes on before the excerpt."""
    cut_right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind within a finding."""

    what: str
    count: int
    first_row: int | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found in the whole set."""

    rule: Rule
    count: int
    """Rows; for what belongs to no row, occurrences."""
    share: float | None
    """Of all rows; None for what belongs to no row."""
    rows: tuple[int, ...]
    """The first of them."""
    parts: tuple[Part, ...]
    """The kinds, the most frequent first; empty where the rule tells none apart. A row may count in several."""
    example: Excerpt | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long the rows' texts are. Above 65,536 the figures are rounded down to three digits, but for the longest."""

    unit: Literal["tokens", "characters"]
    shortest: int
    median: int
    p95: int
    p99: int
    longest: int
    longest_row: int
    over: dict[int, int]
    """Texts longer than 512, 1,024, …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Another data set that the rows were compared with."""

    dataset: str
    rows: int
    unusable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An audit's result."""

    dataset: str
    adapter: str | None
    template: str
    tokenizer: str | None
    train_on: str
    max_length: int | None
    rows: int
    usable: int
    tokens: int | None
    trained_tokens: int | None
    lengths: Lengths | None
    """None where no row is usable."""
    against: tuple[Against, ...]
    findings: tuple[Finding, ...]
    """The most severe first; of one level, the most frequent first."""
    clean: tuple[str, ...]
    """Codes of the rules that found nothing."""
    not_checked: dict[str, str]
    """Codes of the rules that had nothing to look at, with the options they need."""

    def at_or_above(self, level: Level) -> int:
        """How many findings are at least this severe."""
        return sum(1 for finding in self.findings if LEVELS.index(finding.rule.level) <= LEVELS.index(level))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; docs/audit.md describes it."""
        from templatekit.audit.json import as_dict

        return as_dict(self)
