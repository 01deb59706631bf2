"""The values that pass between the stages: frozen, keyword-only, without I/O.

```
Record ──adapter──▶ Example ──template──▶ RenderedText ──tokenizer──▶ TokenizedExample ──packer──▶ PackedBatch
```

Offsets are in characters of `text`, half-open. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from templatekit.frozen import quickly_made
from templatekit.views import View, to_html, to_rich

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Record: TypeAlias = Mapping[str, Any]
"""One row as it lies in the file."""

IGNORE_INDEX = -100
"""The label of a token without loss. PyTorch's `cross_entropy` and every trainer built on it skip this value.

This is the only place that spells it."""

TrainOn: TypeAlias = str
"""What is trained, and how much: a base, and weights for roles and fields, as in `response=1,context=0.1`.

The bases: `response`, in every assistant turn all that a server would generate, from the generation boundary to the end
marker. `content`, the assistant's own text and the end marker, without the template's literals between them. `last`,
`response` in the last assistant turn alone. `all`, every token but the first, which nothing predicts.
`templatekit.config.train_on` knows the rest.
"""

STANDARD_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""Roles that every chat knows."""

Boundary: TypeAlias = Literal["cut", "joint"]
"""`cut` encodes prompt and response apart, as serving does. `joint` encodes across the edge, as some recipes did."""

ControlTokens: TypeAlias = Literal["template", "everywhere"]
"""Whose text may become control tokens: the template's alone, or the data's too, as the tokenizer itself parses it."""


