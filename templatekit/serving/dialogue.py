"""A conversation with a model as token ids, for tools and reinforcement learning: token in, token out.

What is sampled is never encoded anew: text that is decoded and encoded again may become other ids, and the model would
then be trained on ids that it never gave. So a `Dialogue` keeps the sampled ids. It reads them as a message, renders
the conversation with that message and the new ones, and appends the *bridge*: the ids of what the template writes from
the end of the answer to the end of the next prompt.

That is exact where the template is *stable*: the next prompt begins with the last one and the answer, character for
character. Where it does not, as where a template drops the thoughts of earlier turns, there is a `Divergence`, and
`history` says what then happens:

- `keep`: the model goes on from the ids as they are. What is sent is then not what a server would send.
- `branch`: the model goes on from the next prompt as the template writes it, in a new sequence of ids. Each answer is
  trained in the branch in which it was sampled.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from templatekit.errors import ConfigError, RecordError, TemplateError, nearest, shorten
from templatekit.formats.answers.parsing import ParsedAnswer
from templatekit.formats.lookup import find_template
from templatekit.formats.rendering import Rendering
from templatekit.formats.served_answer import with_one_letter
from templatekit.formats.template import Template
from templatekit.hooks.loading import create_registry
from templatekit.hooks.record_fields import as_function, objects_of, text_of
from templatekit.hooks.registry import Registry
from templatekit.serving.branches import Branch, Divergence, Dropped, Piece, Reason
from templatekit.serving.bridging import (
    AnswerEnd,
    answer_end,
    bridge_encoder,
    difference,
    dropped_fields,
    shared_end_marker,
)
from templatekit.tokens.load import find_tokenizer, from_transformers
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example, Message, TokenizedExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Address: TypeAlias = str | os.PathLike[str]
History: TypeAlias = Literal["keep", "branch"]
Messages: TypeAlias = tuple[Message, ...]


class Bridge(NamedTuple):
    """What leads from an answer to the next prompt."""

    ids: tuple[int, ...]
    """The ids to append to those so far; the whole prompt if nothing was sampled yet, or a branch begins."""
    divergence: Divergence | None = None
    """Where the next prompt does not begin with what was sent and sampled; None if it does."""
    begins_branch: bool = False


class _ServedAnswer(NamedTuple):
    """The last answer, as the template writes it at the end of a conversation."""

    text: str
    marker: str
    """Its end marker, at the end of the text."""
    stop: str = ""
    """The special token at the end of the marker."""

    def rest_behind(self, beginning: str, closing: str) -> str:
        """What completes an answer that was cut; `closing` is what the template writes behind it before another turn.

        Some templates end the last answer with another token than earlier ones.
        """
        rest = self.text[len(beginning) :]
        if self.stop and self.stop not in closing and self.stop in rest:
            rest = rest[: rest.rindex(self.stop)] + closing
        return rest


class Dialogue:
    """A conversation with a model: it gives prompts as ids and takes answers as the ids that were sampled.

    ```
    dialogue = Dialogue(template, tokenizer, messages=[Message(role="user", content="What is 6 times 7?")])
    answer = dialogue.add_answer(sample(dialogue.prompt_ids))
    dialogue.add(Message(role="user", content="Are you sure?"))
    ```
    """

    def __init__(
        self,
        template: Address | Template,
        tokenizer: Address | Tokenizer | PreTrainedTokenizerBase,
        *,
        messages: Iterable[Message | Mapping[str, Any]] = (),
        tools: Iterable[Mapping[str, Any]] = (),
        history: History = "keep",
        registry: Registry | None = None,
    ) -> None:
        """`messages` begin the conversation, and may hold answers that were not sampled here.

        `tools` are the functions that the model is offered. `history` says what happens where the template does not
        write earlier text again as it was sent or sampled: see the head of this module. Template and tokenizer may be
        names, which are found in the `registry`. That takes time, as does the first answer by a template: for many
        dialogues, give the objects, or `fork` one dialogue.
        """
        if history not in get_args(History):
            raise ConfigError(
                f"history={history!r}: expected keep or branch; {nearest(str(history), get_args(History))}"
            )
        self.template, self.tokenizer = _found(template, tokenizer, registry)
        self._history: History = history
        self._tokens = self.tokenizer.special_tokens
        self._encoder = bridge_encoder(self.tokenizer)
        self.tools = tuple(map(as_function, tools))
        self._messages: Messages = tuple(map(_as_message, messages))
        self._branches: list[list[Piece]] = []
        self._divergences: list[Divergence] = []
        self._begun_by: list[Divergence | None] = []
        self._prompt = Rendering("", ())
        """The last prompt as the template writes it; with `keep`, it may not be what was sent."""
        self._answer: ParsedAnswer | None = None
        """The answer behind the last prompt; None while it is to be sampled."""

    @property
    def messages(self) -> Messages:
        """The conversation so far. Answers are in it as they were read."""
        return self._messages

    @property
    def divergences(self) -> tuple[Divergence, ...]:
        """Every place where the template did not write again what was sent and sampled."""
        return tuple(self._divergences)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The sequences of ids: one, unless the template diverged and `history` is `branch`."""
        roles = tuple(message.role for message in self._messages)
        return tuple(
            Branch(pieces=tuple(pieces), roles=roles, divergence=divergence)
            for pieces, divergence in zip(self._branches, self._begun_by, strict=True)
        )

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids to send to the model: all of this branch, up to the end of the generation prompt.

        Raises `RecordError` if the last message is an answer, and as `Template.prompt` does.
        """
        if self._answer is not None:
            raise self._error("the last message is an answer, so there is no prompt; add what follows it", "no_prompt")
        if not self._branches:
            self.add()
        return self.ids

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id of the last branch, in order: prompt, answers as they were sampled, bridges."""
        return self.branches[-1].ids if self._branches else ()

    @property
    def sampled_mask(self) -> tuple[int, ...]:
        """For each of `ids`, 1 if the model sampled it in this branch, else 0."""
        return self.branches[-1].sampled_mask if self._branches else ()

    def examples(self, *, weight: float = 1.0, row: int = 0) -> list[TokenizedExample]:
        """One example to train on for each branch with an answer; each sampled id has the weight in exactly one."""
        return [branch.example(weight=weight, row=row) for branch in self.branches if any(branch.sampled_mask)]

    def fork(self) -> Dialogue:
        """A dialogue that goes on from here by itself, as for several answers to one prompt."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._branches = [list(pieces) for pieces in self._branches]
        other._divergences, other._begun_by = list(self._divergences), list(self._begun_by)
        return other

    def add_answer(self, ids: Iterable[int], *, logprobs: Iterable[float] | None = None) -> ParsedAnswer:
        """Take the ids that the model sampled, and return them as a message.

        The ids are kept as they are. The stop token may be missing, as where the answer was cut or the server took it
        away: the next bridge then closes the answer, with ids that do not count as sampled. `logprobs` are the log
        probabilities of the ids.

        Raises `RecordError` for no ids, for an id below 0, and behind another answer; `TemplateError` as
        `Template.grammar` does.
        """
        if self._answer is not None:
            raise self._error("an answer behind an answer; join the ids of one answer, or add what follows it")
        if not self._branches:
            self.add()
        try:
            sampled = tuple(map(operator.index, ids))
        except TypeError:
            raise self._error(
                f"found {shorten(ids)}; expected the ids of an answer, whole numbers", "bad_ids"
            ) from None
        known = None if logprobs is None else tuple(map(float, logprobs))
        turn = len(self._messages)
        if not sampled:
            raise self._error("an answer without ids; expected at least a stop token", "empty_answer")
        if min(sampled) < 0:
            raise self._error(f"an id below 0; found {min(sampled)}; expected the ids without padding", "bad_ids")
        if known is not None and len(known) != len(sampled):
            raise self._error(f"{len(sampled)} ids with {len(known)} log probabilities; expected one for each id")
        pieces = self.tokenizer.pieces(sampled)
        answer = self.template.parse(pieces, self._tokens, prompt=self._prompt.text, tools=self.tools)
        self._branches[-1].append(Piece.of_answer(sampled, answer, turn, known))
        self._messages = (*self._messages, answer.message)
        self._answer = answer
        return answer

    def add(self, *messages: Message | Mapping[str, Any]) -> Bridge:
        """Add everything that comes before the next answer: results of tools, or a user's turn.

        Without messages it makes the prompt of those that the dialogue was given. Raises `RecordError` for an
        assistant's message, for a second call before the next answer, and as `Template.prompt` does; the dialogue is
        then as before.
        """
        new = tuple(map(_as_message, messages))
        if self._answer is None and self._branches:
            raise self._error("messages behind a prompt that has no answer yet; add all of them in one call")
        if self._answer is not None and not new:
            raise self._error("no messages; expected what follows the answer", "no_prompt")
        conversation = (*self._messages, *new)
        for index, message in enumerate(new, len(self._messages)):
            if message.role == "assistant":
                raise RecordError(
                    "an assistant's message; expected a user's or a tool's: add_answer takes the ids of answers",
                    field=f"messages[{index}]",
                    reason="bad_role",
                )
        if not conversation or conversation[-1].role == "assistant":
            raise self._error("nothing to answer; expected a user's or a tool's message last", "no_prompt")
        prompt = self._render(conversation)
        bridge, piece = self._bridge(prompt, conversation)
        if not self._branches or bridge.begins_branch:
            self._branches.append([piece])
            self._begun_by.append(bridge.divergence)
        else:
            self._branches[-1].append(piece)
        if bridge.divergence is not None:
            self._divergences.append(bridge.divergence)
        self._messages, self._prompt, self._answer = conversation, prompt, None
        return bridge

    def _bridge(self, prompt: Rendering, conversation: Messages) -> tuple[Bridge, Piece]:
        """The bridge to a prompt, and the piece of a branch that holds it."""
        roles = tuple(message.role for message in conversation)
        if self._answer is None:
            piece = Piece(self._encoder.ids(prompt, roles), prompt)
            return Bridge(piece.ids), piece
        sampled = self._branches[-1][-1]
        expected = self._prompt.text + self._answer.text
        divergence = None
        if prompt.text.startswith(expected):
            between = prompt.tail(len(expected))
        else:
            divergence, between = self._diverged(self._answer, sampled, prompt, conversation)
            if self._history == "branch":
                piece = Piece(self._encoder.ids(prompt, roles), prompt)
                return Bridge(piece.ids, divergence, begins_branch=True), piece
        piece = Piece(self._encoder.ids_behind(sampled.ids[-1], between, roles), between)
        return Bridge(piece.ids, divergence), piece

    def _diverged(
        self, answer: ParsedAnswer, sampled: Piece, prompt: Rendering, conversation: Messages
    ) -> tuple[Divergence, Rendering]:
        """How a prompt differs from what was sent and sampled, and what it has behind the answer's end."""
        turn = len(self._messages) - 1
        served = self._served_answer()
        end = self._answer_end(prompt, conversation, served, closing=answer.text[sampled.marker_start :])
        between = prompt.tail(end.behind)
        if not answer.ended:
            rest = prompt.text[end.own : end.behind]
            if served.text.startswith(answer.text):
                rest = served.rest_behind(answer.text, rest)
            between = Rendering.literal(rest).followed_by(between)
        before = self._prompt.followed_by(sampled.rendering)
        dropped = tuple(dropped_fields(before, prompt))
        reason: Reason = "rewritten"
        if dropped:
            reason = "dropped"
        elif prompt.text.startswith(self._prompt.text):  # the difference is in the answer
            in_form = served.text == answer.text if answer.ended else served.text.startswith(answer.text)
            reason = "rewritten" if in_form else "not_in_form"
        sent, written = difference(before.text, prompt.text[: end.behind if answer.ended else end.own])
        leftovers = (Dropped(turn, "leftover", leftover.text) for leftover in answer.leftovers)
        divergence = Divergence(turn=turn, reason=reason, sent=sent, written=written, dropped=(*dropped, *leftovers))
        return divergence, between

    def _answer_end(
        self, prompt: Rendering, conversation: Messages, served: _ServedAnswer, *, closing: str
    ) -> AnswerEnd:
        """Where the last answer ends in the next prompt; `closing` is what it has behind its own characters.

        Its own end marker is looked for first, then what may stand there in its place.
        """
        turn = len(self._messages) - 1
        grammar = self.template.grammar(self._tokens)
        stops = sorted(grammar.stops, key=lambda stop: stop not in closing)
        markers = (served.marker, closing, *stops, shared_end_marker(grammar.prompt, self._tokens))
        if (end := answer_end(prompt, turn, markers)) is not None:
            return end
        # No character shows where an empty answer stands, so one letter is rendered in its place.
        with suppress(RecordError):
            with_letter = self._render((*with_one_letter(conversation[: turn + 1]), *conversation[turn + 1 :]))
            end = answer_end(with_letter, turn, markers)
            if end is not None and prompt.text.endswith(with_letter.text[end.own :]):
                added = len(with_letter.text) - len(prompt.text)
                return AnswerEnd(end.own - added, end.behind - added)
        if self._history == "branch":  # which goes on from the whole prompt
            return AnswerEnd(len(prompt.text), len(prompt.text))
        raise self._error(
            f"template {self.template.name!r}: the next prompt does not show where the answer ends; expected it behind "
            "the answer's own text; use history='branch'",
            "no_place",
        )

    def _served_answer(self) -> _ServedAnswer:
        """The last answer as a server gives it; empty texts if the template refuses the conversation."""
        example = Example(messages=self._messages, tools=self.tools)
        try:
            rendered = self.template.samples(example, self._tokens, last_only=True)[-1].rendered
        except (RecordError, TemplateError):
            return _ServedAnswer("", "")
        targets = [target for target in rendered.target_spans if target.message == len(self._messages) - 1]
        if not targets:
            return _ServedAnswer("", "")
        start, marker_start, end = targets[0].start, targets[-1].marker_start, targets[-1].end
        marker = rendered.text[marker_start:end]
        stop = max((token for token in self._tokens.special if marker.rstrip().endswith(token)), key=len, default="")
        return _ServedAnswer(rendered.text[start:end], marker, stop)

    def _render(self, messages: Messages) -> Rendering:
        prompt = self.template.prompt(Example(messages=messages, tools=self.tools), self._tokens)
        return Rendering(prompt.text, prompt.spans)

    def _error(self, message: str, reason: str = "out_of_turn") -> RecordError:
        return RecordError(message, field=f"messages[{len(self._messages)}]", reason=reason)


