"""The ids of a conversation: a prompt, then sampled answers and what stands between them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

from templatekit.errors import shorten
from templatekit.formats.answers.parsing import ParsedAnswer
from templatekit.formats.rendering import Rendering
from templatekit.types import (
    COMPUTED,
    TEMPLATE,
    LossSpan,
    RenderedText,
    TargetSpan,
    TokenizedExample,
    field_origin,
)

Reason: TypeAlias = Literal["dropped", "not_in_form", "rewritten"]
"""Why a template's next prompt does not begin with what was sent and sampled.

- `dropped`: it leaves out a field that was written before, as Qwen 3 leaves out the thoughts of earlier turns
- `not_in_form`: the answer is not written as the template writes the message that was read from it
- `rewritten`: it writes earlier text otherwise, as Mistral moves the tools to the last user's turn
"""


class Dropped(NamedTuple):
    """Text that a template leaves out of the next prompt."""

    message: int
    """Index of the message in the conversation."""
    field: str
    """`reasoning`, `content`, `tool_calls`, or `leftover`: text of an answer that is in no field."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A place where a template's next prompt does not begin with what was sent and sampled."""

    turn: int
    """Index of the answer behind which it was noticed."""
    reason: Reason
    sent: str
    """The text that was sent or sampled, from the first character to the last one that the next prompt has not."""
    written: str
    """What the template now writes in its place."""
    dropped: tuple[Dropped, ...] = ()

    def __str__(self) -> str:
        fields = ", ".join(f"messages[{each.message}].{each.field}" for each in self.dropped)
        what = {
            "dropped": f"the template leaves out {fields}",
            "not_in_form": f"messages[{self.turn}] is not written as the template writes such an answer",
            "rewritten": "the template writes earlier text otherwise",
        }[self.reason]
        return f"{what}: {shorten(self.sent)} became {shorten(self.written)}"


class Piece(NamedTuple):
    """A run of ids: a prompt, what stands between two answers, or an answer as it was sampled."""

    ids: tuple[int, ...]
    rendering: Rendering
    """The text of the ids. For an answer it is what they decode to."""
    turn: int | None = None
    """The index of the answer's message; None for what was not sampled."""
    marker_start: int = 0
    """In an answer, the offset at which its end marker starts."""
    logprobs: tuple[float, ...] | None = None

    @classmethod
    def of_answer(
        cls, ids: tuple[int, ...], answer: ParsedAnswer, turn: int, logprobs: tuple[float, ...] | None
    ) -> Piece:
        """The piece of an answer; what is in a field of the message has the origin of that field."""
        rendering = Rendering("", ())
        marker_start = 0
        for start, end, name in answer.spans:
            origin = COMPUTED if name == "leftover" else field_origin(name.split("[")[0], turn) if name else TEMPLATE
            rendering = rendering.followed_by(Rendering.piece(answer.text[start:end], origin))
            marker_start = end if name else marker_start
        return cls(ids, rendering, turn, marker_start, logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One sequence of ids, as a server saw and sampled it: a prompt, then a completion that holds every answer."""

    pieces: tuple[Piece, ...]
    """The prompt, then answers and what stands between them, in turn."""
    roles: tuple[str, ...]
    """The roles of the conversation's messages."""
    divergence: Divergence | None = None
    """Why this branch was begun; None for the first."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id, in order."""
        return tuple(chain.from_iterable(piece.ids for piece in self.pieces))

    @property
    def sampled_mask(self) -> tuple[int, ...]:
        """For each id, 1 if the model sampled it in this branch, else 0."""
        return tuple(chain.from_iterable([int(piece.turn is not None)] * len(piece.ids) for piece in self.pieces))

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids before the first answer."""
        return self.pieces[0].ids

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """The ids from the first answer on."""
        return self.ids[len(self.prompt_ids) :]

    @property
    def completion_mask(self) -> tuple[int, ...]:
        """The mask of `completion_ids`."""
        return self.sampled_mask[len(self.prompt_ids) :]

    @property
    def completion_logprobs(self) -> tuple[float, ...] | None:
        """The log probability of each of `completion_ids`, 0 where it was not sampled; None if an answer has none."""
        found: list[float] = []
        for piece in self.pieces[1:]:
            if piece.turn is not None and piece.logprobs is None:
                return None
            found += piece.logprobs or [0.0] * len(piece.ids)
        return tuple(found)

    def example(self, *, weight: float = 1.0, row: int = 0) -> TokenizedExample:
        """The ids as an example to train on: the sampled ones have this weight, all others 0.

        `row` is the number under which errors name the example.
        """
        rendering = Rendering("", ())
        targets, losses = [], []
        for piece in self.pieces:
            start = len(rendering.text)
            rendering = rendering.followed_by(piece.rendering)
            end = len(rendering.text)
            sampled = piece.turn is not None
            losses.append(LossSpan(start=start, end=end, weight=weight if sampled else 0.0))
            if piece.turn is not None:
                marker_start = start + piece.marker_start
                targets.append(TargetSpan(message=piece.turn, start=start, marker_start=marker_start, end=end))
        turns = {target.message for target in targets}
        rendered = RenderedText(
            text=rendering.text,
            spans=rendering.spans,
            target_spans=tuple(targets),
            message_weights=tuple(weight if index in turns else 0.0 for index in range(len(self.roles))),
            roles=self.roles,
            row=row,
        )
        weights = tuple(weight if sampled else 0.0 for sampled in self.sampled_mask)
        return TokenizedExample(input_ids=self.ids, loss_weights=weights, rendered=rendered, loss_spans=tuple(losses))
