"""Properties 25 to 30: agreement with plain encoding and with servers, and of each turn with the turn alone."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import Any, get_args

from templatekit.config.data_options import DataOptions
from templatekit.errors import ConfigError, RecordError, TemplateError
from templatekit.export.serving import chat_template
from templatekit.testing import oracle
from templatekit.testing.check import check
from templatekit.testing.checked_record import CheckedRecord, CheckedSample, NoSampleError, Violation, equal, holds
from templatekit.testing.exemptions import no_template, not_prefix_stable, one_turn
from templatekit.testing.inputs import OddRoles, checked_conversations, checked_records, odd_roles
from templatekit.testing.subject import Subject
from templatekit.tokens.tokenizer import SPECIAL_TOKEN_KEYS, Tokenizer
from templatekit.types import Message, Sample


@check(25, given=checked_records)
def agrees_with_plain_encoding(checked: CheckedRecord) -> str | None:
    """If no token straddles a cut and no text contains control strings, the ids are those of plain encoding."""
    tokenizer = checked.subject.tokenizer
    plain = [
        sample
        for sample in checked.samples
        if oracle.has_only_expected_control_tokens(tokenizer, sample.rendered)
        and oracle.no_token_straddles_a_cut(tokenizer, sample.rendered.text, sample.cuts)
    ]
    for sample in plain:
        backend = tokenizer.backend(control=True, prefix=True)
        expected = tuple(backend.encode(sample.rendered.text, add_special_tokens=False).ids)
        equal(sample.tokenized.input_ids, expected, "the ids, compared with plain encoding", sample)
    return None if plain else "a token straddles a cut, or a text contains control strings"


@check(26, given=checked_records)
def servers_feed_the_same_ids(checked: CheckedRecord) -> str | None:
    """The exported chat template, rendered and encoded by transformers, gives the prompt's ids."""
    subject = checked.subject
    tried = 0
    for sample in checked.samples:
        if not oracle.has_only_expected_control_tokens(subject.tokenizer, sample.prompt):
            continue  # control strings in data act in transformers
        server = _transformers_tokenizer(subject.tokenizer)
        messages = [_client_message(message, subject) for message in sample.before(sample.first_turn).messages]
        exported = chat_template(subject.template, subject.tokenizer.special_tokens)
        ids = server.apply_chat_template(
            messages, chat_template=exported, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        equal(sample.prompt_ids, tuple(ids), "the prompt's ids, compared with the exported template", sample)
        tried += 1
    return None if tried else "a text contains control strings, which act in transformers"


@lru_cache(maxsize=32)
def _transformers_tokenizer(tokenizer: Tokenizer) -> Any:
    """The tokenizer of transformers with the same definition."""
    from transformers import PreTrainedTokenizerFast

    create: Any = PreTrainedTokenizerFast
    tokens = tokenizer.special_tokens
    named = dict(zip(SPECIAL_TOKEN_KEYS, (tokens.bos, tokens.eos, tokens.pad, tokens.unk, tokens.sep), strict=True))
    backend = tokenizer.backend(control=True, prefix=True)
    return create(tokenizer_object=backend, **{key: text for key, text in named.items() if text})


def _client_message(message: Message, subject: Subject) -> dict[str, Any]:
    """The message as a client sends it. Chat templates have no context, so it follows the content."""
    content: Any = message.content
    context = message.context
    if subject.template.kind == "chat":
        content, context = "\n\n".join(filter(None, (content, context))), ""
        if subject.template.accepted_forms.content(message.role) not in ("text", "either"):
            content = [{"type": "text", "text": content}]
    optional = {
        "name": message.name,
        "context": context,
        "reasoning_content": message.reasoning,
        "thinking": message.reasoning,
        "tool_calls": list(message.tool_calls),
    }
    return {"role": message.role, "content": content} | {key: value for key, value in optional.items() if value}


@check(27, given=checked_conversations, unless=[one_turn, not_prefix_stable])
def turns_are_prefix_stable(checked: CheckedRecord) -> None:
    """The ids of a conversation start with the ids of its first turns alone."""
    whole = checked.whole
    answers = [index for index, message in enumerate(whole.example.messages) if message.role == "assistant"]
    for turn in answers[:-1]:
        alone = _alone(checked, turn).whole
        # Text after the end marker may merge with the next header.
        end = oracle.true_runs(alone.tokenized.loss_weights)[-1][1]
        marker_end = alone.rendered.target_spans[-1].end
        text, alone_text = whole.rendered.text[:marker_end], alone.rendered.text[:marker_end]
        equal(text, alone_text, f"the text up to messages[{turn}]", whole)
        expected = alone.tokenized.input_ids[:end]
        equal(whole.tokenized.input_ids[:end], expected, f"the ids up to messages[{turn}]", whole)


def _alone(checked: CheckedRecord, turn: int, **options: Any) -> CheckedRecord:
    """The conversation up to and including a turn, as a record of its own."""
    record = checked.subject.adapter.to_record(checked.whole.before(turn + 1))
    return CheckedRecord(checked.subject, record, **options)


@check(28, given=checked_conversations, unless=[one_turn])
def turns_are_masked_as_alone(checked: CheckedRecord) -> None:
    """Each answer of a conversation is trained as in the conversation that ends with it: the same ids after the same
    text."""
    found = {turn: (sample, run) for sample in checked.samples for turn, run in _trained_turns(sample).items()}
    for index, message in enumerate(checked.whole.example.messages):
        if message.role != "assistant":
            continue
        alone = _alone(checked, index, train_on="last").whole
        holds(index in found, f"messages[{index}] is not trained in the whole conversation", checked.whole)
        (sample, (start, ids)), (expected_start, expected) = found[index], _trained_turns(alone)[index]
        equal(ids, expected, f"the trained ids of messages[{index}]", sample)
        text, alone_text = sample.rendered.text[:start], alone.rendered.text[:expected_start]
        equal(text, alone_text, f"the text before messages[{index}]", sample)


def _trained_turns(sample: CheckedSample) -> dict[int, tuple[int, list[int]]]:
    """For each trained turn its start in the text, and its trained ids. Text between turns is not trained."""
    ids = sample.tokenized.input_ids
    runs = [list(ids[start:end]) for start, end in oracle.true_runs(sample.tokenized.loss_weights)]
    starts: dict[int, int] = {}
    for target in sample.trained_targets:
        starts.setdefault(target.message, target.start)
    if len(starts) == 1:  # several generation blocks of one turn
        runs = [[id for run in runs for id in run]]
    return {turn: (start, run) for (turn, start), run in zip(starts.items(), runs, strict=False)}


@check(29, given=odd_roles, unless=[no_template])
def odd_roles_lose_no_message(odd: OddRoles) -> str | None:
    """A conversation with unknown roles or in an unusual order is refused, or all of its messages are printed."""
    subject = odd.subject
    try:
        rendered = subject.template.render(odd.example, subject.tokenizer.special_tokens)
    except RecordError:
        return None
    except TemplateError as error:  # an error in any order of roles is reported by another check
        raise NoSampleError(error) from error
    except Exception as error:
        raise Violation("an order of roles raises an exception that names no row", found=error) from error
    for index, message in enumerate(odd.example.messages):
        printed = any((span.origin.message, span.origin.field) == (index, "content") for span in rendered.spans)
        holds(printed, f"messages[{index}] (role {message.role!r}) is lost", expected=message.content)
    return None


POLICIES: tuple[str, ...] = get_args(DataOptions.model_fields["truncation"].annotation)


@check(30, given=checked_records)
def cut_samples_keep_a_label(checked: CheckedRecord) -> str | None:
    """A sample that is too long is shortened to the length and keeps a label, or is dropped and counted; a complete
    answer keeps its end marker."""
    if checked.train_on != "response":
        return "tried with train_on=response"
    whole = checked.whole
    count = len(whole.tokenized)
    runs = [run for sample in checked.samples for run in _trained_texts(sample)]
    prompt = len(whole.prompt_ids) if whole.prompted else 0
    for length in sorted({max(1, count - 1), max(1, count // 2), max(1, prompt)} - {count}):
        for policy in POLICIES:
            pipeline = checked.subject.new_pipeline(max_length=length, truncation=policy, on_error="skip")
            samples: list[Sample] = []
            with suppress(ConfigError, RecordError):
                samples = list(pipeline.run([checked.record]))
            for sample in (CheckedSample(subject=checked.subject, sample=each, pipeline=pipeline) for each in samples):
                holds(len(sample.tokenized) <= length, f"longer than max_length={length} ({policy})", sample)
                holds(sample.tokenized.trained_tokens, f"no label is left (truncation={policy})", sample)
                for run in _trained_texts(sample):
                    is_known = any(known.startswith(run) for known in runs)
                    holds(is_known, f"a trained run that the whole sample does not have ({policy})", sample)
            dropped = pipeline.counts.dropped.total()
            if not samples and policy != "error":
                holds(dropped, f"nothing came of a long record, and it is not counted (truncation={policy})")
    return None


def _trained_texts(sample: CheckedSample) -> list[str]:
    ids = sample.tokenized.input_ids
    decode = sample.subject.tokenizer.decode
    return [decode(ids[a:b]) for a, b in oracle.true_runs(sample.tokenized.loss_weights)]
