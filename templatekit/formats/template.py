"""A prompt template: renders an example with the origin of every character, or the prompt a server would feed."""

from __future__ import annotations

import traceback
from functools import cached_property
from pathlib import Path

import jinja2

from templatekit.contracts import TemplateFile
from templatekit.errors import RecordError, TemplateError, TemplatekitError, shorten
from templatekit.formats.environment import TemplateRefusal, plain_environment, tracing_environment
from templatekit.formats.metadata import read_metadata
from templatekit.formats.provenance import Traced, concat, literal, plain_text, spans_of
from templatekit.formats.source import check_source
from templatekit.formats.targets import EndMarkers, find_targets
from templatekit.formats.variables import Variables, chat_variables, instruction_variables, plain, special_variables
from templatekit.types import COMPUTED, NO_TOKENIZER, Example, Message, RenderedText, Span, SpecialTokens

_PROBE = Example(
    messages=(
        Message(role="user", content="instruction", context="context"),
        Message(role="assistant", content="response"),
    )
)


class Template:
    """One Jinja file, for training and for serving."""

    def __init__(self, file: TemplateFile, *, strict: bool = True) -> None:
        self.name = file.name
        self.path = file.path
        self.original = file.source
        # Jinja reads every line ending as "\n"; offsets into the source must agree with it.
        text = file.source.replace("\r\n", "\n").replace("\r", "\n")
        self.metadata = read_metadata(text, file.name)
        checked = check_source(text, file.name, strict=strict)
        self.kind = checked.kind
        self.source = checked.text
        self.variables = checked.variables
        if self.kind == "instruction":
            self._probe()

    @property
    def multi_turn(self) -> bool:
        """Whether conversations of several turns can be rendered."""
        return self.kind == "chat"

    def render(self, example: Example, tokens: SpecialTokens = NO_TOKENIZER, *, row: int = 0) -> RenderedText:
        """The example's whole text, with the origin of every character and what is to be trained.

        Raises `RecordError` for an example that this template cannot express, `TemplateError` where the template
        itself fails.
        """
        messages = example.messages
        text = self._text(messages, example, tokens, prompt=False)
        spans = spans_of(text)
        self._check_complete(example, spans)

        def prefix(count: int, *, prompt: bool) -> str:
            return plain_text(self._text(messages[:count], example, tokens, prompt=prompt))

        return RenderedText(
            text=plain_text(text),
            spans=spans,
            target_spans=find_targets(
                plain_text(text), spans, example, prefix, EndMarkers.of(self.metadata, tokens), name=self.name
            ),
            message_weights=tuple(message.weight for message in messages),
            roles=tuple(message.role for message in messages),
            row=row,
        )

    def prompt(self, example: Example, tokens: SpecialTokens = NO_TOKENIZER, *, row: int = 0) -> RenderedText:
        """What a server feeds the model to have it answer: the example's messages, without a last assistant turn."""
        messages = example.messages[:-1] if example.messages[-1].role == "assistant" else example.messages
        if not messages:
            raise RecordError("no message comes before the answer", field="messages", reason="no_prompt")
        text = self._text(messages, example, tokens, prompt=True)
        return RenderedText(
            text=plain_text(text), spans=spans_of(text), roles=tuple(message.role for message in messages), row=row
        )

    def _text(self, messages: tuple[Message, ...], example: Example, tokens: SpecialTokens, *, prompt: bool) -> Traced:
        if self.kind == "chat":
            variables = chat_variables(messages, example.tools)
        else:
            variables = instruction_variables(messages, tools=example.tools, name=self.name)
            if not prompt and messages[-1].role != "assistant":
                raise RecordError(
                    f"template {self.name!r} needs an answer; found none", field="messages", reason="no_response"
                )
        variables |= special_variables(tokens)
        variables["add_generation_prompt"] = prompt
        text = self._run(variables)
        if self.kind == "instruction" and tokens.adds_bos and "bos_token" not in self.variables:
            # Plain-text formats leave BOS to the tokenizer, as a server that is sent plain text does.
            text = concat([literal(tokens.bos), text])
        return text

    def _run(self, variables: Variables) -> Traced:
        try:
            text = concat(self._traced.root_render_func(self._traced.new_context(variables)))
            expected = self._plain.render(plain(variables))
        except TemplatekitError:
            raise
        except TemplateRefusal as error:
            raise RecordError(f"template {self.name!r} refuses: {error}", reason="template_refused") from None
        except Exception as error:  # templates run arbitrary expressions over the data
            line = _template_line(error, self._traced)
            raise RecordError(
                f"template {self.name!r}{line}: {type(error).__name__}: {error}", reason="template_failed"
            ) from error
        if text != expected:
            raise TemplateError(
                f"template {self.name!r}: the traced text differs from Jinja's; found {shorten(plain_text(text))}, "
                f"expected {shorten(expected)}; please report this template"
            )
        return text

    def _check_complete(self, example: Example, spans: tuple[Span, ...]) -> None:
        """Sees that no field is left out: a template that has no place for one must not lose it in silence."""
        printed = {(span.origin.message, span.origin.field) for span in spans}
        if any(span.origin == COMPUTED for span in spans):
            # Made from several fields at once, any of which may stand there.
            return
        if example.tools and (None, "tools") not in printed:
            raise self._no_place("tools")
        for index, message in enumerate(example.messages):
            for field in ("content", "context", "tool_calls"):
                value = getattr(message, field)
                if (value.strip() if isinstance(value, str) else value) and (index, field) not in printed:
                    raise self._no_place(f"messages[{index}].{field}", f" of the {message.role} message")

    def _no_place(self, field: str, whose: str = "") -> RecordError:
        return RecordError(
            f"template {self.name!r} has no place for this text{whose}; choose a template that has, or leave it out",
            field=field,
            reason="no_place_for_field",
        )

    def _probe(self) -> None:
        """Renders an instruction format once, to see that the response comes last of all fields, and once."""
        try:
            spans = self.render(_PROBE).spans
        except RecordError as error:
            raise TemplateError(str(error)) from error
        fields = [(span.origin.message, span.origin.field) for span in spans if span.origin.kind == "field"]
        answers = [field for field in fields if field[0] == 1]
        if not answers or fields[-1][0] != 1 or len(answers) > 1:
            found = ", ".join("response" if message == 1 else str(field) for message, field in fields) or "nothing"
            raise TemplateError(
                f"template {self.name!r}: the response must be printed once, behind all other fields; found {found}"
            )

    @cached_property
    def _traced(self) -> jinja2.Template:
        return tracing_environment().from_string(self.source)

    @cached_property
    def _plain(self) -> jinja2.Template:
        return plain_environment().from_string(self.source)


def load_template(address: str) -> Template:
    """A template from a `.jinja` file."""
    path = Path(address)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"template file {address!r} cannot be read: {error}") from None
    return Template(TemplateFile(name=path.stem, source=source, path=str(path)))


def _template_line(error: Exception, template: jinja2.Template) -> str:
    lines = [
        template.get_corresponding_lineno(frame.lineno or 1)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == template.filename
    ]
    return f", line {lines[-1]}" if lines else ""
