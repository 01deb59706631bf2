"""Preference data: a prompt with a chosen and a rejected answer, in the layouts that such files have."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from templatekit_prompt_completion import READ, conversation, untrained, written
from templatekit_transcript import is_transcript, read_transcript

from templatekit import Adapter, Example, Message, PreferenceExample, Record, RecordError, hookimpl, text_of, tools_of

PROMPTS = ("prompt", "conversations", "instruction")
"""Under which a record may hold the prompt."""

_OPEN = re.compile(r"\s*Human:\s.*\n\nAssistant:\s*", re.DOTALL)
"""A transcript that ends where the answer begins."""


class Preference(Adapter):
    """`chosen` and `rejected`, each text, a message or messages, and the prompt that they answer.

    The prompt is `prompt` (text or messages), `conversations` (ShareGPT's turns), or `instruction`; `input` goes with a
    text. Without one, `chosen` and `rejected` are whole conversations, as messages or as transcripts, and the prompt is
    the messages with which both begin. Answers within the prompt have weight 0.
    """

    name = "preference"
    description = "chosen, rejected: text or messages; prompt, conversations, instruction, or none; optional system"
    keys = (*PROMPTS, "input", "chosen", "rejected", "system", "tools")
    inner_keys: ClassVar[Mapping[str, frozenset[str]]] = dict.fromkeys((*PROMPTS, "chosen", "rejected"), READ)
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
        """The pair, parted behind the prompt."""
        prompt = _prompt(record)
        chosen, rejected = (_answer(record, key, prompt) for key in ("chosen", "rejected"))
        if not prompt or chosen[0].role != "assistant" or rejected[0].role != "assistant":
            shared = _shared(record, prompt, chosen, rejected)
            prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
        return PreferenceExample(
            messages=untrained(_with_system(record, prompt)),
            chosen=chosen,
            rejected=rejected,
            tools=tools_of(record),
        )

    def to_record(self, example: Example) -> Record:
        """The texts or messages, with `instruction` and `input` where the prompt has a context."""
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
    """The messages before the answers; none where the answers hold them."""
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
    if _is_open(record):
        return read_transcript(record[key], key)[:-1]
    return (Message(role="user", content=record[key], context=context),)


def _is_open(record: Record) -> bool:
    prompt = record.get("prompt")
    return isinstance(prompt, str) and _OPEN.fullmatch(prompt) is not None


def _answer(record: Record, key: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages of one side: without a prompt the whole conversation."""
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
        if _is_open(record):  # the blank is the marker's
            text = text.removeprefix(record["prompt"]).removeprefix(" ")
        messages = (Message(role="assistant", content=text),)
    if messages[-1].role != "assistant":
        raise RecordError(
            f"ends with a message of {messages[-1].role!r:.60}; expected the assistant's last",
            field=key,
            reason="no_response",
        )
    return messages


def _shared(
    record: Record, prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The messages with which two whole conversations begin; each keeps at least its last.

    Raises `RecordError` where they do not hold the prompt that is given beside them, or part at other messages than
    the assistant's: then they answer different prompts.
    """
    longest = min(len(chosen), len(rejected)) - 1
    count = next((i for i in range(longest) if chosen[i] != rejected[i]), longest)
    if any(message.content and message not in chosen[:count] for message in prompt):
        raise RecordError(
            f"found {prompt[-1].content!r:.60}; expected what chosen and rejected begin with, which are whole "
            "conversations; to leave the prompt out: --columns unread=prompt",
            field="prompt",
            reason="prompt_not_shared",
        )
    roles = {chosen[count].role, rejected[count].role}
    if not count or roles != {"assistant"}:
        raise RecordError(
            f"chosen and rejected part at a message of {' and '.join(map(repr, sorted(roles)))}; expected one prompt, "
            "and answers of the assistant's; to train on the chosen conversations as they are: "
            f"--columns {_whole(record['chosen'])}=chosen",
            field=f"chosen[{count}]",
            reason="prompts_differ",
        )
    return chosen[:count]


def _whole(value: object) -> str:
    """The column of the adapter that reads one conversation of this kind."""
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
