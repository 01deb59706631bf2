"""A prompt template: renders an example with the origin of every character, or the prompt a server would feed."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any, cast

import jinja2
from jinja2 import nodes

from templatekit.errors import RecordError, TemplateError, TemplatekitError, shorten
from templatekit.formats.accepted_forms import Takes, Variables
from templatekit.formats.completeness import check_complete, no_place
from templatekit.formats.end_markers import EndMarkers
from templatekit.formats.environment import (
    TemplateRefusal,
    TracingEnvironment,
    clock,
    plain_environment,
    tracing_environment,
)
from templatekit.formats.kwargs import with_defaults
from templatekit.formats.metadata import read_metadata
from templatekit.formats.provenance import Traced, concat, literal, plain_text, spans_of
from templatekit.formats.source import CHAT_VARIABLES, COMMON_VARIABLES, check_source, syntax_error
from templatekit.formats.targets import Rendering, TargetFinder
from templatekit.formats.tracing.compiler import ALL, COMMON_WEIGHTS, LAST, Manner, Part, Plans, Recording
from templatekit.formats.tracing.finished import Outlined, settled
from templatekit.formats.tracing.recorder import Recorder, recording_environment
from templatekit.formats.tracing.symbolic import joined, written
from templatekit.formats.tracing.trace import Unplannable
from templatekit.formats.turns import Conversation, EveryTurn
from templatekit.formats.turns import Part as TurnPart
from templatekit.formats.variables import chat_variables, instruction_variables, plain, special_variables
from templatekit.hooks.contracts import TemplateFile
from templatekit.types import NO_TOKENIZER, Example, Message, RenderedText, Sample, Span, SpecialTokens


class Template:
    """One Jinja file, for training and for serving."""

    def __init__(self, file: TemplateFile, *, strict: bool = True, kwargs: Mapping[str, Any] | None = None) -> None:
        self._file, self._strict = file, strict
        self.name = file.name
        self.path = file.path
        # Jinja reads every line ending as "\n"; offsets into the source must agree with it.
        text = file.source.replace("\r\n", "\n").replace("\r", "\n")
        text = with_defaults(text, kwargs, file.name) if kwargs else text
        self.original = text if kwargs else file.source
        self.metadata = read_metadata(text, file.name)
        checked = check_source(text, file.name, strict=strict)
        self.kind = checked.kind
        self.source = checked.text
        self.variables = checked.variables
        self._mentions = checked.mentions
        self._sought = checked.sought
        self._marked = checked.marked
        self._escapes = checked.escapes
        self._traced = _compiled(self._tracing(), checked.text, file.name)
        self._plain = _compiled(plain_environment(), checked.text, file.name)
        self._bare = False
        self._plans = Plans(self)
        if self.kind == "instruction":
            self._probe()
            nothing = Example(messages=(Message(role="user"),))
            # A format that writes nothing of its own before the answer holds a text without a prompt too. One that
            # fails on an empty question is told of when a row has one.
            with suppress(RecordError):
                self._bare = not self._text(nothing.messages, nothing, NO_TOKENIZER, prompt=True)

    def with_kwargs(self, kwargs: Mapping[str, Any]) -> Template:
        """The same template with these values for variables that it reads beyond those it is always given."""
        return type(self)(self._file, strict=self._strict, kwargs=kwargs)

    def _tracing(self) -> TracingEnvironment:
        return tracing_environment()

    @property
    def _options(self) -> frozenset[str]:
        """What a chat template reads beside what it always receives."""
        return self.variables - {*CHAT_VARIABLES, *COMMON_VARIABLES, *plain_environment().globals}

    @property
    def multi_turn(self) -> bool:
        """Whether conversations of several turns can be rendered."""
        return self.kind == "chat"

    def ended_by(self, end_marker: str) -> Template:
        """The same template with this text as the end of an answer; with `none` where it finds none."""
        changed = copy(self)
        given = {"end_marker": "none"} if end_marker == "none" else {"stop": (end_marker,), "end_marker": "required"}
        changed.metadata = self.metadata.model_copy(update=given)
        changed._plans = Plans(changed)
        return changed

    def render(self, example: Example, tokens: SpecialTokens = NO_TOKENIZER, *, row: int = 0) -> RenderedText:
        """The example's whole text, with the origin of every character and what is to be trained.

        Turns that serving would meet otherwise than they stand in this text have no target: `samples` gives them one.
        Raises `RecordError` for an example that this template cannot express, `TemplateError` where the template
        itself fails.
        """
        (sample,) = self._plans.samples(example, tokens, row, Manner(whole=True))
        return sample.rendered

    def samples(
        self, example: Example, tokens: SpecialTokens = NO_TOKENIZER, *, row: int = 0, last_only: bool = False
    ) -> tuple[Sample, ...]:
        """As few texts as hold every turn that has a weight, or the last alone, exactly as serving would meet it.

        Each such turn has targets in one of them; in order of their length. Raises as `render` does.
        """
        return self._plans.samples(example, tokens, row, LAST if last_only else ALL)

    def unplanned(self, example: Example, tokens: SpecialTokens, row: int, manner: Manner) -> tuple[Sample, ...]:
        """What `render` and `samples` give, rendered anew whatever plans there are."""
        conversation = self._conversation(example, tokens)
        self._check(example, conversation.rendering(len(example.messages)), self._whole(tokens))
        with self._advice(example, tokens):
            parts = [conversation.whole()] if manner.whole else conversation.parts(last_only=manner.last_only)
        samples = []
        history = 0
        for number, part in enumerate(parts):
            sample = self._sample(example, conversation, part, row, tokens)
            numbered = replace(sample.rendered, sample=number, samples=len(parts), history=history)
            samples.append(replace(sample, rendered=numbered))
            history = part.messages
        return tuple(samples)

    def recorded(self, example: Example, tokens: SpecialTokens, manner: Manner) -> Recording:
        """The same with symbolic texts, for a plan; raises `Unplannable` where none can be made."""
        if self._recording is None:
            raise Unplannable("HTML")
        template = self._recording
        recorder = Recorder(example, partial(self._variables, example=example, tokens=tokens))

        def render(messages: tuple[Message, ...], prompt: bool) -> Traced:
            with self._refusals(template):
                text = recorder.render(template, messages, prompt)
            return settled(joined([written(tokens.bos), text]) if self._adds_bos(tokens) else text)

        markers = EndMarkers.of(self.metadata, tokens)
        conversation = EveryTurn(example, TargetFinder(render, markers, self._marked, self.name), self._sought)
        self._check(recorder.example, conversation.rendering(len(example.messages)), _unseen)
        found = [conversation.whole()] if manner.whole else conversation.parts(last_only=manner.last_only)
        parts = []
        for part in found:
            rendering = conversation.rendering(part.messages)
            own = replace(recorder.example, messages=recorder.example.messages[: part.messages])
            self._check(own, rendering, _unseen)
            parts.append(Part(part.messages, cast("Outlined", rendering.text), part.targets))
        weights = tuple(message.weight for message in example.messages)
        common = weights if all(weight in COMMON_WEIGHTS for weight in weights) else None
        return Recording(recorder.tape, recorder.fields, tuple(parts), common)

    @cached_property
    def _recording(self) -> jinja2.Template | None:
        """Compiled for recording; None where text may be escaped, which no symbolic text notices."""
        tree = plain_environment().parse(self.source)
        if next(tree.find_all((nodes.EvalContextModifier, nodes.ScopedEvalContextModifier)), None):
            return None
        return _compiled(recording_environment(), self.source, self.name)

    def _conversation(self, example: Example, tokens: SpecialTokens, **more: Any) -> Conversation:
        now = datetime.now()

        def render(messages: tuple[Message, ...], prompt: bool) -> Traced:
            return self._text(messages, example, tokens, prompt=prompt, now=now, more=more)

        markers = EndMarkers.of(self.metadata, tokens)
        return Conversation(example, TargetFinder(render, markers, self._marked, self.name), self._sought)

    def _sample(
        self, example: Example, conversation: Conversation, part: TurnPart, row: int, tokens: SpecialTokens
    ) -> Sample:
        rendering = conversation.rendering(part.messages)
        if part.messages < len(example.messages):
            example = replace(example, messages=example.messages[: part.messages])
            self._check(example, rendering, self._whole(tokens))
        rendered = RenderedText(
            text=rendering.text,
            spans=rendering.spans,
            target_spans=part.targets,
            message_weights=tuple(message.weight for message in example.messages),
            roles=tuple(message.role for message in example.messages),
            row=row,
        )
        return Sample(example=example, rendered=rendered)

    def _check(self, example: Example, rendering: Rendering, render: Callable[[Example], str]) -> None:
        _check_encodable(*rendering)
        self._check_complete(example, rendering.spans, render)

    def _whole(self, tokens: SpecialTokens, *, prompt: bool = False) -> Callable[[Example], str]:
        """The text of other examples, all at one moment."""
        now = datetime.now()
        return lambda example: self._text(example.messages, example, tokens, prompt=prompt, now=now)

    @contextmanager
    def _advice(self, example: Example, tokens: SpecialTokens) -> Iterator[None]:
        """Says what would help where a prompt is no prefix: the template's own options are tried, one at a time."""
        try:
            yield
        except RecordError as error:
            if error.reason != "prompt_is_no_prefix" or self.kind == "instruction":
                raise
            helpful = [
                f"{name}={str(value).lower()}"
                for name in sorted(self._options)
                for value in (False, True)
                if self._would_help({name: value}, example, tokens)
            ]
            error.message += (
                f"; with {' or '.join(helpful)} it does not (--chat-template-kwargs {helpful[0]})"
                if helpful
                else "; no option of the template changes that: give the turn the weight 0, leave the row out "
                "(--on-error skip), or mend the template"
            )
            raise

    def _would_help(self, more: Mapping[str, Any], example: Example, tokens: SpecialTokens) -> bool:
        try:
            parts = self._conversation(example, tokens, **more).parts(last_only=False)
        except (RecordError, TemplateError):
            return False
        return any(part.targets for part in parts)

    def prompt(
        self,
        example: Example,
        tokens: SpecialTokens = NO_TOKENIZER,
        *,
        row: int = 0,
        continue_final: bool = False,
    ) -> RenderedText:
        """What a server feeds the model to have it answer: the example's messages, without a last assistant turn.

        With `continue_final` that turn is kept, and the text ends where its own ends, for the model to go on with it.
        Raises as `render` does.
        """
        messages = example.messages
        if continue_final:
            text = self._continued(example, tokens)
        else:
            messages = messages[:-1] if messages[-1].role == "assistant" else messages
            if not messages:
                raise RecordError("no message comes before the answer", field="messages", reason="no_prompt")
            text = self._text(messages, example, tokens, prompt=True)
            own = replace(example, messages=messages)
            self._check_complete(own, spans_of(text), self._whole(tokens, prompt=True))
        spans = spans_of(text)
        _check_encodable(text, spans)
        return RenderedText(
            text=plain_text(text), spans=spans, roles=tuple(message.role for message in messages), row=row
        )

    def _text(
        self,
        messages: tuple[Message, ...],
        example: Example,
        tokens: SpecialTokens,
        *,
        prompt: bool,
        now: datetime | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> Traced:
        variables = self._variables(messages, prompt, example=example, tokens=tokens)
        if now is not None:
            variables["strftime_now"] = clock(now)
        text = self._run({**variables, **(more or {})})
        return concat([literal(tokens.bos), text]) if self._adds_bos(tokens) else text

    def _variables(
        self, messages: tuple[Message, ...], prompt: bool, *, example: Example, tokens: SpecialTokens
    ) -> Variables:
        if self.kind == "chat":
            variables = chat_variables(messages, example, self.takes)
        else:
            variables = instruction_variables(messages, example, name=self.name, bare=self._bare)
            if not prompt and messages[-1].role != "assistant":
                raise RecordError(
                    f"template {self.name!r} needs an answer; found none", field="messages", reason="no_response"
                )
        return {**variables, **special_variables(tokens), "add_generation_prompt": prompt}

    def _adds_bos(self, tokens: SpecialTokens) -> bool:
        """Plain-text formats leave BOS to the tokenizer, as a server that is sent plain text does."""
        return self.kind == "instruction" and tokens.adds_bos and "bos_token" not in self.variables

    def _continued(self, example: Example, tokens: SpecialTokens) -> Traced:
        """The text up to the end of the last message's own."""
        last = len(example.messages) - 1
        if example.messages[last].role != "assistant":
            raise RecordError(
                f"no answer to continue; found a last message of role {example.messages[last].role!r}; expected "
                "assistant",
                field=f"messages[{last}].role",
                reason="no_answer_to_continue",
            )
        text = self._text(example.messages, example, tokens, prompt=False)
        self._check_complete(example, spans_of(text), self._whole(tokens))
        for field in ("content", "reasoning"):
            ends = [span.end for span in spans_of(text) if (span.origin.message, span.origin.field) == (last, field)]
            if ends:
                return concat([text[: ends[-1]]])
        # Of an empty answer no character tells where it stands; of a letter's in its place one does.
        messages = (*example.messages[:last], replace(example.messages[last], content="x", parts=()))
        text = self._text(messages, example, tokens, prompt=False)
        starts = [s.start for s in spans_of(text) if (s.origin.message, s.origin.field) == (last, "content")]
        if not starts:
            raise no_place(self.name, f"messages[{last}].content", " of the assistant message")
        return concat([text[: starts[-1]]])

    @cached_property
    def takes(self) -> Takes:
        """Which forms of content and tool calls it takes."""
        return Takes(self._run)

    def _run(self, variables: Variables) -> Traced:
        variables = {"strftime_now": clock(datetime.now())} | variables
        with self._refusals(self._traced):
            text = concat(self._traced.root_render_func(self._traced.new_context(variables)))
            expected = self._plain.render(plain(variables))
        if text != expected:
            raise TemplateError(
                f"template {self.name!r}: the traced text differs from Jinja's; found {shorten(plain_text(text))}, "
                f"expected {shorten(expected)}; {self._why_not_traced()}"
            )
        return text

    @contextmanager
    def _refusals(self, template: jinja2.Template) -> Iterator[None]:
        """Turns what a template raises into our errors."""
        try:
            yield
        except TemplatekitError:
            raise
        except TemplateRefusal as error:
            raise RecordError(f"template {self.name!r} refuses: {error}", reason="template_refused") from None
        except Exception as error:  # templates run arbitrary expressions over the data
            line = template_line(error, template)
            raise RecordError(
                f"template {self.name!r}{line}: {type(error).__name__}: {_in_plain_words(error)}",
                reason="template_failed",
            ) from error

    def _why_not_traced(self) -> str:
        if self._escapes:
            return (
                f"it joins text to the result of {' or '.join(f'`| {name}`' for name in sorted(self._escapes))}, which "
                "Jinja then escapes too; print that result by itself: {{ x | safe }}{{ y }}"
            )
        return "please report this template"

    def _check_complete(self, example: Example, spans: tuple[Span, ...], render: Callable[[Example], str]) -> None:
        check_complete(example, spans, name=self.name, mentions=self._mentions, render=render)

    def _probe(self) -> None:
        """Renders an instruction format once, to see that the response comes last of all fields, and once."""
        instruction, context = (name if name in self.variables else "" for name in ("instruction", "context"))
        user = Message(role="user", content=instruction, context=context)
        probe = Example(messages=(user, Message(role="assistant", content="response")))
        try:
            spans = self.render(probe).spans
        except RecordError as error:
            raise TemplateError(str(error)) from error
        printed = [(span.origin.message, span.origin.field) for span in spans if span.origin.kind == "field"]
        answers = [field for field in printed if field[0] == 1]
        if not answers or printed[-1][0] != 1 or len(answers) > 1:
            names: dict[tuple[int | None, str | None], str]
            names = {(0, "content"): "instruction", (0, "context"): "context", (1, "content"): "response"}
            found = ", ".join(names.get(field, str(field)) for field in printed) or "nothing"
            raise TemplateError(
                f"template {self.name!r}: the response must be printed once, behind all other fields; found {found}"
            )


def _unseen(example: Example) -> str:
    """For a plan: that a text may stand in a computed one was seen in one example alone."""
    raise Unplannable("a field that may stand in a computed text")


def _compiled(environment: jinja2.Environment, text: str, name: str) -> jinja2.Template:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about the generated code
            return environment.from_string(text)
    except Exception as error:  # Jinja evaluates constant expressions when it compiles
        raise syntax_error(error, text, name) from None


def _check_encodable(text: str, spans: tuple[Span, ...]) -> None:
    """Half a surrogate pair is no text: JSON can spell it, no tokenizer takes it."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        origin = next(span.origin for span in spans if span.end > error.start)
        raise RecordError(
            f"half of a surrogate pair; found {shorten(text[error.start])}; expected Unicode text",
            field=str(origin),
            reason="bad_text",
        ) from None


def _in_plain_words(error: Exception) -> str:
    """An error's message with Jinja's names for traced values as their plain ones."""
    return re.sub(r"(templatekit\.formats\.provenance\.)?Traced(Dict|List)?\b", _plain_name, str(error))


def _plain_name(match: re.Match[str]) -> str:
    return str(match[2] or "str").lower()


def template_line(error: BaseException, template: jinja2.Template) -> str:
    """Where in the template an error was raised, for its message."""
    lines = [
        template.get_corresponding_lineno(frame.lineno or 1)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == template.filename
    ]
    return f", line {lines[-1]}" if lines else ""
