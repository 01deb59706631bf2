"""Response templates that are derived from answer grammars, tried with transformers' own parser.

TRL wrote nine of them by hand, for 26 chat templates. Wherever one of TRL's reads a message as it was written, the
derived one does too, but for `RAW_STRINGS`; where only the derived one does, a reason of `MISREAD` applies.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from testkit.answer_forms import FORMS
from testkit.answer_forms import answers as form_answers
from testkit.answers import messages, tools_for, written
from testkit.at_hand import Tokenizers
from testkit.budget import FULL, one_in
from testkit.published import GET, ORIGINALS, source_of, tokens_of, user

from templatekit import Example, Message, Template, TemplateFile
from templatekit.formats.answers.grammar import NUMBER, AnswerGrammar, CallObject, Edge, Node
from templatekit.formats.answers.notation import PYTHON, Notation
from templatekit.formats.answers.response_template import ResponseTemplate

parser = pytest.importorskip("transformers.utils.chat_parsing", reason="transformers 5.13 or later is not installed")

COUNT = 2000 if FULL else 100
"""The messages for each template."""
TRL_READS = (
    "qwen3",
    "qwen3_5_think",
    "glm4moe",
    "gptoss",
    "llama3_1",
    "lfm2_2_5",
    "nemotron_3_nano",
    "gemma4_v5",
    "deepseek_r1_distill",
    "gemma4",
    "gemma4_v2",
    "gemma4_v3",
    "gemma4_v4",
    "lfm2_2_5_v2",
    "lfm2_2_5_vl",
    "lfm2_v2",
    "llama3_2",
    "nemotron_3_5_lightning",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "qwen2_5",
    "qwen3_5_nothink",
    "qwen3_6",
    "qwen3_8",
    "qwen3_instruct_2507",
    "qwen3_vl",
)
"""The chat templates for which TRL has a response template, one of each kind first."""
INDENTED = {"code": "    return x\n", "blank": " a "}
"""Arguments with blank space at their ends, as the code that an editing tool is given."""


class Read(NamedTuple):
    """A message, as far as it is compared."""

    reasoning: str
    content: str
    calls: list[tuple[str, Any]]
    """The name and the arguments of each call."""


class Answer(NamedTuple):
    """A message, and what the template writes for it."""

    message: Message
    text: str
    prompt: str
    tools: list[dict[str, Any]]

    @property
    def wanted(self) -> Read:
        return as_read(self.message)

    def parse(self, response_template: Mapping[str, Any]) -> Read | None:
        """The message that transformers reads; None if it refuses the answer."""
        try:
            found = parser.parse_response(self.text, response_template, prefix=self.prompt, tools=self.tools)
        except ValueError:
            return None
        return read_of(found)


def read_of(found: Mapping[str, Any]) -> Read:
    # TRL names the reasoning of GPT-OSS and LFM2.5 `thinking`, as their chat templates do.
    reasoning = found.get("reasoning_content") or found.get("thinking") or ""
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in found.get("tool_calls") or ()]
    return Read(reasoning.strip(), (found.get("content") or "").strip(), calls)


def as_read(message: Message) -> Read:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.tool_calls]
    return Read(message.reasoning.strip(), message.content.strip(), calls)


@cache
def template_of(name: str) -> Template:
    template = Template(TemplateFile(name=name, source=source_of(name)), strict=False)
    return template.ended_by("none") if name == "glm4moe" else template


def grammar_of(name: str) -> AnswerGrammar:
    return template_of(name).grammar(tokens_of(name))


def by_trl(name: str) -> dict[str, Any]:
    """The response template that TRL sets for a chat template; skips the test where TRL is absent."""
    utils = pytest.importorskip("trl.chat_template_utils", reason="trl is not installed")
    holder = SimpleNamespace(chat_template=source_of(name))
    found: dict[str, Any] = utils.add_response_schema(holder).response_template
    return found


def answers(name: str, count: int, seed: int = 0) -> Iterator[Answer]:
    """Answers that the template writes. Their texts spell its markers, but for those that stop a server."""
    template, tokens, grammar = template_of(name), tokens_of(name), grammar_of(name)
    chance = random.Random(seed)
    while count:
        for message in messages(grammar, 4 * count, chance.randrange(10**9)):
            if any(stop in message.content + message.reasoning for stop in grammar.stops):
                continue
            if message.tool_calls and chance.random() < 0.2:
                call = message.tool_calls[0]
                more = {**call["function"]["arguments"], **INDENTED}
                first = {**call, "function": {**call["function"], "arguments": more}}
                message = replace(message, tool_calls=(first, *message.tool_calls[1:]))
            tools = list(tools_for(message))
            called = {call["function"]["name"] for call in message.tool_calls}
            if len(called) < len(message.tool_calls) or (rendered := written(template, tokens, message)) is None:
                continue  # a tool that is called twice has no types here
            start, end = rendered.target_spans[0].start, rendered.target_spans[-1].end
            yield Answer(message, rendered.text[start:end], rendered.text[:start], tools)
            count -= 1
            if not count:
                return


def arguments_of(answer: Answer) -> list[Any]:
    return [value for _, arguments in answer.wanted.calls for value in arguments.values()]


def spells_marker(answer: Answer, grammar: AnswerGrammar) -> bool:
    """Whether a text, or an argument, holds a part of a literal."""
    texts = [answer.message.content, answer.message.reasoning, *map(json.dumps, arguments_of(answer))]
    parts = {part for edge in grammar.edges for part in re.split(r"\s+", edge.literal) if len(part) > 1}
    return any(part in text for text in texts for part in parts)


def has_blank_ends(answer: Answer, _: AnswerGrammar) -> bool:
    return any(isinstance(value, str) and value != value.strip() for value in arguments_of(answer))


def has_other_names(answer: Answer, _: AnswerGrammar) -> bool:
    return any("-" in name or "." in name for name, _arguments in answer.wanted.calls)


def has_other_values(answer: Answer, _: AnswerGrammar) -> bool:
    """Whether an argument is none that Python and JSON write alike, without escapes."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in arguments_of(answer)]
    return any(re.search(r"true|false|null|[\\\n'\"\[{(,]", text) for text in texts)


