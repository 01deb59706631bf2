"""The values that pass between the stages of the pipeline: frozen, keyword-only, without I/O.

```
Record ──adapter──▶ Example ──template──▶ RenderedText ──tokenizer──▶ TokenizedExample ──packer──▶ PackedBatch
```

Offsets are half-open and count characters of `text`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from templatekit.fast_init import fast_init
from templatekit.views import View, to_html, to_rich

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Record: TypeAlias = Mapping[str, Any]
"""One row of a data set, unchanged."""

IGNORE_INDEX = -100
"""The label of a token without loss. PyTorch's `cross_entropy` and every trainer built on it skip this value.

No other module spells out this number."""

MIN_WEIGHT, MAX_WEIGHT = 1e-9, 1e9
"""The bounds of a loss weight that is not 0. A product of two, and a sum over many tokens, fits into 32 bits (float32)
and is not rounded to 0 there."""
WEIGHT_RANGE = "0, or a number from 1e-9 to 1e9"
"""The bounds in words."""


def is_weight(value: float) -> bool:
    """Whether a number can be a loss weight: not if it is negative, not finite, or outside of the bounds."""
    return value == 0 or MIN_WEIGHT <= value <= MAX_WEIGHT


TrainOn: TypeAlias = str
"""Which text is trained, and with which weight: a base, then weights of roles and fields: `response=1,context=0.1`.

The bases are:

- `response`: in every assistant turn the target, which is everything that a server would generate, from the generation
  boundary to the end marker
- `content`: the assistant's own text and the end marker, without the template's literals between them
- `last`: the target of the last assistant turn alone
- `all`: every token but the first, which nothing predicts

`templatekit.config.train_on` parses the option.
"""

STANDARD_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""The usual roles of a chat."""

Boundary: TypeAlias = Literal["cut", "joint"]
"""`cut` encodes prompt and response separately, as serving does; `joint` encodes them together, as some recipes did."""

ControlTokens: TypeAlias = Literal["template", "everywhere"]
"""Whose text may become control tokens: the template's alone, or also the data's, as the tokenizer itself allows."""

EmptyThought: TypeAlias = Literal["keep", "omit", "error"]
"""What an answer without a thought gets where the template has an empty one for it: that, nothing, or a refusal."""

