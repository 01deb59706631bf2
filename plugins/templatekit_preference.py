"""The adapter `preference`: a prompt with a chosen and a rejected answer, in the common file formats."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from templatekit_prompt_completion import MESSAGE_KEYS, conversation, untrained, written
from templatekit_transcript import is_transcript, read_transcript

from templatekit import Adapter, Example, Message, PreferenceExample, Record, RecordError, hookimpl, text_of, tools_of

PROMPTS = ("prompt", "conversations", "instruction")
"""The keys under which a record may hold the prompt."""

_OPEN_TRANSCRIPT = re.compile(r"\s*Human:\s.*\n\nAssistant:\s*", re.DOTALL)
"""A transcript that ends where the answer starts."""


class Preference(Adapter):
    """Reads `chosen` and `rejected`, each text, a message or messages, and the prompt that they answer.

    The prompt is `prompt` (text or messages), `conversations` (ShareGPT's turns) or `instruction`; a text may have a
    context under `input`. Without a prompt, `chosen` and `rejected` are whole conversations (messages or transcripts),
    and the prompt is the messages that both start with. Answers in the prompt have weight 0.
    """

    name = "preference"
    description = "chosen, rejected: text or messages; prompt, conversations, instruction, or none; optional system"
    keys = (*PROMPTS, "input", "chosen", "rejected", "system", "tools")
    inner_keys: ClassVar[Mapping[str, frozenset[str]]] = dict.fromkeys((*PROMPTS, "chosen", "rejected"), MESSAGE_KEYS)
    required = ("chosen", "rejected")
    example_records = (
        {"prompt": "Name a color.", "chosen": "Red.", "rejected": "No."},
        {"instruction": "Name it.", "input": "A color.", "chosen": "Red.", "rejected": "No.", "system": "Be brief."},
        {
            "conversations": [{"from": "human", "value": "Name a color."}],
            "chosen": {"from": "gpt", "value": "Red."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {
            "chosen": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "No."}],
        },
    )

    def to_example(self, record: Record) -> PreferenceExample:
        """Return the prompt and the two answers."""
        prompt = _prompt(record)
        chosen, rejected = (_answer(record, key, prompt) for key in ("chosen", "rejected"))
        if not prompt or chosen[0].role != "assistant" or rejected[0].role != "assistant":
            shared = _shared_messages(record, prompt, chosen, rejected)
            prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
        return PreferenceExample(
            messages=untrained(_with_system(record, prompt)),
            chosen=chosen,
            rejected=rejected,
            tools=tools_of(record),
        )

    def to_record(self, example: Example) -> Record:
        """Return texts or messages, with `instruction` and `input` if the prompt has a context."""
        if not isinstance(example, PreferenceExample):
            raise TypeError(f"found {type(example).__name__}; expected a PreferenceExample")
        *before, last = example.messages
        record: dict[str, Any] = {"prompt": written(example.messages, role="user")}
        if last.context:
            record = {"system": before[0].content} if before else {}
            record |= {"instruction": last.content, "input": last.context}
        record["chosen"] = written(example.chosen, role="assistant")
        record["rejected"] = written(example.rejected, role="assistant")
        return record | ({"tools": list(example.tools)} if example.tools else {})


def _prompt(record: Record) -> tuple[Message, ...]:
    """The messages before the answers; empty if the answers are whole conversations."""
    given = [key for key in PROMPTS if record.get(key)] or [key for key in PROMPTS if record.get(key) == ""][:1]
    if len(given) > 1:
        raise RecordError(
            f"found a prompt under {given[0]!r} as well; expected one; to leave this one out: "
            f"--columns unread={given[1]}",
            field=given[1],
            reason="two_prompts",
        )
    context = text_of(record, "input", required=False)
    key = given[0] if given else None
    if key is None or not isinstance(record[key], str):
        if context:
            raise RecordError(
                f"found {context!r:.60}; expected a text that it goes with, under 'instruction' or 'prompt'; to leave "
                "it out: --columns unread=input",
                field="input",
                reason="input_without_instruction",
            )
        return conversation(record, key, role="user") if key else ()
    if _is_open_transcript(record):
        return read_transcript(record[key], key)[:-1]
    return (Message(role="user", content=record[key], context=context),)


def _is_open_transcript(record: Record) -> bool:
    prompt = record.get("prompt")
    return isinstance(prompt, str) and _OPEN_TRANSCRIPT.fullmatch(prompt) is not None


def _answer(record: Record, key: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages under `chosen` or `rejected`; without a prompt, the whole conversation."""
    text = record.get(key)
    if not isinstance(text, str):
        messages = conversation(record, key, role="assistant")
    elif not any(message.content for message in prompt) and is_transcript(text):
        messages = read_transcript(text, key)
    elif not prompt:
        raise RecordError(
            f"no prompt; found keys {', '.join(sorted(map(str, record)))}, and under {key!r} {text!r:.60}; expected a "
            "prompt (--columns prompt=COLUMN), or transcripts that begin with 'Human: '",
            field="prompt",
            reason="no_prompt",
        )
    else:
        if _is_open_transcript(record):  # then the answer starts with the space after the marker
            text = text.removeprefix(record["prompt"]).removeprefix(" ")
        messages = (Message(role="assistant", content=text),)
    if messages[-1].role != "assistant":
        raise RecordError(
            f"ends with a message of {messages[-1].role!r:.60}; expected the assistant's last",
            field=key,
            reason="no_response",
        )
    return messages


def _shared_messages(
    record: Record, prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The messages that two whole conversations start with; at least the last message of each is not among them.

    Raises `RecordError` if the conversations do not contain the given prompt. Raises it also if they first differ at a
    message that is not the assistant's, because they then answer different prompts.
    """
    longest = min(len(chosen), len(rejected)) - 1
    count = next((i for i in range(longest) if chosen[i] != rejected[i]), longest)
    if any(message.content and message not in chosen[:count] for message in prompt):
        raise RecordError(
            f"found {prompt[-1].content!r:.60}; expected a message that both chosen and rejected start with, as they "
            "are whole conversations; to leave the prompt out: --columns unread=prompt",
            field="prompt",
            reason="prompt_not_shared",
        )
    roles = {chosen[count].role, rejected[count].role}
    if not count or roles != {"assistant"}:
        raise RecordError(
            f"chosen and rejected differ at a message of {' and '.join(map(repr, sorted(roles)))}; expected one "
            "prompt, and answers of the assistant's; to train on the chosen conversations as they are: "
            f"--columns {_column_for(record['chosen'])}=chosen",
            field=f"chosen[{count}]",
            reason="prompts_differ",
        )
    return chosen[:count]


def _column_for(value: object) -> str:
    """The key under which another adapter reads a conversation in this format."""
    if isinstance(value, str):
        return "transcript"
    first = value[0] if isinstance(value, list) else value
    return "conversations" if isinstance(first, Mapping) and "from" in first else "messages"


def _with_system(record: Record, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    system = text_of(record, "system", required=False)
    if not system:
        return prompt
    if prompt[0].role == "system":
        if prompt[0].content == system:
            return prompt
        raise RecordError(
            f"found {system!r:.60} beside the conversation's own, {prompt[0].content!r:.60}; expected one; to leave "
            "this one out: --columns unread=system",
            field="system",
            reason="two_system_messages",
        )
    return (Message(role="system", content=system), *prompt)


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """One adapter."""
    return [Preference()]