def has_calls(answer: Answer, _: AnswerGrammar) -> bool:
    return bool(answer.message.tool_calls)


Reason: TypeAlias = Callable[[Answer, AnswerGrammar], bool]
MISREAD: Mapping[str, tuple[Reason, ...]] = {
    "qwen3_5": (has_blank_ends, spells_marker),
    "qwen3_6": (has_blank_ends, spells_marker),
    "qwen3_8": (has_blank_ends, spells_marker),
    "nemotron": (has_blank_ends, spells_marker),
    "glm4moe": (has_blank_ends, spells_marker),
    "gemma4": (has_other_names, spells_marker),
    "lfm2": (has_other_names, has_other_values, spells_marker),
    "deepseek": (has_calls,),
    "qwen": (spells_marker,),
    "gptoss": (),
    "llama3": (),
}
"""The reasons why TRL's response template misreads an answer, by the start of the chat template's name."""
RAW_STRINGS = ("lfm2_2_5", "lfm2_2_5_v2")
"""They write strings in quotes without escapes. `python-call-list`, which reads the rest, refuses line breaks there."""
THOUGHT_FIRST = "gptoss"
"""Writes content before a call as it writes a thought."""


def reasons_for(name: str) -> tuple[Reason, ...]:
    return next(reasons for start, reasons in MISREAD.items() if name.startswith(start))


def is_explained(name: str, answer: Answer) -> bool:
    """Whether it is known why a derived response template misreads an answer."""
    if name == THOUGHT_FIRST and answer.message.tool_calls and answer.message.content:
        return True
    if name in RAW_STRINGS and has_other_values(answer, grammar_of(name)):
        return True
    if any(stop in answer.text.removesuffix("\n").removesuffix(stop) for stop in grammar_of(name).stops):
        return True  # a server stops there
    return spells_marker(answer, grammar_of(name))


