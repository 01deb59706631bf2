"""A prompt template: renders examples for training, with the origin of every character, and prompts for serving."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import jinja2
from jinja2 import nodes

from templatekit.errors import RecordError, TemplateError, shorten
from templatekit.formats.accepted_forms import AcceptedForms, Variables
from templatekit.formats.answers.call_forms import Written, call_of
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.formats.answers.parsing import AnswerParser, ParsedAnswer
from templatekit.formats.answers.probing import probe
from templatekit.formats.answers.response_template import ResponseTemplate
from templatekit.formats.completeness import check_complete, check_thoughts, no_place_error
from templatekit.formats.end_markers import EndMarkers
from templatekit.formats.environment import (
    PlainEnvironment,
    ProvenanceEnvironment,
    fixed_clock,
    plain_environment,
    provenance_environment,
)
from templatekit.formats.kwargs import with_defaults
from templatekit.formats.metadata import read_metadata
from templatekit.formats.prefixes import PlainTexts, PrefixTemplate, PrefixTexts
from templatekit.formats.provenance import TrackedText, concat, literal, plain_text, spans_of
from templatekit.formats.rendering import Rendering
from templatekit.formats.served_answer import (
    CoverFunction,
    ExampleRenderer,
    FieldFunction,
    RenderFunction,
    TextFunction,
)
from templatekit.formats.source import CHAT_VARIABLES, COMMON_VARIABLES, check_source
from templatekit.formats.targets import TargetFinder
from templatekit.formats.template_errors import as_record_errors, compile_template
from templatekit.formats.tracing.compiler import SPECIALISED_WEIGHTS, RenderMode, TracingCompiler
from templatekit.formats.tracing.finished_text import finish, with_origins
from templatekit.formats.tracing.recorder import RecordedText, Recorder, Recording
from templatekit.formats.tracing.recording_environment import recording_environment
from templatekit.formats.tracing.symbolic_text import symbolic_concat, symbolic_literal
from templatekit.formats.tracing.trace import TraceAborted
from templatekit.formats.turns import Conversation, SeparateTurns, TrainedText
from templatekit.formats.variables import chat_variables, instruction_variables, special_variables, untracked
from templatekit.hooks.contracts import TemplateFile
from templatekit.types import (
    NO_TOKENIZER,
    AnswerPiece,
    EmptyThought,
    Example,
    Message,
    RenderedText,
    Sample,
    SpecialTokens,
)

_TOKEN_TAG = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|<(?:start|end)_of_turn>|</s>|<\|?[a-z_]+\|>|<\|[a-z_]+>")
"""What a special token looks like, in the source of a template whose tokenizer is not known."""
_TOOL_TURNS = (
    Message(role="user", content="Questionprobe"),
    Message(role="assistant", tool_calls=(call_of("probe", {}, "call00000"),)),
    Message(role="tool", content="Toolprobe", name="probe", tool_call_id="call00000"),
)
"""A small conversation that shows what a template writes around answers."""


class Template:
    """One Jinja file, for training and for serving.

    A template is loaded and checked once. `render`, `samples` and `prompt` then render examples. The first two go
    through the tracing compiler, which calls `interpret` and `record`.
    """

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
        self._has_generation_blocks = checked.has_generation_blocks
        self._html_filters = checked.html_filters
        self._tracked_template = compile_template(self._environment(), checked.text, file.name)
        self._plain_template = compile_template(plain_environment(), checked.text, file.name)
        self._allows_no_prompt = False
        self.empty_thought: EmptyThought = "keep"
        self._compiler = TracingCompiler(self)
        self._grammars: dict[SpecialTokens, AnswerGrammar] = {}
        if self.kind == "instruction":
            self._check_response_is_last()
            # A format that writes nothing before the answer also accepts texts without a prompt. A format that fails on
            # an empty question raises its error when a row has an empty question.
            empty = Example(messages=(Message(role="user"),))
            with suppress(RecordError):
                self._allows_no_prompt = not self._render_messages(empty.messages, empty, NO_TOKENIZER, prompt=True)

    def with_kwargs(self, kwargs: Mapping[str, Any]) -> Template:
        """The same template with these values for variables that it reads in addition to those it is always given."""
        return type(self)(self._file, strict=self._strict, kwargs=kwargs)

    def ended_by(self, end_marker: str) -> Template:
        """The same template with this text as its end marker; `none` allows answers without one."""
        changed = self._copied()
        given = {"end_marker": "none"} if end_marker == "none" else {"stop": (end_marker,), "end_marker": "required"}
        changed.metadata = self.metadata.model_copy(update=given)
        return changed

    def with_empty_thought(self, empty_thought: EmptyThought) -> Template:
        """The same template, where an answer without a thought keeps or lacks its empty one, or is an error."""
        changed = self._copied()
        changed.empty_thought = empty_thought
        return changed

    def _copied(self) -> Template:
        """A copy to change, with nothing of what was found out by rendering."""
        copied = copy(self)
        copied._compiler = TracingCompiler(copied)
        copied._grammars = {}
        return copied

    @property
    def multi_turn(self) -> bool:
        """Whether conversations of several turns can be rendered."""
        return self.kind == "chat"

    def render(self, example: Example, tokens: SpecialTokens = NO_TOKENIZER, *, row: int = 0) -> RenderedText:
        """The whole text of an example, with the origin of every character and the targets.

        A turn that this text does not hold exactly as it is served has no target here: `samples` gives it one. Raises
        `RecordError` for an example that this template cannot express, `TemplateError` if the template itself fails.
        """
        (sample,) = self._compiler.samples(example, tokens, row, "whole")
        return sample.rendered

    def samples(
        self, example: Example, tokens: SpecialTokens = NO_TOKENIZER, *, row: int = 0, last_only: bool = False
    ) -> tuple[Sample, ...]:
        """The fewest texts that hold every turn with a weight exactly as it is served, the shortest first.

        Each such turn has targets in exactly one of them. `last_only` asks for the last turn alone. Raises as `render`
        does.
        """
        return self._compiler.samples(example, tokens, row, "last" if last_only else "all")

    def prompt(
        self,
        example: Example,
        tokens: SpecialTokens = NO_TOKENIZER,
        *,
        row: int = 0,
        continue_final: bool = False,
    ) -> RenderedText:
        """The prompt that a server feeds to the model: the messages of the example, without a last assistant turn.

        With `continue_final` that turn stays, and the text ends where its own characters end, so that the model
        continues it. Raises as `render` does.
        """
        messages = example.messages
        if continue_final:
            rendering = Rendering.of(self._render_to_continue(example, tokens))
        else:
            messages = messages[:-1] if messages[-1].role == "assistant" else messages
            if not messages:
                raise RecordError("no message comes before the answer", field="messages", reason="no_prompt")
            rendering = Rendering.of(self._render_messages(messages, example, tokens, prompt=True))
            asked = replace(example, messages=messages)
            self._check_complete(asked, rendering, self._render_others(tokens, prompt=True))
        rendering.check_encodable()
        roles = tuple(message.role for message in messages)
        return RenderedText(text=rendering.text, spans=rendering.spans, roles=roles, row=row)

    def grammar(self, tokens: SpecialTokens = NO_TOKENIZER) -> AnswerGrammar:
        """The form in which the template writes an answer: the literals between its fields. It is found once.

        Without a tokenizer, the tags in the template's source are taken for special tokens, and `eos_token` is unknown.
        Raises `TemplateError` if the template writes no plain answer behind a user's message.
        """
        if tokens not in self._grammars:
            self._grammars[tokens] = self._find_grammar(tokens)
        return self._grammars[tokens]

    def _find_grammar(self, tokens: SpecialTokens) -> AnswerGrammar:
        if self.empty_thought != "keep":  # whatever rows may lack, the template's answers have its own form
            return self.with_empty_thought("keep")._find_grammar(tokens)
        if not tokens.known:
            tokens = replace(tokens, special=frozenset(_TOKEN_TAG.findall(self.source)))
        refused: list[str] = []

        def write(answer: Message) -> Written | None:
            written = self._write_answer(answer, tokens)
            if isinstance(written, str):
                refused.append(written)
                return None
            return Written(*written)

        found = probe(write, tokens, name=self.name)
        if found is None:
            raise TemplateError(f"template {self.name!r} writes no answer that could be read back: {refused[0]}")
        return found.stopped_at(self._tokens_around_answers(tokens))

    def _tokens_around_answers(self, tokens: SpecialTokens) -> tuple[str, ...]:
        """The special tokens that the template writes outside of answers: with them, a model begins another turn."""
        texts = [self._prompt_behind(messages, tokens) for messages in (_TOOL_TURNS[:1], _TOOL_TURNS)]
        found = [token for token in sorted(tokens.special) if any(token in text for text in texts)]
        return tuple(dict.fromkeys(token for token in (tokens.eos, tokens.pad, *found) if token))

    def parse(
        self,
        answer: str | Iterable[AnswerPiece],
        tokens: SpecialTokens = NO_TOKENIZER,
        *,
        prompt: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> ParsedAnswer:
        """Read what a model wrote as a message, by the template's `grammar`.

        `answer` is a text, or what `Tokenizer.pieces` makes of ids, in which a control token is never mistaken for
        text. `prompt` is what the model was given, or its end, since a prompt may begin the answer, as with `<think>`.
        `tools` give arguments their types where the template writes them without. An answer that is cut or broken gives
        what is sound of it: see `ParsedAnswer`. Raises `TemplateError` as `grammar` does.
        """
        parser = self.answer_parser(tokens, pieces=not isinstance(answer, str), prompt=prompt, tools=tools)
        parser.feed(answer)
        return parser.close()

    def answer_parser(
        self,
        tokens: SpecialTokens = NO_TOKENIZER,
        *,
        pieces: bool = False,
        prompt: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> AnswerParser:
        """A parser for one answer that comes in bit by bit: as text, or with `pieces` as `Tokenizer.pieces` makes them.

        The other arguments, and what it raises, are those of `parse`.
        """
        return AnswerParser(self.grammar(tokens), pieces=pieces, prompt=prompt, tools=tools)

    def response_template(self, tokens: SpecialTokens = NO_TOKENIZER) -> dict[str, Any]:
        """The `grammar` as transformers reads it (5.13 and later): a value for `tokenizer.response_template`.

        `response_losses` names what that form cannot say. Raises `TemplateError` as `grammar` does.
        """
        return self._response_template(tokens).template

    def response_losses(self, tokens: SpecialTokens = NO_TOKENIZER) -> tuple[str, ...]:
        """What of the `grammar` is not in the `response_template`, a sentence each; raises as `grammar` does."""
        return self._response_template(tokens).losses

    def _response_template(self, tokens: SpecialTokens) -> ResponseTemplate:
        behind_tool = self._prompt_behind(_TOOL_TURNS, tokens).rpartition(_TOOL_TURNS[-1].content)[2]
        return ResponseTemplate.of(self.grammar(tokens), behind_tool=behind_tool)

    def _prompt_behind(self, messages: tuple[Message, ...], tokens: SpecialTokens) -> str:
        """The prompt behind these messages; empty if the template refuses them."""
        with suppress(RecordError, TemplateError):
            return self.prompt(Example(messages=messages), tokens).text
        return ""

    def _write_answer(self, answer: Message, tokens: SpecialTokens) -> tuple[str, str] | str:
        """What the template writes for an answer to a short question: as in `Written`; or why it refuses it."""
        question = _TOOL_TURNS[0]
        names = dict.fromkeys(call["function"]["name"] for call in answer.tool_calls)
        tools = tuple(
            {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
            for name in names
        )
        why = "it is not trained"
        for offered in (tools, ()) if tools else ((),):
            example = Example(messages=(question, answer), tools=offered)
            try:
                rendered = self.interpret(example, tokens, 0, "last")[-1].rendered
            except (RecordError, TemplateError) as error:
                why = str(error)
                continue
            if targets := [target for target in rendered.target_spans if target.message == 1]:
                start, end = targets[0].start, targets[-1].end
                text = rendered.text[start:end]
                if end == targets[-1].marker_start:  # no end marker: all that closes the answer is its own
                    text = rendered.text[start:].rstrip()
                return rendered.text[:start].rpartition(question.content)[2], text
        return why

    def interpret(self, example: Example, tokens: SpecialTokens, row: int, mode: RenderMode) -> tuple[Sample, ...]:
        """The example's samples, rendered without a trace."""
        conversation = self._conversation(example, tokens)
        with self._suggest_kwargs(example, tokens):
            self._check(example, conversation.rendering(len(example.messages)), self._render_others(tokens))
            texts = _trained_texts(conversation, mode)
        samples = []
        history = 0
        for index, (count, targets) in enumerate(texts):
            rendering = conversation.rendering(count)
            check_thoughts(example, rendering.spans, {target.message for target in targets}, name=self.name)
            own = example
            if count < len(example.messages):
                own = replace(example, messages=example.messages[:count])
                self._check(own, rendering, self._render_others(tokens))
            rendered = RenderedText(
                text=rendering.text,
                spans=rendering.spans,
                target_spans=targets,
                message_weights=tuple(message.weight for message in own.messages),
                roles=tuple(message.role for message in own.messages),
                row=row,
                sample=index,
                samples=len(texts),
                history=history,
            )
            samples.append(Sample(example=own, rendered=rendered))
            history = count
        return tuple(samples)

    def _conversation(self, example: Example, tokens: SpecialTokens, **overrides: Any) -> Conversation:
        now = datetime.now()

        def render(messages: tuple[Message, ...], prompt: bool) -> TrackedText:
            return self._render_messages(messages, example, tokens, prompt=prompt, now=now, overrides=overrides)

        text = _as_plain_text(render)
        if self.kind == "chat":
            whole = self._variables(example.messages, False, example=example, tokens=tokens)
            variables = {**untracked(whole), "strftime_now": fixed_clock(now), **overrides}
            text = PlainTexts(variables, partial(self._render_text, self._text_template), self._print_parts)

        def field_text(index: int, field: str) -> str:
            return str(getattr(example.messages[index], field))

        return Conversation(example, self._target_finder(render, text, field_text, _covers, tokens))

    def _target_finder(
        self,
        render: RenderFunction,
        text: TextFunction,
        field_text: FieldFunction,
        covers: CoverFunction,
        tokens: SpecialTokens,
    ) -> TargetFinder:
        renderer = ExampleRenderer(
            render, text, field_text, self._mentions, covers, self.kind == "chat", self.empty_thought
        )
        return TargetFinder(renderer, EndMarkers.of(self.metadata, tokens), self._has_generation_blocks, self.name, {})

    def record(self, example: Example, tokens: SpecialTokens, mode: RenderMode) -> Recording:
        """Render the example with symbolic texts and return the recording; raises `TraceAborted`."""
        template = self._recording_template
        if template is None:
            raise TraceAborted("text that Jinja may escape")
        recorder = Recorder(example, partial(self._variables, example=example, tokens=tokens))

        def render(messages: tuple[Message, ...], prompt: bool) -> TrackedText:
            with as_record_errors(template, self.name):
                text = recorder.render(template, messages, prompt)
            return finish(symbolic_concat([symbolic_literal(tokens.bos), text]) if self._adds_bos(tokens) else text)

        conversation = SeparateTurns(
            example, self._target_finder(render, _as_plain_text(render), recorder.text_of, recorder.covers, tokens)
        )
        self._check(recorder.example, conversation.rendering(len(example.messages)), _abort_on_computed_text)
        recorded = []
        for count, targets in _trained_texts(conversation, mode):
            rendering = conversation.rendering(count)
            first = replace(recorder.example, messages=recorder.example.messages[:count])
            self._check(first, rendering, _abort_on_computed_text)
            check_thoughts(first, rendering.spans, {target.message for target in targets}, name=self.name)
            recorded.append(RecordedText(count, with_origins(*rendering), targets))
        weights = tuple(message.weight for message in example.messages)
        common = weights if all(weight in SPECIALISED_WEIGHTS for weight in weights) else None
        return Recording(recorder.trace, recorder.fields, tuple(recorded), common)

    @cached_property
    def _recording_template(self) -> jinja2.Template | None:
        """The template over symbolic text; None if Jinja may escape text, which symbolic text does not model."""
        tree = plain_environment().parse(self.source)
        if next(tree.find_all((nodes.EvalContextModifier, nodes.ScopedEvalContextModifier)), None):
            return None
        return compile_template(recording_environment(), self.source, self.name)

    def _render_to_continue(self, example: Example, tokens: SpecialTokens) -> TrackedText:
        """The text up to the last character of the last message's own content or reasoning."""
        last = len(example.messages) - 1
        if example.messages[last].role != "assistant":
            raise RecordError(
                f"no answer to continue; found a last message of role {example.messages[last].role!r}; expected "
                "assistant",
                field=f"messages[{last}].role",
                reason="no_answer_to_continue",
            )
        text = self._render_messages(example.messages, example, tokens, prompt=False)
        rendering = Rendering.of(text)
        self._check_complete(example, rendering, self._render_others(tokens))
        for field in ("content", "reasoning"):
            ends = [span.end for span in rendering.spans if (span.origin.message, span.origin.field) == (last, field)]
            if ends:
                return concat([text[: ends[-1]]])
        # An empty answer has no character that shows its position, so one letter is rendered in its place.
        messages = (*example.messages[:last], replace(example.messages[last], content="x", parts=()))
        text = self._render_messages(messages, example, tokens, prompt=False)
        starts = [s.start for s in spans_of(text) if (s.origin.message, s.origin.field) == (last, "content")]
        if not starts:
            raise no_place_error(self.name, f"messages[{last}].content", " of the assistant message")
        return concat([text[: starts[-1]]])

    def _render_others(self, tokens: SpecialTokens, *, prompt: bool = False) -> Callable[[Example], str]:
        """A function that renders other examples, all at the same time of day."""
        now = datetime.now()
        return lambda example: self._render_messages(example.messages, example, tokens, prompt=prompt, now=now)

    def _render_messages(
        self,
        messages: tuple[Message, ...],
        example: Example,
        tokens: SpecialTokens,
        *,
        prompt: bool,
        now: datetime | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> TrackedText:
        variables = self._variables(messages, prompt, example=example, tokens=tokens)
        if now is not None:
            variables["strftime_now"] = fixed_clock(now)
        text = self._render_variables({**variables, **(overrides or {})})
        return concat([literal(tokens.bos), text]) if self._adds_bos(tokens) else text

    def _variables(
        self, messages: tuple[Message, ...], prompt: bool, *, example: Example, tokens: SpecialTokens
    ) -> Variables:
        if self.kind == "chat":
            variables = chat_variables(messages, example, self.accepted_forms)
        else:
            variables = instruction_variables(
                messages, example, name=self.name, allows_no_prompt=self._allows_no_prompt
            )
            if not prompt and messages[-1].role != "assistant":
                raise RecordError(
                    f"template {self.name!r} needs an answer; found none", field="messages", reason="no_response"
                )
        return {**variables, **special_variables(tokens), "add_generation_prompt": prompt}

    @cached_property
    def accepted_forms(self) -> AcceptedForms:
        """The forms of content and tool calls that the template accepts."""
        return AcceptedForms(self._text, reads_tools="tools" in self.variables)

    def _text(self, variables: Variables) -> str:
        """The text that the template prints for these variables."""
        return plain_text(self._render_variables(variables))

    def _adds_bos(self, tokens: SpecialTokens) -> bool:
        """Whether BOS is put before the text, as the tokenizer does with plain text that is sent to a server."""
        return self.kind == "instruction" and tokens.adds_bos and "bos_token" not in self.variables

    def _render_variables(self, variables: Variables) -> TrackedText:
        """Render with provenance, and check that plain Jinja gives the same text."""
        variables = {"strftime_now": fixed_clock(datetime.now())} | variables
        template = self._tracked_template
        with as_record_errors(template, self.name):
            text = concat(template.root_render_func(template.new_context(variables)))
            expected = self._plain_template.render(untracked(variables))
        if text != expected:
            raise TemplateError(
                f"template {self.name!r}: the tracked text differs from Jinja's; found {shorten(plain_text(text))}, "
                f"expected {shorten(expected)}; {self._mismatch_advice()}"
            )
        return text

    @cached_property
    def _text_template(self) -> jinja2.Template:
        """The template over plain text."""
        return self._plain_template

    @cached_property
    def _prefix_template(self) -> tuple[PrefixTemplate, jinja2.Template] | None:
        """The template that prints the parts of every beginning of a conversation; None if this one allows none."""
        environment = self._text_environment()
        found = PrefixTemplate.of(environment, self.source)
        return found and (found, compile_template(environment, found.tree, self.name))

    def _print_parts(self, variables: Variables) -> PrefixTexts | None:
        """The texts of every beginning of a conversation; None if each is to be rendered by itself."""
        if self._prefix_template is None:
            return None
        prefixes, template = self._prefix_template
        try:
            return prefixes.texts(partial(self._render_text, template), variables)
        except RecordError:  # the rendering of the one beginning that is at fault says so
            return None

    def _render_text(self, template: jinja2.Template, variables: Variables) -> str:
        """Render plain variables without provenance."""
        with as_record_errors(template, self.name):
            return template.render(variables)

    @staticmethod
    def _environment() -> ProvenanceEnvironment:
        return provenance_environment()

    @staticmethod
    def _text_environment() -> PlainEnvironment:
        return plain_environment()

    def _mismatch_advice(self) -> str:
        if self._html_filters:
            filters = " or ".join(f"`| {name}`" for name in sorted(self._html_filters))
            return (
                f"it joins text to the result of {filters}, which Jinja then escapes too; print that result by itself: "
                "{{ x | safe }}{{ y }}"
            )
        return "please report this template"

    def _check(self, example: Example, rendering: Rendering, render: Callable[[Example], str]) -> None:
        rendering.check_encodable()
        self._check_complete(example, rendering, render)

    def _check_complete(self, example: Example, rendering: Rendering, render: Callable[[Example], str]) -> None:
        check_complete(example, rendering.spans, name=self.name, mentions=self._mentions, render=render)

    def _check_response_is_last(self) -> None:
        """Check by one rendering that an instruction format prints the response once, after all other fields."""
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
                f"template {self.name!r}: the response must be printed once, after all other fields; found {found}"
            )

    @contextmanager
    def _suggest_kwargs(self, example: Example, tokens: SpecialTokens) -> Iterator[None]:
        """Extend the error for a prompt that is no prefix, or for an empty thought: name the kwargs that avoid it.

        Each is tried separately.
        """
        try:
            yield
        except RecordError as error:
            if error.reason not in ("prompt_is_no_prefix", "empty_thought") or self.kind == "instruction":
                raise
            options = self.variables - {*CHAT_VARIABLES, *COMMON_VARIABLES, *plain_environment().globals}
            helpful = [
                f"{name}={str(value).lower()}"
                for name in sorted(options)
                for value in (False, True)
                if self._has_targets_with({name: value}, example, tokens)
            ]
            if helpful:
                error.message += f"; with {' or '.join(helpful)} it does not (--chat-template-kwargs {helpful[0]})"
            elif error.reason == "prompt_is_no_prefix":
                error.message += (
                    "; no option of the template changes that: give the turn the weight 0, leave the row out "
                    "(--on-error skip), or mend the template"
                )
            raise

    def _has_targets_with(self, overrides: Mapping[str, Any], example: Example, tokens: SpecialTokens) -> bool:
        try:
            texts = self._conversation(example, tokens, **overrides).texts(last_only=False)
        except (RecordError, TemplateError):
            return False
        return any(text.targets for text in texts)


def _covers(parts: Sequence[str], text: str) -> bool:
    return sum(map(len, parts)) >= len(text.strip())


def _as_plain_text(render: RenderFunction) -> TextFunction:
    return lambda messages, prompt: plain_text(render(messages, prompt))


def _trained_texts(conversation: Conversation, mode: RenderMode) -> list[TrainedText]:
    return [conversation.whole_text()] if mode == "whole" else conversation.texts(last_only=mode == "last")


def _abort_on_computed_text(example: Example) -> str:
    """Abort a recording: whether a computed text contains a field may differ between examples."""
    raise TraceAborted("a field that may be part of a computed text")