def _found(
    template: Address | Template, tokenizer: Address | Tokenizer | PreTrainedTokenizerBase, registry: Registry | None
) -> tuple[Template, Tokenizer]:
    """The template and the tokenizer, each of which may be given by its name."""
    if isinstance(template, Template) and isinstance(tokenizer, Tokenizer):
        return template, tokenizer
    registry = registry or create_registry()
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = find_tokenizer(os.fspath(tokenizer), registry)
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = from_transformers(tokenizer)
    if not isinstance(template, Template):
        template = find_template(os.fspath(template), registry, chat_template=tokenizer.chat_template)
    return template, tokenizer


def _as_message(value: Message | Mapping[str, Any]) -> Message:
    """A message, from one or from an object as in OpenAI's API."""
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping):
        raise RecordError(
            f"found {shorten(value)}; expected messages, each as a Message or an object with role and content",
            field="messages",
            reason="bad_messages",
        )
    reasoning = next((key for key in ("reasoning_content", "reasoning", "thinking") if value.get(key)), "reasoning")
    return Message(
        role=text_of(value, "role"),
        content=text_of(value, "content", required=False),
        reasoning=text_of(value, reasoning, required=False),
        tool_calls=tuple(map(as_function, objects_of(value, "tool_calls"))),
        tool_call_id=text_of(value, "tool_call_id", required=False),
        name=text_of(value, "name", required=False),
    )