class Compared(NamedTuple):
    """How two response templates read the same answers."""

    counts: Counter[str]
    problems: list[str]
    """Answers that are misread for no reason that is known."""


def compare(name: str, derived: Mapping[str, Any], theirs: Mapping[str, Any], count: int) -> Compared:
    counts: Counter[str] = Counter()
    problems = []
    for answer in answers(name, count):
        own, trl = answer.parse(derived) == answer.wanted, answer.parse(theirs) == answer.wanted
        counts.update(answers=1, derived=own, trl=trl, only_trl=trl and not own)
        if not own and not is_explained(name, answer):
            problems.append(f"derived: {answer.text!r} is read as {answer.parse(derived)}")
        elif trl and not own and name not in RAW_STRINGS:
            problems.append(f"only TRL: {answer.text!r}; derived: {answer.parse(derived)}")
        elif own and not trl and not any(applies(answer, grammar_of(name)) for applies in reasons_for(name)):
            problems.append(f"TRL: {answer.text!r} is read as {answer.parse(theirs)}")
    return Compared(counts, problems)


@pytest.mark.parametrize("name", one_in(3, TRL_READS))
def test_it_reads_what_trls_reads(name: str, record_property: Callable[[str, object], None]) -> None:
    derived = template_of(name).response_template(tokens_of(name))
    counts, problems = compare(name, derived, by_trl(name), COUNT)
    record_property("counts", f"{name}: {dict(counts)}")
    assert not problems, problems[:3]
    assert counts["answers"] == COUNT and counts["derived"] >= counts["trl"] - counts["only_trl"] >= COUNT // 2


def test_the_comparison_notices_a_wrong_response_template() -> None:
    """Negative controls: a wrong close, no fence around calls, a thought that is not read, and TRL's for another."""
    theirs = by_trl("qwen3")
    derived = template_of("qwen3").response_template(tokens_of("qwen3"))
    assert not compare("qwen3", derived, theirs, 60).problems
    for field, changes in (
        ("tool_calls", {"close_pattern": "</tool_calls>"}),
        ("tool_calls", {"close_pattern": "(?<=[}])"}),
        ("reasoning_content", {"open_pattern": "<thought>"}),
        ("content", {"close_pattern": "<never>"}),
    ):
        wrong = {**derived, "fields": {**derived["fields"], field: {**derived["fields"][field], **changes}}}
        assert compare("qwen3", wrong, theirs, 60).problems, (field, changes)
    assert compare("qwen3", derived, by_trl("llama3_1"), 60).problems
    assert compare("qwen3", template_of("llama3_1").response_template(tokens_of("llama3_1")), theirs, 60).problems


def in_chunks(answer: Answer, response_template: Mapping[str, Any], chance: random.Random, *, lose: int = -1) -> Read:
    """What transformers reads as the answer comes in; `lose` is the position of a character that does not."""
    stream = parser.ResponseParser(response_template, prefix=answer.prompt, tools=answer.tools)
    position = 0
    while position < len(answer.text):
        end = position + chance.randint(1, 7)
        stream.feed(answer.text[position:end] if not position <= lose < end else answer.text[position:lose])
        position = end
    return read_of(stream.finalize()[0])


