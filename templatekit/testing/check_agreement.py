"""Properties 25 to 30: in agreement with plain encoding, with servers, and of each turn with itself."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, get_args

from templatekit.config.options import DataOptions
from templatekit.errors import ConfigError, RecordError, TemplateError
from templatekit.export.serving import chat_template
from templatekit.testing import oracle
from templatekit.testing.check import Violation, check, equal, holds, no_template, one_turn
from templatekit.testing.subject import Case, CheckedSample, Subject, Unmade
from templatekit.testing.trials import OddRoles, cases, dialogues, odd_roles
from templatekit.tokens.tokenizer import NAMED, Tokenizer
from templatekit.types import Message


@check(25, given=cases)
def agrees_with_plain_encoding(case: Case) -> str | None:
    """Where nothing straddles a cut and no text holds control strings, the ids are those of plain encoding."""
    tokenizer = case.subject.tokenizer
    plain = [
        sample
        for sample in case.samples
        if oracle.holds_no_control_but(tokenizer, sample.rendered)
        and oracle.nothing_straddles(tokenizer, sample.rendered.text, sample.cuts)
    ]
    for sample in plain:
        backend = tokenizer.backend(control=True, prefix=True)
        expected = tuple(backend.encode(sample.rendered.text, add_special_tokens=False).ids)
        equal(sample.tokenized.input_ids, expected, "the ids, beside those of plain encoding", sample)
    return None if plain else "something straddles a cut, or is a control string"


@check(26, given=cases)
def servers_feed_the_same_ids(case: Case) -> str | None:
    """The exported chat template, rendered and encoded by transformers, gives the prompt's ids."""
    subject = case.subject
    tried = 0
    for sample in case.samples:
        if not oracle.holds_no_control_but(subject.tokenizer, sample.prompt):
            continue  # transformers takes control strings in the data for control
        server = _server(subject.tokenizer)
        messages = [_as_served(message, subject) for message in sample.before(sample.first_turn).messages]
        exported = chat_template(subject.template, subject.tokenizer.special_tokens)
        ids = server.apply_chat_template(
            messages, chat_template=exported, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        equal(sample.prompt_ids, tuple(ids), "the prompt's ids, beside those of the exported template", sample)
        tried += 1
    return None if tried else "a text holds control strings, which transformers takes for control"


@lru_cache(maxsize=32)
def _server(tokenizer: Tokenizer) -> Any:
    """transformers' own tokenizer of the same definition."""
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast
    tokens = tokenizer.special_tokens
    named = dict(zip(NAMED, (tokens.bos, tokens.eos, tokens.pad, tokens.unk), strict=True))
    backend = tokenizer.backend(control=True, prefix=True)
    return made(tokenizer_object=backend, **{key: text for key, text in named.items() if text})


def _as_served(message: Message, subject: Subject) -> dict[str, Any]:
    """A message as a client sends it: chat templates know no context, so that it goes behind the content."""
    content: Any = message.content
    context = message.context
    if subject.template.kind == "chat":
        content, context = "\n\n".join(filter(None, (content, context))), ""
        if subject.template.takes.content(message.role) not in ("text", "either"):
            content = [{"type": "text", "text": content}]
    optional = {
        "name": message.name,
        "context": context,
        "reasoning_content": message.reasoning,
        "thinking": message.reasoning,
        "tool_calls": list(message.tool_calls),
    }
    return {"role": message.role, "content": content} | {key: value for key, value in optional.items() if value}


def declared_unstable(subject: Subject) -> str | None:
    """For the check of prefixes."""
    return None if subject.capabilities.prefix_stable else "the template declares prefix_stable: false"


@check(27, given=dialogues, unless=[one_turn, declared_unstable])
def turns_are_prefix_stable(case: Case) -> None:
    """The ids of a conversation's first turns, alone, are how the ids of the whole begin."""
    whole = case.whole
    answers = [index for index, message in enumerate(whole.example.messages) if message.role == "assistant"]
    for turn in answers[:-1]:
        part = _alone(case, turn).whole
        # What stands behind the end marker is the next header's neighbour, and may merge with it.
        end = oracle.runs_of([bool(weight) for weight in part.tokenized.loss_weights])[-1][1]
        marker = part.rendered.target_spans[-1].end
        equal(whole.rendered.text[:marker], part.rendered.text[:marker], f"the text up to messages[{turn}]", whole)
        expected = part.tokenized.input_ids[:end]
        equal(whole.tokenized.input_ids[:end], expected, f"the ids up to messages[{turn}]", whole)


def _alone(case: Case, turn: int, **options: Any) -> Case:
    """The conversation up to a turn, as a record of its own."""
    adapter = case.subject.adapter
    messages = case.whole.example.messages[: turn + 1]
    return Case(case.subject, adapter.to_record(replace(case.whole.example, messages=messages)), **options)


@check(28, given=dialogues, unless=[one_turn])
def turns_are_masked_as_alone(case: Case) -> None:
    """Each answer of a conversation is trained as in the conversation that ends with it: the same ids, behind the same
    text."""
    found = {turn: (sample, run) for sample in case.samples for turn, run in _trained_turns(sample).items()}
    for index, message in enumerate(case.whole.example.messages):
        if message.role != "assistant":
            continue
        single = _alone(case, index, train_on="last").whole
        holds(index in found, f"messages[{index}] is not trained in the whole conversation", case.whole)
        (sample, (start, ids)), (at, expected) = found[index], _trained_turns(single)[index]
        equal(ids, expected, f"the trained ids of messages[{index}]", sample)
        equal(sample.rendered.text[:start], single.rendered.text[:at], f"the text before messages[{index}]", sample)


def _trained_turns(sample: CheckedSample) -> dict[int, tuple[int, list[int]]]:
    """Where each trained turn begins in the text, and its trained ids. Turns are parted by text that is not trained."""
    ids = sample.tokenized.input_ids
    runs = [list(ids[start:end]) for start, end in oracle.runs_of([bool(w) for w in sample.tokenized.loss_weights])]
    starts: dict[int, int] = {}
    for target in sample.trained_targets:
        starts.setdefault(target.message, target.start)
    if len(starts) == 1:  # several generation blocks of one turn
        runs = [[id for run in runs for id in run]]
    return {turn: (start, run) for (turn, start), run in zip(starts.items(), runs, strict=False)}


@check(29, given=odd_roles, unless=[no_template])
def odd_roles_lose_no_message(trial: OddRoles) -> str | None:
    """Unknown roles and broken orders are refused, or every message of them is printed."""
    subject = trial.subject
    try:
        rendered = subject.template.render(trial.example, subject.tokenizer.special_tokens)
    except RecordError:
        return None
    except TemplateError as error:  # of the template itself, whatever the order: told by the check that it breaks
        raise Unmade(error) from error
    except Exception as error:
        raise Violation("an order of roles raises an exception that names no row", found=error) from error
    for index, message in enumerate(trial.example.messages):
        printed = any((span.origin.message, span.origin.field) == (index, "content") for span in rendered.spans)
        holds(printed, f"messages[{index}] (role {message.role!r}) is lost", expected=message.content)
    return None


POLICIES: tuple[str, ...] = get_args(DataOptions.model_fields["truncation"].annotation)


@check(30, given=cases)
def cut_samples_keep_a_label(case: Case) -> str | None:
    """A sample that is too long comes out within the length and with a label, or is dropped and counted; the end marker
    is there where the answer is whole."""
    if case.train_on != "response":
        return "tried with train_on=response"
    whole = case.whole
    count = len(whole.tokenized)
    runs = [run for sample in case.samples for run in _trained_texts(sample)]
    prompt = len(whole.prompt_ids) if whole.prompted else 0
    for length in sorted({max(1, count - 1), max(1, count // 2), max(1, prompt)} - {count}):
        for policy in POLICIES:
            pipeline = case.subject.new_pipeline(max_length=length, truncation=policy, on_error="skip")
            try:
                made = [
                    CheckedSample(subject=case.subject, prepared=prepared, options=case.options)
                    for prepared in pipeline.run([case.record])
                ]
            except (ConfigError, RecordError):
                made = []
            for sample in made:
                holds(len(sample.tokenized) <= length, f"longer than max_length={length} ({policy})", sample)
                holds(sample.tokenized.trained_tokens, f"no label is left (truncation={policy})", sample)
                for run in _trained_texts(sample):
                    cut = any(known.startswith(run) and run != known for known in runs)
                    holds(run in runs or cut, f"a trained run that the whole sample does not have ({policy})", sample)
            dropped = pipeline.counts.dropped.total()
            if not made and policy != "error":
                holds(dropped, f"nothing came of a long record, and it is not counted (truncation={policy})")
    return None


def _trained_texts(sample: CheckedSample) -> list[str]:
    ids = sample.tokenized.input_ids
    decode = sample.subject.tokenizer.decode
    return [decode(ids[a:b]) for a, b in oracle.runs_of([bool(w) for w in sample.tokenized.loss_weights])]