Truncation: TypeAlias = Literal["drop", "turns", "context", "response", "error"]
"""What happens to a sample that is too long.

- `drop`: it is dropped and counted
- `error`: it stops the run
- `turns`: its oldest turns are removed; the leading system message stays
- `context`: the end of `Message.context` is removed
- `response`: the end of the last trained answer is removed, including the end marker

A sample that the policy cannot shorten enough is dropped and counted.
"""


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant`, `tool`, or another role that the template supports."""
    content: str = ""
    parts: tuple[Mapping[str, Any], ...] = ()
    """The content as a list of text parts, if the data has one; `content` is then their text joined by newlines.

    Templates that accept lists receive the parts, as long as their text is that of `content`."""
    context: str = ""
    """Text that goes with a user's instruction: Alpaca's `input`, Dolly's `context`. The template prints it."""
    reasoning: str = ""
    """The assistant's thinking, without the markers that a template puts around it."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Tool calls as in OpenAI's API. The `arguments` of a call may be an object or JSON text; the template receives the
    form that it accepts."""
    tool_call_id: str = ""
    """The id of the call that a tool's message answers."""
    name: str = ""
    weight: float = 1.0
    """A factor of the loss of this message's tokens: with 0 they are not trained, with 1 fully."""

    def __post_init__(self) -> None:
        if not is_weight(self.weight):
            raise ValueError(f"a message's weight must be {WEIGHT_RANGE}; got weight={self.weight!r}")


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation, whatever file it came from."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    """Documents that the answers may use, for templates of retrieval models."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Values that the adapter keeps besides the conversation, such as Dolly's `category`."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """The count of each kind of text in the record that the adapter left out, such as deleted messages. The summary
    shows the totals."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("an example needs at least one message; got messages=()")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample(Example):
    """A prompt and two answers to it, one of which is preferred. `messages` is the prompt."""

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]

    def __post_init__(self) -> None:
        Example.__post_init__(self)
        for name in ("chosen", "rejected"):
            answer = getattr(self, name)
            if not answer or answer[-1].role != "assistant":
                found = answer[-1].role if answer else "nothing"
                raise ValueError(f"an answer ends with an assistant's message; got {found} at the end of {name}")

    def conversation(self, answer: Literal["chosen", "rejected"]) -> Example:
        """Return the prompt and one of the answers."""
        shared = {field.name: getattr(self, field.name) for field in fields(Example)}
        return Example(**shared | {"messages": self.messages + getattr(self, answer)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run of rendered characters comes from."""

    kind: Literal["template", "field", "computed"]
    """`template`: a literal of the template. `field`: copied from the data. `computed`: made by the template from
    several fields, or from numbers; it is treated as data."""
    message: int | None = None
    """Index into `Example.messages`; None for fields that belong to no message (`tools`, `documents`)."""
    field: str | None = None
    generation: bool = False
    """Whether the template writes the characters inside its own `{% generation %}` block."""

    def __str__(self) -> str:
        if self.kind != "field":
            return self.kind
        return self.field or "" if self.message is None else f"messages[{self.message}].{self.field}"

    @property
    def in_header(self) -> bool:
        """Whether the field is printed in the header of a turn, which a server does not generate."""
        return self.field in ("role", "name")

    @property
    def is_template(self) -> bool:
        """Whether the characters are a literal of the template: only these may become control tokens."""
        return self.kind == "template"


TEMPLATE = Origin(kind="template")
COMPUTED = Origin(kind="computed")


@lru_cache(maxsize=4096)
def field_origin(field: str, message: int | None = None) -> Origin:
    """Return the origin of a field's text. Equal arguments give the same object, so that comparing runs is fast."""
    return Origin(kind="field", message=message, field=field)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The special tokens of a tokenizer: templates print them, and the search for end markers looks for them."""

    bos: str = ""
    eos: str = ""
    pad: str = ""
    unk: str = ""
    sep: str = ""
    special: frozenset[str] = frozenset()
    """Every token that the tokenizer flags as special."""
    added: frozenset[str] = frozenset()
    """Every token that is an id of its own rather than text: the special ones, and others such as `<think>`."""
    stop_tokens: tuple[str, ...] = ()
    """The tokens at which servers stop: those that the model's `generation_config.json`, else its `config.json`, names;
    else EOS."""
    adds_bos: bool = False
    """Whether the tokenizer adds BOS before plain text; if so, BOS is also added before instruction formats."""
    known: bool = True
    """False without a tokenizer: `bos_token` and `eos_token` are then empty."""


NO_TOKENIZER = SpecialTokens(known=False)


class AnswerPiece(NamedTuple):
    """A part of what a model wrote: ordinary text, or the text of one control token."""

    text: str
    is_control: bool = False
    is_special: bool = False
    """Of a control token: whether it is flagged as special, so that no field of a message can hold it."""


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of characters with one origin."""

    start: int
    end: int
    origin: Origin


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpan:
    """The text that a server would generate in one assistant turn."""

    message: int
    """Index of the assistant's message."""
    start: int
    """The generation boundary: the text before it is what a server feeds the model."""
    marker_start: int
    """The offset at which the end marker starts."""
    end: int
    """The offset after the end marker. Equal to `marker_start` if the template declares that it has no end marker."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.marker_start <= self.end:
            raise ValueError(f"target offsets must rise; got {self.start}, {self.marker_start}, {self.end}")


class TracedLayout(Protocol):
    """Describes the texts of one compiled trace: they have equally many pieces, and equal constant pieces.

    No piece is empty, and all characters of a piece have one origin.
    """

    @property
    def is_constant(self) -> tuple[bool, ...]:
        """For each piece, whether it is the same in every text; a variable piece may hold any characters."""

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The origin of each piece. Adjacent pieces of one origin are one span."""

    @property
    def message_weights(self) -> tuple[float, ...] | None:
        """The message weights of every text; None where texts differ in them."""

    @property
    def target_messages(self) -> frozenset[int]:
        """As `RenderedText.target_messages`."""

    @property
    def sample(self) -> int:
        """As `RenderedText.sample`."""


class TracedText(Protocol):
    """A text of a compiled trace, which computes each field of its `RenderedText` on first access."""

    @property
    def layout(self) -> TracedLayout:
        """The layout of the text; texts with equal layouts differ in their variable pieces alone."""

    @property
    def pieces(self) -> tuple[str, ...]:
        """The characters of each piece; concatenated they are the text."""

    def compute(self, field: str) -> Any:
        """The value of a field of `RenderedText`."""


class _FromTrace:
    """Gives `RenderedText` fields that a `TracedText` computes on first access."""

    __slots__ = ("_traced",)
    _traced: TracedText

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Python calls this only for fields that are not set.
            if name not in _COMPUTED_FIELDS or (traced := getattr(self, "_traced", None)) is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value = traced.compute(name)
            object.__setattr__(self, name, value)
            return value


_COMPUTED_FIELDS = frozenset({"text", "spans", "target_spans", "message_weights", "roles", "samples", "history"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedText(_FromTrace):
    """The text of an example, with the origin of every character."""

    text: str
    spans: tuple[Span, ...]
    """The origin of every character: ordered, without gaps, over the whole text."""
    target_spans: tuple[TargetSpan, ...] = ()
    """One for each assistant turn, or for each `{% generation %}` block in it, in order; empty for a generation prompt.
    A turn has none if serving would render the text before it differently."""
    message_weights: tuple[float, ...] = ()
    roles: tuple[str, ...] = ()
    """The roles of the example's messages; `spans` refer to the messages by index."""
    row: int = 0
    """The row number of the record in its source, from 0."""
    source: str = ""
    """The name of the source, if a run has several."""
    sample: int = 0
    """The index of the sample among those of its record."""
    samples: int = 1
    """How many samples the record has."""
    history: int = 0
    """How many leading messages are also in an earlier sample. In these messages only targets may be trained here."""

    @classmethod
    def from_trace(cls, traced: TracedText, row: int) -> RenderedText:
        """A rendered text whose other fields are computed on first access."""
        self = object.__new__(cls)
        object.__setattr__(self, "_traced", traced)
        object.__setattr__(self, "row", row)
        object.__setattr__(self, "sample", traced.layout.sample)
        object.__setattr__(self, "source", "")  # a mixture sets it
        return self

    @property
    def length(self) -> int:
        """The number of characters; the text is not computed for it."""
        traced = self.traced
        return len(self.text) if traced is None else sum(map(len, traced.pieces))

    @property
    def traced(self) -> TracedText | None:
        """The layout and pieces; None where the text was not made by a compiled trace."""
        return getattr(self, "_traced", None)

    @property
    def target_messages(self) -> frozenset[int]:
        """Indices of the messages that have targets."""
        traced = self.traced
        return frozenset(t.message for t in self.target_spans) if traced is None else traced.layout.target_messages

    @property
    def generation_boundaries(self) -> tuple[int, ...]:
        """The offsets at which a server's prompt ends and generation starts, one for each target."""
        return tuple(target.start for target in self.target_spans)

    def view(self, losses: Sequence[LossSpan] | None = None) -> View:
        """Return the text for display, with the given weights; by default each target has its message's weight."""
        if losses is None:
            losses = [
                LossSpan(start=target.start, end=target.end, weight=self.message_weights[target.message])
                for target in self.target_spans
            ]
        return View(self.text, self.spans, losses)

    def _repr_html_(self) -> str:
        return to_html(self.view())

    def __rich__(self) -> Any:
        return to_rich(self.view())


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One text that a record is trained as, with its example.

    A record has the fewest samples in which each of its turns is trained after the text that serving would render.
    """

    example: Example
    """The conversation up to the last turn that this sample trains, or all of it."""
    rendered: RenderedText
    """The text. No other sample of the record has the same targets."""
    tokenized: TokenizedExample | None = None
    """The ids and weights; None before tokenization, and without a tokenizer."""

    def with_tokens(self, tokenized: TokenizedExample) -> Sample:
        """Return the sample with its ids and weights."""
        return Sample(example=self.example, rendered=tokenized.rendered, tokenized=tokenized)

    @property
    def result(self) -> TokenizedExample | RenderedText:
        """The tokenized example, or without a tokenizer the rendered text."""
        return self.rendered if self.tokenized is None else self.tokenized


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpan:
    """A run of characters with one loss weight."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """Token ids, and for each id the weight of its loss."""

    input_ids: tuple[int, ...]
    loss_weights: tuple[float, ...]
    """As long as `input_ids`; 0 for a token that is not trained. The weight at position i is for predicting token i."""
    rendered: RenderedText
    loss_spans: tuple[LossSpan, ...] = ()
    """The weights of the characters of `rendered.text`, without gaps."""
    truncated: Truncation | None = None
    """The policy that shortened the text: `turns`, `context` or `response`; None if it is complete."""

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.loss_weights):
            raise ValueError(f"{len(self.input_ids)} ids with {len(self.loss_weights)} loss weights")

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """`input_ids`, with `IGNORE_INDEX` for tokens that are not trained. Not shifted: trainers shift them."""
        return tuple(
            token if weight else IGNORE_INDEX for token, weight in zip(self.input_ids, self.loss_weights, strict=True)
        )

    @property
    def row(self) -> int:
        """The row number of the record in its source, from 0."""
        return self.rendered.row

    @property
    def trained_tokens(self) -> int:
        """How many tokens are trained."""
        return sum(1 for weight in self.loss_weights if weight)

    def __len__(self) -> int:
        return len(self.input_ids)

    def view(self) -> View:
        """Return the text for display, with its loss weights and the count of its tokens."""
        cut = f", shortened: {self.truncated}" if self.truncated else ""
        caption = f"{len(self)} tokens, {self.trained_tokens} trained{cut}"
        return View(self.rendered.text, self.rendered.spans, self.loss_spans, caption)

    def _repr_html_(self) -> str:
        return to_html(self.view())

    def __rich__(self) -> Any:
        return to_rich(self.view())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPair:
    """Two answers to a prompt, one of which is preferred. Both hold the prompt; only the answers have weights."""

    chosen: TokenizedExample
    rejected: TokenizedExample

    @property
    def row(self) -> int:
        """The row number of the record in its source, from 0."""
        return self.chosen.row


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of a pack's tokens: a whole document, a prefix that several documents share, or the rest of a document."""

    documents: tuple[int, ...]
    """The documents that end with this segment, as indices of the examples given to the packer: several if they are
    equal, none if all documents continue."""
    start: int
    end: int
    parent: int | None = None
    """The segment that is the shared prefix before this one; None if documents start here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """Concatenated examples, each of which attends only to itself; a prefix that several share may be stored once.

    Segments are in depth-first order: everything that follows a shared prefix comes directly after it, so that the
    tokens of all its documents are one run. Labels are already shifted: the token at `target_positions[i]` predicts
    `targets[i]`. A document's last token predicts nothing, so it is not in `input_ids`.
    """

    input_ids: NDArray[np.int64]
    """Shape (tokens,)."""
    position_ids: NDArray[np.int64]
    """Shape (tokens,): the position of each token in its documents."""
    segments: tuple[Segment, ...]
    target_positions: NDArray[np.int64]
    """Shape (targets,): ascending indices into `input_ids`; equal if several documents follow a shared token."""
    target_documents: NDArray[np.int64]
    """Shape (targets,): the document of each target."""
    targets: NDArray[np.int64]
    """Shape (targets,): token ids."""
    weights: NDArray[np.float32]
    """Shape (targets,): loss weights, all above 0."""
    tokens: int
    """The count of the input tokens of all documents; a shared token counts once for each document."""