@pytest.mark.parametrize("name", one_in(2, TRL_READS[:9]))
def test_it_reads_an_answer_as_it_comes_in(name: str) -> None:
    derived, chance = template_of(name).response_template(tokens_of(name)), random.Random(0)
    for answer in answers(name, COUNT // 5):
        if (whole := answer.parse(derived)) is not None:
            assert in_chunks(answer, derived, chance) == whole
            if len(whole.content) > 3:  # a negative control
                lost = answer.text.rindex(whole.content) + 1
                assert in_chunks(answer, derived, chance, lose=lost) != whole


@pytest.mark.parametrize("text", ["a", "\n", "<b>", "}]", "a "], ids=repr)
@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_nothink", "glm4moe", "gemma4_v5"])
def test_long_texts_are_read_in_linear_time(name: str, text: str) -> None:
    """No expression goes back over what it has read: 100,000 characters take milliseconds, not minutes."""
    function = {"name": "f", "arguments": {"key": f"x{text * (100_000 // len(text))}x"}}
    message = Message(role="assistant", tool_calls=({"id": "call00000", "type": "function", "function": function},))
    rendered = written(template_of(name), tokens_of(name), message)
    assert rendered is not None
    start, end = rendered.target_spans[0].start, rendered.target_spans[-1].end
    answer = Answer(message, rendered.text[start:end], rendered.text[:start], list(tools_for(message)))
    started = time.monotonic()
    assert answer.parse(template_of(name).response_template(tokens_of(name))) == answer.wanted
    assert time.monotonic() - started < 5


CALL = {"id": "call00000", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
CALLED = (
    user("Weather?"),
    Message(role="assistant", tool_calls=(CALL,)),
    Message(role="tool", content="Sunny.", name="get_weather", tool_call_id="call00000"),
)
ASKED = (user("Weather?"), Message(role="assistant", content="Where?"), user("In Oslo, <think>."))


@pytest.mark.parametrize("thinking", [True, False, None])
@pytest.mark.parametrize("messages", [ASKED, CALLED], ids=["question", "tool"])
@pytest.mark.parametrize("name", TRL_READS[:10])
def test_it_goes_on_from_every_prompt(name: str, messages: tuple[Message, ...], thinking: bool | None) -> None:
    """One response template serves prompts with and without a thought, behind a question and a tool's answer."""
    template, tokens = template_of(name), tokens_of(name)
    derived = template.response_template(tokens)
    if thinking is not None and "enable_thinking" in template.variables:
        template = template.with_kwargs({"enable_thinking": thinking})
    tools = (GET,) if "tools" in template.variables else ()
    prompt = template.prompt(Example(messages=messages, tools=tools), tokens).text
    end = grammar_of(name).stops[0] if grammar_of(name).stops else ""
    opening = "<|channel|>final<|message|>" if name == "gptoss" else ""
    if prompt.rstrip().endswith(("<think>", "<|channel>thought")):
        opening = f"Hm.{grammar_of(name).literals('reasoning', 'content')[0]}"
    found = parser.parse_response(f"{opening}It is sunny.{end}", derived, prefix=prompt)
    thought = {"reasoning_content": "Hm."} if "Hm." in opening else {}
    assert found == {"role": "assistant", "content": "It is sunny.", **thought}
    # A negative control: with another header, the conversation before is taken for the answer.
    answer = Answer(Message(role="assistant", content="It is sunny."), f"{opening}It is sunny.{end}", prompt, [])
    assert answer.parse(derived) == read_of(found) != answer.parse({**derived, "start_anchor": "<nowhere>"})


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_published_template_has_one_that_transformers_loads(name: str) -> None:
    from transformers.utils.chat_parsing.response_templates import load_response_template

    template, tokens = template_of(name), tokens_of(name)
    derived = template.response_template(tokens)
    assert json.loads(json.dumps(derived)) == derived
    load_response_template(derived)
    losses = template.response_losses(tokens)
    fields = {"reasoning": "reasoning_content"}
    for field in grammar_of(name).writes:
        named = any(loss.startswith(f"{field} are not read") for loss in losses)
        assert (fields.get(field, field) in derived["fields"]) != named, (field, losses)
    rendered = written(template, tokens, Message(role="assistant", content="It is sunny."))
    assert rendered is not None
    (target,) = rendered.target_spans
    text, prompt = rendered.text[target.start : target.end], rendered.text[: target.start]
    assert parser.parse_response(text, derived, prefix=prompt)["content"] == "It is sunny."


def test_losses_are_named() -> None:
    def losses(name: str) -> str:
        return " ".join(template_of(name).response_losses(tokens_of(name)))

    assert losses("qwen3") == losses("llama3_1") == ""
    assert "no `tools`" in losses("qwen3_5_think") and "before a call" in losses("gptoss")
    assert "line break" in losses("lfm2_2_5") and "key that is no word" in losses("gemma4_v5")
    assert losses("muse_glimmer").startswith("tool_calls are not read")


@pytest.mark.parametrize("name", FORMS)
@given(data=st.data())
def test_every_form_of_calls_is_read(name: str, data: st.DataObject) -> None:
    form = FORMS[name]
    message = data.draw(form_answers(form, plain=True))
    called = [call["function"] for call in message.tool_calls]
    assume(len({function["name"] for function in called}) == len(called))
    assume(name != "quotes" or "x-y" not in json.dumps(called))  # as `response_losses` says
    rendered = written(form.template, form.tokens, message)
    assert rendered is not None
    start, end = rendered.target_spans[0].start, rendered.target_spans[-1].end
    answer = Answer(message, rendered.text[start:end], rendered.text[:start], list(tools_for(message)))
    derived = form.template.response_template(form.tokens)
    assert answer.parse(derived) == answer.wanted
    if called:  # a negative control
        fields = {key: field for key, field in derived["fields"].items() if key != "tool_calls"}
        assert answer.parse({**derived, "fields": fields}) != answer.wanted


PLAIN: tuple[tuple[Node, Node, str], ...] = (("start", "content", ""), ("content", "end", "<end>"))


def derive(
    *more: tuple[Node, Node, str], plain: tuple[tuple[Node, Node, str], ...] = PLAIN, **options: Any
) -> ResponseTemplate:
    """The response template of a small grammar with these edges more."""
    edges = tuple(Edge(source=source, target=target, literal=text) for source, target, text in [*plain, *more])
    prompt = "<end>\n<assistant>"
    return ResponseTemplate.of(AnswerGrammar(name="small", prompt=prompt, edges=edges, stops=("<end>",), **options))


def read(derived: ResponseTemplate, text: str) -> tuple[str, list[Any]]:
    """The content, and the id, name and arguments of each call."""
    found = parser.parse_response(text, derived.template, prefix="<user>Hi<end>\n<assistant>")
    calls = [(call.get("id"), *call["function"].values()) for call in found.get("tool_calls", ())]
    return found.get("content", ""), calls


def test_other_forms_of_calls() -> None:
    place = CallObject(name=("function", "name"), arguments=("function", "arguments"), id=("id",), first_key="id")
    listed = derive(
        ("content", "calls", "[CALLS]"), ("start", "calls", "[CALLS]"), ("calls", "end", "<end>"), call=place
    )
    assert listed.losses == ("the ids of calls",)
    one = '{"id": "a", "function": {"name": "f", "arguments": {"x": "<end>["}}}'
    other = '{"id": "b", "function": {"name": "g", "arguments": {}}}'
    assert read(listed, f"Hi[CALLS][{one}, {other}]") == ("Hi", [(None, "f", {"x": "<end>["}), (None, "g", {})])

    by_id = derive(
        ("content", "id", "<calls><call>"),
        ("id", "arguments", "<sep>"),
        ("arguments", "id", "</call><call>"),
        ("arguments", "end", "</call></calls><end>"),
        id_holds_name=True,
    )
    assert by_id.losses == ()
    text = 'Hi<calls><call>functions.f:0<sep>{"x": "</call>"}</call><call>functions.g:1<sep>{}</call></calls><end>'
    calls = [("functions.f:0", "f", {"x": "</call>"}), ("functions.g:1", "g", {})]
    assert read(by_id, text) == ("Hi", calls)

    numbered = derive(
        ("content", "name", f"<call {NUMBER}>"),
        ("name", "arguments", ":"),
        ("arguments", "name", f"</call><call {NUMBER}>"),
        ("arguments", "end", "</call><end>"),
    )
    assert numbered.losses == ()
    text = 'Hi<call 0>f:{}</call><call 11>g:{"x": 1}</call>'
    assert read(numbered, text) == ("Hi", [(None, "f", {}), (None, "g", {"x": 1})])
    with pytest.raises(ValueError, match="Extra data"):  # a negative control
        read(numbered, text.replace("call 11", "call x"))


def test_content_behind_an_opening() -> None:
    """Only what stands behind its opening is content; what stands between two parts is none."""
    opened = derive(
        ("start", "reasoning", "<thought>"),
        ("reasoning", "content", "</thought><text>"),
        ("reasoning", "end", "</thought><text><end>"),
        ("content", "name", "</text><call>"),
        ("name", "arguments", ":"),
        ("arguments", "end", "</call><end>"),
        plain=(("start", "content", "<text>"), ("content", "end", "<end>")),
    )
    assert opened.losses == ()
    for thought in ("", "<thought>Hm.</thought>"):
        for text in ("<text>Hi<end>", "<text>Hi", "<text>Hi</text><call>f:{}</call><end>"):
            found = parser.parse_response(thought + text, opened.template, prefix="")
            assert (found["content"], found.get("reasoning_content", "")) == ("Hi", "Hm." if thought else "")
            assert len(found.get("tool_calls", ())) == text.count("<call>")
    assert parser.parse_response("Hi<end>", opened.template, prefix="") == {"role": "assistant"}  # a negative control


def test_what_cannot_be_said_is_left_out() -> None:
    calls: list[tuple[Node, Node, str]] = [
        ("content", "name", "<call>"),
        ("name", "arguments", "<sep>"),
        ("arguments", "end", "</call><end>"),
    ]
    for values, words in ((PYTHON, "Python's notation"), (Notation(quote="<q>", escapes=True), "an escaped <q>")):
        derived = derive(*calls, values=values)
        assert list(derived.template["fields"]) == ["content"] and len(derived.losses) == 1
        assert derived.losses[0].startswith("tool_calls are not read") and words in derived.losses[0]
    assert "tool_calls" in derive(*calls).template["fields"]
    place = CallObject(name=("name",), arguments=("arguments",))
    two = derive(*calls, ("start", "call", "<object>"), ("call", "end", "<end>"), call=place)
    assert two.losses == ("calls in more than one form: only those that begin with the name are read",)


def test_a_saved_tokenizer_reads_answers(tokenizer_of: Tokenizers, tmp_path: Path) -> None:
    """transformers reads it back from tokenizer_config.json, and parses ids with it."""
    from transformers import AutoTokenizer

    from templatekit.training.served_tokenizer import set_templates

    tokenizer = tokenizer_of("qwen3")
    assert tokenizer.chat_template is not None
    template = Template(TemplateFile(name="qwen3", source=tokenizer.chat_template))
    served = AutoTokenizer.from_pretrained(tokenizer_of.folder("qwen3"))
    assert served.response_template is None
    set_templates(served, template, tokenizer)
    served.save_pretrained(tmp_path)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert again.response_template == template.response_template(tokenizer.special_tokens)
    prompt = again.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    text = (
        "<think>\nHm.\n</think>\n\nLet me see.\n<tool_call>\n"
        '{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    wanted = {"role": "assistant", "reasoning_content": "Hm.", "content": "Let me see.", "tool_calls": [call]}
    assert again.parse_response(again(text)["input_ids"], prefix=prompt) == wanted
    again.response_template = own = {"start_anchor_pattern": "x", "fields": {"content": {}}}  # a negative control
    assert again.parse_response(again(text)["input_ids"], prefix=prompt) != wanted
    set_templates(again, template, tokenizer)
    assert again.response_template == own  # what came with the same chat template stays
    set_templates(again, template.with_kwargs({"enable_thinking": False}), tokenizer)
    assert again.response_template != own