Truncation: TypeAlias = Literal["drop", "turns", "context", "response", "error"]
"""What becomes of a sample that is too long.

`drop`: it is dropped and counted. `error`: it stops the run.
`turns`: its oldest turns go, and the leading system message stays.
`context`: the end of `Message.context` goes.
`response`: the end of the last trained answer goes, and with it the end marker.
What a policy cannot shorten enough is dropped and counted.
"""


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant`, `tool`, or whatever the template understands."""
    content: str = ""
    parts: tuple[Mapping[str, Any], ...] = ()
    """The content as a list of text parts, where the data has one; `content` is then their text joined by newlines.

    Templates that take lists receive it, as long as it says what `content` says."""
    context: str = ""
    """Text that goes with a user's instruction: Alpaca's `input`, Dolly's `context`. The template places it."""
    reasoning: str = ""
    """The assistant's thinking, without the markers a template puts around it."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """As OpenAI's API has them; a call's `arguments` may be an object or its JSON. The template gets what it takes."""
    tool_call_id: str = ""
    """Which call a tool's answer belongs to."""
    name: str = ""
    weight: float = 1.0
    """Multiplies the loss of this message's tokens: 0 leaves it untrained, 1 trains it fully."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"a message's weight must be finite and at least 0; got weight={self.weight!r}")


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training example, whatever file it came from."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    """What the answers may draw on, for templates of retrieval models."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the adapter keeps beside the conversation, such as Dolly's `category`."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many parts of the record are not in the example, by what they are; the summary counts them."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("an example needs at least one message; got messages=()")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample(Example):
    """A prompt with two answers to it, of which one is preferred. `messages` is the prompt."""

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
        """The prompt and one of the answers."""
        shared = {one.name: getattr(self, one.name) for one in fields(Example)}
        return Example(**shared | {"messages": self.messages + getattr(self, answer)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run of rendered characters came from."""

    kind: Literal["template", "field", "computed"]
    """`template`: written in the template. `field`: copied from the data. `computed`: made by the template from
    several fields, or from numbers; it is treated as data."""
    message: int | None = None
    """Index into `Example.messages`; None for what belongs to no message (`tools`, `documents`)."""
    field: str | None = None
    generation: bool = False
    """Written inside the template's own `{% generation %}` block."""

    def __str__(self) -> str:
        if self.kind != "field":
            return self.kind
        return self.field or "" if self.message is None else f"messages[{self.message}].{self.field}"

    @property
    def in_header(self) -> bool:
        """Whether the field is one that templates print in a turn's header, which a server feeds."""
        return self.field in ("role", "name")

    @property
    def is_template(self) -> bool:
        """Whether the characters stand in the template itself: only these may become control tokens."""
        return self.kind == "template"


TEMPLATE = Origin(kind="template")
COMPUTED = Origin(kind="computed")


@lru_cache(maxsize=4096)
def field_origin(field: str, message: int | None = None) -> Origin:
    """The origin of a field's own text; equal arguments give one object, so runs compare quickly."""
    return Origin(kind="field", message=message, field=field)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """What a template and the search for its end marker need to know of a tokenizer."""

    bos: str = ""
    eos: str = ""
    pad: str = ""
    unk: str = ""
    special: frozenset[str] = frozenset()
    """Every token that the tokenizer flags as special."""
    adds_bos: bool = False
    """Whether the tokenizer itself puts BOS in front of plain text; instruction formats follow it."""
    known: bool = True
    """False without a tokenizer: then `bos_token` and `eos_token` print nothing."""


NO_TOKENIZER = SpecialTokens(known=False)


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of characters of one origin."""

    start: int
    end: int
    origin: Origin


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpan:
    """What a server would generate in one assistant turn."""

    message: int
    """Index of the assistant's message."""
    start: int
    """The generation boundary: the text before it is what a server feeds the model."""
    marker_start: int
    """Where the end marker begins."""
    end: int
    """Behind the end marker. Equal to `marker_start` where the template declares that there is none."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.marker_start <= self.end:
            raise ValueError(f"target offsets must rise; got {self.start}, {self.marker_start}, {self.end}")


class Outline(Protocol):
    """What texts of one plan have in common: they have as many pieces, none of them empty, each of its own origin."""

    @property
    def fixed(self) -> tuple[bool, ...]:
        """Of each piece, whether it is the same in every text; of others any text may stand there."""

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Of each piece. Neighbours of one origin are one span."""

    @property
    def message_weights(self) -> tuple[float, ...] | None:
        """Those of all texts; None where they differ."""

    @property
    def target_messages(self) -> frozenset[int]:
        """As `RenderedText.target_messages`."""

    @property
    def sample(self) -> int:
        """As `RenderedText.sample`."""


class Deferred(Protocol):
    """Works out the fields of a `RenderedText`, each when it is first asked for."""

    @property
    def outline(self) -> Outline:
        """Equal to that of texts with which this one has all in common but the variable pieces."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The pieces; together the text."""

    def work_out(self, field: str) -> Any:
        """The value of a field."""


class _FromDeferred:
    """What a `RenderedText` is made from that has not all of its fields yet."""

    __slots__ = ("_deferred",)
    _deferred: Deferred

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Asked for fields that are not set alone.
            if name not in _LATER or (deferred := getattr(self, "_deferred", None)) is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value = deferred.work_out(name)
            object.__setattr__(self, name, value)
            return value


_LATER = frozenset({"text", "spans", "target_spans", "message_weights", "roles", "samples", "history"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedText(_FromDeferred):
    """The text of an example, with the origin of every character."""

    text: str
    spans: tuple[Span, ...]
    """Ordered and gap-free over the whole text."""
    target_spans: tuple[TargetSpan, ...] = ()
    """One an assistant turn, or one a `{% generation %}` block of it, in order; empty for a generation prompt. Turns
    that serving would meet otherwise than they stand here have none."""
    message_weights: tuple[float, ...] = ()
    roles: tuple[str, ...] = ()
    """The roles of the example's messages: `spans` refer to them by index."""
    row: int = 0
    """The record's number in its source, counted from 0."""
    source: str = ""
    """The name of that source, where a run has several."""
    sample: int = 0
    """The sample's number among the record's, counted from 0."""
    samples: int = 1
    """How many samples the record gave."""
    history: int = 0
    """How many of its messages an earlier sample begins with: of these, targets alone may be trained here."""

    @classmethod
    def deferred(cls, source: Deferred, row: int) -> RenderedText:
        """One whose other fields are worked out when they are first asked for."""
        self = object.__new__(cls)
        object.__setattr__(self, "_deferred", source)
        object.__setattr__(self, "row", row)
        object.__setattr__(self, "sample", source.outline.sample)
        object.__setattr__(self, "source", "")  # a mixture says it
        return self

    @property
    def filled(self) -> Deferred | None:
        """Its outline and pieces, where a plan made it."""
        return getattr(self, "_deferred", None)

    @property
    def target_messages(self) -> frozenset[int]:
        """The messages that targets belong to."""
        filled = self.filled
        return frozenset(t.message for t in self.target_spans) if filled is None else filled.outline.target_messages

    @property
    def generation_boundaries(self) -> tuple[int, ...]:
        """Where a server's prompt ends and the model goes on, one offset an assistant turn."""
        return tuple(target.start for target in self.target_spans)

    def view(self, losses: Sequence[LossSpan] | None = None) -> View:
        """For display, with the weights that are given, else with the targets that each message's weight trains."""
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


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One of the texts that a record is trained in: as few as hold each of its turns as serving would meet it."""

    example: Example
    """Its messages end with the turn that the sample was made for, or are all of the record's."""
    rendered: RenderedText
    """Its targets are those of no other sample of the record."""
    tokenized: TokenizedExample | None = None
    """Its ids and weights; None before tokenization, and without a tokenizer."""

    def with_tokens(self, tokenized: TokenizedExample) -> Sample:
        """The sample as it is once tokenized, or tokenized anew."""
        return Sample(example=self.example, rendered=tokenized.rendered, tokenized=tokenized)

    @property
    def result(self) -> TokenizedExample | RenderedText:
        """What came of the sample: with a tokenizer the tokenized example, without one the rendered text."""
        return self.rendered if self.tokenized is None else self.tokenized


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpan:
    """A run of characters with one loss weight."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """Token ids and, for each, the weight of the loss on predicting it."""

    input_ids: tuple[int, ...]
    loss_weights: tuple[float, ...]
    """As long as `input_ids`: 0 where not trained. The weight at position i belongs to the prediction *of* token i."""
    rendered: RenderedText
    loss_spans: tuple[LossSpan, ...] = ()
    """The weights in characters of `rendered.text`, gap-free."""
    truncated: Truncation | None = None
    """The policy that shortened it: `turns`, `context` or `response`; None where it is whole."""

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.loss_weights):
            raise ValueError(f"{len(self.input_ids)} ids with {len(self.loss_weights)} loss weights")

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """`input_ids` where trained, else `IGNORE_INDEX`. Not shifted: trainers shift."""
        return tuple(
            token if weight else IGNORE_INDEX for token, weight in zip(self.input_ids, self.loss_weights, strict=True)
        )

    @property
    def row(self) -> int:
        """The record's number in its source, counted from 0."""
        return self.rendered.row

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry loss."""
        return sum(1 for weight in self.loss_weights if weight)

    def __len__(self) -> int:
        return len(self.input_ids)

    def view(self) -> View:
        """For display, with the number of tokens."""
        cut = f", shortened: {self.truncated}" if self.truncated else ""
        caption = f"{len(self)} tokens, {self.trained_tokens} trained{cut}"
        return View(self.rendered.text, self.rendered.spans, self.loss_spans, caption)

    def _repr_html_(self) -> str:
        return to_html(self.view())

    def __rich__(self) -> Any:
        return to_rich(self.view())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPair:
    """Two answers to a prompt, of which one is preferred: whole texts, with weights on the answers alone."""

    chosen: TokenizedExample
    rejected: TokenizedExample

    @property
    def row(self) -> int:
        """The record's number in its source, counted from 0."""
        return self.chosen.row


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of a pack's tokens: a document, or a part of one that several documents share."""

    documents: tuple[int, ...]
    """The examples that end with this segment, as indices in the order they were given to the packer; several where
    they are equal, none where every document goes on."""
    start: int
    end: int
    parent: int | None = None
    """The segment whose tokens come before this one's, as a shared prefix; None where documents begin here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """Examples laid end to end in one row, each seeing only itself; what several begin with may be there once.

    Segments lie in the order of a tree walk: what follows a shared prefix stands right behind it, so that the tokens of
    all its documents are one run. The label shift is done: `targets[i]` is what the token at `target_positions[i]` has
    to predict. A document's last token predicts nothing, so it is not in `input_ids`.
    """

    input_ids: NDArray[np.int64]
    """Shape (tokens,)."""
    position_ids: NDArray[np.int64]
    """Shape (tokens,): each token's place in its documents."""
    segments: tuple[Segment, ...]
    target_positions: NDArray[np.int64]
    """Shape (targets,): indices into `input_ids`, rising; equal where documents that share the token go on from it."""
    target_documents: NDArray[np.int64]
    """Shape (targets,): the example whose target it is."""
    targets: NDArray[np.int64]
    """Shape (targets,): token ids."""
    weights: NDArray[np.float32]
    """Shape (targets,): loss weights, all above 0."""
    tokens: int
    """Inputs of all documents, those that they share counted for each."""
